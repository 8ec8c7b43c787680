"""Charts as pictures: the SVG of the page, turned into PNG by resvg, which is the extra `png`."""

import re
from collections.abc import Sequence
from typing import Any, Final

from charts import STYLE, WIDE, Frame, draw
from panels import Panel
from sheet import LIGHT, plain_style

_NARROW: Final = Frame(width=560, height=300)
_SCALE: Final = 2
"""Dots of a pixel in each direction."""


def make_pictures(panels: Sequence[Panel]) -> dict[str, bytes]:
    """By name of the file, each chart with steps along it, with its title and key. Effect: reads fonts of the system.

    Raises:
        ValueError: if resvg is not installed, or there is no font to write with.
    """
    try:
        import resvg_py
    except ModuleNotFoundError as missing:
        raise ValueError(
            "--png needs resvg, which is not installed here: uv run --extra png apps/report.py and the same flags."
        ) from missing
    render: Any = resvg_py.svg_to_bytes
    style = plain_style(STYLE)
    blank = '<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 20 20"></svg>'
    letter = blank.replace("></", '><text x="4" y="15">8</text></')
    if _render(render, blank, style) == _render(render, letter, style):
        raise ValueError("there is no font to write with: install one, on Debian by apt install fonts-dejavu-core.")
    pictures: dict[str, bytes] = {}
    for panel in panels:
        frame = WIDE if panel.name == "loss" else _NARROW
        names = (f"{file_name(panel.name)}{n}.png" for n in ("", *(f"-{n}" for n in range(2, len(panels) + 2))))
        name = next(name for name in names if name not in pictures)
        pictures[name] = _render(render, draw(panel, axis="step", frame=frame, titled=True), style)
    return pictures


def file_name(name: str) -> str:
    """`name` of a metric as that of a file. Pure.

    >>> file_name("loss/web"), file_name("../x y")
    ('loss-web', '-x-y')
    """
    return re.sub(r"[^\w-]+", "-", name)


def _render(render: Any, svg: str, style: str) -> bytes:
    return bytes(
        render(svg_string=svg.replace(">", f"><style>{style}</style>", 1), background=LIGHT["card"], zoom=_SCALE)
    )
