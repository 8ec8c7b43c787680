"""Laws of recomputation: nothing changes but when a block runs, and what is kept runs once."""

import gc
from dataclasses import replace

import pytest
import torch
import torch.nn.attention.varlen
from attending import KEEPS, RUNS, assert_same, attend, make_attention_toy, plan_keep
from torch import Tensor, nn
from torch.utils.checkpoint import set_checkpoint_early_stop
from toy import Block, Count, Toy, gradients, make_batch, make_toy, plan_toy

from omni_mesh import MeshSpec
from omni_mesh.mesh import Mesh
from omni_parallel import RecomputeConfig, plan_parallel, recompute_blocks
from omni_parallel.fsdp import shard_units

ATTENTION, MATMUL = "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::addmm"


def test_gradients_are_bit_equal_with_dropout() -> None:
    plain = gradients(make_toy(), make_batch())
    again = gradients(recompute_blocks(make_toy(), plan_toy(every=1)), make_batch())
    assert_same(plain, again)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("keep", KEEPS)
def test_gradients_are_bit_equal_whatever_is_kept(keep: str, every: int) -> None:
    plain = gradients(make_attention_toy(), make_batch())
    assert_same(plain, gradients(recompute_blocks(make_attention_toy(), plan_keep(keep, every)), make_batch()))


@pytest.mark.parametrize(("keep", "attentions", "matmuls"), [("nothing", 2, 2), ("attention", 1, 2), ("matmuls", 1, 1)])
def test_what_is_kept_runs_once_and_the_rest_twice(keep: str, attentions: int, matmuls: int) -> None:
    with Count() as once:
        gradients(make_attention_toy(), make_batch())
    with Count() as count:
        gradients(recompute_blocks(make_attention_toy(), plan_keep(keep)), make_batch())
    assert once.runs[ATTENTION] == 3
    assert count.runs[ATTENTION] == 3 * attentions
    assert once.runs[MATMUL] == 3 + 2  # The embedding and the head are no blocks.
    assert count.runs[MATMUL] == 3 * matmuls + 2
    assert count.runs["aten::tanh"] == 6


@pytest.mark.parametrize("some", [1, 2, 3])
def test_so_many_of_the_last_blocks_run_their_products_once(some: int) -> None:
    plain = gradients(make_attention_toy(), make_batch())
    with Count() as count:
        again = gradients(recompute_blocks(make_attention_toy(), plan_keep("attention", matmuls=some)), make_batch())
    assert_same(plain, again)
    assert count.runs[ATTENTION] == 3
    assert count.runs[MATMUL] == 2 * 3 - some + 2


def test_blocks_that_keep_products_hold_them_where_they_are() -> None:
    facts = make_toy()
    recompute = RecomputeConfig(1, "attention", matmuls=2)
    plan = plan_parallel(facts, MeshSpec(), recompute=recompute, offload=True)
    assert plan.keep_matmuls == facts.blocks[-2:]
    assert plan.offload == facts.blocks[:-2]


