"""What each rank runs in `test_lora.py`: tiny models with adapters on a mesh, beside plain peft on one rank."""

import copy
import hashlib
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import experts
import seeing
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from senses import make_model, told_alone
from sequence import packed, plain_loss
from torch import Tensor, nn
from transformers import PreTrainedModel

from omni_mesh import Mesh, MeshConfig, join_world, make_mesh, resolve_mesh
from omni_models import (
    LoraSettings,
    add_lora,
    attention_problems,
    cast_frozen,
    count_targets,
    describe,
    map_attention,
    map_encoders,
    map_experts,
    summed_loss,
    use_attention,
    use_experts,
)
from omni_parallel import (
    AdamWConfig,
    RecomputeConfig,
    apply_encoders,
    apply_ep,
    apply_ulysses,
    global_sum,
    init_state,
    plan_parallel,
    recompute_blocks,
    shard_fsdp,
    tile_mlps,
)
from omni_parallel.local import local

TOLERANCE = 1e-5
PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Adapted:
    """A step of a tiny model with adapters on a mesh."""

    family: str
    mesh: MeshConfig
    lora: LoraSettings
    recompute: bool = False
    tile: int = 0


def check(case: Adapted) -> tuple[float, str, int]:
    """The worst error of a gradient and whose it is, and how many there are; the loss is that of plain peft."""
    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(case.mesh, world.size), device_type="cpu")
        start = experts.make_mixture(case.family)
        model = perturb_(add_lora(copy.deepcopy(start), case.lora, seed=1))
        model = place(model, case, mesh)
        loss, grads = experts.step(model, mesh), experts.grads_of(model)
        check_moments(model)
        if world.rank:
            return 0.0, "", 0
        plain = perturb_(by_peft(start, case.lora))
        expected = plain_loss(plain, packed(list(experts.ROWS))[2])
        assert abs(loss - expected) <= TOLERANCE * expected, (loss, expected)
        return compare(grads, plain)


def check_seeing(case: Adapted) -> tuple[float, str, int]:
    """As `check`, of a model with a tower, whose rows have images."""
    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(case.mesh, world.size), device_type="cpu")
        start = make_model(case.family)
        model = perturb_(add_lora(copy.deepcopy(start), case.lora))
        model = place(model, case, mesh, encoders=True)
        index = mesh.tokens.get_local_rank("dp")
        given = (seeing.MANY, seeing.FILM)[: mesh.spec.dp]
        step = seeing.make_inputs(seeing.Case(case.family, case.mesh, (given,)), given[index], mesh, world.rank)
        targets = global_sum(count_targets(step.labels_Bs))
        loss = summed_loss(model, step.inputs, step.labels_Bs) / targets
        loss.backward()
        total, grads = global_sum(loss.detach()).item(), experts.grads_of(model)
        if world.rank:
            return 0.0, "", 0
        plain = perturb_(by_peft(start, case.lora))
        expected = documents_loss(plain, case.family, given)
        assert abs(total - expected) <= TOLERANCE * expected, (total, expected)
        return compare(grads, plain)


def check_held(case: Adapted) -> int:
    """How many gradients are the same bits, with frozen weights held in bf16 and in fp32, where bf16 computes."""
    grads = []
    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(case.mesh, world.size), device_type="cpu")
        for dtype in (torch.bfloat16, torch.float32):
            model = perturb_(add_lora(experts.make_mixture(case.family), case.lora))
            model = place(cast_frozen(model, dtype), case, mesh, param_dtype=torch.bfloat16)
            experts.step(model, mesh)
            assert {local(p).dtype for p in model.parameters() if not p.requires_grad} == {dtype}
            grads.append(experts.grads_of(model))
    return sum(grad is not None and torch.equal(grad, grads[1][name]) for name, grad in grads[0].items())


def place(
    model: PreTrainedModel,
    case: Adapted,
    mesh: Mesh,
    *,
    encoders: bool = False,
    param_dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """`model` laid over `mesh`, as the app does. Donates `model`."""
    recompute = RecomputeConfig(every=int(case.recompute))
    plan = plan_parallel(describe(model), mesh.spec, recompute=recompute, encoders=encoders, tile=case.tile)
    eager = encoders or attention_problems(model, "sdpa", "cpu", torch.float32)
    model = use_experts(use_attention(model, "eager" if eager else "sdpa"))
    model = apply_ulysses(model, mesh, plan, over=map_attention)
    model = apply_encoders(model, over=map_encoders) if encoders else model
    model = apply_ep(model, mesh, plan, over=map_experts)
    model = tile_mlps(model, plan)
    model = recompute_blocks(model, plan)
    return shard_fsdp(model, mesh, plan, param_dtype=param_dtype)


def by_peft(model: PreTrainedModel, lora: LoraSettings) -> nn.Module:
    """`model` as plain peft adapts it, from what a person would write."""
    # An expression in full names: of a mixture peft makes one an expression for last parts.
    meant = [name for name, _ in model.named_modules() if re.fullmatch(lora.targets[0], name)]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=int(lora.alpha),
        target_modules=meant or [*lora.targets],
        modules_to_save=[*lora.save] or None,
    )
    with warnings.catch_warnings():
        # What peft calls that transformers has another name for.
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        return get_peft_model(copy.deepcopy(model), config)


def perturb_(model: Any) -> Any:
    """`model`, in which all that is trained is set by its name, so that every adapter counts. Changes `model`."""
    with torch.no_grad():
        for name, param in model.named_parameters():
            if param.requires_grad:
                digest = hashlib.sha256(name.removeprefix(PREFIX).encode()).digest()
                random = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
                param.add_(torch.randn(param.shape, generator=random), alpha=0.2)
                if "lora_A" in name:
                    param.copy_(torch.randn(param.shape, generator=random) * 0.2)
    return model


def compare(grads: Mapping[str, Tensor | None], plain: nn.Module) -> tuple[float, str, int]:
    """The largest error of a gradient that plain peft has, whose it is, and of how many; no others are there."""
    theirs = {name.removeprefix(PREFIX): param for name, param in plain.named_parameters()}
    assert grads.keys() == theirs.keys()
    trained = {name for name, param in theirs.items() if param.requires_grad}
    assert {name for name, grad in grads.items() if grad is not None} == trained
    errors = []
    for name in trained:
        ours, wanted = grads[name], theirs[name].grad
        assert ours is not None and wanted is not None and wanted.any(), name
        errors.append(((ours - wanted).norm().item() / wanted.norm().item(), name))
    return (*max(errors), len(errors))


def check_moments(model: nn.Module) -> None:
    """The optimizer holds state of what is trained, and of nothing else."""
    state = init_state(model, AdamWConfig())
    trained = {param for param in model.parameters() if param.requires_grad}
    assert set(state.optimizer.state) == trained and len(trained) < len([*model.parameters()]) / 2


def documents_loss(model: Callable[..., Any], family: str, given: tuple[int, ...]) -> float:
    """The mean loss of all documents, each alone; leaves gradients."""
    total, targets = torch.zeros(()), 0
    for document in (document for each in given for document in seeing.encoded(family, each)):
        told = told_alone(family, document)
        logits = model(**told, use_cache=False).logits
        labels_N = torch.where(torch.from_numpy(document.learn_N), told["input_ids"][0], -100)[1:]
        total = total + F.cross_entropy(logits[0, :-1], labels_N, ignore_index=-100, reduction="sum")
        targets += int((labels_N >= 0).sum())
    (total / targets).backward()
    return total.item() / targets
