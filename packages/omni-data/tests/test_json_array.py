"""Laws of files that are one JSON array."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_data import open_records, open_source, place_of

VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=9),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=9), v, max_size=4),
    max_leaves=9,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=9), VALUES, max_size=5), min_size=1, max_size=9),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.booleans(),
)
def test_objects_come_back_in_any_order(tmp_path_factory, objects, indent, ascii_only, bom):
    path = tmp_path_factory.mktemp("array") / "a.json"
    text = json.dumps(objects, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(b"\xef\xbb\xbf" * bom + b" \n" + text.encode("utf-8"))
    source = open_records(str(path))
    assert [source[i] for i in reversed(range(len(source)))] == objects[::-1]
    assert list(pickle.loads(pickle.dumps(source))) == objects


def test_documents_and_columns_are_of_its_objects(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a", "id": 1},\n {"text": "b", "id": 2}]')
    assert list(open_source(str(path))) == ["a", "b"]
    assert list(open_records(str(path), columns=["id"])) == [{"id": 1}, {"id": 2}]
    assert place_of(open_source(str(path)), 1) == f"{path}:2: item 1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1}\n {"a": 2}]', ":2:2: Expecting ',' or ']'"),
        ('[{"a": 1},\n]', ":2:1: Expecting value"),
        ('[{"é": 1}, {"a" 2}]', ":1:17: Expecting ':' delimiter"),
        ('[{"a": 1}', ":1:10: Expecting ',' or ']'"),
        ("[", ":1:2: Expecting value"),
        ('[{"a": 1}]\n[]', ":2:1: Extra data after the array"),
    ],
)
def test_what_is_not_one_array_is_found_at_once(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        open_records(str(path))
    hint = "; the file must be one whole array of objects, or an object a line."
    assert str(caught.value) == f"{path}{message}{hint}"


def test_other_bad_arrays_are_named(tmp_path):
    path = tmp_path / "a.json"
    cases = {
        b"[]": "a.json: empty",
        b"[1]": r"a\.json:1: item 0: a record must be an object, got 1 \(int\)",
        b"[" * 100_000: r"a\.json: item 0 is nested too deeply",
        b'[{"a": "\xff"}]': r"a\.json:1: item 0: 1:8: byte 0xff is not UTF-8",
    }
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            open_records(str(path))
