"""The navigation of the site, which is the lists of its first page: a section for each heading, an entry for each link.

A guide that no list names yet comes after the others, by its title. Pure.
"""

import re
from collections.abc import Sequence
from typing import Final

_SECTION: Final = re.compile(r"^## (?P<title>.+)$", re.MULTILINE)
_ENTRY: Final = re.compile(r"^- \[(?P<title>[^\]]+)\]\((?P<page>[^)#]+)\.md\)", re.MULTILINE)
GUIDES: Final = "Guides"


def list_sections(index: str) -> dict[str, list[tuple[str, str]]]:
    """The entries of each section of `index`, a title and a page, in their order.

    >>> list_sections("## Guides\\n\\n- [Data](data.md): sources\\n- [Style](style.md)")
    {'Guides': [('Data', 'data'), ('Style', 'style')]}
    """
    _, *parts = _SECTION.split(index)
    sections = zip(parts[::2], parts[1::2], strict=True)
    return {title: [(said["title"], said["page"]) for said in _ENTRY.finditer(text)] for title, text in sections}


def add_navigation(index: str, guides: Sequence[str]) -> str:
    """`index` with a hidden list of contents for each section; those of `guides` that it does not name are added."""
    sections = list_sections(index)
    known = {page for entries in sections.values() for _, page in entries}
    pieces = [index]
    for title, entries in sections.items():
        listed = [f"{name} <{page}>" for name, page in entries]
        listed += [page for page in guides if page not in known] if title == GUIDES else []
        pieces.append("\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *listed, "```"]))
    return "\n\n".join(pieces) + "\n"
