"""Whatever a file of a checkpoint is made to hold, it is refused by a ValueError that names the file."""

import json
import pickle

import pytest
import torch

from omni_ckpt import glance, load_dcp, newest_whole, save_dcp, step_dir, verify
from omni_ckpt.storage import read_index, read_plain, stored

ENTRY = {"size": 1, "digest": "00"}
DEEP = "[" * 100_000 + "]" * 100_000
DEEP_NAMES = '{"a":' * 5000 + "1" + "}" * 5000
NEEDED = {".metadata": ENTRY, "state.json": ENTRY}


@pytest.fixture
def saved(tmp_path):
    return save_dcp({"w": torch.ones(100), "step": 1}, step_dir(tmp_path, 1))


def manifest(files: object) -> str:
    return json.dumps({"version": 1, "digest": "xxh3_128", "files": files})


MANIFESTS = {
    "deep": DEEP,
    "deep files": manifest(7).replace("7", DEEP),
    "no files": manifest({}),
    "no plain values": manifest({".metadata": ENTRY}),
    "files in a list": manifest([["a", 1]]),
    "files that are none": manifest({"a": None}),
    "a number for an entry": manifest(NEEDED | {"a": 3}),
    "a negative size": manifest(NEEDED | {"a": {"size": -1, "digest": ""}}),
    "a size with a point": manifest(NEEDED | {"a": {"size": 1.5, "digest": ""}}),
    "a size in words": manifest(NEEDED | {"a": {"size": "1", "digest": ""}}),
    "an endless size": manifest(NEEDED | {"a": {"size": 0, "digest": ""}}).replace('"size": 0', '"size": 1e400'),
    "a size of many digits": manifest(NEEDED | {"a": ENTRY}).replace('"size": 1', f'"size": {"9" * 5000}'),
    "a digest that is none": manifest(NEEDED | {"a": {"size": 1, "digest": 5}}),
    "an empty name": manifest(NEEDED | {"": ENTRY}),
    "a name with a null": manifest(NEEDED | {"a\0b": ENTRY}),
    "a name twice": manifest(NEEDED).replace('"files": {', '"files": {"state.json": {"size": 2, "digest": ""}, '),
    "a version of another kind": manifest(NEEDED).replace('"version": 1', '"version": [1]'),
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_no_manifest_is_taken_that_is_not_one(name, saved):
    content = MANIFESTS[name]
    (saved / "MANIFEST.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (verify, lambda path: load_dcp({"w": torch.zeros(100), "step": 0}, path)):
        with pytest.raises(ValueError, match=r"MANIFEST\.json "):
            read(saved)
    assert "MANIFEST.json " in glance(saved)[0]
    assert list(newest_whole(saved.parent).damaged) == [saved]


PLAINS = {
    "deep": DEEP,
    "deep names": f'{{"version": 1, "plain": {DEEP_NAMES}}}',
    "deep lists": f'{{"version": 1, "plain": {{"a": {DEEP}}}}}',
    "lists as deep as they can be read": f'{{"version": 1, "plain": {{"a": {"[" * 900 + "]" * 900}}}}}',
    "a list": '{"version": 1, "plain": [1]}',
    "a number": '{"version": 1, "plain": 7}',
    "a name twice": '{"version": 1, "plain": {"a": 1, "a": 2}}',
    "an empty name": '{"version": 1, "plain": {"": 1}}',
    "names that are one": '{"version": 1, "plain": {"a": {"b": 1}, "a.b": 2}}',
    "many digits": f'{{"version": 1, "plain": {{"a": {"9" * 5000}}}}}',
    "null": "null",
    "no text": b"\xff\xfe",
}


@pytest.mark.parametrize("name", PLAINS)
def test_no_plain_values_are_taken_that_are_none(name, saved):
    content = PLAINS[name]
    (saved / "state.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"state\.json is damaged"):
        read_plain(saved)


def change_index(change):
    """The index of a checkpoint after `change`, as bytes."""

    def changed(path):
        index = read_index(path)
        change(index)
        return pickle.dumps(index)

    return changed


def first(entries):
    return next(iter(entries.values()))


def put(thing, name, value):
    object.__setattr__(thing, name, value)


INDICES = {
    "no entries": change_index(lambda index: put(index, "state_dict_metadata", None)),
    "a list of pieces": change_index(lambda index: put(index, "storage_data", [])),
    "a name that is none": change_index(lambda index: index.state_dict_metadata.update({3: 4})),
    "no tensor": change_index(lambda index: index.state_dict_metadata.update({"w": "x"})),
    "a size that is none": change_index(lambda index: put(index.state_dict_metadata["w"], "size", 100)),
    "no chunks": change_index(lambda index: put(index.state_dict_metadata["w"], "chunks", None)),
    "chunks that are none": change_index(lambda index: put(index.state_dict_metadata["w"], "chunks", [1])),
    "a dtype that is none": change_index(lambda index: put(index.state_dict_metadata["w"].properties, "dtype", "f")),
    "no properties": change_index(lambda index: put(index.state_dict_metadata["w"], "properties", None)),
    "a negative size": change_index(
        lambda index: put(index.state_dict_metadata["w"].chunks[0], "offsets", torch.Size([-1]))
    ),
    "another number of dims": change_index(
        lambda index: put(index.state_dict_metadata["w"].chunks[0], "sizes", torch.Size([1, 100]))
    ),
    "a place that is none": change_index(lambda index: index.storage_data.update({"w": 1})),
    "a path that is none": change_index(lambda index: put(first(index.storage_data), "relative_path", 3)),
    "a negative offset": change_index(lambda index: put(first(index.storage_data), "offset", -1)),
    "a huge length": change_index(lambda index: put(first(index.storage_data), "length", 10**400)),
    "a length in words": change_index(lambda index: put(first(index.storage_data), "length", "5")),
    "deep": lambda path: pickle.PROTO + b"\x04" + b"(" * 100_000,
    "a deep list": lambda path: pickle.PROTO + b"\x04" + b"]" * 50_000 + b"a" * 49_999 + b".",
}


@pytest.mark.parametrize("name", INDICES)
def test_no_index_is_taken_that_is_not_one(name, saved):
    (saved / ".metadata").write_bytes(INDICES[name](saved))
    for read in (stored, lambda path: load_dcp({"w": torch.zeros(100), "step": 0}, path, check=False)):
        with pytest.raises(ValueError, match=r"\.metadata (is damaged|names files outside of the checkpoint: 3)"):
            read(saved)
