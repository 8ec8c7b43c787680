"""Laws of documents in a column."""

import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Audio, Dataset, DatasetDict, Features, Image, Json, List, Value, disable_progress_bars

from omni_data import columns, open_records, open_source, place_of
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
    source = open_parquet([path], ["text"])
    assert [record["text"] for record in source] == TEXTS
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


def test_parquet_records_are_whole_rows_or_their_columns(tmp_path):
    for name, ids in (("a", [1, 2]), ("b", [3])):
        pq.write_table(pa.table({"id": ids, "messages": [[{"role": "user"}]] * len(ids)}), tmp_path / f"{name}.parquet")
    source = open_records(str(tmp_path))
    assert [source[i]["id"] for i in (2, 0, 1)] == [3, 1, 2]
    assert source[2] == {"id": 3, "messages": [{"role": "user"}]}
    narrow = open_records(str(tmp_path), columns=["id"])
    assert list(narrow) == list(pickle.loads(pickle.dumps(narrow))) == [{"id": 1}, {"id": 2}, {"id": 3}]
    assert [place_of(source, i) for i in (1, 2)] == [f"{tmp_path}/a.parquet: row 1", f"{tmp_path}/b.parquet: row 0"]


def test_a_parquet_file_cut_anywhere_is_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    write(path, text=TEXTS)
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"a\.parquet: not a readable parquet file: "):
            open_records(str(path))


def test_a_broken_row_group_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=5, use_dictionary=False, compression="gzip")
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    source = open_source(str(path))
    assert source[9] == TEXTS[9]
    with pytest.raises(ValueError, match=r"a\.parquet: row group 2 cannot be read: "):
        source[10]


def arrow_file(folder, data, **options):
    Dataset.from_dict(data, **options).save_to_disk(str(folder))
    return str(folder / "data-00000-of-00001.arrow")


def test_arrow_rows_come_back_in_any_order(tmp_path):
    path = arrow_file(tmp_path / "saved", {"text": TEXTS, "id": list(range(25))})
    source = open_records(path)
    assert [source[i]["id"] for i in reversed(range(25))] == list(range(25))[::-1]
    assert list(pickle.loads(pickle.dumps(source))) == list(source)
    assert list(open_source(path)) == TEXTS
    assert (source.name, place_of(source, 3)) == (path, f"{path}: row 3")
    with pytest.raises(IndexError):
        source[25]
    with pytest.raises(ValueError, match=r"\.arrow: no field 'body'"):
        open_source(path, field="body")


def test_a_broken_arrow_file_is_named(tmp_path):
    whole = Path(arrow_file(tmp_path / "saved", {"text": TEXTS})).read_bytes()
    path = tmp_path / "a.arrow"
    for size in (0, 3, 100, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"a\.arrow: not a readable Arrow stream: "):
            open_records(str(path))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, pa.schema({"text": pa.string()})):
        pass
    with pytest.raises(ValueError, match=r"file format \(Feather\): write it as parquet, or with `save_to_disk`"):
        open_records(str(path))


def test_media_of_a_dataset_stay_bytes_and_json_is_parsed(tmp_path):
    blob = {"bytes": b"no picture", "path": "a.png"}
    data = {"image": [blob], "images": [[blob, blob]], "sound": [blob], "inner": [{"image": blob}]}
    data["tools"] = [{"a": [1, "x", None]}]
    features = {"image": Image(), "images": List(Image()), "sound": Audio(), "inner": {"image": Image()}}
    schema = Features(features | {"tools": Json()}).arrow_schema
    stored = data | {"tools": [json.dumps(tools) for tools in data["tools"]]}
    columns = [pa.array(stored[f.name], getattr(f.type, "storage_type", f.type)).cast(f.type) for f in schema]
    path = tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    [record] = open_records(str(path))
    assert record == {name: value for name, (value,) in data.items()}


def test_a_saved_format_does_not_matter(tmp_path):
    features = Features({"ids": List(Value("int32"))})
    Dataset.from_dict({"ids": [[1, 2]]}, features=features).with_format("numpy").save_to_disk(str(tmp_path / "saved"))
    assert list(open_source(str(tmp_path / "saved"), field="ids")) == [[1, 2]]
