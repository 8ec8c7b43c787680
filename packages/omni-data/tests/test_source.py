"""Laws of naming a source."""

import gzip
import json
import pickle
import subprocess
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, disable_progress_bars

from omni_data import Documents, builtin_corpus, concatenate, fingerprint, open_records, open_source

disable_progress_bars()


def write(path, *texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path)
    elif path.suffix in (".jsonl", ".json"):
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    else:
        path.write_text("\n".join(texts))


def test_builtin_is_the_corpus():
    assert list(open_source("builtin")) == list(builtin_corpus())


def test_a_link_to_a_file_or_a_folder_is_what_it_leads_to(tmp_path):
    write(tmp_path / "there" / "a.jsonl", "1", "2")
    (tmp_path / "in").mkdir()
    for link, to in (("b.jsonl", "there/a.jsonl"), ("folder", "there"), ("in/c.jsonl", "../there/a.jsonl")):
        (tmp_path / link).symlink_to(to)
    straight = open_source(str(tmp_path / "there"))
    for name in ("b.jsonl", "folder", "in", "in/*.jsonl"):
        source = open_source(str(tmp_path / name))
        assert list(source) == list(straight) == ["1", "2"]
        assert fingerprint(source) == fingerprint(straight), "so that a run goes on with it"


def test_a_link_that_holds_nothing_or_a_folder_inside_of_a_folder_is_told(tmp_path):
    write(tmp_path / "there" / "a.jsonl", "1")
    write(tmp_path / "in" / "b.jsonl", "2")
    (tmp_path / "in" / ".cache").symlink_to("nowhere")
    assert list(open_source(str(tmp_path / "in"))) == ["2"]
    (tmp_path / "in" / "gone.jsonl").symlink_to("nowhere")
    (tmp_path / "in" / "more").symlink_to("../there")
    with pytest.raises(ValueError, match=r"in/gone\.jsonl -> nowhere, .*in/more -> \.\./there\. Delete them"):
        open_source(str(tmp_path / "in"))
    with pytest.raises(ValueError, match=r"gone\.jsonl: this is a link to nowhere, which is not there"):
        open_source(str(tmp_path / "in" / "gone.jsonl"))


def test_a_folder_is_its_files_of_any_kind_in_order(tmp_path):
    write(tmp_path / "c.parquet", "5", "6")
    write(tmp_path / "b" / "x.md", "3")
    write(tmp_path / "b" / "y.json", "4")
    write(tmp_path / "a.jsonl", "1", "2")
    write(tmp_path / "d.TXT", "7")
    for ignored in ("README.md", ".hidden/x.txt", "_state/x.json", "b/notes.csv"):
        write(tmp_path / ignored, "no data")
    source = open_source(str(tmp_path))
    assert (source.name, len(source)) == (str(tmp_path), 7)
    assert list(source) == list(pickle.loads(pickle.dumps(source))) == list("1234567")


def test_a_pattern_is_its_files_in_order(tmp_path):
    for name in ("b/2.txt", "a/1.txt", "a/1.csv", "c/3.txt"):
        write(tmp_path / name, name[2])
    assert list(open_source(f"{tmp_path}/**/*.txt")) == ["1", "2", "3"]
    assert list(open_source(f"{tmp_path}/[ab]/*.txt")) == ["1", "2"]
    with pytest.raises(ValueError, match=r"\*\.jsonl: no file matches this pattern"):
        open_source(f"{tmp_path}/*.jsonl")


def test_a_pattern_may_be_relative(tmp_path, monkeypatch):
    write(tmp_path / "a" / "1.txt", "1")
    monkeypatch.chdir(tmp_path)
    assert list(open_source("a/*.txt")) == list(open_source("a")) == list(open_source("./a/1.txt")) == ["1"]


def test_the_first_record_of_every_file_is_checked(tmp_path):
    write(tmp_path / "a.jsonl", "fine")
    (tmp_path / "b.jsonl").write_text('{"body": ""}')
    with pytest.raises(ValueError, match=r"b\.jsonl:1: no field 'text'"):
        open_source(str(tmp_path))


