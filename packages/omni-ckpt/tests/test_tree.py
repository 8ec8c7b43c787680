import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_ckpt.tree import TensorSpec, flatten, mismatches, with_plain, without_tensors

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('aé\n"\ud800', max_size=4)
PLAIN = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
KEYS = st.text("abc", min_size=1, max_size=3)  # No dots: then no two leaves have the same name.
TREES = st.recursive(st.dictionaries(KEYS, PLAIN, max_size=3), lambda t: st.dictionaries(KEYS, t | PLAIN, max_size=3))


def test_names_are_the_keys_joined_with_dots():
    weight = torch.zeros(2)
    tensors, plain = flatten({"state": {"model": {"layers.0.weight": weight}, "step": 3}, "cursor": {}})
    assert list(tensors) == ["state.model.layers.0.weight"]
    assert tensors["state.model.layers.0.weight"] is weight
    assert plain == {"state.step": 3}


@settings(deadline=None)
@given(TREES)
def test_plain_values_return_to_their_places(tree):
    on_disk = flatten(json.loads(json.dumps(without_tensors(tree))))[1]
    assert with_plain(tree, on_disk) == tree
    assert with_plain(tree, dict.fromkeys(on_disk, 7)) == json.loads(json.dumps(tree), object_hook=sevens)


def sevens(node):
    return {key: value if isinstance(value, dict) else 7 for key, value in node.items()}


def test_every_leaf_that_would_change_is_refused_by_name():
    tree = {
        "tuple": (1,),
        "deep": {"list": [1, [2, {3}]]},
        "numpy": np.float64(1),
        "object": object(),
        "": 1,
        "ints": {0: 1},
        "a.b": 1,
        "a": {"b": torch.zeros(1)},
        "fine": [None, True, 1, 0.5, "x", []],
    }
    with pytest.raises(ValueError) as error:
        flatten(tree)
    lines = str(error.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [
        *("'tuple'", "'deep.list'", "'numpy'", "'object'", "''", "'ints.0'", "'a.b'")
    ]
    assert "a tuple is not stored" in lines[0] and "a set is" in lines[1] and "a float64 is" in lines[2]
    assert "two leaves have this name" in lines[-1]


def spec(*shape: int, dtype: torch.dtype = torch.float32) -> TensorSpec:
    return TensorSpec(shape, dtype)


def test_equal_tensors_do_not_disagree():
    here = {"a": torch.empty(2, 3, device="meta"), "b": torch.zeros(4, dtype=torch.int32)}
    assert mismatches(here, {"b": spec(4, dtype=torch.int32), "a": spec(2, 3)}) == []


def test_every_kind_of_mismatch_is_one_line():
    same = {f"same{i}": spec(1) for i in range(9)}
    wanted = same | {"lost": spec(1), "bent": spec(2, 3), "cast": spec(1, dtype=torch.bfloat16)}
    found = same | {"more": spec(1), "bent": spec(3, 2), "cast": spec(1)}
    assert mismatches(wanted, found) == [
        "tensors missing in the checkpoint (1): lost",
        "tensors unexpected in it (1): more",
        "with another shape (1): bent (3, 2) is (2, 3) here",
        "with another dtype, which would be cast (1): cast torch.float32 is torch.bfloat16 here",
    ]


def test_ten_names_are_shown_and_all_are_counted():
    (line,) = mismatches({}, {f"n{i:02d}": spec(1) for i in range(11)})[1:]
    assert line.startswith("tensors unexpected in it (11): n00, ") and line.endswith("n09, ...")


def test_another_model_is_called_so_only_when_most_disagree():
    wanted = {name: spec(1) for name in "abcd"}
    half = {name: spec(1) for name in "ab"}
    assert mismatches(wanted, half)[0].startswith("tensors missing")
    assert mismatches(wanted, {"a": spec(1), "b": spec(2)})[0] == (
        "this looks like a checkpoint of another model: 3 of 4 tensors disagree"
    )
