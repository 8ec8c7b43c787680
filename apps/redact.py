"""What is printed and kept has no passwords, tokens or keys in it. Pure.

What is a secret is told by where it stands: before the @ of a URL, after a name that says so, or by how it begins. More
is taken out rather than less.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

_NAME: Final = (
    r"(?!(?:bos|eos|pad|unk|sep|cls|mask)_token(?![\w-]))"  # Tokens of text.
    r"[\w-]*(?:token|key|secret|signature|sig|auth|pass(?:word|wd|phrase)?|pwd|credentials?)"
)
_PLAIN_NAME: Final = r"(?:[\w-]*(?:pass(?:word|wd|phrase)|(?:api|secret|access)[-_]?key)|client[-_]secret)"
_VALUE: Final = r"""(?:"[^"]*"|'[^']*'|[^&\s"']+)"""
_BEGINNINGS: Final = (
    r"hf_[A-Za-z0-9]{8,}",
    r"(?:AKIA|ASIA)[A-Z0-9]{12,}",
    r"AIza[\w-]{30,}",
    r"gh[oprsu]_[A-Za-z0-9]{16,}",
    r"github_pat_\w{16,}",
    r"glpat-[\w-]{16,}",
    r"sk-[\w-]{12,}",
    r"xox[a-z]-[\w-]{8,}",
    r"eyJ[\w-]{8,}\.[\w.-]{8,}",
)
_SECRETS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), instead)
    for pattern, instead in (
        # Up to the last @: a password may have one of its own, and slashes. A `Path` of a URL has lost one of its two.
        (r"(?<=:/)(/?)[^\s\"'<>]*@", r"\1***@"),
        (r"\b(authorization[\"']?\s*[:=]\s*[\"']?(?:(?:basic|bearer|digest|token)\s+)?)[^\s\"']+", r"\1***"),
        (r"\b(bearer\s+)[\w.~+/=-]{8,}", r"\1***"),
        (r"([?&#][\w.-]*(?:token|key|secret|sig|auth|pass|pwd|credential)[\w.-]*=)[^&\s\"']+", r"\1***"),
        # Not of a bare key=, which is how Python sorts, as lines of code in a traceback do.
        (rf"(?<![\w-])(?!key=)({_NAME}=){_VALUE}", r"\1***"),
        (rf"(?<![\w-])(--{_NAME}\s+)(?!-){_VALUE}", r"\1***"),
        # As headers and drivers write them. Before a colon may stand a word of a sentence, too.
        (rf"(?<![\w-])({_PLAIN_NAME}\s*[:=]\s*){_VALUE}", r"\1***"),
        (rf"([\"']{_NAME}[\"']\s*:\s*)(?:\"[^\"]*\"|'[^']*')", r'\1"***"'),
    )
) + tuple((re.compile(rf"\b{beginning}"), "***") for beginning in _BEGINNINGS)


def without_secrets(text: str) -> str:
    """`text` with what looks like a password, a token or a key taken out.

    >>> without_secrets("--weights https://x.org/m?token=abc&v=1 hf_abcdefghij")
    '--weights https://x.org/m?token=***&v=1 ***'
    >>> without_secrets("sftp://me:p@ss/word@host/run --api-key abc")
    'sftp://***@host/run --api-key ***'
    """
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def plain_values(value: Any) -> Any:
    """`value` as values of JSON, without secrets.

    >>> plain_values({"data": "s3://key:word@bucket/x", "betas": (0.9, 0.95)})
    {'data': 's3://***@bucket/x', 'betas': [0.9, 0.95]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) if _is_open(str(key), item) else "***" for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else without_secrets(str(value))


def _is_open(name: str, value: Any) -> bool:
    """Whether what has this name may be seen: the tokenizer and the number of tokens may, for example."""
    return not isinstance(value, str) or re.fullmatch(_NAME, name, re.IGNORECASE) is None