def test_what_is_not_there_is_an_error_with_the_nearest_name(tmp_path):
    write(tmp_path / "corpus.jsonl", "a")
    cases = {
        "corpus.json": f"no such file. Did you mean {tmp_path}/corpus.jsonl?",
        "other": "no such file. A dataset of the hub is spelled hf:NAME.",
        "no/corpus.jsonl": f"no such file, and no folder {tmp_path}/no. A dataset of the hub is spelled hf:NAME.",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError) as caught:
            open_source(f"{tmp_path}/{name}")
        assert str(caught.value) == f"{tmp_path}/{name}: {message}"


@pytest.mark.parametrize("name", ["it's mine", "my table"])
@pytest.mark.parametrize(("ending", "mark"), [("csv", ","), ("TSV", "\t")])
def test_of_a_table_the_error_says_what_makes_a_known_kind_of_it(name, ending, mark, tmp_path):
    table = tmp_path / f"{name}.{ending}"
    table.write_text(f'\ufefftext{mark}n\n"a{mark}b"{mark}1\nc{mark}2\n')
    with pytest.raises(ValueError) as caught:
        open_source(str(table))
    command = str(caught.value).rsplit("This makes one of the table: ", 1)[1]
    subprocess.run(command, shell=True, check=True)
    source = open_records(str(table.with_suffix(".jsonl")))
    assert [source[i]["text"] for i in range(len(source))] == [f"a{mark}b", "c"]


def test_unknown_kinds_are_an_error(tmp_path):
    write(tmp_path / "a.csv", "a")
    with pytest.raises(ValueError, match=r"a\.csv: the kind of a file is its ending, one of \.txt, \.md, "):
        open_source(str(tmp_path / "a.csv"))
    with pytest.raises(ValueError, match=r"no file in this folder ends in \.txt, \.md, \.jsonl, \.json, \.ndjson, "):
        open_source(str(tmp_path))


def test_no_name_is_an_error_not_the_current_folder():
    with pytest.raises(ValueError, match="no source is named"):
        open_source("")


def test_concatenated_sources_are_one_after_the_other():
    source = concatenate("both", [Documents("a", ["1", "2"]), Documents("b", ["3"])])
    assert (source.name, len(source), list(source)) == ("both", 3, ["1", "2", "3"])


def test_neither_torch_nor_transformers_is_imported(tmp_path):
    write(tmp_path / "a.jsonl", "some text", "more of it")
    script = f"""
import sys
import omni_data as data

heavy = {{"torch", "transformers", "datasets", "pyarrow", "tokenizers", "huggingface_hub"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
tokenizer = data.read_tokenizer("bytes")
source = data.open_source({str(tmp_path / "a.jsonl")!r})
layout = dict(shard=0, num_shards=1, rows=2, seq_len=8)
next(data.stream_batches(source, data.Cursor(), tokenize=tokenizer.encode, **layout))
assert not {{"torch", "transformers", "datasets", "pyarrow"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_records_of_the_corpus_are_its_documents():
    assert list(open_records("builtin")) == [{"text": text} for text in builtin_corpus()]
    with pytest.raises(ValueError, match=r"^builtin: no field 'body'; there are 'text'\."):
        open_records("builtin", columns=["body"])
    assert list(open_source("builtin", field="body")) == list(builtin_corpus())


def test_kinds_may_be_mixed_and_compressed(tmp_path):
    write(tmp_path / "data" / "a.jsonl", "1")
    (tmp_path / "data" / "b.json").write_text('[{"text": "2"}, {"text": "3"}]')
    (tmp_path / "data" / "c.txt.gz").write_bytes(gzip.compress(b"4"))
    (tmp_path / "data" / "README.md.gz").write_bytes(gzip.compress(b"no data"))
    write(tmp_path / "data" / "d.parquet", "5")
    with tarfile.open(tmp_path / "data" / "e.tar", "w") as tar:
        tar.add(tmp_path / "data" / "a.jsonl", "x.text")
    Dataset.from_dict({"text": ["6"]}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "data-00000-of-00001.arrow").rename(tmp_path / "data" / "f.arrow")
    source = open_source(str(tmp_path / "data"), cache=tmp_path / "cache")
    assert list(source) == ["1", "2", "3", "4", "5", '{"text": "1"}', "6"]
    assert list(pickle.loads(pickle.dumps(source))) == list(source)
