"""The public names of a package as Markdown: each with its signature and docstring, below the module that defines it.

Read from the source by griffe, without importing it: packages look their names up when they are asked for, and their
`__init__` says in which module each is. Docstrings are Markdown with sections of Google's style. Pure, but for reading.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import griffe

_EXAMPLE: Final = re.compile(r"^(>>> .*(?:\n.+)*)", re.MULTILINE)
_NAME: Final = re.compile(r"(?<!`)`([A-Za-z_]\w*)`(?!`)")
_FIELDS: Final = {
    "parameters": "param",
    "attributes": "ivar",
    "raises": "raises",
    "returns": "returns",
    "yields": "yields",
}
_STARS: Final = {"variadic positional": "*", "variadic keyword": "**"}
_LONGEST: Final = 80
"""Characters of a value that is shown."""


@dataclass(frozen=True, slots=True)
class _Exports:
    """What a package exports; its names become links where its docstrings have them."""

    package: str
    names: frozenset[str]


def describe_names(package: Path) -> str:
    """All that the package in the folder `package` exports, as Markdown for MyST: a heading for each module."""
    top = griffe.load(package.name, search_paths=[package.parent], resolve_aliases=True, allow_inspection=False)
    # Not by its members, among which a module may stand in the place of what it is named for.
    found = {
        name: top.modules_collection[path] for name, path in top.imports.items() if path.startswith(f"{top.path}.")
    }
    found = {name: one.final_target if one.is_alias else one for name, one in found.items() if name[0] != "_"}
    exports = _Exports(package.name, frozenset(found))
    homes: dict[str, list[str]] = {}
    for name in sorted(found, key=lambda name: (name.isupper(), name.lower())):
        homes.setdefault(found[name].module.path, []).append(name)
    pieces = ["## Every name", f"What `{package.name}` exports, by the module that defines it."]
    pieces += [f"```{{py:currentmodule}} {package.name}\n```"]
    for home in sorted(homes):
        module = top.modules_collection[home]
        pieces += [f"### {home.removeprefix(package.name + '.')}", _link(exports, _first_words(module), ())]
        pieces += [" ".join(_reference(exports, name) for name in homes[home])]
        pieces += [_describe(exports, name, found[name]) for name in homes[home]]
    return "\n\n".join(piece for piece in pieces if piece) + "\n"


def _first_words(module: Any) -> str:
    return module.docstring.value.split("\n\n")[0] if module.docstring else ""


def _describe(exports: _Exports, name: str, found: Any) -> str:
    """The directive of an object that is exported as `name`."""
    if found.is_function:
        return _directive(f"function}} {name}{_signature(found)}", [], _docs(exports, found))
    if not found.is_class:
        return _directive(f"data}} {name}", _options(found), _docs(exports, found))
    bases = {str(base).split("[")[0].split(".")[-1] for base in found.bases}
    raised = any(base.endswith(("Error", "Exception")) for base in bases)
    made = "" if raised or "Protocol" in bases else _signature(found)
    members = [_member(exports, member) for member in found.members.values() if _is_told(member)]
    content = [*_docs(exports, found), *members]
    return _directive(f"{'exception' if raised else 'class'}}} {name}{made}", [], content, fence=":" * 5)


def _is_told(member: Any) -> bool:
    return not member.is_alias and not member.name.startswith("_") and member.docstring is not None


def _member(exports: _Exports, found: Any) -> str:
    if found.is_function:
        return _directive(f"method}} {found.name}{_signature(found)}", [], _docs(exports, found))
    return _directive(f"attribute}} {found.name}", _options(found), _docs(exports, found))


def _directive(head: str, options: Sequence[str], content: Sequence[str], *, fence: str = "::::") -> str:
    return "\n\n".join(["\n".join([f"{fence}{{py:{head}", *options]), *content, fence])


def _options(found: Any) -> list[str]:
    value = "" if found.value is None else str(found.value)
    typed = [f":type: {found.annotation}"] if found.annotation is not None else []
    return [*typed, *([f":value: {value}"] if value and len(value) < _LONGEST and "\n" not in value else [])]


def _signature(found: Any) -> str:
    """The parameters of a function as they are written; of a class, those that make one; nothing if there are none."""
    given = [parameter for parameter in found.parameters if parameter.name not in ("self", "cls")]
    if found.is_class:
        return f"({', '.join(_parameters(given))})" if given else ""
    return f"({', '.join(_parameters(given))})" + (f" -> {found.returns}" if found.returns is not None else "")


def _parameters(given: Sequence[Any]) -> Iterator[str]:
    starred = False
    for parameter in given:
        kind = parameter.kind.value if parameter.kind else ""
        if kind == "keyword-only" and not starred:
            yield "*"
        starred |= kind in ("keyword-only", "variadic positional")
        stars = _STARS.get(kind, "")
        typed = f": {parameter.annotation}" if parameter.annotation is not None else ""
        default = f" = {parameter.default}" if parameter.default is not None and not stars else ""
        yield f"{stars}{parameter.name}{typed}{default}"


def _docs(exports: _Exports, found: Any) -> list[str]:
    """The docstring of an object, a piece for each section; none if it has no docstring."""
    own = tuple(parameter.name for parameter in found.parameters) if hasattr(found, "parameters") else ()
    sections = found.docstring.parse("google", warnings=False) if found.docstring else ()
    return [_section(exports, section.kind.value, section.value, own) for section in sections]


def _section(exports: _Exports, kind: str, value: Any, own: tuple[str, ...]) -> str:
    if kind == "text":
        return _link(exports, value, own)
    if kind not in _FIELDS:
        raise ValueError(f"a docstring of {exports.package} has a section of {kind}, which the site cannot show yet.")
    named = {"parameters": "name", "attributes": "name", "raises": "annotation"}.get(kind)
    fields = [(f"{_FIELDS[kind]} {getattr(item, named)}" if named else _FIELDS[kind], item) for item in value]
    said = [(field, _link(exports, item.description, own).replace("\n", "\n    ")) for field, item in fields]
    return "\n".join(f":{field}: {text}" for field, text in said)


def _reference(exports: _Exports, name: str) -> str:
    return f"{{py:obj}}`~{exports.package}.{name}`"


def _link(exports: _Exports, text: str, own: tuple[str, ...]) -> str:
    """`text` with its examples as blocks of code, and names of the package as links, but for those of `own`."""

    def link(said: re.Match[str]) -> str:
        known = said[1] in exports.names and said[1] not in own
        return _reference(exports, said[1]) if known else said[0]

    pieces = _EXAMPLE.split(text)
    return "".join(f"```pycon\n{said}\n```" if said.startswith(">>> ") else _NAME.sub(link, said) for said in pieces)
