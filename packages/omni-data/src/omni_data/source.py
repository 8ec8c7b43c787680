"""From a name to a source. Everything that can be wrong with a source before its second record is found here.

    builtin                     English prose that ships with Python; nothing is downloaded
    notes.txt  notes.md         a record {"text": ...} a line; blank lines are skipped (the convention of `datasets`)
    web.jsonl  web.ndjson       a JSON object a line; blank lines are skipped
    web.json                    the same, or one array of objects
    web.parquet  web.arrow      a record a row
    web.tar                     members that share a name up to its first dot are a record (webdataset)
    folder/  "web/*.jsonl"      such files in a folder and below it, or of a pattern, sorted by path
    saved/                      a folder written by `Dataset.save_to_disk`
    hf:NAME[:CONFIG][@SPLIT]    a dataset of the hub; the split is `train` unless named
    s3://bucket/web.jsonl       files, folders and patterns by any URL that `fsspec` knows: each file is copied once

Any of the files may end in .gz, .zst, .bz2 or .xz too: it is decompressed once. In a folder, README files, names that
start with "." or "_", and kinds not listed here are left out.
"""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from functools import partial
from itertools import groupby
from pathlib import Path, PurePath
from shlex import quote
from typing import TypeVar

from omni_data.columns import is_saved_dataset, open_arrow, open_hub, open_parquet, open_saved_dataset
from omni_data.combine import concatenate, mapped
from omni_data.document import Document, Record, Source, check_fields, document_of
from omni_data.json_array import JsonArray, find_objects, is_json_array
from omni_data.lines import JsonLines, TextLines, find_lines
from omni_data.remote import Place, ending_of, fetch, find_remote, is_url
from omni_data.synth import builtin_corpus
from omni_data.tar import open_tar

T = TypeVar("T")

_KINDS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "lines",
    ".json": "json",
    ".ndjson": "lines",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "tar",
}

AT_ONCE = 8
"""How many files are copied at a time."""


def open_records(spec: str, *, columns: Sequence[str] | None = None, cache: Path | None = None) -> Source[Record]:
    """The records that `spec` names (the table above), the first of each file already checked.

    Effect: reads files; `hf:` and URLs download; compressed files are written to the cache, decompressed.

    Args:
        spec: a path, a pattern, a URL, `builtin`, or `hf:NAME[:CONFIG][@SPLIT]`.
        columns: the fields to read, which every record must have; None is whatever a record has.
        cache: a folder for copies; None is `omni-data` next to the caches of the hub.

    Raises:
        ValueError: if there is no such thing, it is empty, or its first record cannot be read.
    """
    return _joined(spec, [_checked(part) for part in _open_parts(spec, columns, "text", cache)])


def open_source(spec: str, *, field: str = "text", cache: Path | None = None) -> Source[Document]:
    """The documents that `spec` names (the table above), the first of each file already checked.

    Effect: as of `open_records`.

    Args:
        spec: as of `open_records`.
        field: where a record keeps its document: a string, or a list of token ids. A line of text is a document,
            whatever the field.
        cache: as of `open_records`.

    Raises:
        ValueError: if there is no such thing, it is empty, or its first record has no document in `field`.
    """
    read = partial(document_of, field=field)
    return _joined(spec, [_checked(mapped(part, read)) for part in _open_parts(spec, [field], field, cache)])


