"""Laws of balance: the loss is transformers' own over all tokens, however they are cut; biases move the right way."""

from typing import Any

import pytest
import torch
from shapes import MIXTURES, make_config
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from omni_models import (
    BalanceConfig,
    asked_loss,
    balance_loss,
    balance_problems,
    build_model,
    count_load,
    count_loads,
    describe,
    next_biases,
    read_biases,
    record_routing,
    set_biases_,
    use_experts,
)
from omni_models.balance import Routing

T, E, K, LAYERS = 24, 6, 2, 3


def build(family: str, seed: int = 0) -> PreTrainedModel:
    """A mixture with random weights, whose experts are grouped."""
    try:
        return use_experts(build_model(make_config(family), seed=seed))
    except ValueError as problem:
        if "unset" not in str(problem):
            raise
        pytest.skip(f"this transformers has no random weights for it: {problem}")


def draw_logits() -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(T, E, generator=random).requires_grad_() for _ in range(LAYERS)]


def loss_and_grads(losses: Any) -> tuple[Tensor, list[Tensor]]:
    logits = draw_logits()
    loss = losses(logits)
    loss.backward()
    return loss.detach(), [x.grad for x in logits]


def test_it_is_the_loss_of_transformers() -> None:
    expected, grads = loss_and_grads(lambda logits: load_balancing_loss_func(tuple(logits), E, K))
    found, mine = loss_and_grads(lambda logits: balance_loss(logits, K))
    assert torch.allclose(found, expected, rtol=1e-6)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(mine, grads, strict=True))


def test_however_tokens_are_cut_it_is_the_loss_of_all_of_them() -> None:
    counts_E = torch.zeros(E, dtype=torch.int64)
    for logits_TE in draw_logits():
        counts_E += count_load(logits_TE.topk(K).indices, E)
    parts = [slice(0, 5), slice(5, 6), slice(6, T)]

    def cut(logits: list[Tensor]) -> Tensor:
        return sum(balance_loss([x[part] for x in logits], K, total=lambda _: counts_E) for part in parts)  # pyright: ignore[reportReturnType]

    expected, grads = loss_and_grads(lambda logits: balance_loss(logits, K))
    found, mine = loss_and_grads(cut)
    assert torch.allclose(found, expected, rtol=1e-6)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(mine, grads, strict=True))


def test_tokens_that_only_lengthen_a_row_do_not_count() -> None:
    real_T = torch.arange(T) % 3 != 0
    expected, grads = loss_and_grads(lambda logits: balance_loss([x[real_T] for x in logits], K))
    found, mine = loss_and_grads(lambda logits: balance_loss(logits, K, real_T=real_T))
    assert torch.allclose(found, expected, rtol=1e-6)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(mine, grads, strict=True))
    chosen_TK = draw_logits()[0].topk(K).indices
    assert torch.equal(count_load(chosen_TK, E, real_T=real_T), count_load(chosen_TK[real_T], E))


def test_a_choice_of_no_expert_counts_nowhere() -> None:
    chosen_TK = torch.tensor([[0, 4], [2, 9]])
    assert count_load(chosen_TK, 3).tolist() == [1, 0, 1]
    routing = Routing(chosen={"a": chosen_TK, "b": chosen_TK}, num_experts={"a": 3, "b": 3})
    assert [load_E.tolist() for load_E in count_loads(routing).values()] == [[1, 0, 1], [1, 0, 1]]


@pytest.mark.parametrize("family", MIXTURES)
def test_what_a_model_chooses_is_recorded_and_only_while_asked(family: str) -> None:
    model = build(family)
    facts, ids = describe(model), torch.arange(2, 12)[None]
    with record_routing(model) as routing:
        model(input_ids=ids, use_cache=False)
    loads = count_loads(routing)
    assert tuple(loads) == tuple(routing.chosen) == facts.experts
    assert all(int(load_E.sum()) == 10 * facts.experts_per_token for load_E in loads.values())
    assert [tuple(logits.shape) for logits in routing.logits.values()] == [(10, facts.num_experts)] * len(facts.experts)
    assert all(logits.is_floating_point() and logits.requires_grad for logits in routing.logits.values())
    if family in ("qwen3_moe", "mixtral", "olmoe", "gpt_oss", "granitemoe"):
        picked = zip(routing.logits.values(), routing.chosen.values(), strict=True)
        assert all(
            torch.equal(x.topk(facts.experts_per_token).indices.sort()[0], chosen.sort()[0]) for x, chosen in picked
        )
    before = len(routing.chosen)
    model(input_ids=ids, use_cache=False)
    assert len(routing.chosen) == before


BIASED = ["deepseek_v3", "glm4_moe", "minimax_m2", "ernie4_5_moe"]


@pytest.mark.parametrize("family", BIASED)
def test_biases_are_values_that_a_model_takes_and_gives_back(family: str) -> None:
    model = build(family)
    biases = read_biases(model)
    assert tuple(biases) == describe(model).experts
    wanted = {name: torch.arange(4.0) for name in biases}
    set_biases_(model, wanted)
    assert all(torch.equal(read_biases(model)[name], bias_E) for name, bias_E in wanted.items())
    assert all(not bias_E.any() for bias_E in biases.values()), "what was read before is a value"


@pytest.mark.parametrize("family", BIASED)
def test_a_step_of_biases_moves_tokens_from_busy_experts_to_idle_ones(family: str) -> None:
    model = build(family, seed=3)
    ids = torch.randint(2, 80, (1, 64), generator=torch.Generator().manual_seed(0))

    def loads() -> dict[str, Tensor]:
        with record_routing(model) as routing, torch.no_grad():
            model(input_ids=ids, use_cache=False)
        return count_loads(routing)

    first = loads()
    for rate in [0.002] * 100 + [0.0003] * 100:
        set_biases_(model, next_biases(read_biases(model), loads(), rate))
    last = loads()
    spread = [max(float(load.float().std()) for load in each.values()) for each in (first, last)]
    assert spread[1] < 0.5 * spread[0]


def test_what_cannot_be_balanced_is_refused_by_name() -> None:
    dense = build_model(make_config("llama"), device="meta")
    both = balance_problems(dense, BalanceConfig(loss=0.1, rate=0.1))
    assert "needs routers beside experts, and none is found in llama" in both[0]
    assert "of which llama has none: leave it at 0" in both[1]
    mixture = build_model(make_config("deepseek_v3"), device="meta")
    assert balance_problems(mixture, BalanceConfig(loss=0.1, rate=0.1)) == []
    below = balance_problems(mixture, BalanceConfig(loss=-1.0, rate=-2.0))
    assert below == [
        "balance loss=-1.0: must be a number of at least 0.",
        "balance rate=-2.0: must be a number of at least 0.",
    ]
    assert len(balance_problems(mixture, BalanceConfig(loss=float("nan"), rate=float("inf")))) == 2


def test_left_out_the_loss_is_what_the_configuration_asks_for() -> None:
    quiet = build_model(make_config("qwen3_moe"), device="meta")
    asking = build_model(make_config("qwen3_moe", output_router_logits=True, router_aux_loss_coef=0.3), device="meta")
    assert asked_loss(quiet, BalanceConfig()) == 0.0
    assert asked_loss(asking, BalanceConfig()) == 0.3
    assert asked_loss(asking, BalanceConfig(loss=0.0)) == 0.0
