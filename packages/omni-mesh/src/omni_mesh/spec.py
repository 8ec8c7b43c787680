"""What the mesh is, as arithmetic: sizes in, sizes and ranks out. Pure, and without torch.

One set of ranks is seen in three views, each a grid over all of them:

    tokens   (pp, dp, cp, sp, tp)          which tokens a rank sees
    params   (pp, replicate, fsdp, tp)     where dense parameters live
    experts  (pp, replicate, efsdp, ep)    where experts live

with `dp = replicate x shard`, `fsdp = shard x cp x sp` and `efsdp x ep = shard x cp x sp x tp`. Ranks are laid
row-major over (pp, replicate, shard, cp, sp, tp). Every view only flattens or regroups neighbours of that order, so a
rank is the same number in each of them, and its coordinates are the digits of that number.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from math import gcd, prod
from typing import Final

# Axes that are named but not built: `resolve_mesh` refuses them by name. A version that builds one takes its line out.
NOT_BUILT: Final[Mapping[str, str]] = {
    "pp": "pipeline parallelism",
    "cp": "context parallelism",
    "tp": "tensor parallelism",
}


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """Degrees of parallelism asked for. One of them may be -1: whatever the other axes leave of the world."""

    pp: int = 1
    """Pipeline parallel size: the layers are cut into this many stages."""
    replicate: int = 1
    """Data parallel replicas: copies of the sharded model, which sum their gradients (HSDP; DDP if shard is 1)."""
    shard: int = -1
    """Data parallel shards: parameters, gradients and optimizer state are cut this many ways (FSDP, ZeRO-3). -1: as
    many as there are ranks or GPUs, divided by the sizes of the other axes."""
    cp: int = 1
    """Context parallel size: each sequence is cut this many ways, keys and values travel round a ring."""
    sp: int = 1
    """Sequence parallel size: each sequence is cut this many ways, attention swaps tokens for heads (Ulysses)."""
    tp: int = 1
    """Tensor parallel size: each weight matrix is cut this many ways."""
    ep: int = 1
    """Expert parallel size: experts are spread this many ways over the ranks of shard x cp x sp x tp, borrowed."""


@dataclass(frozen=True, slots=True)
class MeshSpec:
    """Degrees of parallelism, resolved: every size is at least 1, and `ep` divides `shard x cp x sp x tp`.

    The views map the name of each axis to its size, outermost first.
    """

    pp: int = 1
    replicate: int = 1
    shard: int = 1
    cp: int = 1
    sp: int = 1
    tp: int = 1
    ep: int = 1

    @property
    def world(self) -> int:
        """Number of ranks."""
        return prod(self.base.values())

    @property
    def dp(self) -> int:
        """Number of ranks that read different rows of a batch."""
        return self.replicate * self.shard

    @property
    def fsdp(self) -> int:
        """Number of ranks over which one replica's dense parameters are sharded."""
        return self.shard * self.cp * self.sp

    @property
    def efsdp(self) -> int:
        """Number of ranks over which one replica's experts are sharded, beyond `ep`."""
        return self.shard * self.cp * self.sp * self.tp // self.ep

    @property
    def base(self) -> dict[str, int]:
        """The axes that make up the world, in the order in which ranks are laid."""
        return {axis: size for axis, size in asdict(self).items() if axis != "ep"}

    @property
    def tokens(self) -> dict[str, int]:
        """Which tokens a rank sees."""
        return {"pp": self.pp, "dp": self.dp, "cp": self.cp, "sp": self.sp, "tp": self.tp}

    @property
    def params(self) -> dict[str, int]:
        """Where dense parameters live."""
        return {"pp": self.pp, "replicate": self.replicate, "fsdp": self.fsdp, "tp": self.tp}

    @property
    def experts(self) -> dict[str, int]:
        """Where experts live."""
        return {"pp": self.pp, "replicate": self.replicate, "efsdp": self.efsdp, "ep": self.ep}

    @property
    def views(self) -> tuple[dict[str, int], ...]:
        """Every grid over these ranks: the base and the three views."""
        return self.base, self.tokens, self.params, self.experts


def resolve_mesh(config: MeshConfig, world_size: int) -> MeshSpec:
    """The sizes of a world of `world_size` ranks, with the one -1 filled in.

    Raises one `ValueError` that lists every problem: an axis below 1, more than one -1, axes that do not factor the
    world, an `ep` that does not divide the ranks it borrows, an axis that is not built yet.

    >>> resolve_mesh(MeshConfig(replicate=2), 8).fsdp
    4
    """
    problems = _malformed(config)
    if world_size < 1:
        problems.append(f"world_size={world_size}: a world has at least 1 rank. Pass the number of ranks started.")
    problems += _unfactored(config, world_size) if not problems else []
    filled = config if problems else _fill(config, world_size)
    problems += _undivided(filled)
    problems += [
        f"{axis}={size}: {NOT_BUILT[axis]} is not built yet; leave {axis} at 1."
        for axis, size in asdict(filled).items()
        if axis in NOT_BUILT and size > 1
    ]
    _refuse(problems, f"The mesh does not fit a world of {world_size} ranks")
    return MeshSpec(**asdict(filled))


