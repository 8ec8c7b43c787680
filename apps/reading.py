"""What a file of settings says, by the types of a configuration: strict at every depth, and all that is wrong at once.

A value is what its type says and nothing near it: 3 is no text, 1.5 no whole number, and one word no list. Pure.
"""

from collections.abc import Mapping
from difflib import SequenceMatcher
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin

from fields import NAMED, flat_keys, is_struct, keys_of, members_of, paths_of, structs_of
from strict_yaml import Items, Keys, Tree, Word, number_of


class Reading(NamedTuple):
    """A file that is read as the settings of a `kind`."""

    path: str
    kind: type
    problems: list[str]
    """All that is wrong with it is added here, with its line."""

    def of_keys(self, tree: Keys, kind: type, above: str = "") -> dict[str, Any]:
        """What `tree`, the mapping below the key `above`, gives of a `kind`, by key."""
        known, given = flat_keys(kind), {}
        for key, value in tree.items:
            path = f"{above}{key.text}"
            if key.text in known:
                given[key.text] = self._of(value._replace(line=key.line), known[key.text], path)
            else:
                self._tell(key, f"there is no key {path}. {nearest(key.text, above, kind, self.kind)}")
        return given

    def _of(self, tree: Tree, hint: Any, path: str) -> Any:
        """The value of the key `path`; None once it is told that there is none of its type."""
        for one in members_of(hint):
            if fits(tree, one):
                break
        else:
            self._tell(tree, f"{path} is {_said(tree)}, and has to be {describe(hint)}.{_meant(tree, hint)}")
            return None
        if isinstance(tree, Keys):
            return self._of_mapping(tree, hint, one, path)
        if isinstance(tree, Items):
            inner = get_args(one)
            each = [inner[0]] * len(tree.items) if inner[-1] is Ellipsis or get_origin(one) is list else inner
            pairs = enumerate(zip(tree.items, each, strict=True))
            items = [self._of(item, kind, f"{path}[{i}]") for i, (item, kind) in pairs]
            return items if get_origin(one) is list else tuple(items)
        if tree.kind == "str" and "***" in tree.text:
            self._tell(tree, f"{path} has *** where a secret was left out: write it in, or give it by its flag.")
        return _word(tree, one)

    def _of_mapping(self, tree: Keys, hint: Any, one: Any, path: str) -> Any:
        if not is_struct(one):
            inner = get_args(one)[1]
            return {key.text: self._of(value, inner, f"{path}.{key.text}") for key, value in tree.items}
        structs = {struct.__name__: struct for struct in structs_of(hint)}
        if len(structs) == 1:
            return self.of_keys(tree, one, f"{path}.")
        named = next((value for key, value in tree.items if key.text == NAMED), tree)
        name = named.text if isinstance(named, Word) else ""
        if name not in structs:
            self._tell(named, f"{path} needs a key {NAMED}, one of {', '.join(structs)}.")
            return None
        rest = Keys(tuple(item for item in tree.items if item[0].text != NAMED), tree.line)
        return {NAMED: name, **self.of_keys(rest, structs[name], f"{path}.")}

    def _tell(self, at: Tree, problem: str) -> None:
        self.problems.append(f"{self.path}:{at.line}: {problem}")


def fits(tree: Tree, hint: Any) -> bool:
    """Whether what is written is of the type, seen from outside: what is in it is looked at by itself."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(tree, Keys):
        return is_struct(hint) or origin in _MAPPINGS
    if isinstance(tree, Items):
        return origin in (tuple, list) and (inner[-1] is Ellipsis or origin is list or len(inner) == len(tree.items))
    if origin is Literal:
        return any(fits(tree, type(value)) and _word(tree, type(value)) == value for value in inner)
    kinds = {NoneType: "null", bool: "bool", int: "int", float: ("int", "float"), str: "str", Path: "str"}
    return tree.kind in kinds.get(hint, ())


def describe(hint: Any) -> str:
    """A type in words.

    >>> describe(int | None), describe(tuple[float, float]), describe(Literal["a", "b"])
    ('a whole number or null', 'a list of 2, each a number', 'a or b')
    """
    return " or ".join(dict.fromkeys(map(_describe, members_of(hint))))


def _describe(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if is_struct(hint):
        return f"a mapping with keys of {', '.join(flat_keys(hint))}"
    if origin in _MAPPINGS:
        return f"a mapping, each value {describe(inner[1])}"
    if origin in (tuple, list):
        many = "" if inner[-1] is Ellipsis or origin is list else f" of {len(inner)}"
        return f"a list{many}, each {describe(inner[0])}"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def nearest(name: str, above: str, kind: type, root: type) -> str:
    """What may be meant by the key `name` below `above`, where a `kind` has none of it."""
    known, paths = flat_keys(kind), paths_of(root)
    plain = name.replace("-", "_").lower()
    if plain in paths and "." in plain and not above:
        return f"Write {plain.rsplit('.', 1)[1]} in the mapping of {plain.rsplit('.', 1)[0]}."
    if inside := next((key for key in keys_of(root) if key.inside and key.name == name), None):
        return f"Its keys stand by themselves, as its flags do: {', '.join(flat_keys(inside.hint))}."
    elsewhere = {path: path.rsplit(".", 1)[-1] for path in paths}
    exact = [path for path, last in elsewhere.items() if last == plain]
    close = _closest(plain, {f"{above}{key}": key for key in known})
    near = close if plain in known else exact or close or _closest(plain, elsewhere)
    return f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(known)}."


def _closest(name: str, named: Mapping[str, str]) -> list[str]:
    """The keys of `named` whose values are most like `name`, if they are like it at all."""
    like = {path: SequenceMatcher(None, name, last).ratio() for path, last in named.items()}
    most = max(like.values(), default=0.0)
    return [path for path, ratio in like.items() if ratio == most][:4] if most >= 0.5 else []


def _word(word: Word, hint: Any) -> Any:
    """The value of a word that fits."""
    if get_origin(hint) is Literal:
        return next(one for one in get_args(hint) if fits(word, type(one)) and _word(word, type(one)) == one)
    if word.kind in ("null", "bool"):
        return None if word.kind == "null" else word.text.lower() == "true"
    return hint(word.text if word.kind == "str" else number_of(word.text))


def _said(tree: Tree) -> str:
    if isinstance(tree, Word):
        return "null" if tree.kind == "null" else repr(tree.text) if tree.kind == "str" else tree.text
    return f"a list of {len(tree.items)}" if isinstance(tree, Items) else "a mapping"


def _meant(tree: Tree, hint: Any) -> str:
    """What to write instead."""
    if not isinstance(tree, Word):
        return ""
    members = members_of(hint)
    if tree.kind in ("int", "float", "bool") and {str, Path} & {*members}:
        return f" Text that looks like this stands in quotes: '{tree.text}'."
    if any(get_origin(one) in (tuple, list) for one in members) and tree.kind != "null":
        return f" Write [{tree.text}]."
    if tree.kind == "null":
        return " Leave the key out for what it is by itself."
    words = {str(value): str(value) for one in members if get_origin(one) is Literal for value in get_args(one)}
    near = _closest(tree.text, words)
    return f" Did you mean {' or '.join(near)}?" if near else ""


_MAPPINGS: Final = (dict, Mapping, get_origin(Mapping[str, int]))
_WORDS: Final = {
    **{NoneType: "null", bool: "true or false", int: "a whole number", float: "a number"},
    **{str: "text", Path: "a path"},
}
