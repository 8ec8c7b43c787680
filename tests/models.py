"""Every type of model that transformers makes text by, of text or of images and text: what works, and why not the rest.

PYTHONPATH=packages/omni-models/tests uv run tests/models.py --write        measure the table of docs/models.md anew
"""

import argparse
import copy
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from experts import grads_of, place, step
from huggingface_hub.errors import StrictDataclassError
from ranks import rank_pool
from safetensors.torch import load_file
from sequence import TOLERANCE, fill, packed, plain_loss, worst_error, write_table
from tiny_types import KINDS, tiny_config
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from torch.distributed import get_world_size
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)
from transformers.configuration_utils import PreTrainedConfig

from omni_ckpt import merge_to_hf, save_dcp
from omni_mesh import MeshConfig, join_world, make_mesh, resolve_mesh
from omni_models import build_model, describe, fill_weights, hf_keys, unsupported
from omni_parallel import named_tensors

DOCS = Path(__file__).parent.parent / "docs" / "models.md"
ROWS = ((9, 1, 20, 7), (23, 3, 11))
"""Documents of two rows of 37 tokens."""
MESHES = {"shard": MeshConfig(shard=2), "sp": MeshConfig(shard=1, sp=2), "ep": MeshConfig(shard=2, ep=2)}
COLUMNS = ("build", *MESHES, "hf", "compile")
MOST_PARAMS = 20_000_000
YES, NOTHING = "yes", ""


@dataclass(frozen=True, slots=True)
class Case:
    """What a type is measured by."""

    empty: PreTrainedModel
    """As we build it, without weights."""
    start: PreTrainedModel
    """As plain transformers makes it."""
    loss: float
    grads: Mapping[str, Tensor | None]
    """Those of plain transformers, of each document of `ROWS` alone."""


def examine(kind: str, folder: Path) -> dict[str, str]:
    """What works of a type, on two ranks: by column `YES`, `NOTHING` if it has nothing of that, or why not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Each of three hundred modeling files may say what it likes.
        case = make_case(kind)
        if not isinstance(case, Case):
            return case
        has_experts = bool(describe(case.empty).experts)
        found = {"build": YES}
        with join_world(device="cpu"):
            for label, mesh in MESHES.items():
                found[label] = equals(case, mesh) if label != "ep" or has_experts else NOTHING
            if found["shard"] == YES:
                found["hf"] = comes_back(case, folder)
    return found


def examine_compiled(kind: str) -> dict[str, str]:
    """What `examine` says, on one rank, of blocks that are compiled; nothing of a type that is not compared there.

    It stands alone, as a compiler takes seconds a type: thorough runs have this of all types, others of two
    (`EVERY_RUN` of conftest.py).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = make_case(kind)
        if not isinstance(case, Case):
            return {}
        torch._dynamo.reset()
        counters.clear()
        try:
            with join_world(device="cpu"):
                found = equals(case, MeshConfig(), compile=True)
        except TorchDynamoException as problem:
            found = reason(problem)
        finally:
            torch._dynamo.reset()
    idle = found == YES and not counters["stats"]["unique_graphs"]
    return {"compile": "nothing of its blocks is compiled." if idle else found}


def make_case(kind: str) -> Case | dict[str, str]:
    """What a type is compared with, or what `examine` says of a type that cannot be compared."""
    try:
        config = tiny_config(kind)
    except (ValueError, StrictDataclassError) as problem:
        return {"build": f"not tried, as its fields make no tiny configuration: {reason(problem)}"}
    try:
        empty = build_model(config, device="meta")
        facts = describe(empty)
    except (ValueError, ImportError, NotImplementedError) as problem:
        return {"build": reason(problem)}
    assert facts.num_params < MOST_PARAMS, f"{kind} is not tiny: {facts.num_params:,} parameters"
    if reasons := unsupported(empty):
        return {"build": YES, "pack": " ".join(why.partition(" yet: ")[2] for why in reasons)}
    plain = fill(make_text(config, type(empty)))
    start = copy.deepcopy(plain)
    try:
        loss = plain_loss(plain, packed(ROWS)[2])
    except ValueError as problem:
        return {"build": YES, "pack": f"plain transformers: {reason(problem)}"}
    return Case(empty, start, loss, {key: param.grad for key, param in plain.named_parameters()})