def ranks_asked(config: MeshConfig, available: int) -> int:
    """How many local ranks to start for `config`, given `available` local GPUs (0: on CPU).

    That is the product of the axes; where one is -1, every GPU, or on CPU the product of the others, times what `ep`
    still lacks of ranks to borrow. Raises `ValueError` on malformed axes, or when more ranks are asked than GPUs.

    >>> ranks_asked(MeshConfig(shard=2, sp=2), 0), ranks_asked(MeshConfig(sp=2), 8), ranks_asked(MeshConfig(ep=2), 0)
    (4, 8, 2)
    """
    problems = _malformed(config)
    axes = _base(config)
    asked = prod(size for size in axes.values() if size != -1)
    if not problems and 0 < available < asked:
        problems.append(
            f"{_product(config)} needs {'at least ' if -1 in axes.values() else ''}{asked} ranks, but this machine has "
            f"{available} GPUs. Make the axes smaller, or start it on more machines with torchrun or srun."
        )
    _refuse(problems, "The mesh cannot be started here")
    if -1 not in axes.values():
        return asked
    borrowed = {axis: axes[axis] for axis in ("shard", "cp", "sp", "tp")}
    known = prod(size for size in borrowed.values() if size != -1)
    lacking = config.ep // gcd(config.ep, known) if -1 in borrowed.values() else 1
    return available or asked * lacking


def coords(spec: MeshSpec, rank: int) -> dict[str, int]:
    """The coordinate of `rank` on every axis of every view. Raises `ValueError` for a rank outside the world.

    >>> coords(MeshSpec(shard=2, sp=2), 3)["fsdp"]
    3
    """
    _check_rank(spec, rank)
    return {axis: rank // stride % size for view in spec.views for axis, (size, stride) in _strides(view).items()}


def peers(spec: MeshSpec, rank: int, axis: str) -> tuple[int, ...]:
    """The ranks that differ from `rank` only along `axis`, itself included, by their coordinate on it.

    Everything else is held fixed in the view that has this axis. Raises `ValueError` for an unknown axis (with the
    nearest name) or a rank outside the world.

    >>> peers(MeshSpec(shard=2, sp=2), 3, "shard")
    (1, 3)
    """
    _check_rank(spec, rank)
    axes = {name: place for view in spec.views for name, place in _strides(view).items()}
    if axis not in axes:
        near = get_close_matches(axis, axes, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"No axis {axis!r} in a mesh.{hint} The axes are {', '.join(axes)}.")
    size, stride = axes[axis]
    first = rank - rank // stride % size * stride
    return tuple(range(first, first + size * stride, stride))


def _strides(view: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """The size of each axis, and how far apart in rank its neighbours are. An axis of two views has one stride."""
    sizes = list(view.values())
    return {axis: (size, prod(sizes[i + 1 :])) for i, (axis, size) in enumerate(view.items())}


def _check_rank(spec: MeshSpec, rank: int) -> None:
    if not 0 <= rank < spec.world:
        raise ValueError(f"No rank {rank} in a world of {spec.world}: ranks go from 0 to {spec.world - 1}.")


def _base(config: MeshConfig) -> dict[str, int]:
    """The axes that multiply to the world: all but `ep`."""
    return {axis: size for axis, size in asdict(config).items() if axis != "ep"}


def _product(config: MeshConfig) -> str:
    """The axes that were set, as a product: "replicate=2 x shard=4"."""
    return " x ".join(f"{axis}={size}" for axis, size in _base(config).items() if size != 1) or "a mesh of size 1"


def _fill(config: MeshConfig, world_size: int) -> MeshConfig:
    """Put a number in the place of the one -1: whatever is left of a world that the other axes divide."""
    if config.ep == -1:
        return replace(config, ep=config.shard * config.cp * config.sp * config.tp)
    left = world_size // prod(size for size in _base(config).values() if size != -1)
    return replace(config, **{axis: left for axis, size in asdict(config).items() if size == -1})


def _malformed(config: MeshConfig) -> list[str]:
    """What is wrong with the axes one by one, whatever the world."""
    axes = asdict(config)
    problems = [
        f"{axis}={size}: an axis is at least 1, or -1 for whatever is left. Set {axis}=1 to leave it out."
        for axis, size in axes.items()
        if size < 1 and size != -1
    ]
    if len(left := [f"{axis}=-1" for axis, size in axes.items() if size == -1]) > 1:
        problems.append(f"{' and '.join(left)}: only one axis can be whatever is left. Give a number to the others.")
    return problems


def _unfactored(config: MeshConfig, world_size: int) -> list[str]:
    """What is wrong with the product of well-formed axes, and what would be right."""
    axes = _base(config)
    known = prod(size for size in axes.values() if size != -1)
    if known == world_size or (-1 in axes.values() and world_size % known == 0):
        return []
    if -1 in axes.values():
        return [
            f"{_product(config)}: {known} does not divide the {world_size} ranks of the world. Make the product of the "
            f"numbers one of {_divisors(world_size)}, or start a multiple of {known} ranks."
        ]
    others = {axis: known // size for axis, size in axes.items() if axis not in NOT_BUILT}
    fits = [f"{axis}={world_size // rest}" for axis, rest in others.items() if world_size % rest == 0]
    remedy = " or ".join([*fits, f"{known} ranks"])
    return [f"{_product(config)} makes {known} ranks, but the world has {world_size}. What would fit: {remedy}."]


def _undivided(config: MeshConfig) -> list[str]:
    """What is wrong with `ep`, if the ranks it borrows are known."""
    borrowed = [config.shard, config.cp, config.sp, config.tp]
    if config.ep < 1 or min(borrowed) < 1 or prod(borrowed) % config.ep == 0:
        return []
    return [
        f"ep={config.ep} does not divide shard x cp x sp x tp = {prod(borrowed)}: experts are spread over the ranks of "
        f"one replica. Set ep to one of {_divisors(prod(borrowed))}."
    ]


def _divisors(number: int) -> str:
    return ", ".join(str(divisor) for divisor in range(1, number + 1) if number % divisor == 0)


def _refuse(problems: list[str], what: str) -> None:
    if problems:
        raise ValueError("\n".join([f"{what}:", *(f"  * {problem}" for problem in problems)]))
