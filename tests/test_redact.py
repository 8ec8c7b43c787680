"""No password, token or key that a user gives is printed or kept, and what is none stays as it is."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint import as_plain, tell
from decide import decide
from hypothesis import given
from hypothesis import strategies as st
from redact import plain_values, without_secrets
from request import Config
from training import SMALL
from watch import what_next

from omni_ckpt import Report

ROOT = Path(__file__).parent.parent
URL = "sftp://me:hun/ter2@x@host/run"
"""With a password that has a slash and an @."""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("s3://AKIAIOSFODNN7EXAMPLE:wJalr/K7MDENG/bPx+Key@bucket/run", "s3://***@bucket/run"),
        ("there is no sftp://me:p@ss/word@host/run, or", "there is no sftp://***@host/run, or"),
        ('"sftp://me:word@host/run" me@home', '"sftp://***@host/run" me@home'),
        (str(Path("sftp://me:word@host/run")), "sftp:/***@host/run"),
        ("https://x/c?sv=2022&sig=AbC%2Bs&se=2030", "https://x/c?sv=2022&sig=***&se=2030"),
        ("https://x/m?auth=A&pass=B&pwd=C&v=1", "https://x/m?auth=***&pass=***&pwd=***&v=1"),
        (
            "https://x/m?X-Amz-Credential=A%2F1&X-Amz-Signature=B",
            "https://x/m?X-Amz-Credential=***&X-Amz-Signature=***",
        ),
        ("https://x/m?AWSAccessKeyId=A&v=1", "https://x/m?AWSAccessKeyId=***&v=1"),
        ("--token=abcdefgh --steps=3", "--token=*** --steps=3"),
        ("--api-key abcdefgh --steps 3", "--api-key *** --steps 3"),
        ("--token 'a b' --steps 3", "--token *** --steps 3"),
        ("--token --steps 3", "--token --steps 3"),
        ("AWS_SECRET_ACCESS_KEY=abc uv run", "AWS_SECRET_ACCESS_KEY=*** uv run"),
        ("{'api_key': 'abc', 'steps': '3'}", "{'api_key': \"***\", 'steps': '3'}"),
        ('{"key": ["seed", "step"]}', '{"key": ["seed", "step"]}'),
        ("Authorization: Bearer eyJhbGciOi.SECRET", "Authorization: Bearer ***"),
        ("authorization: Basic abc=", "authorization: Basic ***"),
        ("bearer abcdefgh-1", "bearer ***"),
        ("got hf_abcdefgh1234.", "got ***."),
        ("got ghp_abcdefghijklmnopqrstuvwxyz0123456789.", "got ***."),
        ("got github_pat_11ABCDEFG0123456789_abc.", "got ***."),
        ("got sk-proj-abcdefghijklmnop.", "got ***."),
        ("got xoxb-123456789-abc.", "got ***."),
        ("got AKIAIOSFODNN7EXAMPLE.", "got ***."),
        ("got eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJ", "got ***"),
        ("password: abc, x-api-key: def", "password: *** x-api-key: ***"),
        ("api_key: abc client_secret = def", "api_key: *** client_secret = ***"),
        ("no token: it is a key: value", "no token: it is a key: value"),
        ("sorted(paths, key=size, reverse=True)", "sorted(paths, key=size, reverse=True)"),
        ('eos_token="<eos>" pad_token=x {"bos_token": "<s>"}', 'eos_token="<eos>" pad_token=x {"bos_token": "<s>"}'),
        ("--tokenizer bytes --tokens 100 --keep 2", "--tokenizer bytes --tokens 100 --keep 2"),
    ],
)
def test_secrets_are_taken_out_and_the_rest_stays(text: str, told: str) -> None:
    assert without_secrets(text) == told
    assert without_secrets(told) == told


SECRET = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S"), exclude_characters="\"'<>"), min_size=6)


@given(SECRET, st.sampled_from(["s3", "sftp", "https", "abfs", "memory"]), st.sampled_from(["", " ", "\n", '"']))
def test_no_password_of_a_url_is_told_whatever_is_in_it(secret: str, scheme: str, after: str) -> None:
    told = without_secrets(f"see {scheme}://me:{secret}@host/run{after}")
    assert told == f"see {scheme}://***@host/run{after}"


def test_what_the_documents_say_has_no_secret() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/README.md")]:
        assert without_secrets(path.read_text()) == path.read_text()


def test_configurations_are_kept_without_secrets() -> None:
    plain = plain_values(
        {"data": URL, "weights": ("hf_abcdefgh1234", None), "lr": 0.1, "shuffle": True, "out": Path("a")}
    )
    assert plain_values({"api_key": "abc", "tokenizer": "bytes", "key": ["seed"]}) == {
        **{"api_key": "***", "tokenizer": "bytes", "key": ["seed"]},
    }
    assert plain == {"data": "sftp://***@host/run", "weights": ["***", None], "lr": 0.1, "shuffle": True, "out": "a"}


def test_what_to_type_next_and_what_is_told_of_checkpoints_have_no_secret() -> None:
    told = what_next(replace(Config(), save_to=URL), 5, since=1)
    assert "--checkpoints sftp://***@host/run --to" in told and "ter2" not in told
    decision = replace(decide(SMALL, 1), start=f"continues {URL}")
    assert "continues sftp://***@host/run" in decision.told() and "ter2" not in decision.told(Path(URL), URL, [URL])
    report = Report(Path(URL), 0, 0, (f"{URL} is damaged",))
    assert "ter2" not in json.dumps(as_plain(report)) and "ter2" not in without_secrets(tell(report))


MAIN = f"""
import sys
from dataclasses import dataclass
from pathlib import Path
from preflight import start
from omni_mesh import MeshConfig

@dataclass(frozen=True)
class Config:
    mesh: MeshConfig = MeshConfig()
    max_restarts: int = 0
    out: Path = Path("run")
    refuse: bool = False
    refuse_later: bool = False

def decide(config):
    if config.refuse:
        raise ValueError({f"nothing is at {URL}"!r})

def main(config):
    if config.refuse_later:
        raise ValueError({f"nothing is at {URL}"!r})
    raise RuntimeError({URL!r})

if __name__ == "__main__":
    start(main, decide, Config, "")
"""

LATE = """error: nothing is at sftp://***@host/run
The traceback is in run/errors.log.
"""


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        (["--refuse"], 2, "error: nothing is at sftp://***@host/run\n"),
        (["--refuse-later"], 2, LATE),
        (["--refuse-later", "--mesh.shard", "2"], 2, LATE),
        ([], 1, "\nRuntimeError: sftp://***@host/run\n"),
        (["--mesh.shard", "2"], 1, "\nRuntimeError: sftp://***@host/run\n"),
    ],
    ids=["refused", "refused by the run", "refused by a rank", "failed", "failed on a rank"],
)
def test_no_failure_is_told_with_a_secret(asked: list[str], code: int, words: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(MAIN)
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    path = os.pathsep.join([str(ROOT / "apps"), env.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script, *asked],
        env=env | {"PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code
    assert done.stderr.endswith(words)
    assert "ter2" not in done.stdout + done.stderr
    if code == 2:
        assert done.stderr == words, "once, and no traceback"
    log = tmp_path / "run" / "errors.log"
    assert log.exists() == (words == LATE)
    if log.exists():
        kept = log.read_text()
        assert ", in main\n" in kept and "ValueError: nothing is at sftp://***@host/run" in kept
        assert "ter2" not in kept
