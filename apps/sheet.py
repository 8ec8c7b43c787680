"""The look of pages: one file without network, light and dark, for wide and narrow windows. What is put on a page goes
through `words`, which takes out secrets. Pure, but for reading its own style."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final

from redact import without_secrets

LIGHT: Final[Mapping[str, str]] = {
    **{"paper": "#f8f8f6", "card": "#ffffff", "ink": "#1d2126", "soft": "#5f6771", "line": "#e3e4e2"},
    **{"grid": "#ecedeb", "axis": "#b9bdc1", "bad": "#b3261e", "good": "#1a7f4b", "warn": "#8a5a00"},
    **{"c0": "#0072b2", "c1": "#d55e00", "c2": "#009e73", "c3": "#aa4499", "c4": "#a67c00", "c5": "#3f9fd6"},
    **{"c6": "#882255", "c7": "#6b7076"},
}
"""Colours by name, for light. Those of curves are told apart by people who do not see all colours, too (after Okabe and
Ito, 2008, and Tol, 2021), and each stands out from the paper."""
DARK: Final[Mapping[str, str]] = {
    **{"paper": "#131517", "card": "#1b1e21", "ink": "#e7e9eb", "soft": "#9aa3ad", "line": "#2d3236"},
    **{"grid": "#282c30", "axis": "#565e66", "bad": "#ff8a80", "good": "#6fd39b", "warn": "#e6b450"},
    **{"c0": "#5db0ee", "c1": "#ff9257", "c2": "#41d3a5", "c3": "#e48fd6", "c4": "#e3b94a", "c5": "#a3dbff"},
    **{"c6": "#f27fae", "c7": "#b4bac0"},
}
CURVES: Final = 8
"""Colours of curves."""


def words(text: object) -> str:
    """`text` as it stands on a page: without secrets, and no part of it is markup."""
    return escape(without_secrets(str(text)))


def make_sheet(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A page, as HTML.

    Args:
        title: as text.
        body: as HTML.
        style: of this kind of page, beside that of all.
        script: as JavaScript.
    """
    colours = (
        f":root {{ {_variables(LIGHT)} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}"
    )
    common = Path(__file__).with_suffix(".css").read_text()
    run = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{words(title)}</title>\n<style>\n{colours}\n{common}{style}</style></head>\n"
        f"<body>\n{body}\n{run}</body></html>\n"
    )


def make_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, label: str = "", numbers: bool = True) -> str:
    """A table, as HTML, which scrolls by itself where it is wider than the page.

    Args:
        heads: of columns, as HTML.
        rows: of cells, as HTML; the first of each is its name.
        label: what it is of, for who does not see it.
        numbers: cells but the first of each row stand at the right.
    """
    kind = ' class="n"' if numbers else ""
    first, *others = heads
    head = f'<th scope="col">{first}</th>' + "".join(f'<th scope="col"{kind}>{one}</th>' for one in others)
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td{kind}>{cell}</td>" for cell in cells)}</tr>\n'
        for name, *cells in rows
    )
    told = f' role="region" aria-label="{escape(label)}" tabindex="0"' if label else ""
    return f'<div class="scroll"{told}><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def plain_style(style: str) -> str:
    """`style` with the colours of light written out, for what knows no variables."""
    for name, value in LIGHT.items():
        style = style.replace(f"var(--{name})", value)
    return style


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())
