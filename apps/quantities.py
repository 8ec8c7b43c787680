"""What metrics are of: their titles, units, and how they are drawn, by the names that runs give them. Pure.

A name that is not known here is drawn, too, as something else.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

Group = Literal["loss", "training", "speed", "data", "experts", "other"]
GROUPS: Final[dict[Group, str]] = {
    "loss": "Loss",
    "training": "Optimization",
    "speed": "Speed and memory",
    "data": "Data",
    "experts": "Experts",
    "other": "Other",
}
"""In the order of a page."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something that a run tells at each step."""

    title: str
    unit: str = ""
    group: Group = "other"
    smooth: bool = False
    """It is noisy, so that its mean over neighbouring steps is drawn, too."""
    log: bool = False
    """It has a logarithmic scale, where one is asked for."""
    from_zero: bool = False
    factor: float = 1.0
    """By which what is told is multiplied, for its unit."""
    family: str = ""
    """Quantities of one family share a chart, if it is of one run; this is its title."""
    label: str = ""
    """What it is called in that chart."""


_SPEED: Final = Quantity("", group="speed", smooth=True, from_zero=True)
_COUNT: Final = Quantity("", group="data", from_zero=True)
_EXPERT: Final = Quantity("", "times the mean", "experts", from_zero=True, family="Load of experts")
_LOSS: Final = Quantity("Loss", "nats a target", "loss", smooth=True, log=True)
KNOWN: Final[dict[str, Quantity]] = {
    "loss": _LOSS,
    "perplexity": Quantity("Perplexity", "", "loss", smooth=True, log=True),
    "balance_loss": Quantity("Balance loss of experts", "", "experts", smooth=True),
    "lr": Quantity("Learning rate", "", "training", from_zero=True),
    "grad_norm": Quantity("Norm of the gradient", "before clipping", "training", smooth=True, log=True),
    "tokens_per_second": replace(_SPEED, title="Throughput", unit="tokens a second"),
    "tokens_per_second_per_rank": replace(_SPEED, title="Throughput of a rank", unit="tokens a second"),
    "mfu": replace(_SPEED, title="Model FLOPs utilization", unit="%", factor=100),
    "mfu_full_square": replace(_SPEED, title="The same, attention of whole rows", unit="%", factor=100),
    "tflops_per_rank": replace(_SPEED, title="Operations of a rank", unit="TFLOP/s"),
    "tower_tflops_per_rank": replace(_SPEED, title="Operations of towers of a rank", unit="TFLOP/s"),
    "seconds": Quantity("Time of a step", "seconds", "speed", smooth=True, log=True, from_zero=True),
    "memory_gb": Quantity("Peak memory", "GB, first rank", "speed", from_zero=True),
    "data_seconds": Quantity("Wait for data", "seconds of a step", "data", smooth=True, log=True, from_zero=True),
    "fill": Quantity("Positions that are no padding", "%", "data", smooth=True, from_zero=True, factor=100),
    "targets": Quantity("Targets of a step", "", "data", smooth=True),
    "documents_cut": replace(_COUNT, title="Documents that were cut", unit="so far"),
    "documents_dropped": replace(_COUNT, title="Documents that were dropped", unit="so far"),
    "documents_empty": replace(_COUNT, title="Documents that were empty", unit="so far"),
    "documents_bad": replace(_COUNT, title="Documents that could not be used", unit="so far"),
    "expert_load_max": replace(_EXPERT, title="Busiest expert of any layer", label="busiest of any layer"),
    "expert_load_most": replace(_EXPERT, title="Busiest expert over all layers", label="busiest over all layers"),
    "expert_load_least": replace(_EXPERT, title="Idlest expert over all layers", label="idlest over all layers"),
}
AXES: Final = ("step", "tokens")
"""Names that say where a run is."""
_FAMILIES: Final = {
    "loss/": ("Loss of sources", _LOSS),
    "loss_of_": ("Loss of parts", _LOSS),
    "perplexity/": ("Perplexity of sources", KNOWN["perplexity"]),
    "targets/": ("Targets of sources", KNOWN["targets"]),
}


def quantity_of(name: str) -> Quantity:
    """What a metric of this name is of.

    >>> quantity_of("loss/web").title, quantity_of("odd").group
    ('Loss of web', 'other')
    """
    if name in KNOWN:
        return KNOWN[name]
    for start, (family, like) in _FAMILIES.items():
        if name.startswith(start):
            what = name.removeprefix(start)
            return replace(like, title=f"{family.split()[0]} of {what}", family=family, label=what)
    return Quantity(name)


def order_of(name: str) -> tuple[int, int, str]:
    """Where a metric of this name is among others."""
    known = [*KNOWN]
    return [*GROUPS].index(quantity_of(name).group), known.index(name) if name in known else len(known), name
