"""What a device did in the steps that were profiled, and for how long: of a GPU its kernels and copies, of a CPU the
operators of the thread that trains, and what gloo sends.

Each moment of the steps counts once: as computing if anything computes, else as the optimizer's, else as communication
or a copy to or from the host, else as idle.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple

from spans import Span, length, overlap, subtract, union
from torch.profiler import profile

KINDS: Final = {
    "compiled": r"^triton_(poi|per|red)_",
    "exchange of rows": r"SendRecv|all_?to_?all",
    "gathers and reductions": r"nccl|gloo|c10d",
    "copies between GPUs": r"Memcpy PtoP|barrier_kernel",
    "copies to and from the host": r"Memcpy (HtoD|DtoH)",
    "optimizer": r"(?i:adam)",
    "attention": r"flash|fmha|attn|FlashAttention|dot_product_attention|flex_attention",
    "matrix products": r"gemm|cutlass|nvjet|sm90_xmma|cublas|^aten::(linear|matmul|addmm|b?mm)$",
    "rows of experts": r"_spread|_sum_rows|_grad_rows|silu_halves",
    "norms, positions": r"rms_norm|rope",
    "index, gather, sort": r"index|gather|scatter|[sS]ort|scan|radix",
    "copies and casts": r"Memcpy|Memset|copy|cat|CatArray|fill",
}
"""The first that matches the name of a kernel, or of an operator, says what it does; elementwise if none does.

Torch's compiler names a kernel by all that it fuses, so its kernels come first."""
COMMUNICATION: Final = ("exchange of rows", "gathers and reductions", "copies between GPUs")
HOST_COPIES: Final = "copies to and from the host"
OPTIMIZER: Final = "optimizer"
WAITS: Final = r"cudaStreamSynchronize|cudaDeviceSynchronize|cudaEventSynchronize"
STEP: Final = "step"
"""What the span of each step that is profiled is called in a trace, with its number after."""
DATA: Final = "data of step"
"""And that of waiting for its data."""
_OPERATOR: Final = re.compile(r"(?!autograd::)\w+::")


class Event(NamedTuple):
    """Something that a device did, from `begin` to `end`, in microseconds."""

    name: str
    begin: float
    end: float

    @property
    def span(self) -> Span:
        return self.begin, self.end


@dataclass(frozen=True, slots=True)
class Timeline:
    """Steps that were profiled."""

    steps: int
    window: Span
    """From the first wait for data until the device was done."""
    events: Sequence[Event]
    waits: Mapping[str, int]
    """How often the host waited for a GPU, by the call."""


def kind_of_work(name: str) -> str:
    """What a kernel or an operator of that name does. Pure.

    >>> kind_of_work("ncclDevKernel_AllGather_RING_LL"), kind_of_work("aten::_fused_adamw_"), kind_of_work("aten::mul")
    ('gathers and reductions', 'optimizer', 'elementwise')
    >>> kind_of_work("triton_tem_fused_flex_attention_0"), kind_of_work("triton_red_fused_index_add_copy_mean_0")
    ('attention', 'compiled')
    """
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "elementwise")


def read_timeline(profiler: profile) -> Timeline:
    """What `profiler`, which was stopped, has seen of the steps that were run under it."""
    seen: list[Any] = list(profiler.events() or ())
    steps = [event for event in seen if re.fullmatch(rf"{STEP} \d+", event.name) and _is_of_host(event)]
    if not steps:
        return Timeline(0, (0.0, 0.0), (), {})
    told = [*steps, *(event for event in seen if event.name.startswith(DATA) and _is_of_host(event))]
    begin, last = min(event.time_range.start for event in told), max(event.time_range.end for event in steps)
    kernels = [event for event in seen if not _is_of_host(event) and not event.is_user_annotation]
    work = kernels or [e for e in seen if e.time_range.start < last and _is_work(e, steps[0].thread)]
    events = [Event(e.name, e.time_range.start, e.time_range.end) for e in work if e.time_range.end > begin]
    waits = Counter(e.name for e in seen if re.fullmatch(WAITS, e.name) and begin <= e.time_range.start <= last)
    return Timeline(len(steps), (begin, max([last, *(event.end for event in events)])), events, waits)


def _is_of_host(event: Any) -> bool:
    return event.device_type.name == "CPU"


def _is_work(event: Any, thread: int) -> bool:
    """Whether an event of the host computes or communicates there: an operator of `thread` in no other operator, or
    something of gloo, which has threads of its own."""
    if event.name.startswith("gloo:"):
        return True
    above = event.cpu_parent
    while above is not None and not _is_operator(above):
        above = above.cpu_parent
    return event.thread == thread and _is_operator(event) and above is None


def _is_operator(event: Any) -> bool:
    return not event.is_user_annotation and _OPERATOR.match(event.name) is not None


def account(timeline: Timeline) -> dict[str, float]:
    """Seconds a step by what the device did, each moment once, which together are `profiled_seconds`; and how often the
    host waited a step. Pure."""
    by_kind: dict[str, list[Span]] = {}
    for event in timeline.events:
        by_kind.setdefault(kind_of_work(event.name), []).append(event.span)
    communication = [span for kind in COMMUNICATION for span in by_kind.pop(kind, [])]
    copies, optimizer = by_kind.pop(HOST_COPIES, []), by_kind.pop(OPTIMIZER, [])
    compute = union(span for spans in by_kind.values() for span in spans)
    kinds = {
        "compute": compute,
        "optimizer": subtract(optimizer, compute),
        "exposed_communication": subtract(communication, compute, optimizer, copies),
        "exposed_host_copy": subtract(copies, compute, optimizer),
        "idle": subtract([timeline.window], compute, optimizer, communication, copies),
    }
    seconds = {"profiled": [timeline.window], **{kind: overlap(kinds[kind], [timeline.window]) for kind in kinds}}
    a_step = {f"{kind}_seconds": length(spans) / 1e6 / timeline.steps for kind, spans in seconds.items()}
    return {**a_step, "host_syncs": sum(timeline.waits.values()) / timeline.steps}


def tell_timeline(timeline: Timeline, most: int = 45) -> str:
    """Milliseconds a step by what the device did, by kind of work, and by kernel or operator, so many at most. Pure."""
    a_step = account(timeline)
    by_kind, by_name = defaultdict[str, float](float), defaultdict[str, float](float)
    for name, begin, end in timeline.events:
        kind, millis = kind_of_work(name), (end - begin) / 1e3 / timeline.steps
        by_kind[kind] += millis
        by_name[f"{kind}: {name[:110]}"] += millis
    shares = {
        name.removesuffix("_seconds").replace("_", " "): seconds * 1e3
        for name, seconds in a_step.items()
        if name.endswith("_seconds") and name != "profiled_seconds"
    }
    told = a_step["profiled_seconds"] * 1e3
    lines = [f"of {told:.1f} milliseconds a step, over {timeline.steps} that were profiled:", *_rows(shares.items())]
    for title, table in (("kind of work", by_kind), ("kernel or operator", by_name)):
        lines += [f"milliseconds a step by {title}, {sum(table.values()):.1f} in sum:"]
        lines += _rows(sorted(table.items(), key=itemgetter(1), reverse=True)[:most])
    return "\n".join([*lines, f"waits of the host for the device: {dict(timeline.waits) or 'none'}"])


def _rows(table: Iterable[tuple[str, float]]) -> list[str]:
    return [f"  {value:8.2f}  {name}" for name, value in table]
