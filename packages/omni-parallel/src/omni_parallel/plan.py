"""The parallel plan: which modules are sharded and which recomputed, as plain data.

A plan is derived by a pure function from facts about a model and the sizes of a mesh. It can be printed, compared and
tested without a GPU; the functions that follow it (`shard_fsdp`, `recompute_blocks`, `apply_ep`) decide nothing
themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from omni_mesh import MeshSpec
from omni_parallel.facts import ModelFacts


@dataclass(frozen=True, slots=True)
class RecomputeConfig:
    """Which blocks forget their activations in the forward pass and compute them again in the backward pass."""

    every: int = 0
    """Recompute every n-th block: 0 recomputes none, 1 all of them, 2 half of them."""
    keep: Literal["nothing", "attention", "matmuls"] = "nothing"
    """What a recomputed block keeps all the same, beside its inputs: the outputs of attention kernels, which then never
    run twice, or those and the outputs of matrix products. Each holds more memory than the one before, for less work.
    """
    matmuls: int = 0
    """Of these blocks the last so many keep the outputs of matrix products, whatever `keep` says of the others: for
    what memory is left."""

    @property
    def kept(self) -> str:
        """What has operators watched, to know what to keep, as it was asked for; "" if nothing does."""
        own = [] if self.keep == "nothing" else [f"keep={self.keep}"]
        return ", ".join([*own, *([f"matmuls={self.matmuls}"] if self.matmuls else [])])

    def of_blocks(self, count: int) -> tuple["RecomputeConfig", ...]:
        """The same for each of so many blocks alone. Pure.

        >>> [(block.every, block.keep) for block in RecomputeConfig(2, "attention", 1).of_blocks(4)]
        [(1, 'attention'), (0, 'nothing'), (1, 'matmuls'), (0, 'nothing')]
        """
        chosen = range(count)[:: self.every] if self.every else range(0)
        more = chosen[max(0, len(chosen) - self.matmuls) :]
        return tuple(
            RecomputeConfig(1, "matmuls" if i in more else self.keep) if i in chosen else RecomputeConfig()
            for i in range(count)
        )


_ATTENTION = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "aten::_flash_attention_forward",
    "torch_attn::_varlen_attn",
    "omni::fa4_forward",
)
_MATMULS = (
    *("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    *("aten::_grouped_mm", "aten::_scaled_mm", "aten::_scaled_mm_v2"),
    *("aten::_scaled_grouped_mm", "aten::_scaled_grouped_mm_v2"),
)
KEPT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"nothing": (), "attention": _ATTENTION, "matmuls": _ATTENTION + _MATMULS}
)
"""Operators whose outputs a recomputed block keeps, by `RecomputeConfig.keep`. Names that a version of torch lacks or
that a model never calls do nothing; whatever calls these operators, its results are kept."""


@dataclass(frozen=True, slots=True)
class ParallelPlan:
    """Module names by what is done to them."""

    blocks: tuple[str, ...]
    """Sharded one by one, in this order; the rest of the model is one unit around them."""
    head: str = ""
    """Sharded like a block, after them; "" leaves it to the rest."""
    recompute: tuple[str, ...] = ()
    """Blocks whose activations are computed again in the backward pass."""
    keep: tuple[str, ...] = ()
    """Operators, by qualified name, whose outputs those blocks keep all the same."""
    keep_matmuls: tuple[str, ...] = ()
    """Those of them that keep the outputs of matrix products too."""
    offload: tuple[str, ...] = ()
    """Blocks that hold in memory of the host what they keep for the backward pass."""
    reshard_after_forward: bool = True
    """Free a block's gathered parameters between its forward and its backward pass (ZeRO-3), or keep them (ZeRO-2)."""
    prefetch: int = 1
    """How many units ahead parameters are gathered, in both directions."""
    decoder: str = ""
    """The module whose attention is spread over sequence ranks."""
    door: str = ""
    """The module where rows are cut among them as they enter: the decoder, or the whole model, see `encoders`."""
    encoders: bool = False
    """Whether media are encoded by whichever rank has least to do. Rows are then cut before they are embedded."""
    rotaries: tuple[str, ...] = ()
    """Position encodings that are made for the whole row before they are cut."""
    sp_chunks: int = 1
    """Parts of a sequence rank's heads: the collective of one runs under the attention of another."""
    experts: tuple[str, ...] = ()
    """Modules whose experts are spread over expert ranks, and sharded apart from their blocks."""
    tiled: tuple[str, ...] = ()
    """Modules that take `tile` tokens at a time."""
    tile: int = 0
    """Tokens of a tile, of all rows that a rank has together; 0 if nothing is tiled."""
    compile: tuple[str, ...] = ()
    """Blocks that run as they are compiled."""
    uncompiled: tuple[str, ...] = ()
    """Modules in those blocks that are called as they are."""


