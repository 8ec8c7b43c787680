"""What files of settings were called before, as data: a file of an older version is read as one of this version. Pure.

A version is that of the names and meanings of keys. Whoever renames a field, or takes one away, adds one to `VERSION`
and a line to `CHANGES`; the files of all versions before go on to be read, or are refused with what to do.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from strict_yaml import Items, Keys, Tree, Word

VERSION: Final = 1
"""Of files that are written, and of those that do not say."""
_NONE: Final[Mapping[str, str]] = MappingProxyType({})


class Changes(NamedTuple):
    """What the next version calls otherwise."""

    renamed: Mapping[str, str] = _NONE
    """Keys of the top, by what they were."""
    meant: Mapping[tuple[str, str], str] = MappingProxyType({})
    """Words of a key, by what they were; by the new key."""
    listed: tuple[str, ...] = ()
    """Keys whose value was one word, and is a list."""
    gone: Mapping[str, str] = _NONE
    """Keys that are no more, and what to do instead."""


CHANGES: Final[Mapping[int, Changes]] = MappingProxyType(
    {
        # Flags as they were before there were files.
        0: Changes(
            meant=MappingProxyType({("experts", "transformers"): "eager"}),
            listed=("data",),
            gone=MappingProxyType(
                {
                    "links": "ranks of one host talk by collectives alone; leave it out",
                    "unit_blocks": "how blocks are gathered is decided by their size; leave it out",
                }
            ),
        ),
    }
)
"""By the version that they change."""


def migrate(tree: Keys, path: str, problems: list[str]) -> Keys:
    """`tree`, of file `path`, as one of `VERSION`, without the key that says which it is.

    Args:
        tree: of the file.
        path: of the file, for what is told.
        problems: what is wrong with its version, or is no more, is added here.
    """
    said = next((value for key, value in tree.items if key.text == "version"), None)
    rest = Keys(tuple(item for item in tree.items if item[0].text != "version"), tree.line)
    if said is None:
        return rest
    if not isinstance(said, Word) or said.kind != "int":
        problems.append(f"{path}:{said.line}: version has to be a whole number: {VERSION} is that of this app.")
        return rest
    version = int(said.text, 0) if said.text.startswith("0x") else int(said.text)
    if version not in range(min(CHANGES), VERSION + 1):
        problems.append(
            f"{path}:{said.line}: version {version} is not known here, where {min(CHANGES)} to {VERSION} are: read it "
            "with the app that wrote it, or take the line out and see what is told of its keys."
        )
        return rest
    for before in range(version, VERSION):
        rest = Keys(tuple(_changed(rest, CHANGES[before], f"{path}:", before, problems)), rest.line)
    return rest


def _changed(tree: Keys, changes: Changes, at: str, version: int, problems: list[str]) -> list[tuple[Word, Tree]]:
    """The keys of the top as the next version has them."""
    items = []
    for key, given in tree.items:
        if key.text in changes.gone:
            problems.append(f"{at}{key.line}: {key.text} of version {version} is no more: {changes.gone[key.text]}.")
            continue
        name, value = changes.renamed.get(key.text, key.text), given
        if isinstance(value, Word):
            value = value._replace(text=changes.meant.get((name, value.text), value.text))
            value = Items((value,), value.line) if name in changes.listed else value
        items.append((key._replace(text=name), value))
    return items
