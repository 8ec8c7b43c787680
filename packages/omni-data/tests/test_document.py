"""Laws of documents."""

import pytest

from omni_data.document import Documents, document_of, place_of, record_of


@pytest.mark.parametrize("value", ["", "text", [], [0, 5, 2**31 - 1]])
def test_text_and_token_ids_are_documents(value):
    assert document_of({"text": value}, "text") == value


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null"),
        (3.5, "3.5 (float)"),
        ([1, -2], "a list with -2"),
        ([1, True], "a list with True"),
        ([2**31], "a list with 2147483648"),
    ],
)
def test_no_other_value_is_a_document(value, kind):
    with pytest.raises(ValueError) as caught:
        document_of({"text": value}, "text")
    assert str(caught.value) == f"field 'text' holds {kind}: a document is a string, or a list of token ids."


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (["text"], "a record must be an object with a field 'text', got a list with 'text'."),
        ("text", "a record must be an object with a field 'text', got 'text' (str)."),
        ({}, "no field 'text'; there are none at all."),
        ({"id": 1, "content": ""}, "no field 'text'; there are 'id', 'content'. Did you mean field='content'?"),
        ({"id": 1, "url": ""}, "no field 'text'; there are 'id', 'url'. Choose one with `field=`."),
        (
            {"text": "a\ud800"},
            r"the text holds half a surrogate pair, '\ud800' at character 1: it is not Unicode text.",
        ),
    ],
)
def test_a_record_without_a_document_says_what_it_has(record, message):
    with pytest.raises(ValueError) as caught:
        document_of(record, "text")
    assert str(caught.value) == message


def test_a_source_can_be_iterated():
    assert list(Documents("two", ["a", [1]])) == ["a", [1]]


def test_a_record_is_an_object_of_the_columns_asked_for():
    record = {"a": 1, "b": 2}
    assert record_of(record) is record
    assert record_of(record, ["b"]) == {"b": 2}


def test_all_columns_that_a_record_lacks_are_told():
    with pytest.raises(ValueError) as caught:
        record_of({"messages": []}, ["message", "messages", "tools"])
    assert "no field 'message'; there are 'messages'. Did you mean field='messages'?" in str(caught.value)
    assert "no field 'tools'" in str(caught.value)
    with pytest.raises(ValueError, match=r"^a record must be an object, got 'text' \(str\)\.$"):
        record_of("text")


def test_a_place_is_what_the_source_says_or_the_row():
    class Told(Documents):
        def place(self, i):
            return f"here {i}"

    assert place_of(Documents("two", ["a", "b"]), 1) == "two: row 1"
    assert place_of(Told("two", ["a", "b"]), 1) == "here 1"
