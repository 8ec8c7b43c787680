"""Functions that change what they are given say so: they donate it and give it back, or end in an underscore."""

import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest
import torch

from omni_mesh import MeshConfig, join_world, make_mesh, resolve_mesh
from omni_models import (
    LoraSettings,
    add_lora,
    build_model,
    cast_frozen,
    describe,
    fill_weights,
    freeze_params,
    map_attention,
    merge_adapters,
    read_config,
    summed_loss,
    use_attention,
)
from omni_parallel import (
    AdamWConfig,
    apply_fp8,
    clip_grads_,
    compile_blocks,
    constant,
    init_state,
    plan_parallel,
    recompute_blocks,
    restore_state,
    shard_fsdp,
    shard_parts,
    state_tree,
    tile_mlps,
    update,
)

ROOT = Path(__file__).parent.parent
PACKAGES = ("omni_mesh", "omni_parallel", "omni_data", "omni_ckpt", "omni_models")
DONATING = (
    *("apply_", "shard_", "use_", "map_", "compile_", "recompute_", "tile_", "fill_", "init_", "restore_"),
    *("add_", "freeze_", "cast_", "merge_adapters", "read_adapters", "update"),
)
"""How a function that donates its first argument is called. `shard_sequence` cuts an array and copies."""
PURE = {"freeze_problems", "shard_sequence"}
FUNCTIONS = [
    (package, name)
    for package in PACKAGES
    for name, value in vars(import_module(package)).items()
    if inspect.isfunction(value) and not name.startswith("_")
]


@pytest.mark.parametrize(("package", "name"), FUNCTIONS)
def test_a_function_says_whether_it_donates(package: str, name: str) -> None:
    function = getattr(import_module(package), name)
    doc = inspect.getdoc(function)
    assert doc, "every public function has a docstring"
    first = next(iter(inspect.signature(function).parameters), None)
    donates = f"Donates `{first}`" in doc
    assert donates == ("Donates" in doc), "what is donated comes first"
    if name.startswith(DONATING) and name not in PURE:
        assert donates
    if donates:
        assert inspect.signature(function).return_annotation not in (None, inspect.Signature.empty)
        assert not name.endswith("_")


def test_a_donated_model_and_state_come_back() -> None:
    with join_world(device="cpu"):
        mesh = make_mesh(resolve_mesh(MeshConfig(), 1), device_type="cpu")
        model = build_model(read_config("tiny"), device="meta")
        plan = plan_parallel(describe(model), mesh.spec, tile=5)
        assert add_lora(model, LoraSettings(rank=2, targets=("q_proj",))) is model
        assert freeze_params(model, ["k_proj"]) is model
        assert cast_frozen(model, torch.float32) is model
        assert use_attention(model, "sdpa") is model
        assert map_attention(model, lambda attend: attend) is model
        assert apply_fp8(model, plan) is model
        assert tile_mlps(model, plan) is model
        assert compile_blocks(model, plan) is model
        assert recompute_blocks(model, plan) is model
        assert shard_parts(model, {}, {}) is model
        assert shard_fsdp(model, mesh, plan, param_dtype=torch.float32) is model
        assert fill_weights(model, None) is model
        state = init_state(model, AdamWConfig())
        assert state.model is model
        assert restore_state(state, state_tree(state)).model is model
        ids = torch.arange(8)[None]
        summed_loss(model, {"input_ids": ids}, ids).backward()
        clip_grads_(model, 1.0)
        assert update(state, constant(0.1)).optimizer is state.optimizer
        assert state.step == 0, "a state is a value: the next one has another step"
        adapted = add_lora(build_model(read_config("tiny")), LoraSettings(rank=2))
        assert merge_adapters(adapted) is adapted


def test_functions_not_donating_leave_a_model_as_it_was() -> None:
    model = build_model(read_config("tiny"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    describe(model)
    ids = torch.arange(8)[None]
    summed_loss(model, {"input_ids": ids}, ids)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}


@pytest.mark.parametrize("path", sorted(ROOT.glob("packages/*/src/**/*.py")), ids=lambda path: path.stem)
def test_a_function_that_returns_nothing_has_an_effect_or_an_underscore(path: Path) -> None:
    """A public function without a result is called for what it does, so its docstring names the effect."""
    for node in ast.parse(path.read_text()).body:
        nothing = isinstance(node, ast.FunctionDef) and ast.unparse(node.returns or ast.Constant(1)) == "None"
        if nothing and not node.name.startswith("_") and not node.name.endswith("_"):
            words = (ast.get_docstring(node) or "") + (ast.get_docstring(ast.parse(path.read_text())) or "")
            assert "Effect" in words or "Raises" in words, node.name
