"""The pool of ranks, shared by the tests of a file."""

import gc
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from ranks import Run, rank_pool

LONG = """
omni_composed faults experts parity models encoders sequence data resume omni processes launch order_of_all seed_omni
hosts trouble evaluate frozen meshes keeper streamed wheels bench style hf tiles fp8 watchdog compile profile recipes
plan startup workflow soak kills examples sft requests redact lora settings moments adapters adamw fused
"""
"""Files that take longest: they come first, so that none of them is left alone at the end."""
EVERY_RUN = {
    "test_every_cut_equals_plain_transformers_on_one_rank": r"tiny-|ep \d|-(shard 2, microbatches of 2|sp 2)]",
    "test_a_type_equals_plain_transformers_or_says_why_not": r"\[(deepseek_v[23]|gemma3_text|glm4_moe|gpt_oss|jamba|"
    r"llama|llama4_text|llava_onevision|mamba2|mixtral|modernbert-decoder|phi3|qwen[23]|qwen3_moe|qwen3_next|qwen3_vl)]",
    "test_a_type_compiled_equals_plain_transformers_or_says_why_not": r"\[(llama|qwen3_moe)]",
    "test_loss_and_every_gradient_equal_plain_transformers_on_one_rank": r"-4]",
    "test_every_mesh_equals_plain_transformers_on_one_rank": "deepseek_v3|gpt_oss|mixtral|qwen3_moe|qwen3_vl_moe",
    "test_a_run_that_is_started_again_is_the_unbroken_run": "by torchrun",
    "test_a_rank_that_is_frozen_is_named_and_ends_the_run": "before a step|in a save|in a prune",
    "test_gradients_are_those_of_blocks_that_are_not_compiled": "True-1|False-0",
    "test_casts_of_a_rank_alone_are_compiled_for_as_often_as_parameters_are": "1]",
    "test_idle_ranks_and_more_experts_than_tokens_are_exact_and_never_hang": "all tokens to one|more experts",
    "test_the_balance_loss_is_that_of_plain_transformers_over_all_tokens": "deepseek_v3|qwen3_moe",
    "test_a_run_goes_from_mesh_to_mesh": r"\[(one rank|replicate 2 x shard 2) >",
    "test_data_that_ends_ends_the_run_with_every_document_read": "2]",
    "test_every_document_is_read_however_unlike_they_are": "2]",
    "test_a_frozen_tower_stays_as_it_is_as_one_without_a_learning_rate_does": "sp 2]",
    "test_a_checkpoint_goes_to_any_mesh_bit_for_bit_and_training_goes_on": "qwen3_moe",
    "test_it_is_the_loss_of_plain_transformers_on_every_mesh": "qwen3_moe",
    "test_moments_of_spread_experts_are_like_others": "4]",
    "test_a_wheel_installs_and_imports_with_what_it_declares": "omni-(mesh|models)]",
}
"""Of long tables the rows that every run has, by the name of the test; others are marked thorough."""
MANY = 5000
"""Tests that are more than those of a file or a folder: then each table is among them."""


def pytest_configure() -> None:
    """One thread a process, of those too that tests start: many share the cores, and threads that wait, spin. A signal
    that is ignored here, as Ctrl-C is in the background, would be in all that tests start, and no script can change
    that. Hubs of tests leave nothing among what was really fetched."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ["HF_HOME"] = mkdtemp(prefix="hub-")
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first; rows of tables that not every run has are marked; tests of a GPU are skipped where there
    is none."""
    place = {f"test_{name}.py": place for place, name in enumerate(LONG.split())}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    kept = dict.fromkeys(EVERY_RUN, 0)
    for item in items:
        name, _, row = item.name.partition("[")
        if name in kept and re.search(EVERY_RUN[name], f"[{row}"):
            kept[name] += 1
        elif name in kept:
            item.add_marker(pytest.mark.thorough)
    if len(items) > MANY and (none := [name for name, count in kept.items() if not count]):
        raise pytest.UsageError(f"EVERY_RUN has no row of {', '.join(none)}: tests/conftest.py names others.")
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """What is there before the first test is never garbage: runs need not look through it."""
    import hypothesis  # noqa: F401 (at the end pytest imports it; what trio gives it then would seem to be garbage)

    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the end all is garbage: what counts its objects then would call the frozen ones leaks."""
    gc.unfreeze()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def saves_of_fixtures() -> None:
    """A run in this process may ignore SIGUSR1, one of a package's tests too; what fixtures start must heed it."""
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def saves() -> Iterator[None]:
    """The same of what tests start, also where a fixture had a run."""
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """`run(function, ranks, *args)`: what each of so many ranks returned."""
    with rank_pool() as run_on_ranks:

        def run_where_there_is_room(function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
            if torch.cuda.is_available() and ranks > torch.cuda.device_count():
                pytest.skip(f"needs {ranks} GPUs")
            return run_on_ranks(function, ranks, *args)

        yield run_where_there_is_room
