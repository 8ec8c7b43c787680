"""Laws of copies of files that cannot be read at random where they are."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import signal
import subprocess
import sys
import time

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omni_data import open_records, open_source
from omni_data.remote import Place, default_cache, ending_of, fetch, hide_secrets

TEXTS = [f"document {i}" for i in range(50)]
LINES = "\n".join(json.dumps({"text": text}) for text in TEXTS).encode()
PACK = {
    "gz": gzip.compress,
    "zst": lambda content: pa.compress(content, "zstd", asbytes=True),
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.fixture
def memory():
    storage = fsspec.filesystem("memory")
    storage.store.clear()
    yield storage
    storage.store.clear()


def copies(cache):
    return sorted(p.name for p in cache.iterdir() if not p.name.startswith("."))


def parts(cache):
    return [p.name for p in cache.iterdir() if p.name.endswith(".part")]


@pytest.mark.parametrize("ending", PACK)
def test_a_compressed_file_is_the_file_and_is_unpacked_once(tmp_path, ending):
    path = tmp_path / f"a.jsonl.{ending}"
    path.write_bytes(PACK[ending](LINES))
    cache = tmp_path / "cache"
    source = open_source(str(path), cache=cache)
    assert list(source) == list(pickle.loads(pickle.dumps(source))) == TEXTS
    assert source.name == str(path)
    [copy] = copies(cache)
    changed = (cache / copy).stat().st_mtime_ns
    assert list(open_source(str(path), cache=cache)) == TEXTS
    assert (cache / copy).stat().st_mtime_ns == changed
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("ending", PACK)
def test_pieces_that_were_compressed_alone_are_one_file(tmp_path, ending):
    (tmp_path / f"a.txt.{ending}").write_bytes(PACK[ending](b"one\n") + PACK[ending](b"two\n"))
    assert list(open_source(str(tmp_path / f"a.txt.{ending}"), cache=tmp_path / "cache")) == ["one", "two"]


@pytest.mark.parametrize("ending", PACK)
def test_a_compressed_file_cut_anywhere_is_an_error_and_leaves_nothing(tmp_path, ending):
    whole = PACK[ending](LINES)
    path, cache = tmp_path / f"a.jsonl.{ending}", tmp_path / "cache"
    for size in (1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"a\.jsonl\.{ending}: cannot be decompressed as \.{ending}: "):
            open_source(str(path), cache=cache)
    path.write_bytes(b"not compressed")
    with pytest.raises(ValueError, match="cannot be decompressed"):
        open_source(str(path), cache=cache)
    assert copies(cache) == parts(cache) == []


def test_errors_name_the_compressed_file_not_its_copy(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n{"text": }'))
    source = open_source(str(path), cache=tmp_path / "cache")
    with pytest.raises(ValueError) as caught:
        source[1]
    assert str(caught.value).startswith(f"{path}:2:10: Expecting value")
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: empty"):
        open_source(str(path), cache=tmp_path / "cache")


def test_a_file_that_changed_is_unpacked_again(tmp_path):
    path = tmp_path / "a.txt.gz"
    for text in ("one", "two"):
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
        assert list(open_source(str(path), cache=tmp_path / "cache")) == [text]


def test_a_url_is_copied_once_and_again_when_it_changed(tmp_path, memory):
    memory.pipe("/web/a.jsonl", LINES)
    assert list(open_source("memory://web/a.jsonl", cache=tmp_path)) == TEXTS
    assert len(copies(tmp_path)) == 1
    open_source("memory://web/a.jsonl", cache=tmp_path)
    assert len(copies(tmp_path)) == 1
    memory.pipe("/web/a.jsonl", LINES.replace(b"document", b"Document"))
    assert open_source("memory://web/a.jsonl", cache=tmp_path)[3] == "Document 3"


def test_patterns_and_folders_behind_a_url_are_their_files_in_order(tmp_path, memory):
    table = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["3"]}), table)
    files = {"b/1.txt.gz": gzip.compress(b"2"), "a.jsonl": b'{"text": "1"}', "c.parquet": table.getvalue().to_pybytes()}
    ignored = dict.fromkeys(("README.md", "_x/a.txt", "d.csv"), b"no")
    for name, content in (files | ignored).items():
        memory.pipe(f"/web/{name}", content)
    assert list(open_source("memory://web", cache=tmp_path)) == ["1", "2", "3"]
    assert list(open_source("memory://web/", cache=tmp_path)) == ["1", "2", "3"]
    assert list(open_source("memory://web/**/*.gz", cache=tmp_path)) == ["2"]
    assert list(open_source("memory://web/?.jsonl", cache=tmp_path)) == ["1"]
    with pytest.raises(ValueError, match=r"^memory://web/\*\.tar: no file matches this pattern\.$"):
        open_source("memory://web/*.tar", cache=tmp_path)
    with pytest.raises(ValueError, match=r"^memory://none: no file of a known ending here\.$"):
        open_source("memory://none", cache=tmp_path)
    with pytest.raises(ValueError, match=r"^memory://none/a\.jsonl: no such file\.$"):
        open_source("memory://none/a.jsonl", cache=tmp_path)


def test_a_pattern_with_a_file_of_an_unknown_kind_is_an_error(tmp_path, memory):
    memory.pipe("/web/a.csv", b"1")
    with pytest.raises(ValueError, match=r"memory://.*a\.csv: the kind of a file is its ending, one of \.txt, "):
        open_source("memory://web/*", cache=tmp_path)


def test_a_file_url_is_its_path(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    assert list(open_source(f"file://{tmp_path}/a.txt", cache=tmp_path / "cache")) == ["one"]
    assert not (tmp_path / "cache").exists()


def test_several_processes_may_open_one_file_at_once(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES))
    script = f"""
