"""Which kernel a run would use where, and why not another, in words: what `--explain` prints instead of training."""

from typing import Protocol

import torch
from decision import Decision

from omni_models import explain
from omni_parallel import ParallelPlan, fp8_problems

HOPPER = (9, 0)
"""The compute capability that is told of where there is no GPU."""


class MayExplain(Protocol):
    """A configuration that says whether its run is explained, and not started."""

    @property
    def explain(self) -> bool: ...


def explain_run(asked: MayExplain, run: Decision) -> str:
    """What `run` is, in words, if that is all that is `asked` for; else nothing. Effect: reads some documents."""
    if not asked.explain:
        return ""
    capability = torch.cuda.get_device_capability() if run.device == "cuda" else None
    told = [run.told(), _tell(run, run.device, run.dtype, capability)]
    if run.device != "cuda":
        told.append(_tell(run, "cuda", torch.bfloat16, HOPPER))
    return "\n\n".join(told)


def _tell(run: Decision, device: str, dtype: torch.dtype, capability: tuple[int, int] | None) -> str:
    """What would compute the model there where no flag says otherwise."""
    where = f"a GPU of compute capability {'.'.join(map(str, capability))}" if capability else device
    told = explain(run.model, device_type=device, dtype=dtype, capability=capability)
    problems = fp8_problems(device, capability, run.model, ParallelPlan(run.facts.blocks))
    told["linear"] = ("plain", *(f"not fp8: {problem}" for problem in problems))
    told["linear"] += () if problems else ("fp8 would fit, with other numbers: --linear fp8",)
    lines = [f"{part if i == 0 else '':<10}{line}" for part, lines in told.items() for i, line in enumerate(lines)]
    return "\n".join([f"on {where}, in {dtype}, if no flag says otherwise:", *lines])
