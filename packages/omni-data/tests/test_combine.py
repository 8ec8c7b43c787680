"""Laws of sources made of sources."""

import pickle

import pytest

from omni_data import Documents, beginning, concatenate, mapped, place_of


def test_concatenated_sources_are_one_after_the_other_and_know_their_parts():
    source = concatenate("both", [Documents("a", ["1", "2"]), Documents("b", ["3"])])
    assert (source.name, len(source), list(source), source[-1]) == ("both", 3, ["1", "2", "3"], "3")
    assert [place_of(source, i) for i in range(3)] == ["a: row 0", "a: row 1", "b: row 0"]
    assert list(concatenate("none", [])) == []


def test_a_beginning_is_of_its_source_and_no_longer():
    source = Documents("a", ["1", "2", "3"])
    short = beginning(source, 2)
    assert (short.name, len(short), list(short), short[-1], place_of(short, -1)) == (
        "a",
        2,
        ["1", "2"],
        "2",
        "a: row 1",
    )
    with pytest.raises(IndexError):
        short[2]
    assert list(beginning(source, 9)) == ["1", "2", "3"]


def test_a_map_is_computed_when_it_is_read():
    seen = []
    source = mapped(Documents("a", ["x", "y"]), lambda item: seen.append(item) or item * 2)
    assert (source.name, len(source), seen) == ("a", 2, [])
    assert (source[1], seen) == ("yy", ["y"])
    with pytest.raises(IndexError):
        source[2]


def test_a_map_pickles_where_its_function_does():
    assert list(pickle.loads(pickle.dumps(mapped(Documents("a", ["1", "2"]), int)))) == [1, 2]


@pytest.mark.parametrize("i", [2, -1])
def test_an_error_of_a_map_has_the_place_of_its_item(i):
    source = mapped(concatenate("both", [Documents("a", ["1", "2"]), Documents("b", ["x"])]), int)
    with pytest.raises(ValueError, match=r"^b: row 0: invalid literal for int\(\)"):
        source[i]


def test_an_error_that_is_no_value_error_is_noted():
    with pytest.raises(TypeError) as caught:
        mapped(Documents("a", [None]), len)[0]
    assert caught.value.__notes__ == ["The item is a: row 0."]


def test_an_error_of_the_source_is_placed_once():
    source = mapped(mapped(Documents("a", ["x"]), int), str)
    with pytest.raises(ValueError) as caught:
        source[0]
    assert str(caught.value).count("a: row 0") == 1
