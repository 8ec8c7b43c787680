"""Laws of documents in a column."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, disable_progress_bars

from omni_data import columns, open_source
from omni_data.columns import open_parquet, parse_hub

disable_progress_bars()

TEXTS = [f"document {i}" for i in range(25)]


def write(path, **table):
    pq.write_table(pa.table(table), path, row_group_size=4)
    return str(path)


def test_parquet_rows_come_back_in_any_order(tmp_path):
    source = open_source(write(tmp_path / "a.parquet", id=list(range(25)), text=TEXTS))
    assert [source[i] for i in reversed(range(25))] == TEXTS[::-1]
    with pytest.raises(IndexError):
        source[25]


def test_parquet_token_ids_are_documents(tmp_path):
    source = open_source(write(tmp_path / "a.parquet", ids=[[1, 2], [], [3]]), field="ids")
    assert list(source) == [[1, 2], [], [3]]


def test_some_parquet_files_are_one_source_that_pickles(tmp_path):
    for at in range(0, 25, 5):
        write(tmp_path / f"{at:02}.parquet", text=TEXTS[at : at + 5])
    source = open_source(str(tmp_path))
    assert list(source) == list(pickle.loads(pickle.dumps(source))) == TEXTS


def test_row_groups_in_memory_are_bounded(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    write(path, text=TEXTS)
    largest = max(pq.ParquetFile(path).metadata.row_group(i).total_byte_size for i in range(7))
    monkeypatch.setattr(columns, "CACHE_BYTES", 2 * largest)
    source = open_parquet([path], "text")
    assert list(source) == TEXTS
    assert source.read_group.cache_info().currsize == 2
    assert source.read_group.cache_info().misses == 7


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"content": ["a"]}, "no field 'text'; there are 'content'. Did you mean field='content'?"),
        ({"text": [1.5]}, "row 0: field 'text' holds 1.5 (float): a document is a string, or a list of token ids."),
        ({"text": pa.array([], pa.string())}, "no rows."),
    ],
)
def test_bad_parquet_is_found_at_once(tmp_path, table, message):
    path = write(tmp_path / "a.parquet", **table)
    with pytest.raises(ValueError) as caught:
        open_source(path)
    assert str(caught.value) == f"{path}: {message}"


def test_a_broken_parquet_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match=r"a\.parquet: not a readable parquet file: "):
        open_source(str(tmp_path / "a.parquet"))


def test_a_saved_dataset_is_a_source(tmp_path):
    Dataset.from_dict({"text": TEXTS, "id": list(range(25))}).save_to_disk(str(tmp_path / "saved"))
    source = open_source(str(tmp_path / "saved"))
    assert list(source) == list(pickle.loads(pickle.dumps(source))) == TEXTS
    with pytest.raises(ValueError, match="no field 'body'; there are 'text', 'id'"):
        open_source(str(tmp_path / "saved"), field="body")


def test_a_saved_dataset_with_splits_is_its_train_split(tmp_path):
    splits = {name: Dataset.from_dict({"text": [name]}) for name in ("train", "validation")}
    DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    assert list(open_source(str(tmp_path / "saved"))) == ["train"]
    assert list(open_source(str(tmp_path / "saved" / "validation"))) == ["validation"]


def test_splits_without_train_are_named(tmp_path):
    DatasetDict({"test": Dataset.from_dict({"text": ["a"]})}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"saved: no split 'train'; name one of its folders instead: test\."):
        open_source(str(tmp_path / "saved"))


def test_the_loader_of_datasets_reads_a_local_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.parquet", text=TEXTS)
    source = open_source(f"hf:{tmp_path / 'data'}")
    assert source.name == f"hf:{tmp_path / 'data'}"
    assert list(source) == TEXTS


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("name", ("name", None, "train")),
        ("org/name@test", ("org/name", None, "test")),
        ("org/name:en", ("org/name", "en", "train")),
        ("org/name:en@train[:10%]", ("org/name", "en", "train[:10%]")),
    ],
)
def test_hub_names_have_a_configuration_and_a_split(spec, parts):
    assert parse_hub(spec) == parts


def test_a_dataset_that_cannot_be_had_says_how_it_is_spelled(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError) as caught:
        open_source("hf:no-such-org/no-such-data@test")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(
        "hf:no-such-org/no-such-data@test: cannot load dataset 'no-such-org/no-such-data', "
        "configuration None, split 'test': "
    )
    assert lines[-1].startswith("The spelling is hf:NAME[:CONFIG][@SPLIT].")
