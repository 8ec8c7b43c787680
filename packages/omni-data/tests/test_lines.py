"""Laws of files of lines."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_data import open_records, open_source, place_of


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@given(
    st.lists(st.text(), min_size=1), st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n"]), st.booleans(), st.booleans()
)
def test_json_lines_come_back_in_any_order(tmp_path_factory, texts, newline, bom, last):
    lines = newline.join(json.dumps({"text": text}, ensure_ascii=False) for text in texts) + newline * last
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    source = open_source(write(path, b"\xef\xbb\xbf" * bom + lines.encode()))
    assert [source[i] for i in reversed(range(len(source)))] == texts[::-1]


def test_text_is_a_document_a_line(tmp_path):
    source = open_source(write(tmp_path / "a.txt", "\ufeffone \r\n\n  \n  two"))
    assert list(source) == ["one ", "  two"]


def test_token_ids_are_documents(tmp_path):
    assert list(open_source(write(tmp_path / "a.jsonl", '{"ids": [1, 2]}\n{"ids": []}'), field="ids")) == [[1, 2], []]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a" "b"}', "3:14: Expecting ',' delimiter; every line must be a JSON object of its own."),
        (b'{"text": "a', "3:10: Unterminated string starting at; every line must be a JSON object of its own."),
        (b'{"content": "a", "id": 1}', "3: no field 'text'; there are 'content', 'id'. Did you mean field='content'?"),
        (b'{"text": 3}', "3: field 'text' holds 3 (int): a document is a string, or a list of token ids."),
        (b'["text"]', "3: a record must be an object with a field 'text', got a list with 'text'."),
        (b'{"text": "\xff"}', "3:11: byte 0xff is not UTF-8 (invalid start byte). Convert the file to UTF-8."),
        (
            b'{"text": "\\ud800"}',
            "3: the text holds half a surrogate pair, '\\ud800' at character 0: it is not Unicode text.",
        ),
        (b'{"text": ' + b"[" * 100_000, "3: nested too deeply."),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    source = open_source(write(path, b'{"text": "fine"}\n\n' + line + b"\n"))
    with pytest.raises(ValueError) as caught:
        source[1]
    assert str(caught.value) == f"{path}:{message}"


def test_a_bad_first_line_is_found_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"a\.jsonl:1:1: Expecting value"):
        open_source(write(tmp_path / "a.jsonl", "text\n"))
    with pytest.raises(ValueError, match=r"b\.jsonl:2: no field 'txt'.*Did you mean field='text'"):
        open_source(write(tmp_path / "b.jsonl", '\n{"text": ""}\n'), field="txt")


def test_text_that_is_not_utf8_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.txt:2:3: byte 0xe9 is not UTF-8 \(invalid continuation byte\)"):
        open_source(write(tmp_path / "a.txt", b"\nab\xe9 \n"))


@pytest.mark.parametrize("content", ["", "\n \r\n", "\ufeff"])
def test_an_empty_file_is_an_error(tmp_path, content):
    with pytest.raises(ValueError, match=r"a\.jsonl: empty; there is no line that is not blank"):
        open_source(write(tmp_path / "a.jsonl", content))


def test_past_the_end_is_an_index_error(tmp_path):
    with pytest.raises(IndexError):
        open_source(write(tmp_path / "a.txt", "one"))[1]


def test_pickles_and_threads_read_the_same(tmp_path):
    texts = [f"{i} " * (i % 50) + "." for i in range(300)]
    source = open_source(write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": t}) for t in texts)))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.__getitem__, range(300))) == texts
    assert list(pickle.loads(pickle.dumps(source))) == texts


def test_records_are_the_objects_or_their_columns(tmp_path):
    path = write(tmp_path / "a.ndjson", '{"messages": [{"role": "user"}], "id": 1}\n\n{"messages": []}\n')
    assert list(open_records(path)) == [{"messages": [{"role": "user"}], "id": 1}, {"messages": []}]
    assert list(open_records(path, columns=["messages"])) == [{"messages": [{"role": "user"}]}, {"messages": []}]
    assert place_of(open_records(path), 1) == f"{path}:3"
    with pytest.raises(ValueError, match=r"a\.ndjson:3: no field 'id'; there are 'messages'\."):
        open_records(path, columns=["id"])[1]


def test_a_line_of_text_is_a_record(tmp_path):
    path = write(tmp_path / "a.txt", "one\n\ntwo")
    assert list(open_records(path)) == list(open_records(path, columns=["text"])) == [{"text": "one"}, {"text": "two"}]
    assert list(open_source(path, field="whatever")) == ["one", "two"]
    with pytest.raises(ValueError, match=r"a\.txt: no field 'body'; there are 'text'\."):
        open_records(path, columns=["body"])
