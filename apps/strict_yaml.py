"""YAML read strictly, with the line of everything; and values as such YAML.

What a plain word is, is told by the core schema of YAML 1.2: true and false, null, whole numbers, and numbers, of which
1e-5 is one without a dot, too. Every other word is text: no, on, 12:30 and 1_000 are. Keys that stand twice, tags, and
files of several documents are refused.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Kind = Literal["null", "bool", "int", "float", "str"]
_KINDS: Final[tuple[tuple[Kind, re.Pattern[str]], ...]] = (
    ("null", re.compile(r"~|null|Null|NULL|")),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE")),
    ("int", re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")),
    ("float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")),
)


class Word(NamedTuple):
    """A scalar: its text as it is written, what it is, and where it stands."""

    text: str
    kind: Kind
    line: int


class Items(NamedTuple):
    """A list."""

    items: tuple["Tree", ...]
    line: int


class Keys(NamedTuple):
    """A mapping; each key has a line of its own."""

    items: tuple[tuple[Word, "Tree"], ...]
    line: int


Tree = Word | Items | Keys


class _Loader(yaml.SafeLoader):
    """Leaves plain words as they are written."""

    yaml_implicit_resolvers: Mapping[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    """Mappings in lines, lists in one."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style=_style_of(text))
)


def kind_of(text: str) -> Kind:
    """What a plain word is. Pure.

    >>> [kind_of(text) for text in ("no", "1e-5", "-3", ".inf", "null", "True", "1_000")]
    ['str', 'float', 'int', 'float', 'null', 'bool', 'str']
    """
    for kind, pattern in _KINDS:
        if pattern.fullmatch(text):
            return kind
    return "str"


def _style_of(text: str) -> str | None:
    """How a text is quoted: escaped if it has line breaks of any kind, and at all if it is no text without."""
    if any(character in text for character in "\n\r\x85\u2028\u2029"):
        return '"'
    return None if kind_of(text) == "str" else "'"


def number_of(text: str) -> float:
    """The number that a word of kind int or float is. Pure.

    >>> number_of("0x10"), number_of("1e-5"), number_of("-.inf")
    (16, 1e-05, -inf)
    """
    if kind_of(text) == "int":
        return int(text, 0) if text.startswith("0x") or text.startswith("0o") else int(text)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def read_yaml(path: Path) -> tuple[Keys, list[str]]:
    """The mapping that `path` is, and what is wrong with it, each problem with file and line. Effect: reads a file.

    Raises:
        ValueError: if it is no mapping, or cannot be read at all.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
    except OSError as problem:
        raise ValueError(f"{path} cannot be read: {problem.strerror}.") from problem
    except UnicodeDecodeError as problem:
        raise ValueError(
            f"{path} is no text in UTF-8: byte {problem.start} is {problem.object[problem.start]:#x}."
        ) from problem
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        said = ", ".join(filter(None, (problem.context, problem.problem)))
        raise ValueError(f"{path}{at}: no YAML: {said}.") from problem
    except yaml.reader.ReaderError as problem:
        raise ValueError(f"{path}: no YAML: character {problem.position} is not allowed in it.") from problem
    if node is None:
        return Keys((), 1), []
    told: list[str] = []
    tree = _tree_of(node, str(path), told, ())
    if not isinstance(tree, Keys):
        raise ValueError(f"{path}:{tree.line}: settings are a mapping, lines of `key: value`, and here is none.")
    return tree, told


def _tree_of(node: Node, path: str, told: list[str], above: tuple[Node, ...]) -> Tree:
    line = node.start_mark.line + 1
    if any(node is one for one in above):
        told.append(f"{path}:{line}: an alias stands inside of what it names: write it out.")
        return Word("", "null", line)
    if node.tag not in _TAGS:
        told.append(f"{path}:{line}: the tag {node.tag} has no meaning here: leave it out.")
    if isinstance(node, ScalarNode):
        return Word(node.value, "str" if node.style else kind_of(node.value), line)
    if isinstance(node, SequenceNode):
        return Items(tuple(_tree_of(item, path, told, (*above, node)) for item in node.value), line)
    assert isinstance(node, MappingNode)
    return Keys(tuple(_items_of(node, path, told, (*above, node))), line)


def _items_of(node: MappingNode, path: str, told: list[str], above: tuple[Node, ...]) -> Iterator[tuple[Word, Tree]]:
    """The keys of a mapping and what stands there; of a key that stands twice, the first."""
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, ScalarNode):
            told.append(f"{path}:{line}: a key is a word, and here is a list or a mapping.")
        elif key.value in lines:
            told.append(f"{path}:{line}: {key.value} stands in line {lines[key.value]} already: leave one of them out.")
        else:
            lines[key.value] = line
            yield Word(key.value, "str", line), _tree_of(value, path, told, above)


_TAGS: Final = (
    *("tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"),
    "!",  # Of a word in quotes.
)


def tell_yaml(values: Mapping[str, Any]) -> str:
    """`values` as YAML, of which `read_yaml` reads the same, and so do readers of YAML 1.1. Pure.

    >>> print(tell_yaml({"steps": 3, "field": "no", "optim": {"lr": 1e-5, "betas": [0.9, 0.95]}}), end="")
    steps: 3
    field: 'no'
    optim:
      lr: 1.0e-05
      betas: [0.9, 0.95]
    """
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