@pytest.mark.parametrize(
    ("keep", "every", "some", "told"),
    [
        ("attention", 1, 4, "matmuls=4 of the 3 blocks that are recomputed: use 1 to 3, or 0 for none"),
        ("attention", 2, 3, "matmuls=3 of the 2 blocks that are recomputed: use 1 to 2"),
        ("matmuls", 1, 1, "matmuls=1, but keep=matmuls says that all do: leave matmuls"),
        ("nothing", 0, 1, "matmuls=1, but every=0 recomputes no block: set every=1"),
    ],
)
def test_blocks_that_keep_products_are_among_those_that_are_recomputed(
    keep: str, every: int, some: int, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        plan_keep(keep, every, some)


def test_offload_of_blocks_that_all_stay_is_refused() -> None:
    with pytest.raises(ValueError, match="matmuls=3 with offload: all keep products, and such blocks stay"):
        plan_parallel(make_toy(), MeshSpec(), recompute=RecomputeConfig(1, "nothing", 3), offload=True)
    assert RecomputeConfig(1, "attention", 2).kept == "keep=attention, matmuls=2"


@pytest.mark.parametrize("kind", ["operator", "overload"])
def test_an_operator_is_kept_by_its_name(kind: str) -> None:
    plain = gradients(make_attention_toy(kind), make_batch())
    for keep, runs in ((("omni_test::attend",), 3), ((), 6), (("omni_test::other",), 6)):
        RUNS.clear()
        model = recompute_blocks(make_attention_toy(kind), replace(plan_keep("nothing"), keep=keep))
        assert_same(plain, gradients(model, make_batch()))
        assert RUNS.total() == runs, keep


def test_an_operator_that_drops_runs_again_so_that_later_dropout_is_the_same() -> None:
    plain = gradients(make_attention_toy("dropping"), make_batch())
    RUNS.clear()
    plan = replace(plan_keep("nothing"), keep=("omni_test::attend",))
    assert_same(plain, gradients(recompute_blocks(make_attention_toy("dropping"), plan), make_batch()))
    assert RUNS["attend"] == 6


@pytest.mark.filterwarnings("ignore:.*barrier.*:UserWarning")
@pytest.mark.parametrize("kind", ["operator", "function"])
def test_a_kept_operator_runs_once_between_collectives_and_under_sharding(kind: str, mesh: Mesh) -> None:
    plain = gradients(make_attention_toy(kind), make_batch())
    for keep, runs in ((("omni_test::attend",), 3), ((), 6)):
        RUNS.clear()
        plan = replace(plan_keep("nothing"), keep=keep)
        model = shard_units(recompute_blocks(make_attention_toy(kind), plan), mesh, plan, param_dtype=torch.float32)
        sharded = gradients(model, make_batch())
        assert_same(plain, {name: grad.full_tensor() for name, grad in sharded.items()})
        assert RUNS["attend"] == runs, keep


def held_bytes(model: Toy) -> int:
    """Bytes that a forward pass leaves behind for the backward pass."""
    x_BI = make_batch(64)
    before = alive_bytes()
    loss = model(x_BI).sum()
    held = alive_bytes() - before
    loss.backward()
    return held


def alive_bytes() -> int:
    gc.collect()
    storages = (x.untyped_storage() for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_each_keep_holds_more_than_the_one_before() -> None:
    nothing, attention, matmuls = (
        held_bytes(recompute_blocks(make_attention_toy(), plan_keep(keep))) for keep in KEEPS
    )
    output = 3 * 64 * 7 * 4
    assert output <= attention - nothing <= 2 * output
    assert matmuls - attention == output


class Lasting(Block):
    """A block that ends with a product, which is added to what came in, or squared before that."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__(width)
        self.kind = kind

    def forward(self, x_BH: Tensor) -> Tensor:
        self.calls += 1
        h_BH = self.linear(torch.tanh(self.linear(self.norm(x_BH))))
        return x_BH + (h_BH.square() if self.kind == "squared" else h_BH)


def make_lasting(kind: str) -> Toy:
    model = make_toy()
    torch.manual_seed(0)
    model.layers = nn.ModuleList(Lasting(7, kind) for _ in model.blocks)
    return model


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(("kind", "kept"), [("added", 1), ("squared", 2)])
def test_what_the_backward_pass_does_not_ask_for_is_not_kept(kind: str, kept: int, early: bool) -> None:
    plain = gradients(make_lasting(kind), make_batch())
    with Count() as once, set_checkpoint_early_stop(early):
        assert_same(plain, gradients(recompute_blocks(make_lasting(kind), plan_keep("matmuls")), make_batch()))
    assert once.runs[MATMUL] == 3 * 2 + 2 + (3 * (2 - kept) if not early else 0)
    held = [held_bytes(recompute_blocks(make_lasting(kind), plan_keep(keep))) for keep in ("nothing", "matmuls")]
    assert held[1] - held[0] == kept * 3 * 64 * 7 * 4


def test_only_the_planned_blocks_run_twice() -> None:
    model = recompute_blocks(make_toy(), plan_toy(every=2))
    gradients(model, make_batch())
    assert [layer.calls for layer in model.layers] == [2, 1, 2]


@pytest.mark.parametrize("keep", KEEPS)
def test_names_of_parameters_stay(keep: str) -> None:
    assert list(recompute_blocks(make_toy(), plan_keep(keep)).state_dict()) == list(make_toy().state_dict())


def test_the_plan_names_what_is_kept() -> None:
    nothing, attention, matmuls = (set(plan_keep(keep).keep) for keep in ("nothing", "attention", "matmuls"))
    assert nothing == set()
    assert {ATTENTION, "torch_attn::_varlen_attn", "omni::fa4_forward"} <= attention < matmuls
    assert {MATMUL, "aten::mm", "aten::_grouped_mm"} <= matmuls - attention


def test_the_operators_of_torch_have_the_names_of_the_plan() -> None:
    names = [name for name in plan_keep("matmuls").keep if not name.startswith("omni::")]
    gone = [name for name in names if not hasattr(getattr(torch.ops, name.split("::")[0]), name.split("::")[1])]
    assert not gone, f"this torch has no {', '.join(gone)}: name what replaces them in omni_parallel.plan."


def test_keeping_where_nothing_is_recomputed_is_refused() -> None:
    with pytest.raises(ValueError, match="recompute keep=attention but every=0 recomputes no block: set every=1"):
        plan_keep("attention", every=0)
    with pytest.raises(ValueError, match="recompute keep='attn': use one of nothing, attention, matmuls"):
        plan_keep("attn")


class Fickle(Block):
    """A block that does something else when it runs again, or changes what an operator gave."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__(width)
        self.kind = kind

    def forward(self, x_BH: Tensor) -> Tensor:
        self.calls += 1
        h_BH = attend(x_BH)
        if self.kind == "changes":
            h_BH.add_(1)
        if self.kind == "more" and self.calls > 1:
            h_BH = attend(h_BH)
        return x_BH + torch.tanh(self.linear(h_BH) * h_BH)


@pytest.mark.parametrize(
    ("kind", "backwards", "told"),
    [
        ("changes", 1, "what omni_test::attend gave was changed in place"),
        ("more", 1, "runs omni_test::attend where nothing is kept"),
        ("twice", 2, "runs omni_test::attend where nothing is kept"),
    ],
)
def test_what_cannot_be_recalled_is_told(kind: str, backwards: int, told: str) -> None:
    model = make_toy()
    model.layers = nn.ModuleList([Fickle(7, kind)] + [Block(7) for _ in model.blocks[1:]])
    model = recompute_blocks(model, replace(plan_keep("nothing"), keep=("omni_test::attend",)))
    with pytest.raises(RuntimeError, match=told):
        loss = model(make_batch()).sum()
        for _ in range(backwards):
            loss.backward(retain_graph=True)
