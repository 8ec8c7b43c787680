"""Recipes are read strictly, decided for the GPUs that they name, and train."""

from pathlib import Path
from typing import Any

import omni
import plan
import pretrain
import pytest
import sft
from chats import chats
from chatting import tune
from decide import decide
from ranks import Run
from settings import read_settings
from showing import show
from strict_yaml import tell_yaml
from training import train, write_family

from omni_mesh import resolve_mesh
from omni_models import PRESETS
from recipes import KINDS, NEEDS, plan_recipe, recipes_of, row_of, state_gb

ROOT = Path(__file__).parent.parent
FILES = sorted(ROOT.glob("recipes/*/*.yaml"))
RECIPES = [path for path in FILES if path.stem != "common"]
CONFIGS: dict[str, Any] = {"pretrain": pretrain.Config, "sft": sft.Config, "omni": omni.Config}
HERE = "tokenizer: bytes\ndata: [builtin]\nweights: null\n"
"""What needs no network, in place of what a recipe names."""


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


ALIKE = ("pretrain/glm-4.5", "sft/deepseek-r1", "omni/")
"""Recipes that take long to decide, of models like those of others: `benchmarks/recipes.py` plans each of them."""


def settings_of(path: Path) -> tuple[Any, pretrain.Config]:
    """What a recipe asks for, and the run of it."""
    asked = read_settings(CONFIGS[path.parent.name], [path])
    return asked, asked if path.parent.name == "pretrain" else asked.run


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_is_read_strictly_and_its_mesh_is_of_the_gpus_that_it_names(path: Path) -> None:
    needs = NEEDS.match(path.read_text())
    assert needs, "the first line says what it needs"
    _, run = settings_of(path)
    planned = read_settings(plan.Config, [path]).run
    assert (planned.model, planned.mesh, planned.batch) == (run.model, run.mesh, run.batch), "it is planned as well"
    assert run.model in PRESETS and run.out.name.removeprefix(f"{path.parent.name}-") == path.stem
    assert resolve_mesh(run.mesh, int(needs["gpus"])).world == int(needs["gpus"]) and run.mesh.shard > 0
    assert int(needs["state"]) < 100
    if path.parent.name == "pretrain":
        assert run.weights is None and run.tokenizer
    else:
        assert run.weights == run.tokenizer and (run.weights or run.model.startswith("tiny"))


@pytest.mark.parametrize(
    "path", [p for p in RECIPES if name(p) == "omni/qwen2.5-vl-7b" or not name(p).startswith(ALIKE)], ids=name
)
def test_a_recipe_is_decided_without_a_problem(path: Path, tmp_path: Path) -> None:
    (tmp_path / path.parent.name).mkdir()
    here = tmp_path / path.parent.name / path.name
    here.write_text(f"base: {path}\n{HERE}")
    asked, config = settings_of(here)
    # What would see is not here: rows are of text.
    kind = None if path.parent.name == "pretrain" else chats(asked.chat)
    needs = NEEDS.match(path.read_text())
    assert needs
    run = decide(config, int(needs["gpus"]), kind=kind, saves=False)
    assert int(needs["state"]) == state_gb(config, run.facts.num_params, run.spec.fsdp)


def test_what_recipes_share_is_a_file_of_settings_by_itself() -> None:
    for path in set(FILES) - set(RECIPES):
        read_settings(CONFIGS[path.parent.name], [path])


def test_there_is_a_recipe_of_every_family() -> None:
    models = {kind: {settings_of(path)[1].model for path in recipes_of(kind)} for kind in KINDS}
    kinds = {kind: {str(PRESETS[model]["model_type"]) for model in models[kind]} for kind in KINDS}
    texts = {"llama", "qwen2", "qwen3", "qwen3_moe", "gpt_oss", "glm4_moe", "deepseek_v2", "deepseek_v3", "gemma3"}
    seeing = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v_moe", "gemma3", "internvl", "seed_omni"}
    assert texts <= kinds["pretrain"] and seeing | {"qwen2_5_omni_thinker"} <= kinds["omni"]
    named = {"deepseek-v2.5", "deepseek-v3", "llama-3-8b", "llama-3.1-70b", "llama-3.2-3b", "qwen2-7b", "qwen2.5-7b"}
    assert (
        named <= models["pretrain"]
        and {"deepseek-r1", "llama-3.3-70b"} <= models["sft"]
        and "qvq-72b" in models["omni"]
    )


def test_the_table_has_each_recipe_as_a_plan_tells_it() -> None:
    rows = (ROOT / "recipes" / "README.md").read_text().splitlines()
    for path in RECIPES:
        needs = NEEDS.match(path.read_text())
        (row,) = (row for row in rows if f"({name(path)}.yaml)" in row)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert needs and (cells[1], cells[2], cells[4]) == (needs["gpus"], f"{needs['state']} GB", needs["told"])
        assert int(cells[3].removesuffix(" GB")) < 0.94 * 141, "it fits"
    for path in (ROOT / "recipes" / file for file in ("pretrain/qwen3-8b.yaml", "sft/qwen3-30b-a3b.yaml")):
        assert row_of(path, plan_recipe(path)).strip() in rows, "uv run benchmarks/recipes.py --write"


TINY = "seq_len: 256\nsteps: 2\nwarmup: 1\nbatch: 2\nsave_every: 2\nkeep_every: null\nvirtual_shards: null\n"
"""What is short."""


@pytest.mark.parametrize(
    ("recipe", "model", "mesh"),
    [
        ("pretrain/qwen3-8b", "tiny", {"shard": 1}),
        ("pretrain/llama3-70b", "llama", {"shard": 2}),
        ("pretrain/qwen3-30b-a3b", "tiny-moe", {"shard": 2, "ep": 2}),
        ("pretrain/qwen3-8b-131072", "tiny", {"shard": 1, "sp": 2}),
        ("sft/qwen3-8b", "tiny", {"shard": 1}),
        ("omni/qwen2.5-vl-7b", "tiny-vl", {"shard": 1}),
        ("omni/tiny-omni", "tiny-omni", {"shard": 1}),
    ],
)
def test_a_recipe_trains_a_tiny_model_of_its_family(
    recipe: str, model: str, mesh: dict[str, int], run: Run, tmp_path: Path
) -> None:
    path, ranks = tmp_path / "run.yaml", mesh["shard"] * mesh.get("sp", 1)
    model = model if model in PRESETS else write_family(model, tmp_path)
    changes = tell_yaml({"base": f"{ROOT}/recipes/{recipe}.yaml", "model": model, "out": f"{tmp_path}/run", **mesh})
    path.write_text(changes + HERE + TINY)
    kind = recipe.partition("/")[0]
    config = read_settings(CONFIGS[kind], [path])
    rows = run({"pretrain": train, "sft": tune, "omni": show}[kind], ranks, config)[0]
    assert [row["step"] for row in rows] == [1, 2] and all(2 < row["loss"] < 12 for row in rows)
