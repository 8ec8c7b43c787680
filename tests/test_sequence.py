"""Laws of sequence parallelism on several ranks: every type of model equals plain transformers on one.

`test_parity.py` holds them over whole training runs.
"""

import re

import pytest
from ranks import Run
from sequence import DOCS, REFUSED, TOLERANCE, TYPES, compare, refusal, table
from sequence_ranks import (
    MISTAKES,
    check_encoder,
    check_heads,
    check_swap,
    check_two_models,
    check_uneven,
    count_collectives,
    forget,
    make_mistakes,
)

from omni_mesh import MeshConfig


@pytest.mark.parametrize("sp", [2, 4])
@pytest.mark.parametrize("name", TYPES)
def test_loss_and_every_gradient_equal_plain_transformers_on_one_rank(name: str, sp: int, run: Run) -> None:
    loss, gradient, parameter = run(compare, sp, name, sp)[0]
    assert loss <= TOLERANCE
    assert gradient <= TOLERANCE, parameter


@pytest.mark.parametrize(("name", "sp", "chunks"), [("llama", 2, 2), ("gpt_oss", 2, 2), ("llama, 7 heads", 3, 2)])
def test_heads_in_chunks_change_nothing(name: str, sp: int, chunks: int, run: Run) -> None:
    loss, gradient, parameter = run(compare, sp, name, sp, chunks)[0]
    assert loss <= TOLERANCE
    assert gradient <= TOLERANCE, parameter


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_cut_is_refused_by_name(kind: str) -> None:
    assert re.search(r"\w", refusal(kind)), f"{kind} is not refused"


def test_the_docs_hold_the_table_of_these_types() -> None:
    """Measured anew by `tests/sequence.py --write`; here only its rows and its bound are checked."""
    inside = DOCS.read_text().partition("<!-- table -->\n")[2].partition("\n<!-- /table -->")[0]
    found = re.findall(r"^\| (.+?) \| .*? \| (\de-\d\d) \| (\de-\d\d) \|$", inside, re.MULTILINE)
    errors = {name: (float(two), float(four)) for name, two, four in found}
    assert inside == table(errors)
    assert list(errors) == list(TYPES)
    assert all(error <= TOLERANCE for pair in errors.values() for error in pair)


HEADS = [(28, 4, 3), (28, 4, 4), (14, 2, 4), (7, 1, 3), (4, 2, 3), (3, 3, 4), (8, 8, 4)]


@pytest.mark.parametrize(("N", "K", "sp"), HEADS)
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("variant", ["causal", "both ways", "unequal dims, window, softcap, sinks"])
def test_any_head_count_is_exact(N: int, K: int, sp: int, chunks: int, variant: str, run: Run) -> None:
    run(check_heads, sp, N, K, chunks, variant)


@pytest.mark.parametrize(("heads", "sp"), [(8, 2), (5, 3), (3, 4)])
def test_swapping_there_and_back_is_the_identity_and_swaps_what_it_says(heads: int, sp: int, run: Run) -> None:
    run(check_swap, sp, heads)


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("name", ["llama", "gpt_oss", "deepseek_v3"])
def test_a_layer_needs_two_collectives_forward_and_two_backward(name: str, chunks: int, run: Run) -> None:
    layers, forward, backward = run(count_collectives, 2, name, chunks)[0]
    assert forward == backward == 2 * layers * chunks


def test_two_models_cut_and_uncut_do_not_disturb_one_another(run: Run) -> None:
    run(check_two_models, 2)


@pytest.mark.parametrize("impl", ["chunked", "full"])
@pytest.mark.parametrize("forgotten", ["apply_ulysses", "shard_sequence"])
def test_forgetting_half_of_it_fails_loudly(forgotten: str, impl: str, run: Run) -> None:
    told = run(forget, 2, forgotten, impl)[0]
    assert "cut labels and tokens alike" in told


def test_inputs_that_contradict_are_refused_by_name(run: Run) -> None:
    for told, (_, expected) in zip(run(make_mistakes, 2)[0], MISTAKES.values(), strict=True):
        assert expected in told


def test_an_encoder_that_sees_both_ways_is_exact(run: Run) -> None:
    run(check_encoder, 2)


@pytest.mark.parametrize(
    "cut", [MeshConfig(shard=1, sp=4), MeshConfig(shard=2, sp=2), MeshConfig(replicate=2, shard=1, sp=2)], ids=str
)
def test_ranks_with_only_padding_or_without_targets_change_nothing(cut: MeshConfig, run: Run) -> None:
    run(check_uneven, 4, cut)
