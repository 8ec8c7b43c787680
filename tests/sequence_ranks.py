"""What each rank runs in `test_sequence.py`: a pool sends functions by the name of their module."""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from sequence import TOLERANCE, make_config, make_model, packed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel

from omni_data import shard_sequence
from omni_mesh import MeshConfig, join_world, make_mesh, resolve_mesh
from omni_models import describe, map_attention, summed_loss, use_attention
from omni_models.attention import eager
from omni_parallel import apply_ulysses, heads_to_seq, plan_parallel, seq_to_heads, shard_fsdp, ulysses
from omni_parallel.heads import deal_heads


def check_heads(N: int, K: int, chunks: int, variant: str) -> None:
    """On each rank: output and gradients of the ulysses of eager attention are slices of those of eager attention."""
    special = {"sliding_window": 3, "softcap": 2.0} if variant.startswith("unequal") else {}
    with join_world(device="cpu") as world:
        rows, tokens, width, v_width = 2, 11, 4, 6 if special else 4
        random = torch.Generator().manual_seed(0)
        whole = [
            torch.randn(rows, heads, tokens, dim, generator=random)
            for heads, dim in ((N, width), (K, width), (K, v_width))
        ]
        whole.append(torch.randn(N, generator=random))
        weight = torch.randn(rows, tokens, N, v_width, generator=random)
        layer = nn.Module()
        facts: dict[str, Any] = {
            "cu_seqlens": torch.tensor([0, 4, 11, 12, 22], dtype=torch.int32),
            "max_seqlen": 10,
            "is_causal": variant != "both ways",
            **special,
        }
        part, padded = -(-tokens // world.size), -(-tokens // world.size) * world.size
        here = slice(world.rank * part, (world.rank + 1) * part)

        def attend(f: Any, inputs: list[Tensor], weight: Tensor, **more: Any) -> tuple[Tensor, list[Tensor]]:
            leaves = [x.clone().requires_grad_() for x in inputs]
            q, k, v, sinks = leaves
            out = f(layer, q, k, v, None, s_aux=sinks if special else None, **facts, **more)[0]
            (out * weight).sum().backward()
            having = leaves if special else leaves[:3]
            assert all(x.grad is not None for x in having)
            return out, [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]

        expected, grads = attend(eager, whole, weight)
        missing = padded - tokens
        mine = [pad(x, (0, 0, 0, missing), value=1.0)[:, :, here] for x in whole[:3]]
        out, my_grads = attend(
            ulysses(dist.group.WORLD, chunks=chunks)(eager),
            [*mine, whole[3]],
            pad(weight, (0, 0, 0, 0, 0, missing))[:, here],
            whole_position_ids=torch.arange(tokens).expand(rows, tokens),
        )
        assert torch.allclose(out, pad(expected, (0, 0, 0, 0, 0, missing))[:, here], atol=1e-6)
        for theirs, ours in zip(grads[:3], my_grads[:3], strict=True):
            lengthened = pad(theirs, (0, 0, 0, missing))
            assert torch.allclose(ours, lengthened[:, :, here], atol=1e-5)
        dist.all_reduce(my_grads[3])
        assert torch.allclose(my_grads[3], grads[3], atol=1e-5)


def check_swap(heads: int) -> None:
    with join_world(device="cpu") as world:
        whole_BNSD = torch.randn(2, heads, 3 * world.size, 4, generator=torch.Generator().manual_seed(0))
        mine_BNsD = whole_BNSD[:, :, 3 * world.rank : 3 * world.rank + 3].clone().requires_grad_()
        swapped_BnSD = seq_to_heads(mine_BNsD, dist.group.WORLD)
        run_of_heads = deal_heads(0, heads, 1, world.size)[world.rank]
        assert torch.equal(swapped_BnSD, whole_BNSD[:, run_of_heads.start : run_of_heads.stop])
        back_BsND = heads_to_seq(swapped_BnSD.transpose(1, 2), dist.group.WORLD, num_heads=heads)
        assert torch.equal(back_BsND, mine_BNsD.transpose(1, 2))
        (back_BsND * 2).sum().backward()
        assert torch.equal(mine_BNsD.grad, torch.full_like(mine_BNsD, 2.0))


class Counting(TorchDispatchMode):
    """Counts the operators that pass, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[op.name()] += 1
        return op(*args, **(kwargs or {}))

    @property
    def collectives(self) -> int:
        return sum(count for name, count in self.seen.items() if name.startswith("c10d::"))


def count_collectives(name: str, chunks: int) -> tuple[int, int, int]:
    inputs, labels_BS, _ = packed()
    with join_world(device="cpu") as world:
        model = cut_model(name, world.size, chunks)
        labels_Bs = torch.from_numpy(shard_sequence(labels_BS.numpy(), world.rank, world.size))
        with Counting() as forward:
            loss = summed_loss(model, inputs, labels_Bs)
        with Counting() as backward:
            loss.backward()
    return model.config.num_hidden_layers, forward.collectives, backward.collectives


def cut_model(name: str, sp: int, chunks: int = 1) -> Any:
    """The tiny model `name`, cut over all ranks of the world."""
    model = use_attention(make_model(name), "eager")
    spec = resolve_mesh(MeshConfig(shard=1, sp=sp), sp)
    mesh = make_mesh(spec, device_type="cpu")
    plan = plan_parallel(describe(model), spec, sp_chunks=chunks)
    return apply_ulysses(model, mesh, plan, over=map_attention)


def check_two_models() -> None:
    inputs, labels_BS, _ = packed()
    with join_world(device="cpu") as world:
        mine_Bs = torch.from_numpy(shard_sequence(labels_BS.numpy(), world.rank, world.size))
        alone = use_attention(make_model("llama"), "eager")
        summed_loss(alone, inputs, labels_BS).backward()
        cut, uncut = cut_model("llama", world.size), use_attention(make_model("llama"), "eager")
        # Interleaved: forward of both, then backward of both in the same order.
        first, second = summed_loss(cut, inputs, mine_Bs), summed_loss(uncut, inputs, labels_BS)
        first.backward()
        second.backward()
        assert torch.equal(second, summed_loss(alone, inputs, labels_BS))
        for a, b, c in zip(cut.parameters(), uncut.parameters(), alone.parameters(), strict=True):
            assert torch.equal(b.grad, c.grad)
            dist.all_reduce(a.grad)
            assert (a.grad - c.grad).norm() <= TOLERANCE * max(1e-3, c.grad.norm())


def forget(what: str, impl: Any) -> str:
    inputs, labels_BS, _ = packed()
    with join_world(device="cpu") as world:
        cut_Bs = torch.from_numpy(shard_sequence(labels_BS.numpy(), world.rank, world.size))
        forgot = what == "apply_ulysses"
        model = use_attention(make_model("llama"), "eager") if forgot else cut_model("llama", world.size)
        with pytest.raises(ValueError) as told:
            summed_loss(model, inputs, cut_Bs if forgot else labels_BS, impl=impl)
    return str(told.value)


MISTAKES = {
    "positions of a slice": (
        {"position_ids": torch.arange(19).expand(3, 19)},
        "position_ids are of 19 tokens, the row of 37",
    ),
    "a mask of a slice": ({"attention_mask": torch.ones(3, 19)}, "attention_mask is [3, 19], the rows are [3, 37]"),
    "documents of a slice": (
        {"cu_seqlens": torch.tensor([0, 57], dtype=torch.int32)},
        "cu_seqlens ends at 57, but 3 rows of 37 tokens end at 111",
    ),
    "too long a document": ({"max_seqlen": 38}, "max_seqlen=38 is longer than the row of 37 tokens"),
    "something else of the row": (
        {"per_token": torch.ones(3, 37)},
        "per_token has 37 tokens, and how it is cut is not known",
    ),
    "several masks": ({"attention_mask": {"full_attention": torch.ones(3, 1, 37, 37)}}, "attention_mask is a dict"),
}


def make_mistakes() -> list[str]:
    inputs, _, _ = packed()
    told = []
    with join_world(device="cpu") as world:
        model = cut_model("llama", world.size)
        for wrong, _ in MISTAKES.values():
            with pytest.raises(ValueError, match="cannot be cut along the row") as problem:
                model(**inputs | wrong, use_cache=False)
            told.append(str(problem.value))
    return told


def check_encoder() -> None:
    config = make_config({"model_type": "bert", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    inputs, _, _ = packed()
    ids_BS = inputs["input_ids"]
    torch.manual_seed(0)
    plain = AutoModel.from_config(config, attn_implementation="eager", add_pooling_layer=False).train()
    with join_world(device="cpu") as world:
        spec = resolve_mesh(MeshConfig(shard=1, sp=2), 2)
        ours = AutoModel.from_config(config, add_pooling_layer=False).train()
        ours.load_state_dict(plain.state_dict())
        plan = plan_parallel(describe(ours), spec)
        ours = apply_ulysses(use_attention(ours, "sdpa"), make_mesh(spec, device_type="cpu"), plan, over=map_attention)
        expected = plain(input_ids=ids_BS).last_hidden_state
        mine = ours(input_ids=ids_BS, token_type_ids=torch.zeros_like(ids_BS)).last_hidden_state
        here = expected[:, 19 * world.rank : 19 * world.rank + 19]
        assert torch.allclose(mine[:, : here.shape[1]], here, atol=1e-5)
        weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
        (expected * weight).sum().backward()
        (mine[:, : here.shape[1]] * weight[:, 19 * world.rank : 19 * world.rank + 19]).sum().backward()
        for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None), name
            if a.grad is not None:
                dist.all_reduce(a.grad)
                assert (a.grad - b.grad).norm() <= TOLERANCE * max(1e-3, b.grad.norm()), name


def check_uneven(cut: MeshConfig) -> None:
    """Rows of unequal length and targets, one after another, so that some ranks have only padding, others no target."""
    rows = [(5, 0), (37, 20), (16, 16), (23, 2)]
    random = torch.Generator().manual_seed(1)
    tokens = [torch.randint(2, 80, (1, length), generator=random) for length, _ in rows]
    labels = [torch.cat([x[:, 1:], torch.full((1, 1), -100)], dim=1) for x in tokens]
    for label, (_, ignored) in zip(labels, rows, strict=True):
        label[:, :ignored] = -100
    targets = sum((label != -100).sum() for label in labels)
    plain = make_model("llama")
    for x, label in zip(tokens, labels, strict=True):
        logits = plain(input_ids=x, use_cache=False).logits
        (nn.functional.cross_entropy(logits[0], label[0], reduction="sum") / targets).backward()
    with join_world(device="cpu") as world:
        spec = resolve_mesh(cut, world.size)
        mesh = make_mesh(spec, device_type="cpu")
        model = use_attention(make_model("llama"), "sdpa")
        plan = plan_parallel(describe(model), spec)
        model = apply_ulysses(model, mesh, plan, over=map_attention)
        model = shard_fsdp(model, mesh, plan, param_dtype=torch.float32)
        part, parts = mesh.tokens.get_local_rank("sp"), spec.sp
        for x, label in list(zip(tokens, labels, strict=True))[mesh.tokens.get_local_rank("dp") :: spec.dp]:
            here = torch.from_numpy(shard_sequence(label.numpy(), part, parts))
            loss = summed_loss(model, {"input_ids": x}, here) / targets
            assert loss.isfinite()
            loss.backward()
        for (name, param), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert isinstance(param.grad, DTensor)
            mine = param.grad.full_tensor()
            assert (mine - theirs.grad).norm() <= TOLERANCE * max(1e-3, theirs.grad.norm()), name