def make_text(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> PreTrainedModel:
    """A plain model of a configuration, of the class that we build of it, whose experts compute one by one."""
    torch.manual_seed(0)
    text = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)  # pyright: ignore[reportArgumentType]
    auto = AutoModelForCausalLM if kind is text else AutoModelForImageTextToText
    model = auto.from_config(config, dtype=torch.float32, attn_implementation="eager")
    model.set_experts_implementation("eager")
    return model


def equals(case: Case, config: MeshConfig, *, compile: bool = False) -> str:
    """Whether loss and every gradient on a mesh of all ranks are those of plain transformers. Collective."""
    mesh = make_mesh(resolve_mesh(config, get_world_size()), device_type="cpu")
    try:
        ours = place(copy.deepcopy(case.start), mesh, compile=compile)
        off = abs(step(ours, mesh, ROWS) - case.loss) / case.loss
    except ValueError as problem:
        return reason(problem)
    worst, name = worst_error(grads_of(ours), case.grads)
    far = f"the loss is off by {off:.0e}, the gradient of {name} by {worst:.0e}"
    return YES if off <= TOLERANCE and worst <= TOLERANCE else far


def comes_back(case: Case, folder: Path) -> str:
    """Whether what transformers writes is read into a sharded model, and what is merged of that is what was read."""
    mesh = make_mesh(resolve_mesh(MeshConfig(shard=2), 2), device_type="cpu")
    first = torch.distributed.get_rank() == 0
    try:
        if first:
            case.start.save_pretrained(folder / "hf")
        torch.distributed.barrier()
        ours = fill_weights(place(case.empty, mesh), folder / "hf")
        save_dcp({"state": {"model": named_tensors(ours)}}, folder / "step")
        if not first:
            return YES
        merge_to_hf(folder / "step", folder / "back", to_hf=hf_keys(case.start))
    except ValueError as problem:
        return reason(problem)
    theirs, back = (load_file(folder / name / "model.safetensors") for name in ("hf", "back"))
    wrong = sorted({*theirs} ^ {*back})
    wrong += [key for key in theirs if key in back and not torch.equal(theirs[key], back[key])]
    return f"other tensors come back: {', '.join(wrong[:3])}" if wrong else YES


def reason(problem: Exception) -> str:
    """What is wrong, in a line: what is common to several problems is left out."""
    lines = [line.strip(" -") for line in str(problem).splitlines() if line.strip()]
    listed = lines[0].endswith(":") and len(lines) > 1 and not isinstance(problem, ImportError)
    told = lines[1] if listed else lines[0]
    return told if len(told) < 160 else f"{told[:157]}..."


def table(measured: Mapping[str, Mapping[str, str]]) -> str:
    """The table of the docs: types of which all works, then those of which something does not, with the reason."""
    whole = [kind for kind, cells in measured.items() if is_whole(cells)]
    experts = [kind for kind in whole if measured[kind]["ep"] == YES]
    number = f"{len(whole)} of the {len(measured)} types of transformers {transformers.__version__}"
    lines = [f"{number}: {', '.join(whole)}.", ""]
    lines += [f"Of these have experts, which `--ep` spreads: {', '.join(experts)}.", ""]
    lines += ["| type | what does not work | why |", "| --- | --- | --- |"]
    for kind, cells in measured.items():
        whys: dict[str, list[str]] = {}
        for name, why in troubles(cells).items():
            whys.setdefault(why, []).append(name)
        lines += [f"| {kind} | {', '.join(names)} | {why} |" for why, names in whys.items()]
    return "\n".join(lines)


def troubles(cells: Mapping[str, str]) -> dict[str, str]:
    """Columns of a type that do not work, with the reason."""
    return {name: why for name, why in cells.items() if why not in (YES, NOTHING)}


def is_whole(cells: Mapping[str, str]) -> bool:
    """Whether all that applies to a type works."""
    return set(cells) == {*COLUMNS} and not troubles(cells)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into docs/models.md")
    parser.add_argument("kinds", nargs="*")
    asked = parser.parse_args()
    import models  # A rank finds the function by the name of its module, which is not __main__.

    measured: dict[str, dict[str, str]] = {}
    with rank_pool() as run:
        for name in asked.kinds or KINDS:
            with tempfile.TemporaryDirectory() as at:
                measured[name] = run(models.examine, 2, name, Path(at))[0]
            measured[name] |= run(models.examine_compiled, 1, name)[0]
            print(name, measured[name], flush=True)
    if asked.write:
        write_table(DOCS, table(measured))