def plan_parallel(
    facts: ModelFacts,
    spec: MeshSpec,
    *,
    recompute: RecomputeConfig = RecomputeConfig(),
    sp_chunks: int = 1,
    keep_gathered: bool = False,
    offload: bool = False,
    tile: int = 0,
    compile: bool = False,
    encoders: bool = False,
) -> ParallelPlan:
    """What to shard, cut and recompute for a model of these facts on a mesh of this spec.

    Args:
        facts: what is known of the model.
        spec: the resolved sizes of the mesh.
        recompute: which blocks trade compute for memory.
        sp_chunks: parts of the heads of a sequence rank, which overlap; 1 for no overlap.
        keep_gathered: keep gathered parameters from the forward pass to the backward pass (ZeRO-2), where ranks share
            them.
        offload: hold activations in memory of the host; not those of the last block, whose backward pass is next, and
            not of blocks that keep products by `recompute.matmuls`: of these copies would take longer than the blocks.
        tile: tokens that feed-forward modules take at a time; 0 for all at once.
        compile: compile blocks, but for what is tiled, and for what calls experts, whose work depends on choices.
        encoders: spread media over ranks, see `omni_parallel.apply_encoders`.

    Raises:
        ValueError: with every reason why it cannot work: heads that tp does not divide, rows that sp cannot cut,
            experts that ep cannot spread; chunks, recomputation or tiles that do not fit the model or each other; a
            compiler that has nothing to compile, or is asked for with offload or with operators that are kept; and a
            model without blocks.

    >>> from types import SimpleNamespace
    >>> from omni_mesh import MeshConfig, resolve_mesh
    >>> facts = SimpleNamespace(
    ...     blocks=("layers.0", "layers.1", "layers.2"), num_heads=4, num_kv_heads=2,
    ...     head="", decoder="", rotaries=(), unsplittable=(), experts=(), expert_shapes=(), unspreadable=())
    >>> plan_parallel(facts, resolve_mesh(MeshConfig(), 2), recompute=RecomputeConfig(every=2)).recompute
    ('layers.0', 'layers.2')
    """
    problems = [
        f"{count}={having} does not divide by tp={spec.tp}: choose tp among the divisors of {having}."
        for count, having in (("num_heads", facts.num_heads), ("num_kv_heads", facts.num_kv_heads))
        if having % spec.tp
    ]
    if spec.sp > 1:
        problems += [
            f"sp={spec.sp} cannot cut a row: {why}. Leave sp at 1, shard instead." for why in facts.unsplittable
        ]
    if spec.ep > 1:
        problems += _spread_problems(facts, spec)
    most = -(-facts.num_heads // spec.sp)
    if sp_chunks < 1:
        problems.append(f"sp_chunks={sp_chunks} must be at least 1, which is no overlap.")
    elif sp_chunks > 1 and spec.sp == 1:
        problems.append(f"sp_chunks={sp_chunks} cuts the heads of sequence ranks, but sp=1 has none: leave it out.")
    elif sp_chunks > most:
        problems.append(
            f"sp_chunks={sp_chunks}: of {facts.num_heads} heads on sp={spec.sp} ranks none has more than {most} to cut."
        )
    if recompute.every < 0:
        problems.append(f"recompute every={recompute.every}: use 0 for no block, 1 for all, n for every n-th.")
    if recompute.keep not in KEPT:
        problems.append(f"recompute keep={recompute.keep!r}: use one of {', '.join(KEPT)}.")
    elif recompute.keep != "nothing" and recompute.every == 0 and not recompute.matmuls:
        problems.append(f"recompute keep={recompute.keep} but every=0 recomputes no block: set every=1, or leave keep.")
    problems += _matmul_problems(facts, recompute, offload=offload) if recompute.matmuls else []
    problems += _tile_problems(facts, recompute, tile) if tile else []
    problems += _compile_problems(facts, recompute, offload=offload) if compile else []
    if not facts.blocks:
        problems.append("the model names no repeated blocks (_no_split_modules), so there is nothing to shard by.")
    if problems:
        raise ValueError("this plan cannot work:\n" + "\n".join(f"  - {p}" for p in problems))
    each = tuple(zip(facts.blocks, recompute.of_blocks(len(facts.blocks)), strict=True))
    keep_matmuls = tuple(name for name, how in each if recompute.matmuls and how.keep == "matmuls")
    tiled = facts.mlps if tile else ()
    callers = _find_callers(facts) if compile else ()
    return ParallelPlan(
        blocks=facts.blocks,
        head=facts.head,
        recompute=tuple(name for name, how in each if how.every),
        keep=KEPT[recompute.keep],
        keep_matmuls=keep_matmuls,
        offload=list_offloaded(facts.blocks, recompute) if offload else (),
        reshard_after_forward=spec.fsdp > 1 and not keep_gathered,
        decoder=facts.decoder,
        door="" if encoders else facts.decoder,
        encoders=encoders,
        rotaries=facts.rotaries,
        sp_chunks=sp_chunks,
        experts=facts.experts if spec.ep > 1 else (),
        tiled=tiled,
        tile=tile,
        # A block that calls experts itself is left as it is.
        compile=tuple(name for name in facts.blocks if name not in callers) if compile else (),
        uncompiled=tuple(name for name in (*callers, *tiled) if name not in facts.blocks) if compile else (),
    )


def has_shared_experts(spec: MeshSpec) -> bool:
    """Whether experts are spread, and each is on several ranks: they are then units of their own. Pure."""
    return spec.ep > 1 and spec.efsdp * spec.replicate > 1


def list_offloaded(blocks: Sequence[str], recompute: RecomputeConfig) -> tuple[str, ...]:
    """Of blocks those that hold in memory of the host what they keep, if any do: not the last, and none that keeps
    products by `recompute.matmuls`. Pure."""
    each = zip(blocks[:-1], recompute.of_blocks(len(blocks)), strict=False)
    return tuple(name for name, how in each if not (recompute.matmuls and how.keep == "matmuls"))


def _matmul_problems(facts: ModelFacts, recompute: RecomputeConfig, *, offload: bool) -> list[str]:
    """Why no blocks can be the last so many that keep products."""
    asked = f"recompute matmuls={recompute.matmuls}"
    recomputed = [block.every for block in recompute.of_blocks(len(facts.blocks))].count(1)
    if not recomputed:
        return [f"{asked}, but every=0 recomputes no block: set every=1, or leave matmuls."]
    if recompute.keep == "matmuls":
        return [f"{asked}, but keep=matmuls says that all do: leave matmuls, or keep attention."]
    if not 0 < recompute.matmuls <= recomputed:
        return [f"{asked} of the {recomputed} blocks that are recomputed: use 1 to {recomputed}, or 0 for none."]
    if offload and not list_offloaded(facts.blocks, recompute):
        return [f"{asked} with offload: all keep products, and such blocks stay on the device: leave one of them out."]
    return []


def _find_callers(facts: ModelFacts) -> tuple[str, ...]:
    """The modules that call experts, each once."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in facts.experts))


def _compile_problems(facts: ModelFacts, recompute: RecomputeConfig, *, offload: bool) -> list[str]:
    """Why the blocks of such a model cannot be compiled with these."""
    problems = []
    if facts.blocks and set(facts.blocks) <= set(_find_callers(facts)):
        problems.append("compile: each block calls its experts itself, so there is nothing to compile: leave it out.")
    if recompute.kept:
        problems.append(
            f"compile with recompute {recompute.kept}: to know what to keep, each operator is watched, and torch "
            "compiles nothing that is watched. Keep nothing, or do not compile."
        )
    if offload:
        problems.append(
            "compile with offload: what a compiled block keeps may be part of a parameter, which is freed before its "
            "copy is made. Leave one of them out."
        )
    return problems


def _tile_problems(facts: ModelFacts, recompute: RecomputeConfig, tile: int) -> list[str]:
    """Why the feed-forward modules of such a model cannot take `tile` tokens at a time."""
    problems = []
    if tile < 0:
        problems.append(f"tile={tile}: use 0 for no tiles, or the tokens of one.")
    if not facts.mlps:
        problems.append(
            f"tile={tile}, but no module in the blocks is known to be a feed-forward that treats each token alone and "
            "draws no random numbers; experts that are chosen are none: leave tile at 0."
        )
    if recompute.keep == "matmuls" or recompute.matmuls:
        problems.append(
            f"recompute {recompute.kept} would keep what tiles of {tile} tokens are there to forget: keep attention or "
            "nothing, or leave tile at 0."
        )
    return problems


def _spread_problems(facts: ModelFacts, spec: MeshSpec) -> list[str]:
    """Why the experts of such a model cannot be spread over the expert ranks of `spec`."""
    ep, efsdp = spec.ep, spec.efsdp
    if not facts.experts:
        return [f"ep={ep}, but the model has no experts to spread: leave ep at 1."]
    problems = [f"ep={ep} cannot spread experts: {why}. Leave ep at 1, shard instead." for why in facts.unspreadable]
    for experts in sorted({shape[0] for shape in facts.expert_shapes if shape[0] % ep}):
        fits = ", ".join(str(n) for n in range(1, experts + 1) if experts % n == 0)
        problems.append(f"ep={ep} does not divide the {experts} experts: choose ep among {fits}.")
    problems += [
        f"experts of shape {list(shape[1:])} do not divide over the efsdp={efsdp} ranks that share each (shard x cp x "
        "sp x tp / ep): choose ep or shard so that one of these sizes does."
        for shape in facts.expert_shapes
        if all(size % efsdp for size in shape[1:])
    ]
    return problems
