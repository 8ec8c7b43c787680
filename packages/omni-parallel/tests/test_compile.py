"""Laws of compiled blocks on one rank; `tests/test_compile.py` of the workspace holds them on models and meshes."""

from dataclasses import replace

import pytest
import torch
from attending import assert_same
from torch import Tensor, nn
from torch._dynamo.utils import counters
from toy import Toy, gradients, make_batch, make_toy, plan_toy

from omni_mesh import MeshSpec
from omni_mesh.mesh import Mesh
from omni_parallel import ParallelPlan, RecomputeConfig, compile_blocks, plan_parallel, recompute_blocks
from omni_parallel.alone import compute_alone
from omni_parallel.fsdp import shard_units

RUNS: list[str] = []
"""What ran outside of what is compiled, in that order."""


class Chooser(nn.Module):
    """What calls experts, whose work depends on their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.experts = nn.Linear(width, width)

    def forward(self, x_BH: Tensor) -> Tensor:
        RUNS.append("chooser")
        chosen_B = x_BH.sum(1) > 0
        out_BH = x_BH.clone()
        if len(where := chosen_B.nonzero().flatten()):
            out_BH[where] = self.experts(x_BH[where])
        return out_BH


class Simple(nn.Module):
    """A block; where it has `choose`, one with experts."""

    def __init__(self, width: int, *, chooses: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.choose = Chooser(width) if chooses else nn.Identity()

    def forward(self, x_BH: Tensor) -> Tensor:
        return x_BH + self.choose(torch.tanh(self.linear(self.norm(x_BH))) * 2)


def make_simple(blocks: int = 3, *, chooses: bool = False) -> Toy:
    model = make_toy()
    torch.manual_seed(0)
    model.layers = nn.ModuleList(Simple(7, chooses=chooses) for _ in range(blocks))
    return model


def plan_simple(model: Toy, *, every: int = 0, chooses: bool = False) -> ParallelPlan:
    plan = plan_parallel(make_toy(), MeshSpec(), recompute=RecomputeConfig(every), compile=True)
    blocks = tuple(f"layers.{i}" for i in range(len(model.layers)))
    apart = tuple(f"{block}.choose" for block in blocks) if chooses else ()
    return replace(plan, blocks=blocks, compile=blocks, recompute=blocks if every else (), uncompiled=apart)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()
    counters.clear()
    RUNS.clear()


def close(plain: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return plain.keys() == other.keys() and all(
        torch.allclose(grad, other[name], rtol=1e-5, atol=1e-6) for name, grad in plain.items()
    )


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("chooses", [False, True])
def test_gradients_are_those_of_blocks_that_are_not_compiled(chooses: bool, every: int) -> None:
    plain = gradients(make_simple(chooses=chooses), make_batch())
    model = make_simple(chooses=chooses)
    plan = plan_simple(model, every=every, chooses=chooses)
    assert close(plain, gradients(recompute_blocks(compile_blocks(model, plan), plan), make_batch()))
    assert counters["stats"]["unique_graphs"] > 0


def test_blocks_alike_share_what_is_compiled() -> None:
    counts = []
    for blocks in (1, 4):
        torch._dynamo.reset()
        counters.clear()
        model = make_simple(blocks)
        gradients(compile_blocks(model, plan_simple(model)), make_batch())
        counts.append(counters["stats"]["unique_graphs"])
    assert counts == [1, 1]


def make_kinds(kinds: int) -> Toy:
    """A model of as many blocks, each of another kind."""
    model = make_simple(kinds)
    for i, layer in enumerate(model.layers):
        layer.choose = nn.Sequential(*(nn.Identity() for _ in range(i)))
    return model


def test_more_kinds_of_blocks_than_are_compiled_are_an_error_with_the_remedy() -> None:
    model = make_kinds(4)
    with pytest.raises(ValueError, match=r"compile: layers.3 is one kind of block too many.* at most 3 times. Leave"):
        gradients(compile_blocks(model, plan_simple(model), most=3), make_batch())
    assert not torch._dynamo.config.fail_on_recompile_limit_hit, "what else is compiled is as before"


def test_three_kinds_of_blocks_are_trained_with_several_shapes_and_evaluated() -> None:
    plain, model = make_kinds(3), make_kinds(3)
    compile_blocks(model, plan_simple(model))
    for rows in (2, 3, 4):
        x_BSH = torch.randn(rows, 5 * rows, 7)
        for grad in (True, False):
            outs = []
            for one in (plain, model):
                with torch.set_grad_enabled(grad):
                    h_BSH = x_BSH
                    for layer in one.train(grad).layers:
                        h_BSH = layer(h_BSH)
                    outs.append(h_BSH)
            assert torch.allclose(*outs, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] > 8, "more than torch's own bound"


def test_what_is_apart_runs_as_it_is_with_its_hooks_and_in_every_block() -> None:
    model = make_simple(chooses=True)
    compile_blocks(model, plan_simple(model, chooses=True))
    for i in range(3):
        for layer in model.layers:
            assert isinstance(layer, Simple) and isinstance(layer.choose, Chooser)
            layer.choose.experts.register_forward_hook(lambda *_, step=i: RUNS.append(f"hook {step}"))
        model.zero_grad()
        gradients(model, make_batch())
    graphs = counters["stats"]["unique_graphs"]
    assert RUNS.count("chooser") == 9
    assert [RUNS.count(f"hook {step}") for step in range(3)] == [9, 6, 3]
    assert graphs <= 2, "one before and one behind, whatever the hooks are"


@pytest.mark.filterwarnings("ignore:.*barrier.*:UserWarning")
def test_names_stay_and_hooks_of_sharding_run_around_a_compiled_block(mesh: Mesh) -> None:
    plain, model = make_simple(), make_simple()
    plan = plan_simple(model, every=1)
    model = shard_units(recompute_blocks(compile_blocks(model, plan), plan), mesh, plan, param_dtype=torch.float32)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    sharded = gradients(model, make_batch())
    assert close(gradients(plain, make_batch()), {name: grad.full_tensor() for name, grad in sharded.items()})  # pyright: ignore


@pytest.mark.parametrize("every", [0, 1])
def test_casts_of_a_rank_alone_are_compiled_for_as_often_as_parameters_are(every: int) -> None:
    def train(model: Toy, x_BI: Tensor) -> tuple[list[dict[str, Tensor]], int]:
        torch._dynamo.reset()
        counters.clear()
        found: list[dict[str, Tensor]] = []
        for rows in (12, 12, 10, 8):
            model.zero_grad()
            found.append(gradients(model, x_BI[:rows]))
            with torch.no_grad():
                model(x_BI[:rows])
        return found, counters["stats"]["unique_graphs"]

    plain, alone = make_kinds(3).bfloat16(), make_kinds(3)
    plan = plan_simple(plain, every=every)
    plain, alone = (recompute_blocks(compile_blocks(model, plan), plan) for model in (plain, alone))
    expected, graphs = train(plain, make_batch().bfloat16())
    found, again = train(compute_alone(alone, torch.bfloat16), make_batch())
    assert again == graphs > 0
    for mine, theirs in zip(found, expected, strict=True):
        assert_same(theirs, mine)


def test_a_plan_without_it_compiles_nothing() -> None:
    model = compile_blocks(make_simple(), plan_toy())
    assert_same(gradients(make_simple(), make_batch()), gradients(model, make_batch()))
    assert not counters["stats"]


def test_the_plan_leaves_what_calls_experts_or_is_tiled_as_it_is() -> None:
    facts = make_toy()
    facts.experts = ("layers.0.mlp.experts", "layers.2.experts")
    plan = plan_parallel(facts, MeshSpec(), compile=True)
    assert plan.compile == ("layers.0", "layers.1"), "the last calls them itself"
    assert plan.uncompiled == ("layers.0.mlp",)
    facts.mlps = ("layers.0.mlp.shared", "layers.1.mlp")
    tiled = plan_parallel(facts, MeshSpec(), compile=True, tile=5)
    assert tiled.uncompiled == ("layers.0.mlp", "layers.0.mlp.shared", "layers.1.mlp")
    plain = plan_parallel(facts, MeshSpec())
    assert plain.compile == plain.uncompiled == ()


def test_what_cannot_be_compiled_is_refused_by_name() -> None:
    keep = RecomputeConfig(every=1, keep="attention")
    with pytest.raises(ValueError) as told:
        plan_parallel(make_toy(), MeshSpec(), recompute=keep, offload=True, compile=True)
    assert "compile with recompute keep=attention: to know what to keep, each operator is watched" in str(told.value)
    assert "compile with offload: what a compiled block keeps may be part of a parameter" in str(told.value)
    assert str(told.value).startswith("this plan cannot work:\n"), "it is not the mesh that is wrong"


def test_a_model_whose_blocks_all_call_experts_themselves_has_nothing_to_compile() -> None:
    facts = make_toy()
    facts.experts = tuple(f"{block}.experts" for block in facts.blocks)
    with pytest.raises(ValueError, match="each block calls its experts itself, so there is nothing to compile: leave"):
        plan_parallel(facts, MeshSpec(), compile=True)
    assert not plan_parallel(facts, MeshSpec()).compile
