"""Laws of a rank alone: it computes in the dtype asked for, and what it holds stays what it is."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from toy import Toy, make_batch, make_toy, plan_toy

from omni_parallel import (
    AdamWConfig,
    constant,
    init_state,
    offload_blocks,
    recompute_blocks,
    reshard,
    tile_mlps,
    update,
)
from omni_parallel.alone import compute_alone
from omni_parallel.casts import kept_cast


class Tied(nn.Module):
    """A weight that is looked up and multiplied by, and a module that asks another for its dtype."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.seen: list[torch.dtype] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen += [self.head.weight.dtype, next(self.embed.parameters()).dtype]
        assert self.head.weight is self.embed.weight
        return self.head(self.embed(tokens).tanh())


def backward(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(5)
    out = model(x)
    out.float().square().sum().backward()
    return out


def in_bf16() -> Toy:
    """The same model, held in bf16: what one rank computes with that is asked for bf16. Buffers are not cast."""
    model = make_toy()
    for module in model.modules():
        for name, param in module._parameters.items():
            if param is not None:
                module._parameters[name] = nn.Parameter(param.detach().bfloat16())
    return model


@pytest.mark.parametrize("every", [0, 1])
def test_numbers_are_those_of_the_model_held_in_that_dtype(every: int) -> None:
    plan, x = plan_toy(every), make_batch()
    theirs, ours = in_bf16(), compute_alone(recompute_blocks(make_toy(), plan), torch.bfloat16)
    own = dict(ours.named_parameters())
    assert torch.equal(backward(theirs, x.bfloat16()), backward(ours, x))
    for name, param in theirs.named_parameters():
        grad = own[name].grad
        assert param.grad is not None and grad is not None
        assert grad.dtype == torch.bfloat16 and torch.equal(grad, param.grad), name
    assert dict(ours.named_parameters()) == own, "they are back"
    assert {param.dtype for param in ours.parameters()} == {torch.float32}


def test_tied_weights_stay_tied_and_whoever_asks_sees_the_dtype_of_compute() -> None:
    tokens = torch.tensor([0, 1, 2, 3, 1])
    theirs, ours = Tied().bfloat16(), compute_alone(Tied(), torch.bfloat16)
    assert torch.equal(backward(theirs, tokens), backward(ours, tokens))
    assert ours.seen == [torch.bfloat16] * 2
    assert theirs.embed.weight.grad is not None and ours.embed.weight.grad is not None
    assert torch.equal(ours.embed.weight.grad, theirs.embed.weight.grad)
    assert ours.head.weight is ours.embed.weight and ours.embed.weight.dtype == torch.float32


def test_gradients_of_several_passes_add_up_in_the_dtype_of_the_parameters() -> None:
    ours, first, second = (compute_alone(make_toy(), torch.bfloat16) for _ in range(3))
    x = make_batch()
    backward(ours, x)
    backward(ours, 3 * x)
    backward(first, x)
    backward(second, 3 * x)
    for both, a, b in zip(ours.parameters(), first.parameters(), second.parameters(), strict=True):
        assert both.grad is not None and a.grad is not None and b.grad is not None
        assert both.grad.dtype == torch.float32
        assert torch.equal(both.grad, a.grad.float() + b.grad.float())


@pytest.mark.parametrize("every", [0, 1])
def test_between_two_passes_there_are_parameters_and_what_runs_again_sees_what_ran_before(every: int) -> None:
    def differentiate(model: Toy, x: Tensor) -> list[Tensor]:
        """Sums of gradients of two calls, each with a backward pass of its own, the first of them at last and twice."""
        dtype = model.out.weight.dtype
        first, second = model(x).float().square().sum(), model(4 * x).float().sum()
        with torch.no_grad():
            model(x)
        sums = [torch.zeros(param.shape) for param in model.parameters()]
        for loss in (second, first, first):
            assert {param.dtype for param in model.parameters()} == {dtype}
            loss.backward(retain_graph=True)
            if dtype == torch.bfloat16:  # Where they would add up.
                sums = [total + grad(param) for total, param in zip(sums, model.parameters(), strict=True)]
                model.zero_grad()
        return sums if dtype == torch.bfloat16 else [grad(param) for param in model.parameters()]

    def grad(param: nn.Parameter) -> Tensor:
        assert param.grad is not None
        return param.grad

    theirs, ours = in_bf16().eval(), compute_alone(recompute_blocks(make_toy().eval(), plan_toy(every)), torch.bfloat16)
    found, expected = differentiate(ours, make_batch()), differentiate(theirs, make_batch().bfloat16())
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("every", [0, 4])
def test_modules_in_tiles_run_again_as_they_ran(every: int) -> None:
    plan = replace(plan_toy(every), tiled=("layers.0.linear", "layers.2.linear"), tile=5)
    theirs = recompute_blocks(tile_mlps(in_bf16(), plan), plan)
    ours = compute_alone(recompute_blocks(tile_mlps(make_toy(), plan), plan), torch.bfloat16)
    backward(theirs, make_batch().bfloat16())
    backward(ours, make_batch())
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None and other.grad is not None and torch.equal(mine.grad, other.grad)


def test_a_backward_pass_that_fails_leaves_nothing_that_is_not_put_back() -> None:
    def fail(grad: Tensor) -> None:
        raise RuntimeError("no")

    ours = compute_alone(make_toy(), torch.bfloat16)
    own = dict(ours.named_parameters())
    handle = ours.embed.register_forward_hook(lambda _, __, out: out.register_hook(fail) and None)
    with pytest.raises(RuntimeError, match="no"):
        backward(ours, make_batch())
    assert dict(reshard(ours).named_parameters()) == own
    with pytest.raises(RuntimeError, match="no"):
        backward(ours, make_batch())
    handle.remove()
    backward(ours, make_batch())
    assert dict(ours.named_parameters()) == own


def test_a_gradient_that_a_later_pass_does_not_add_to_stays_as_it_is() -> None:
    ours = compute_alone(make_toy(), torch.bfloat16)
    backward(ours, make_batch())
    inside: list[Tensor] = []
    ours.layers[2].register_forward_hook(lambda _, __, out: inside.append(out))
    ours(make_batch())
    inside[0].sum().backward()
    assert {param.grad.dtype for param in ours.layers.parameters() if param.grad is not None} == {torch.float32}
    assert ours.out.weight.grad is not None and ours.out.weight.grad.dtype == torch.bfloat16


def test_without_gradients_and_after_an_error_parameters_are_what_they_were() -> None:
    ours = compute_alone(make_toy(), torch.bfloat16)
    own = dict(ours.named_parameters())
    with torch.no_grad():
        assert ours(make_batch()).dtype == torch.bfloat16
    assert dict(ours.named_parameters()) == own
    with pytest.raises(RuntimeError):
        ours(torch.ones(2, 5))
    assert dict(ours.named_parameters()) == own
    backward(ours, make_batch())
    assert dict(ours.named_parameters()) == own


def test_frozen_parameters_have_no_gradient() -> None:
    ours = compute_alone(make_toy(), torch.bfloat16)
    ours.embed.requires_grad_(False)
    backward(ours, make_batch())
    assert ours.embed.weight.grad is None and ours.out.weight.grad is not None
    assert ours.embed.weight.dtype == torch.float32


def test_parameters_of_the_dtype_are_what_calls_see_and_inputs_are_cast_all_the_same() -> None:
    model, seen = compute_alone(make_toy().bfloat16(), torch.bfloat16), list[Tensor]()
    model.embed.register_forward_hook(lambda module, _, __: seen.append(module.weight))
    backward(model, make_batch())
    assert seen[0] is model.embed.weight


def test_casts_that_an_update_has_kept_are_those_that_calls_see() -> None:
    model = compute_alone(make_toy(), torch.bfloat16)
    state = init_state(model, AdamWConfig())
    backward(model, make_batch())
    state = update(state, constant(1e-2), keep_casts=True)
    for param in model.parameters():
        kept = kept_cast(param)
        assert kept is not None and torch.equal(kept, param.bfloat16())
    there = kept_cast(model.out.weight)
    assert there is not None
    with torch.no_grad():
        there.zero_()
        assert not model(make_batch()).any() or model.out.bias.any()
        assert torch.equal(model(make_batch()), model.out.bias.bfloat16().expand(12, 1) * model.scale)


@pytest.mark.parametrize("every", [0, 1])
def test_a_part_that_computes_alone_has_a_dtype_of_its_own_inside_another(every: int) -> None:
    plain, ours = make_toy(), make_toy()
    for module in (plain.embed, plain.layers[0], plain.layers[2], plain.out):
        module.bfloat16()  # The second block stays what it is.
    plain.layers[1].register_forward_pre_hook(lambda _, args: (args[0].float(),))
    compute_alone(ours.layers[1], torch.float32)
    for model in (plain, ours):
        model.layers[1].register_forward_hook(lambda _, __, out: out.bfloat16())
        recompute_blocks(model, plan_toy(every))
    compute_alone(ours, torch.bfloat16)
    backward(plain, make_batch().bfloat16())
    backward(ours, make_batch())
    for mine, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert mine.dtype == torch.float32 and mine.grad is not None and other.grad is not None
        assert mine.grad.dtype == other.grad.dtype and torch.equal(mine.grad, other.grad)


def test_weights_do_not_leave_with_activations() -> None:
    sent: list[int] = []

    def trained(offload: bool) -> Toy:
        plan = replace(plan_toy(), offload=make_toy().blocks if offload else ())
        model = compute_alone(offload_blocks(make_toy(64), plan, smallest=1), torch.bfloat16)
        weights = {param.numel() for param in model.parameters()}
        if offload:
            for layer in model.layers:
                put = layer.forward.args[1][0]

                def noted(x: Tensor, put: object = put) -> object:
                    away = put(x)  # pyright: ignore[reportCallIssue]
                    sent.extend([x.numel()] if away is not x else [])
                    return away

                begin, (_, get), forward = layer.forward.args
                layer.forward = type(layer.forward)(layer.forward.func, begin, (noted, get), forward)
        backward(model, make_batch())
        assert not weights & set(sent) - {64 * 12}, "of a block's weights none"
        return model

    for ours, theirs in zip(trained(True).parameters(), trained(False).parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None and torch.equal(ours.grad, theirs.grad)
    assert sent
