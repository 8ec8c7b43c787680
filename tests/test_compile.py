"""Laws of compiled blocks: the numbers of plain transformers, and nothing compiled that was before."""

from dataclasses import replace

import compiling
import pytest
from decide import decide
from place import place
from ranks import Run
from sequence import TOLERANCE
from training import SMALL

from omni_mesh import MeshConfig, join_world, make_mesh
from omni_parallel import RecomputeConfig

NONE, ALL = RecomputeConfig(), RecomputeConfig(every=1)
CASES = {
    "llama": {
        "shard 2": (MeshConfig(shard=2), NONE),
        "shard 2, recompute all": (MeshConfig(shard=2), ALL),
    },
    "qwen3_moe": {
        "shard 2": (MeshConfig(shard=2), NONE),
        "shard 2, ep 2, recompute all": (MeshConfig(shard=2, ep=2), ALL),
    },
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_every_gradient_are_those_of_plain_transformers_and_rows_are_compiled_for_twice(
    name: str, run: Run
) -> None:
    found = run(compiling.compare, 2, name, CASES[name])[0]
    assert found.keys() == CASES[name].keys()
    for label, steps in found.items():
        for loss, worst, whose, _ in steps:
            assert loss <= TOLERANCE, label
            assert worst <= TOLERANCE, (label, whose)
        graphs = [each[-1] for each in steps]
        assert graphs[0] > 0, "something is compiled"
        assert len(set(graphs[1:])) == 1, f"{label}: once as rows come, once for any, and not again"


def test_blocks_alike_share_what_is_compiled(run: Run) -> None:
    two, five = (run(compiling.count_graphs, 1, "llama", {"num_hidden_layers": layers})[0] for layers in (2, 5))
    assert two == five > 0


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("model", ["tiny", "tiny-moe"])
def test_the_app_compiles_blocks_if_asked_and_says_so(model: str, compile: bool) -> None:
    run = decide(replace(SMALL, model=model, compile=compile), 1)
    told = f"{len(run.plan.blocks)} blocks compiled"
    assert (told in run.told()) == compile
    assert run.plan.compile == (run.plan.blocks if compile else ())
    assert ("those of the compiler in" in run.told()) == compile
    apart = f"but not in attention and {len(run.plan.uncompiled)} modules with experts or in tiles"
    assert (apart in run.told()) == bool(run.plan.uncompiled)
    with join_world(device="cpu"):
        placed = place(replace(SMALL, model=model, compile=compile), run, make_mesh(run.spec, device_type="cpu"))
    own = [name for name, module in placed.named_modules() if "forward" in vars(module)]
    assert set(own) == {*run.plan.compile, *run.plan.uncompiled}
    assert bool(run.plan.uncompiled) == (compile and "moe" in model)
