"""From a name to a source. Everything that can be wrong with a source before its second document is found here.

    builtin                     English prose that ships with Python; nothing is downloaded
    notes.txt  notes.md         a document a line; blank lines are skipped (the convention of the `datasets` library)
    web.jsonl  web.json         a JSON object a line; blank lines are skipped
    web.parquet                 a document a row
    folder/  "web/*.jsonl"      such files in a folder and below it, or of a pattern, sorted by path
    saved/                      a folder written by `Dataset.save_to_disk`
    hf:NAME[:CONFIG][@SPLIT]    a dataset of the hub; the split is `train` unless named

In a folder, README files, names that start with "." or "_", and kinds not listed here are left out.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import accumulate, groupby
from pathlib import Path

from omni_data.columns import is_saved_dataset, open_hub, open_parquet, open_saved_dataset
from omni_data.document import Document, Source
from omni_data.lines import JsonLines, TextLines, find_lines
from omni_data.synth import builtin_corpus

_KINDS = {".txt": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True, slots=True, eq=False)
class Concatenated:
    """Sources one after the other, as one."""

    name: str
    parts: tuple[Source, ...]
    stops: tuple[int, ...]

    def __len__(self) -> int:
        return self.stops[-1]

    def __getitem__(self, i: int, /) -> Document:
        i = range(len(self))[i]
        part = bisect_right(self.stops, i)
        return self.parts[part][i - (self.stops[part - 1] if part else 0)]


def concatenate(name: str, parts: Sequence[Source]) -> Source:
    """The sources one after the other."""
    return Concatenated(name, tuple(parts), tuple(accumulate(map(len, parts))))


def open_source(spec: str, *, field: str = "text") -> Source:
    """The documents that `spec` names (the table above), the first of each file already checked.

    Effect: reads files; `hf:` downloads.

    Args:
        spec: a path, a pattern, `builtin`, or `hf:NAME[:CONFIG][@SPLIT]`.
        field: where a record keeps its document: a string, or a list of token ids.

    Raises:
        ValueError: if there is no such thing, it is empty, or its first record has no document in `field`.
    """
    if spec == "builtin":
        return builtin_corpus()
    if not spec:
        raise ValueError("no source is named; `builtin` needs no file.")
    if spec.startswith("hf:"):
        return _checked(open_hub(spec.removeprefix("hf:"), field))
    path = Path(spec).expanduser()
    if is_saved_dataset(path):
        return _checked(open_saved_dataset(path, field))
    parts = [
        _checked(part)
        for kind, paths in groupby(find_files(spec), key=lambda p: _KINDS[p.suffix.lower()])
        for part in _open_files(kind, list(paths), field)
    ]
    return parts[0] if len(parts) == 1 else concatenate(spec, parts)


def find_files(spec: str) -> list[Path]:
    """The files of a path or a pattern, sorted. Effect: looks at the disk.

    Raises:
        ValueError: if there are none, or a named one is of an unknown kind.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        inside = [p for p in sorted(path.rglob("*")) if p.is_file() and _is_data(p.relative_to(path))]
        if not inside:
            raise ValueError(f"{spec}: no file in this folder ends in {', '.join(_KINDS)}.")
        return inside
    files = [path] if path.is_file() else sorted(p for p in _matches(path) if p.is_file())
    if not files:
        raise ValueError(_no_such(spec, path))
    if unknown := [str(p) for p in files if p.suffix.lower() not in _KINDS]:
        raise ValueError(f"{', '.join(unknown[:5])}: the kind of a file is its ending, one of {', '.join(_KINDS)}.")
    return files


def _open_files(kind: str, paths: list[Path], field: str) -> list[Source]:
    if kind == "parquet":
        return [open_parquet(paths, field)]
    lines = [(path, find_lines(path)) for path in paths]
    if empty := [str(path) for path, starts in lines if not len(starts)]:
        raise ValueError(f"{', '.join(empty[:5])}: empty; there is no line that is not blank.")
    return [JsonLines(path, field, starts) if kind == "json" else TextLines(path, starts) for path, starts in lines]


def _checked(source: Source) -> Source:
    """The source, whose first document can be read."""
    source[0]
    return source


def _is_data(path: Path) -> bool:
    """Whether a file of a folder is meant as data: `path` is relative to that folder."""
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    return path.suffix.lower() in _KINDS and not hidden and path.stem.lower() != "readme"


def _matches(pattern: Path) -> Iterator[Path]:
    return Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))


def _no_such(spec: str, path: Path) -> str:
    """The complaint that nothing is at `path`, with the nearest name that is there."""
    if any(c in spec for c in "*?["):
        return f"{spec}: no file matches this pattern."
    if not path.parent.is_dir():
        return f"{spec}: no such file, and no folder {path.parent}. A dataset of the hub is spelled hf:NAME."
    near = get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    hint = f"Did you mean {path.parent / near[0]}?" if near else "A dataset of the hub is spelled hf:NAME."
    return f"{spec}: no such file. {hint}"