def find_files(spec: str) -> list[Path]:
    """The files of a path or a pattern, sorted. Effect: looks at the disk.

    A link to a file is that file.

    Raises:
        ValueError: if there are none, or links in a folder lead to folders or nowhere: what they stand for would be
            missed.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        if astray := [p for p in sorted(path.rglob("*")) if _leads_astray(p, p.relative_to(path))]:
            names = ", ".join(f"{p} -> {p.readlink()}" for p in astray[:4])
            raise ValueError(
                f"{spec}: links to folders are not followed, and links to nothing hold nothing: {names}. Delete them, "
                "or name what they should lead to as a source of its own."
            )
        inside = [p for p in sorted(path.rglob("*")) if p.is_file() and _is_data(p.relative_to(path))]
        if not inside:
            raise ValueError(f"{spec}: no file in this folder ends in {', '.join(_KINDS)}.")
        return inside
    files = [path] if path.is_file() else sorted(p for p in _matches(path) if p.is_file())
    if not files:
        raise ValueError(_no_such(spec, path))
    return files


def _open_parts(spec: str, columns: Sequence[str] | None, line: str, cache: Path | None) -> list[Source[Record]]:
    """The sources that `spec` is made of, in order; a line of text is a record of the one field `line`."""
    if not spec:
        raise ValueError("no source is named; `builtin` needs no file.")
    if spec == "builtin":
        check_line("builtin", columns, line)
        return [mapped(builtin_corpus(), partial(_line_record, line))]
    if spec.startswith("hf:"):
        return [open_hub(spec.removeprefix("hf:"), columns)]
    if is_saved_dataset(path := Path(local_path(spec)).expanduser()):
        return [open_saved_dataset(path, columns)]
    places = find_places(spec)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        paths = list(pool.map(partial(fetch, cache=cache), places))
    return [
        part
        for kind, group in groupby(zip(places, paths, strict=True), key=lambda pair: kind_of(pair[0]))
        for part in _open_files(kind, [(path, place.name) for place, path in group], columns, line)
    ]


def find_places(spec: str) -> list[Place]:
    """The files of a path, a pattern or a URL, sorted, each of a known kind.

    Effect: looks at the disk, or asks the storage.

    Raises:
        ValueError: if there are none, or one is of another kind.
    """
    spec = local_path(spec)
    if is_url(spec):
        places = find_remote(spec, _is_data)
    else:
        places = [Place(str(path), str(path.absolute())) for path in find_files(spec)]
    if unknown := [place.name for place in places if kind_of(place) is None]:
        kinds = f"the kind of a file is its ending, one of {', '.join(_KINDS)}."
        raise ValueError(f"{', '.join(unknown[:5])}: {kinds}{_by_table(unknown[0])}")
    return places


def _by_table(name: str) -> str:
    """How a table of text becomes a file of a known kind, in words; "" for what is none."""
    path = PurePath(name)
    marks = {".csv": "", ".tsv": ", delimiter='\\t'"}
    if path.suffix.lower() not in marks or is_url(name):
        return ""
    rows = f"csv.DictReader(open({name!r}, encoding='utf-8-sig'){marks[path.suffix.lower()]})"
    script = f"import csv, json; [print(json.dumps(row)) for row in {rows}]"
    # Readable, where nothing in the name means something to a shell.
    word = f'"{script}"' if re.fullmatch(r"[\w./ -]+", name) else quote(script)
    return f" This makes one of the table: python3 -c {word} > {quote(str(path.with_suffix('.jsonl')))}"


def local_path(spec: str) -> str:
    """The path that a URL of this disk spells; anything else as it is. Pure."""
    return re.sub("^(file|local)://", "", spec)


def kind_of(place: Place) -> str | None:
    """What a file is by its ending; None if that is not known. Pure."""
    return _KINDS.get(ending_of(place.name)[0])


def _open_files(
    kind: str | None, files: list[tuple[Path, str]], columns: Sequence[str] | None, line: str
) -> list[Source[Record]]:
    """The sources that files of one kind are, each given with its name."""
    if kind == "parquet":
        return [open_parquet([path for path, _ in files], columns, [name for _, name in files])]
    if kind == "arrow":
        return [open_arrow(path, name, columns) for path, name in files]
    if kind == "tar":
        return [open_tar(path, name, columns) for path, name in files]
    parts: list[Source[Record]] = []
    for path, name in files:
        if kind == "json" and is_json_array(path):
            parts.append(JsonArray(name, path, find_objects(path, name), columns))
        elif kind == "text":
            check_line(name, columns, line)
            parts.append(TextLines(name, path, find_lines(path), line))
        else:
            parts.append(JsonLines(name, path, find_lines(path), columns))
    if empty := [part.name for part in parts if not len(part)]:
        raise ValueError(f"{', '.join(empty[:5])}: empty; there is no line that is not blank.")
    return parts


def check_line(name: str, columns: Sequence[str] | None, line: str) -> None:
    """Nothing, if a line of text, which is in the field `line`, has all `columns`.

    Raises:
        ValueError: if it has not.
    """
    try:
        check_fields(columns or (), [line])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _line_record(field: str, line: Document) -> Record:
    return {field: line}


def _joined(spec: str, parts: list[Source[T]]) -> Source[T]:
    return parts[0] if len(parts) == 1 else concatenate(spec, parts)


def _checked(source: Source[T]) -> Source[T]:
    """The source, whose first item can be read."""
    source[0]
    return source


def _is_data(path: PurePath) -> bool:
    """Whether a file of a folder is meant as data: `path` is relative to that folder."""
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    name = path.name.lower()
    return ending_of(name)[0] in _KINDS and not hidden and name.partition(".")[0] != "readme"


def _leads_astray(path: Path, name: PurePath) -> bool:
    """Whether a link in a folder leads to a folder, or should lead to data and does not. Effect: looks at the disk."""
    if not path.is_symlink() or any(part.startswith((".", "_")) for part in name.parts):
        return False
    return path.is_dir() or (not path.exists() and _is_data(name))


def _matches(pattern: Path) -> Iterator[Path]:
    return Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))


def _no_such(spec: str, path: Path) -> str:
    """The complaint that nothing is at `path`, with the nearest name that is there."""
    if any(c in spec for c in "*?["):
        return f"{spec}: no file matches this pattern."
    if not path.parent.is_dir():
        return f"{spec}: no such file, and no folder {path.parent}. A dataset of the hub is spelled hf:NAME."
    if path.is_symlink():
        return f"{spec}: this is a link to {path.readlink()}, which is not there."
    near = get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    hint = f"Did you mean {path.parent / near[0]}?" if near else "A dataset of the hub is spelled hf:NAME."
    return f"{spec}: no such file. {hint}"
