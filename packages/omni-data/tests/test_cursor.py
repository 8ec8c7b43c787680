"""Laws of cursors."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_data import Cursor, cursor_from_json, cursor_to_json, merge_cursors

POSITIONS = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=6).map(tuple)
CURSORS = st.builds(Cursor, st.integers(0, 10**12), POSITIONS)


@given(CURSORS)
def test_json_gives_back_the_cursor(cursor):
    assert cursor_from_json(json.loads(json.dumps(cursor_to_json(cursor)))) == cursor


@given(CURSORS)
def test_merging_a_cursor_with_itself_changes_nothing(cursor):
    assert merge_cursors([cursor]) == merge_cursors([cursor, cursor]) == cursor


def test_more_documents_are_further_than_more_tokens():
    merged = merge_cursors([Cursor(2, ((1, 50), (2, 0))), Cursor(2, ((2, 0), (1, 99)))])
    assert merged == Cursor(2, ((2, 0), (2, 0)))


def test_cursors_of_different_steps_do_not_merge():
    with pytest.raises(ValueError, match=r"cursors after \[2, 4\] rows are not of one step"):
        merge_cursors([Cursor(2), Cursor(4)])


def test_cursors_of_different_streams_do_not_merge():
    with pytest.raises(ValueError, match=r"cursors of \[1, 2\] virtual shards are not of one stream"):
        merge_cursors([Cursor(2, ((0, 0),)), Cursor(2, ((0, 0), (0, 0)))])


def test_no_cursors_do_not_merge():
    with pytest.raises(ValueError, match="no cursors to merge"):
        merge_cursors([])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "a cursor is an object with 'rows' and 'positions', got int."),
        ({"rows": 1, "at": 2}, "a cursor is an object with 'rows' and 'positions', got ['at', 'rows']."),
        ({"rows": -1, "positions": []}, "the rows of a cursor are a count, got -1."),
        ({"rows": True, "positions": []}, "the rows of a cursor are a count, got True."),
        ({"rows": 1, "positions": None}, "the positions of a cursor are a list, got None."),
        ({"rows": 1, "positions": [[1, 2], [3]]}, "the position of virtual shard 1 is two counts, got [3]."),
        ({"rows": 1, "positions": [[1, 0.5]]}, "the position of virtual shard 0 is two counts, got [1, 0.5]."),
    ],
)
def test_what_is_no_cursor_is_an_error(value, message):
    with pytest.raises(ValueError) as caught:
        cursor_from_json(value)
    assert str(caught.value) == message
