"""Laws of cursors."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_data import Cursor, Position, cursor_from_json, cursor_to_json, merge_cursors

COUNTS = st.integers(0, 99)
PLACES = st.one_of(COUNTS, st.lists(st.one_of(COUNTS, st.none(), st.text(max_size=3)), max_size=4))
POSITIONS = st.lists(st.builds(Position, COUNTS, PLACES, COUNTS, COUNTS, COUNTS), max_size=6).map(tuple)
CURSORS = st.builds(Cursor, st.integers(0, 10**12), st.dictionaries(st.text(max_size=5), POSITIONS, max_size=3))


@given(CURSORS)
def test_json_gives_back_the_cursor(cursor):
    assert cursor_from_json(json.loads(json.dumps(cursor_to_json(cursor)))) == cursor


@given(CURSORS)
def test_merging_a_cursor_with_itself_changes_nothing(cursor):
    assert merge_cursors([cursor]) == merge_cursors([cursor, cursor]) == cursor


def test_a_later_window_is_further_than_more_rows_of_an_earlier_one():
    def cursor(*positions):
        return Cursor(2, {"": positions})

    first, second = (Position(1, 9, 50, 3), Position(2, 4)), (Position(2, 1), Position(1, 7, 0, 9))
    assert merge_cursors([cursor(*first), cursor(*second)]) == cursor(Position(2, 1), Position(2, 4))
    more = Position(1, 9, 50, 4)
    assert merge_cursors([cursor(first[0]), cursor(more)]) == cursor(more)


@given(st.lists(st.tuples(COUNTS, COUNTS), max_size=6))
def test_the_first_version_is_still_read(positions):
    cursor = cursor_from_json({"rows": 7, "positions": [list(position) for position in positions]})
    assert cursor == Cursor(7, {"": tuple(Position(0, at, used) for at, used in positions)} if positions else {})


def test_cursors_of_different_steps_do_not_merge():
    with pytest.raises(ValueError, match=r"cursors after \[2, 4\] rows are not of one step"):
        merge_cursors([Cursor(2), Cursor(4)])
    with pytest.raises(ValueError, match=r"cursors after {.*} tokens are not of one step"):
        merge_cursors([Cursor(2, tokens=8), Cursor(2, tokens=16)])


def test_cursors_of_different_streams_do_not_merge():
    with pytest.raises(ValueError, match=r"cursors of virtual shards \[{'': 1}, {'': 2}\] by source are not"):
        merge_cursors([Cursor(2, {"": (Position(),)}), Cursor(2, {"": (Position(), Position())})])


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
        ({"version": 9, "rows": 1, "positions": []}, "a cursor of version 9 is newer than this reader (3)."),
        ({"version": 3, "rows": 1, "tokens": -1, "positions": []}, "the tokens of a cursor are a count, got -1."),
        (
            {"version": 2, "rows": 1, "positions": [3]},
            "the positions of a cursor are pairs of a source and a list, got [3].",
        ),
        ({"version": 2, "rows": 1, "positions": [["a", 3]]}, "the positions of source 'a' are a list, got 3."),
        (
            {"version": 2, "rows": 1, "positions": [["a", [[0, 0, 0, 0], [0, 0, -1, 0]]]]},
            "source 'a': the position of virtual shard 1 is no position: [0, 0, -1, 0].",
        ),
        ({"rows": 1, "positions": [[1, 0.5]]}, "the position of virtual shard 0 is two counts, got [1, 0.5]."),
    ],
)
def test_what_is_no_cursor_is_an_error(value, message):
    with pytest.raises(ValueError) as caught:
        cursor_from_json(value)
    assert str(caught.value) == message
