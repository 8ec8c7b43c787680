"""Laws of sources that are read in order: each against the source that gives any record at once."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import tarfile
from itertools import islice

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, disable_progress_bars

from omni_data import (
    Counts,
    Cursor,
    Part,
    Unread,
    fingerprint,
    mapped,
    open_records,
    open_source,
    stream_batches,
    stream_records,
    stream_source,
)
from omni_data.content import Content

disable_progress_bars()

ROWS = [{"text": f"document é {i}" + "x" * (i % 7), "n": i} for i in range(1300)]
FEW = ROWS[:40]
PACK = {
    "gz": gzip.compress,
    "zst": lambda content: pa.compress(content, "zstd", asbytes=True),
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def lines(rows):
    return b"\xef\xbb\xbf\n" + b"\n \n".join(json.dumps(row, ensure_ascii=False).encode() for row in rows) + b"\n\n"


def text(rows):
    return "\r\n\n".join(row["text"] for row in rows).encode()


def parquet(rows):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=max(1, len(rows) * 2 // 5))
    return file.getvalue()


def arrow(rows):
    file, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table, max_chunksize=max(1, len(rows) * 2 // 5))
    return file.getvalue()


def spelled(rows):
    table = pa.Table.from_pylist(rows)
    table = table.set_column(0, "text", pa.chunked_array([c.dictionary_encode() for c in table["text"].chunks]))
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table, max_chunksize=max(1, len(rows) * 2 // 5))
    return file.getvalue()


def tar(rows):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as out:
        for i, row in enumerate(rows):
            members = {"text": row["text"].encode(), "json": json.dumps(row).encode(), "bin": bytes(i % 5 * 300)}
            for ending, content in {**members, "": b"no part of it"}.items():
                info = tarfile.TarInfo(f"d/é{i:04}.{ending}" if ending else "LICENSE")
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
    return file.getvalue()


KINDS = {"jsonl": lines, "json": lines, "txt": text, "parquet": parquet, "arrow": arrow, "tar": tar}
FILES = {
    **KINDS,
    **{
        f"{kind}.{ending}": lambda rows, k=kind, e=ending: PACK[e](KINDS[k](rows))
        for kind in ("jsonl", "tar")
        for ending in PACK
    },
    "tgz": lambda rows: gzip.compress(tar(rows)),
}
BATCHES = {
    "shard": 0,
    "num_shards": 1,
    "rows": 1,
    "seq_len": 32,
    "virtual_shards": 1,
    "tokenize": lambda text: list(text.encode()),
}


def write(path, rows=FEW):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(FILES["".join(path.suffixes)[1:]](rows))
    return str(path)


def read(source, part, state=None):
    """Items of a part, decoded, with the states after them."""
    return [(item.decode(), after) for item, after in source.read(part, state)]


def _rows(path, state):
    """Rows of an Arrow file whose columns are more than `datasets` knows."""
    for item, after in stream_records(str(path)).read(0, state):
        yield item.decode(), after


def records(source):
    return [record for part in range(source.parts) for record, _ in read(source, part)]


@pytest.fixture
def memory():
    storage = fsspec.filesystem("memory")
    storage.store.clear()
    yield storage
    storage.store.clear()


@pytest.mark.parametrize("columns", [None, ["text"]])
@pytest.mark.parametrize("kind", FILES)
def test_records_are_those_of_the_source_that_gives_any(tmp_path, memory, kind, columns):
    rows = ROWS[:200] if kind.startswith(("tar", "tgz")) else ROWS  # Python reads headers of members slowly.
    path = write(tmp_path / f"a.{kind}", rows)
    expected = list(open_records(path, columns=columns, cache=tmp_path / "cache"))
    assert len(expected) == len(rows)
    source = stream_records(path, columns=columns)
    assert records(source) == records(pickle.loads(pickle.dumps(source))) == expected
    memory.pipe(f"/web/a.{kind}", (tmp_path / f"a.{kind}").read_bytes())
    assert records(stream_records(f"memory://web/a.{kind}", columns=columns)) == expected
    assert records(stream_source(path)) == list(open_source(path, cache=tmp_path / "cache"))


@pytest.mark.parametrize("kind", FILES)
def test_a_part_goes_on_after_any_record(tmp_path, memory, kind):
    memory.pipe(f"/web/a.{kind}", FILES[kind](FEW))
    for spec in (write(tmp_path / f"a.{kind}"), f"memory://web/a.{kind}"):
        source = stream_records(spec)
        whole = read(source, 0)
        assert len(whole) == len(FEW)
        for done, (_, state) in enumerate(whole, 1):
            assert read(source, 0, json.loads(json.dumps(state))) == whole[done:], done


def test_values_that_are_spelled_in_a_dictionary_go_on_too(tmp_path):
    path = tmp_path / "a.arrow"
    path.write_bytes(spelled(FEW))
    whole = list(_rows(path, None))
    assert [row["text"] for row, _ in whole] == [row["text"] for row in FEW]
    for done, (_, state) in enumerate(whole, 1):
        assert list(_rows(path, state)) == whole[done:]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_shards_of_a_dataset_are_read_and_gone_on_with(tmp_path, kind):
    for i in range(3):
        write(tmp_path / "data" / f"{i}.{kind}", ROWS[i * 25 : i * 25 + 25])
    spec = f"hf:{tmp_path / 'data'}"
    for columns in (None, ["text"]):
        source = stream_records(spec, columns=columns)
        assert source.parts == 3
        assert (
            records(source) == records(pickle.loads(pickle.dumps(source))) == list(open_records(spec, columns=columns))
        )
        for part in range(3):
            whole = read(source, part)
            for done, (_, state) in enumerate(whole, 1):
                rest = read(source, part, json.loads(json.dumps(state)))
                # What the library goes on from may be spelled otherwise after it did.
                assert [row for row, _ in rest] == [row for row, _ in whole[done:]], done
    with pytest.raises(ValueError, match="no field 'body'; there are 'text', 'n'"):
        stream_source(spec, field="body")
    with pytest.raises(ValueError, match=r"hf:.*cannot load dataset .*split 'none'"):
        stream_source(f"{spec}@none")


def test_images_of_a_dataset_stay_what_the_file_holds(tmp_path):
    from datasets import Features, Image, Value

    pixels = {"bytes": b"no image at all", "path": None}
    schema = Features({"image": Image(), "text": Value("string")}).arrow_schema
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist([{"image": pixels, "text": "a"}], schema), tmp_path / "data" / "a.parquet")
    spec = f"hf:{tmp_path / 'data'}"
    assert records(stream_records(spec)) == list(open_records(spec)) == [{"image": pixels, "text": "a"}]


def test_folders_and_patterns_are_their_files_in_order_and_each_is_a_part(tmp_path, memory):
    for i, kind in enumerate(("jsonl.gz", "parquet", "tar", "txt")):
        write(tmp_path / "d" / f"{i}.{kind}", FEW[i * 10 : i * 10 + 10])
        memory.pipe(f"/web/{i}.{kind}", (tmp_path / "d" / f"{i}.{kind}").read_bytes())
    for spec in (str(tmp_path / "d"), f"{tmp_path}/d/*", "memory://web", "memory://web/*"):
        source = stream_source(spec)
        assert (source.name, source.parts) == (spec, 4)
        assert records(source) == [row["text"] for row in FEW]


def test_nothing_is_copied(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    records(stream_source(write(tmp_path / "a.jsonl.gz")))
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def taken(monkeypatch):
    """How many bytes were read, each time some were."""
    sizes, readinto = [], Content.readinto

    def count(self, buffer):
        sizes.append(readinto(self, buffer))
        return sizes[-1]

    monkeypatch.setattr(Content, "readinto", count)
    return sizes


@pytest.mark.parametrize(
    ("kind", "most"), [("jsonl", 1 << 18), ("tar", 1 << 18), ("arrow", 3 << 19), ("parquet", 3 << 19)]
)
def test_to_go_on_reads_only_what_comes_after(tmp_path, taken, kind, most):
    rows = [{"text": os.urandom(2000).hex(), "n": i} for i in range(1500)]
    source = stream_records(write(tmp_path / f"a.{kind}", rows))
    *_, (_, state), _, _ = source.read(0, None)
    taken.clear()
    assert len(list(source.read(0, state))) == 2
    assert sum(taken) <= most


def test_a_row_group_is_not_held_whole(tmp_path, taken):
    table = pa.table({"text": [os.urandom(1000).hex() for _ in range(10_000)]})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    source = stream_source(str(tmp_path / "a.parquet"))
    taken.clear()
    next(source.read(0, None))
    assert sum(taken) < 6_000_000


def test_a_bad_line_is_told_with_its_place_and_counted_and_the_stream_goes_on(tmp_path):
    bad = {2: b'{"text": "a" "b"}', 4: b'{"text": "\xff"}', 6: b'{"content": "a"}', 8: b'{"text": 3}', 9: b'["text"]'}
    rows = [bad.get(i, json.dumps({"text": f"line {i}"}).encode()) for i in range(1, 11)]
    for name, pack in (("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress)):
        path = tmp_path / name
        path.write_bytes(pack(b"\n".join(rows)))
        parts = [Part(stream_source(str(path)), epochs=1)]
        batches = [b for b, _ in stream_batches(parts, Cursor(), max_bad=5, **BATCHES)]
        counts = sum((b.counts for b in batches), Counts())
        assert (counts.bad, counts.documents) == (5, 5)
        with pytest.raises(ValueError) as caught:
            list(stream_batches(parts, Cursor(), max_bad=4, shuffle=False, **BATCHES))
        assert str(caught.value).splitlines() == [
            "5 documents cannot be used, of max_bad=4:",
            f"  {path}:2:14: Expecting ',' delimiter; every line must be a JSON object of its own.",
            f"  {path}:4:11: byte 0xff is not UTF-8 (invalid start byte). Convert the file to UTF-8.",
            f"  {path}:6: no field 'text'; there are 'content'. Did you mean field='content'?",
            f"  {path}:8: field 'text' holds 3 (int): a document is a string, or a list of token ids.",
            f"  {path}:9: a record must be an object with a field 'text', got a list with 'text'.",
        ]


def test_what_cannot_be_encoded_is_told_where_it_is_from(tmp_path):
    def refuse(text):
        if text == FEW[3]["text"]:
            raise ValueError("not this one.")
        return list(text.encode())

    for kind, place in (("jsonl", ":8"), ("txt", ":7"), ("parquet", ": row 3"), ("tar", ": sample 'd/é0003'")):
        path = write(tmp_path / f"a.{kind}")
        with pytest.raises(ValueError) as caught:
            list(stream_batches([Part(stream_source(path), epochs=1)], Cursor(), **{**BATCHES, "tokenize": refuse}))
        assert str(caught.value).splitlines()[0] == f"{path}{place}: not this one."


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind not in ("txt", "json", "jsonl")])
def test_a_file_that_was_cut_is_an_error_with_its_name_and_what_was_read(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    whole = FILES[kind](ROWS)
    path.write_bytes(whole)
    source = stream_records(str(path))
    last = whole.rstrip(b"\0") if kind == "tar" else whole  # After its end mark, a tar is filled up.
    for size in (0, 1, 10, len(whole) // 2, len(last) - 8, len(last) - 5):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError) as caught:
            records(source)
        told = str(caught.value)
        assert told.startswith(f"{path}: ")
        assert size == 0 or any(
            word in told for word in ("came before", "were read", "end mark", "at byte", "no samples")
        ), told


def test_records_before_the_damage_are_given(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(b"".join(b'{"text": "%s"}\n' % os.urandom(500).hex().encode() for _ in range(2000)))
    path.write_bytes(whole[: len(whole) // 2])
    items = stream_source(str(path)).read(0, None)
    given = 0
    with pytest.raises(
        ValueError, match=r"a\.jsonl\.gz: cannot be decompressed as \.gz: .*; \d+ bytes of its content came"
    ):
        for _ in items:
            given += 1
    assert given > 900


def test_a_file_that_became_shorter_than_the_place_in_it_is_an_error(tmp_path):
    for kind in ("jsonl", "jsonl.gz"):
        path = tmp_path / f"a.{kind}"
        source = stream_records(write(path))
        *_, (_, state) = read(source, 0)
        write(path, FEW[:3])
        with pytest.raises(ValueError, match=rf"a\.{kind}: its content is \d+ bytes, and the cursor stands after"):
            read(source, 0, state)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "empty; there is no line that is not blank"),
        ("a.txt", b"\n \r\n", "empty; there is no line that is not blank"),
        ("a.jsonl.gz", gzip.compress(b"\xef\xbb\xbf", mtime=0), "empty; there is no line that is not blank"),
        ("a.parquet", parquet(FEW).replace(b"PAR1", b"PARX"), "not a readable parquet file"),
        ("a.arrow", b"ARROW1", "not a readable Arrow stream"),
        ("a.tar", bytes(10240), "no samples; a member of one is named"),
        ("a.json", b' [{"text": "a"}]', "one JSON array cannot be streamed; `open_records` reads it"),
        ("a.jsonl", b'{"text": "a', "1:10: Unterminated string"),
        ("a.jsonl", b'{"body": "a"}', "1: no field 'text'; there are 'body'"),
        ("a.txt", b"ab\xe9", "1:3: byte 0xe9 is not UTF-8"),
        ("a.parquet.gz", b"", "a table that is compressed as a whole cannot be streamed"),
    ],
)
def test_what_is_wrong_with_the_first_record_of_any_file_is_found_at_once(tmp_path, memory, name, content, message):
    write(tmp_path / "d" / "0.jsonl")
    for spec in (str(tmp_path / "d" / name), f"{tmp_path}/d/*", f"memory://web/{name}"):
        (tmp_path / "d" / name).write_bytes(content)
        memory.pipe(f"/web/{name}", content)
        with pytest.raises(ValueError, match=rf"{name}:.*{message}"):
            stream_source(spec)


def test_what_is_not_there_is_an_error(tmp_path, memory):
    cases = {
        f"{tmp_path}/a.jsonl": "no such file",
        f"{tmp_path}/*.jsonl": "no file matches this pattern",
        "memory://none/a.jsonl": "no such file",
        "memory://none": "no file of a known ending",
        "": "no source is named",
        "builtin": "builtin: gives any record at once: a stream is of files",
    }
    for spec, message in cases.items():
        with pytest.raises(ValueError, match=message):
            stream_records(spec)
    Dataset.from_dict({"text": ["6"]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="saved: gives any record at once"):
        stream_records(str(tmp_path / "saved"))


def test_a_source_that_changed_has_another_fingerprint(tmp_path, memory):
    write(tmp_path / "d" / "a.jsonl", FEW)
    write(tmp_path / "d" / "b.jsonl", FEW)
    memory.pipe("/web/a.jsonl", lines(FEW))
    for spec, path in (
        (str(tmp_path / "d"), tmp_path / "d" / "b.jsonl"),
        (f"hf:{tmp_path}/d", tmp_path / "d" / "b.jsonl"),
    ):
        known = fingerprint(stream_source(spec))
        assert fingerprint(stream_source(spec)) == fingerprint(pickle.loads(pickle.dumps(stream_source(spec)))) == known
        path.write_bytes(lines(FEW).replace(b'"n": 39', b'"n": 93'))
        os.utime(path, (1, hash(spec) % 10**6))
        assert fingerprint(stream_source(spec)) != known
    shutil.copytree(tmp_path / "d", tmp_path / "copy" / "d")
    os.utime(tmp_path / "copy" / "d" / "a.jsonl", (1, 1))
    copies = (str(folder) for folder in (tmp_path / "d", tmp_path / "copy" / "d"))
    assert len({fingerprint(stream_source(spec)) for spec in copies}) == 1, "a source that moved is the same"
    known = fingerprint(stream_source("memory://web"))
    assert fingerprint(stream_source("memory://web")) == known
    memory.pipe("/web/a.jsonl", lines(FEW).replace(b'"n": 39', b'"n": 93'))
    assert fingerprint(stream_source("memory://web")) != known
    memory.pipe("/web/c.jsonl", lines(FEW))
    assert fingerprint(stream_source("memory://web")) != known


def test_a_record_is_decoded_by_the_virtual_shard_that_takes_it_alone(tmp_path):
    seen = []

    def see(record):
        seen.append(record["n"])
        return [record["n"] + 1] * 8

    source = mapped(stream_records(write(tmp_path / "a.jsonl", ROWS)), see)
    layout = {**BATCHES, "virtual_shards": 4, "rows": 4, "seq_len": 8}
    list(stream_batches([Part(source, epochs=1)], Cursor(), until="all", **layout))
    assert sorted(seen) == list(range(len(ROWS)))


def test_a_virtual_shard_that_has_no_document_is_an_error(tmp_path):
    source = stream_source(write(tmp_path / "a.jsonl"))
    layout = {**BATCHES, "virtual_shards": 4, "shuffle": False}
    with pytest.raises(ValueError, match=r"a\.jsonl: virtual shard 1 of 4 found no document in 80 turns: 1 parts in"):
        list(islice(stream_batches(source, Cursor(), **layout), 4))


def test_secrets_of_a_url_are_shown_nowhere():
    for url in ("https://me:hunter2@127.0.0.1:1/a.jsonl?token=s3cret&b=1", "ftp://me:hunter2@127.0.0.1:1/s/a.jsonl"):
        with pytest.raises(ValueError) as caught:
            stream_records(url)
        assert "***@" in str(caught.value)
        assert not any(secret in str(caught.value) for secret in ("me:", "hunter2", "s3cret"))


def test_items_of_a_stream_of_ones_own_may_be_undecoded():
    class Own:
        name, parts = "own", 1

        def read(self, part, state, /):
            yield [1, 2], 1
            yield Unread("own: the second", lambda: [3, 4]), 2

    stream = stream_batches([Part(Own(), epochs=1)], Cursor(), shuffle=False, **{**BATCHES, "seq_len": 4})
    # The last batch tells that the source is through.
    assert [batch.tokens_BS.tolist() for batch, _ in stream] == [[[1, 2, 3, 4]], [[0, 0, 0, 0]]]
    assert records(mapped(Own(), sum)) == [3, 7]


def test_what_the_library_cannot_read_is_told_with_the_shard(tmp_path):
    for i in range(2):
        write(tmp_path / "data" / f"{i}.jsonl")
    source = stream_source(f"hf:{tmp_path / 'data'}")
    (tmp_path / "data" / "1.jsonl").write_bytes(b'{"text": "a"}\n{"text": }\n')
    with pytest.raises(ValueError, match=r"hf:.*/data: shard 1: not a readable dataset: .*; 0 rows of it were read"):
        records(source)
