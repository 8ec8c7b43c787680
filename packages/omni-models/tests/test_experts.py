"""Laws of experts as a function of tokens and their choices: what transformers' own loop computes, for any layout."""

from collections.abc import Iterator
from functools import partial
from inspect import signature
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shapes import MIXTURES, make_config
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.integrations.moe import use_experts_implementation

from omni_models import build_model, choose_experts, describe, experts_problems, map_experts, use_experts
from omni_models.experts import compute_experts, grouped_experts, is_experts, sort_choices

HIDDEN, WIDTH, EXPERTS, TOKENS, CHOICES = 8, 16, 5, 11, 2


def make_experts(gate: bool, bias: bool, transposed: bool, norm: bool) -> nn.Module:
    """Experts of a layout, as a modeling file declares it, with a loop of their own as their forward."""
    first = "gate_up_proj" if gate else "up_proj"

    class Experts(nn.Module):
        def __init__(self, config: PreTrainedConfig) -> None:
            super().__init__()
            self.num_experts = EXPERTS
            self.act_fn = nn.SiLU()
            for name, (into, out) in {first: (HIDDEN, (1 + gate) * WIDTH), "down_proj": (WIDTH, HIDDEN)}.items():
                shape = (EXPERTS, into, out) if transposed else (EXPERTS, out, into)
                setattr(self, name, nn.Parameter(torch.randn(shape)))
                if bias:
                    setattr(self, f"{name}_bias", nn.Parameter(torch.randn(EXPERTS, out)))
            self.post_expert_norm = nn.LayerNorm(HIDDEN) if norm else None

        def forward(self, x_TH: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
            def linear(name: str, x: Tensor, e: int) -> Tensor:
                weight = getattr(self, name)[e]
                return F.linear(
                    x, weight.T if transposed else weight, getattr(self, f"{name}_bias")[e] if bias else None
                )

            out_TH = torch.zeros_like(x_TH)
            for token, k in product(range(len(x_TH)), range(expert_TK.shape[1])):
                e = int(expert_TK[token, k])
                hidden = linear(first, x_TH[token], e)
                act = F.silu(hidden[:WIDTH]) * hidden[WIDTH:] if gate else F.silu(hidden)
                y = linear("down_proj", act, e)
                y = y if self.post_expert_norm is None else self.post_expert_norm(y)
                out_TH[token] += weight_TK[token, k] * y
            return out_TH

    flags = {"has_gate": gate, "has_bias": bias, "is_transposed": transposed, "has_post_expert_norm": norm}
    known = signature(use_experts_implementation).parameters
    if norm and "has_post_expert_norm" not in known:
        pytest.skip("this transformers has no norm after each expert")
    declared = use_experts_implementation(**{name: flag for name, flag in flags.items() if name in known})(Experts)
    torch.manual_seed(0)
    return declared(PreTrainedConfig())


def inputs(choices: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    x_TH = torch.randn(TOKENS, HIDDEN, generator=random)
    drawn = torch.rand(TOKENS, EXPERTS, generator=random).topk(CHOICES, dim=-1)
    return x_TH, drawn.indices if choices is None else choices, drawn.values


def run(module: nn.Module, given: tuple[Tensor, Tensor, Tensor], call: Any) -> list[Tensor]:
    """Output, and the gradients of hidden states, weights and parameters."""
    x_TH, expert_TK, weight_TK = given
    x_TH, weight_TK = x_TH.clone().requires_grad_(), weight_TK.clone().requires_grad_()
    module.zero_grad()
    out_TH = call(x_TH, expert_TK, weight_TK)
    out_TH.square().sum().backward()
    grads = [param.grad for param in module.parameters()]
    return [out_TH.detach(), x_TH.grad, weight_TK.grad, *(torch.zeros(()) if grad is None else grad for grad in grads)]


def grouped(module: nn.Module) -> Any:
    """`module`, entered as transformers enters it."""
    use_experts(module)  # pyright: ignore[reportArgumentType] Any module will do.
    return module


LAYOUTS = list(product([True, False], repeat=4))


@pytest.mark.parametrize(("gate", "bias", "transposed", "norm"), LAYOUTS)
def test_any_layout_equals_its_own_loop(gate: bool, bias: bool, transposed: bool, norm: bool) -> None:
    module = make_experts(gate, bias, transposed, norm)
    module.config._experts_implementation = "eager"  # pyright: ignore[reportAttributeAccessIssue]
    expected = run(module, inputs(), module)
    found = run(module, inputs(), grouped(module))
    assert len(expected) == len(found)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * max(1e-3, theirs.norm())


@pytest.mark.parametrize(("gate", "bias", "transposed", "norm"), LAYOUTS)
def test_rows_set_aside_and_not_used_change_nothing(gate: bool, bias: bool, transposed: bool, norm: bool) -> None:
    module = make_experts(gate, bias, transposed, norm)
    x_TH, expert_TK, weight_TK = inputs()
    given = (x_TH, expert_TK + 2, weight_TK)  # Experts 5 and 6 are elsewhere.
    used = int((given[1] < EXPERTS).sum())
    # What is set aside is filled with NaN.
    torch.use_deterministic_algorithms(True)
    try:
        exact, more = (run(module, given, partial(grouped_experts, module, rows=rows)) for rows in (used, TOKENS * 2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert used < TOKENS * 2
    for mine, theirs in zip(more, exact, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * max(1e-3, theirs.norm())
    assert all(bool(grad.any()) for grad in more)


@pytest.mark.parametrize(
    "choices",
    [torch.full((TOKENS, 1), 3), torch.arange(TOKENS)[:, None] % 2 * 4, torch.tensor([[4, 0]]).expand(TOKENS, 2)],
    ids=["all tokens to one expert", "three experts without tokens", "every token alike"],
)
def test_experts_without_tokens_and_with_all_of_them_are_exact(choices: Tensor) -> None:
    module = make_experts(True, True, False, False)
    module.config._experts_implementation = "eager"  # pyright: ignore[reportAttributeAccessIssue]
    x_TH, _, weight_TK = inputs()
    given = (x_TH, choices, weight_TK[:, : choices.shape[1]])
    expected = run(module, given, module)
    found = run(module, given, grouped(module))
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * max(1e-3, theirs.norm())
    assert any(bool((grad[0] == 0).all()) for grad in found[3:]) == (0 not in choices)


def test_weights_of_every_expert_are_understood_too() -> None:
    module = grouped(make_experts(True, False, False, False))
    x_TH, expert_TK, weight_TK = inputs()
    scores_TE = torch.randn(TOKENS, EXPERTS).scatter(1, expert_TK, weight_TK)
    assert torch.equal(module(x_TH, expert_TK, scores_TE), module(x_TH, expert_TK, weight_TK))


def test_rows_of_any_shape_keep_it() -> None:
    module = grouped(make_experts(True, False, False, False))
    x_TH, expert_TK, weight_TK = inputs()
    out = module(x_TH[None], top_k_index=expert_TK[None], top_k_weights=weight_TK[None])
    assert torch.equal(out, module(x_TH, expert_TK, weight_TK)[None])
    assert out._base is None, "a view would lose the hooks of sharding"


def test_no_rows_give_gradients_of_zero() -> None:
    module = make_experts(True, True, True, True) if not_old() else make_experts(True, True, True, False)
    x_TH, expert_TK, weight_TK = inputs()
    found = run(module, (x_TH[:0], expert_TK[:0], weight_TK[:0]), grouped(module))
    assert found[0].shape == (0, HIDDEN)
    assert all(bool((grad == 0).all()) for grad in found[3:])
    own = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
    assert all(getattr(module, name).grad is not None for name in own)


def not_old() -> bool:
    return "has_post_expert_norm" in signature(use_experts_implementation).parameters


class Seen(TorchDispatchMode):
    """The operators that pass, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(op.name())
        return op(*args, **(kwargs or {}))


class NeverWaits(TorchFunctionMode):
    """Refuses what would make the host wait for a device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        assert name not in {"tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "bincount"}
        by_mask = name in ("__getitem__", "__setitem__") and getattr(args[1], "dtype", None) == torch.bool
        assert not by_mask, "a mask makes as many rows as the device says"
        assert name != "repeat_interleave" or "output_size" in (kwargs or {})
        return func(*args, **(kwargs or {}))


def test_the_host_never_waits_for_the_device_and_no_expert_is_looped_over() -> None:
    module = grouped(make_experts(True, True, False, False))
    with Seen() as seen, NeverWaits():
        run(module, inputs(), module)
    assert any("grouped_mm" in name for name in seen.names)
    assert not any("one_hot" in name or "scatter_add" in name or "index_add" in name for name in seen.names)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.gpu
@pytest.mark.parametrize("bias", [True, False])
def test_on_a_gpu_in_bf16_the_host_never_waits_and_the_numbers_are_those_of_the_loop(bias: bool) -> None:
    module = make_experts(True, bias, False, False)
    module.config._experts_implementation = "eager"  # pyright: ignore[reportAttributeAccessIssue]
    expected = [x.clone() for x in run(module, inputs(), module)]  # The module takes its gradients along.
    module = grouped(module).to("cuda", torch.bfloat16)
    given = tuple(x.to("cuda", torch.bfloat16) if x.is_floating_point() else x.cuda() for x in inputs())
    run(module, given, module)  # What is compiled and reserved at first may wait.
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = run(module, given, module)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.cpu().float() - theirs).norm() <= 3e-2 * theirs.norm()


def test_two_runs_give_the_same_bits_in_deterministic_mode(device: str) -> None:
    module = grouped(make_experts(True, True, False, False)).to(device)
    given = tuple(x.to(device) for x in inputs())
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run(module, given, module) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_choices_are_sorted_by_expert_and_then_by_token() -> None:
    _, expert_TK, _ = inputs()
    routes = sort_choices(expert_TK, EXPERTS)
    assert torch.equal(routes.order_R, expert_TK.flatten().argsort(stable=True))
    assert torch.equal(routes.order_R[routes.place_TK.flatten()], torch.arange(TOKENS * CHOICES))
    assert torch.equal(routes.counts_E, expert_TK.flatten().bincount(minlength=EXPERTS))


@pytest.fixture(params=MIXTURES)
def mixture(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    torch.manual_seed(0)
    config = make_config(request.param)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, experts_implementation="eager")
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn_like(param), alpha=0.05)
    yield model.train()


def test_a_model_of_each_family_equals_its_own_experts(mixture: PreTrainedModel) -> None:
    ids = torch.randint(2, 80, (2, 9), generator=torch.Generator().manual_seed(0))
    found = []
    for model in (mixture, use_experts(mixture)):
        model.zero_grad()
        logits = model(input_ids=ids, use_cache=False).logits
        logits.square().mean().backward()
        grads = {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}
        found.append((logits.detach(), grads))
    (theirs, their_grads), (mine, my_grads) = found
    assert (mine - theirs).norm() <= 1e-5 * theirs.norm()
    assert my_grads.keys() == their_grads.keys()
    largest = max(grad.norm() for grad in their_grads.values())
    for name, grad in their_grads.items():
        assert (my_grads[name] - grad).norm() <= 1e-5 * max(grad.norm(), 1e-3 * largest), name


def test_two_models_keep_their_own_experts() -> None:
    config = make_config("qwen3_moe")
    ours, theirs, plain = (build_model(config, seed=1) for _ in range(3))
    names, calls = describe(ours).experts, []
    ours = map_experts(use_experts(ours), names, lambda f: lambda *given: calls.append(given[0]) or f(*given))
    theirs = use_experts(theirs)
    ids = torch.arange(2, 10)[None]
    outs = [model(input_ids=ids, use_cache=False).logits for model in (ours, theirs, plain)]
    assert calls == [ours.get_submodule(name) for name in names]
    assert torch.equal(outs[0], outs[1])
    assert torch.allclose(outs[0], outs[2], atol=1e-6)
    assert plain.config._experts_implementation != "omni"


def test_misuse_is_told_by_name() -> None:
    model = build_model(make_config("qwen3_moe"), device="meta")
    with pytest.raises(ValueError, match="apply use_experts to this Qwen3MoeForCausalLM before mapping"):
        map_experts(model, describe(model).experts, lambda f: f)
    with pytest.raises(ValueError, match="there are no experts 'loop'; there are grouped and eager"):
        use_experts(model, "loop")
    experts = next(module for module in model.modules() if is_experts(module))
    with pytest.raises(ValueError, match="calls its experts but was not found by use_experts"):
        compute_experts(experts, *inputs())
    model = use_experts(model, "eager")
    assert experts.config._experts_implementation == "eager"
    assert all(not hasattr(module, "omni_experts") for module in model.modules())


def test_widths_that_grouped_products_cannot_take_are_left_to_the_loop_of_the_model() -> None:
    small = use_experts(build_model(make_config("qwen3_moe", moe_intermediate_size=7)), "eager")
    assert small(input_ids=torch.arange(2, 10)[None], use_cache=False).logits.isfinite().all()
    odd = build_model(make_config("qwen3_moe", moe_intermediate_size=6), device="meta")
    assert choose_experts(odd, torch.float32) == "eager"
    message = experts_problems(odd, "grouped", torch.float32, ep=2)[0]
    assert "have a width of 6: grouped matrix products in torch.float32 need multiples of 4" in message
    assert "ep=2" in experts_problems(odd, "eager", torch.float32, ep=2)[0]
    even = build_model(make_config("qwen3_moe"), device="meta")
    assert choose_experts(even, torch.bfloat16) == "grouped"
    dense = build_model(make_config("llama"), device="meta")
    assert choose_experts(dense, torch.float32) == "eager"
    assert "llama calls no experts interface" in experts_problems(dense, "grouped", torch.float32)[0]