from pathlib import Path
from omni_data import open_source
print(len(list(open_source({str(path)!r}, cache=Path({str(tmp_path / "cache")!r})))))
"""
    ranks = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [rank.communicate()[0] for rank in ranks] == ["50\n"] * 4
    assert len(copies(tmp_path / "cache")) == 1
    assert parts(tmp_path / "cache") == []


def test_a_killed_copy_is_not_taken_for_whole_and_goes_away(tmp_path):
    path, cache = tmp_path / "a.txt.gz", tmp_path / "cache"
    path.write_bytes(gzip.compress(b"a line of text\n" * 8_000_000, 1))
    script = f"import omni_data, pathlib; omni_data.open_source({str(path)!r}, cache=pathlib.Path({str(cache)!r}))"
    rank = subprocess.Popen([sys.executable, "-c", script])
    while not cache.exists() or not parts(cache):
        time.sleep(0.001)
    rank.send_signal(signal.SIGKILL)
    rank.wait()
    [left] = parts(cache)
    assert copies(cache) == []
    for stale in (cache / left, *(cache / left).iterdir()):
        os.utime(stale, (0, 0))
    whole = fetch(Place(str(path), str(path)), cache)
    assert whole.stat().st_size == 120_000_000
    assert parts(cache) == []


def test_secrets_of_a_url_are_shown_nowhere(tmp_path):
    cases = ["https://me:hunter2@127.0.0.1:1/a.jsonl?token=s3cret&b=1", "ftp://me:hunter2@127.0.0.1:1/s/a.jsonl"]
    cases += ["nope://me:hunter2@host/a.jsonl?token=s3cret", "s3://me:hunter2@bucket/a.jsonl?token=s3cret"]
    for url in cases:
        with pytest.raises(ValueError) as caught:
            open_records(url, cache=tmp_path)
        assert "***@" in str(caught.value)
        assert caught.value.__suppress_context__
        assert not any(secret in str(caught.value) for secret in ("me:", "hunter2", "s3cret"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/a.jsonl?sig=x", "https://h/a.jsonl?***"),
        ("https://h/a.jsonl?x", "https://h/a.jsonl?***"),
        ("https://key@h/a.jsonl#t", "https://***@h/a.jsonl#***"),
        ("s3://b/a-?.jsonl", "s3://b/a-?.jsonl"),
        ("s3://b/a.jsonl?versionId=3", "s3://b/a.jsonl?***"),
        ("hf://datasets/o/n@main/a.jsonl", "hf://datasets/o/n@main/a.jsonl"),
        ("zip://a::https://u:p@h/a.zip?t=1", "zip://a::https://***@h/a.zip?***"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url, shown):
    assert hide_secrets(url) == shown


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("https", "aiohttp")])
def test_a_missing_driver_is_an_error_with_the_extra(tmp_path, monkeypatch, scheme, package):
    monkeypatch.setitem(sys.modules, package, None)
    extra = {"https": "http"}.get(scheme, scheme)
    with pytest.raises(ValueError) as caught:
        open_source(f"{scheme}://bucket/a.jsonl", cache=tmp_path)
    remedy = f"`pip install 'omni-data[{extra}]'` brings {package}."
    assert str(caught.value) == f"{scheme}://bucket/a.jsonl: what reads {scheme}:// is not installed; {remedy}"


def test_the_ending_is_what_is_inside():
    assert ending_of("a.b/c") == ("", None)
    assert ending_of("s3://b/a.tar.zst?versionId=1.gz") == (".tar", ".zst")
    assert ending_of("what#1?.jsonl") == (".jsonl", None)


def test_copies_are_kept_with_the_caches_of_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "omni-data"
