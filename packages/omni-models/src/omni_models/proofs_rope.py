"""How the forward of an attention is proven to turn queries and keys, by `ROTATE` and its tables.

Three proofs make one: the function turns the two halves of a head (Su et al., 2021, arXiv:2104.09864), the forward
hands the tables on as it was given them, and the second half of the model's tables repeats the first.

Dimensions: B rows, S tokens a row, N heads, D head dim.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from omni_models.proofs import UNFIT, copy_probe, draw, equals, equals_in_bits
from omni_models.support import is_attention

ROTATE = "apply_rotary_pos_emb"
"""What transformers calls the function that turns queries and keys, in the globals of a modeling file."""
_OPTIONS = {"unsqueeze_dim", "position_ids"}
"""What that function may take beside queries, keys and tables."""


@dataclass(frozen=True, slots=True)
class Rope:
    """How a forward turns queries and keys.

    Attributes:
        rotate: the function of the modeling file.
        half: its tables have one column for two features; otherwise the second half of the columns repeats the first.
        wide: it computes in fp32 whatever it is given.
    """

    rotate: Callable[..., tuple[Tensor, Tensor]]
    half: bool
    wide: bool


def looks_like_attention(module: nn.Module) -> bool:
    """Whether its forward turns queries and keys, or should."""
    names = _names_in(module)
    return ROTATE in names or (is_attention(module) and "ALL_ATTENTION_FUNCTIONS" in names)


def prove_rope(module: nn.Module, repeats: bool | str) -> Rope | str:
    """How the forward of `module` turns queries and keys, or why that is not told, in words.

    Args:
        module: an attention.
        repeats: what `prove_tables` gave for its model.
    """
    forward = type(module).forward
    called = {name for name in _names_in(module) if name.startswith("apply_") and "rotary" in name}
    if ROTATE not in called:
        return f"its forward does not call {ROTATE}"
    if others := sorted(called - {ROTATE}):
        return f"its forward chooses between {ROTATE} and {', '.join(others)}"
    if not isinstance(forward, FunctionType) or hasattr(forward, "__wrapped__"):
        return "its forward is decorated, so its code cannot be bound anew without losing that"
    rotate: Any = forward.__globals__.get(ROTATE)
    half = _prove_rotate(rotate)
    wide = None if half is None else _is_wide(rotate, half)
    reasons = (
        (half is None, f"its {ROTATE} turns something else than the two halves of a head"),
        (wide is None, f"its {ROTATE} rounds in its own way"),
        (not _hands_tables_on(forward), "its forward may change the position tables before it uses them"),
        (isinstance(repeats, str), repeats),
        (not half and not repeats, "the second half of its position tables does not repeat the first"),
    )
    return next((str(why) for holds, why in reasons if holds), None) or Rope(rotate, bool(half), bool(wide))


def prove_tables(model: PreTrainedModel) -> bool | str:
    """Whether all position tables of `model` repeat their first half; why that cannot be told, in words."""
    repeats = []
    for module in model.modules():
        if not any("inv_freq" in name for name, _ in module.named_buffers(recurse=False)):
            continue
        probe = copy_probe(module, {}, torch.Generator().manual_seed(0))
        kinds = getattr(module, "layer_types", None)
        for kind in kinds if isinstance(kinds, (list, tuple, set)) else [None]:
            options = {} if kind is None else {"layer_type": kind}
            if (tables := _encode(probe, options)) is not None:
                repeats.append(all(torch.equal(*x.chunk(2, dim=-1)) for x in tables))
    return all(repeats) if repeats else "no module of its model gives position tables of a known form"


def _encode(probe: nn.Module, options: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """The tables of a module of position encodings, or None if it is not one of text."""
    position_BS = torch.tensor([[0, 1, 2, 5]], device="cpu")
    for positions in (position_BS, position_BS.expand(3, 1, 4)):
        try:
            tables = type(probe).forward(probe, torch.ones(1, 4, 8, device="cpu"), positions, **options)
        except UNFIT:
            continue
        if isinstance(tables, tuple) and len(tables) == 2 and all(isinstance(x, Tensor) for x in tables):
            return tables
    return None


def _prove_rotate(rotate: Callable[..., Any]) -> bool | None:
    """Whether the tables of `rotate` have one column for two features, if it is the standard form; None if not."""
    try:
        names = list(inspect.signature(rotate).parameters)
    except (TypeError, ValueError):
        return None
    if names[:4] != ["q", "k", "cos", "sin"] or not set(names[4:]) <= _OPTIONS:
        return None
    shapes = [(D, half) for half in (False, True) for D in (8, 12)]
    outcomes = [half for D, half in shapes if _turns_halves(rotate, names, D, D, half)]
    if outcomes not in ([False, False], [True, True]):
        return None
    half = outcomes[0]
    # Narrower tables turn a part of the head, if anything.
    partial = _turns_halves(rotate, names, 12, 8, half)
    return half if partial is None or partial else None


def _turns_halves(rotate: Callable[..., Any], names: list[str], D: int, width: int, half: bool) -> bool | None:
    """Whether `rotate` gives the standard form, in either layout of tokens and heads; None if it refuses."""
    q, k, cos, sin = _rope_probe(D, width, half, torch.float32)
    want = [_turn(x, cos, sin, width) for x in (q, k)]
    calls: list[tuple[dict[str, Any], bool]] = [({}, False)]
    if "position_ids" in names:
        calls.append(({"position_ids": torch.tensor([[3, 1, 4, 1, 5]], device="cpu")}, False))
    if "unsqueeze_dim" in names:
        calls += [({"unsqueeze_dim": 1}, False), ({"unsqueeze_dim": 2}, True)]
    try:
        for options, tokens_first in calls:
            inputs = [x.transpose(1, 2) if tokens_first else x for x in (q, k)]
            got = rotate(*inputs, cos, sin, **options)
            got = [x.transpose(1, 2) if tokens_first else x for x in got]
            if len(got) != 2 or not all(equals(*pair) for pair in zip(got, want, strict=True)):
                return False
    except UNFIT:
        return None
    return True


def _rope_probe(D: int, width: int, half: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k = (draw((2, heads, 5, D), generator).to(dtype) for heads in (4, 2))
    cos, sin = (draw((2, 5, width // 2), generator).to(dtype) for _ in range(2))
    return (q, k, cos, sin) if half else (q, k, torch.cat([cos, cos], -1), torch.cat([sin, sin], -1))


def _turn(x_BNSD: Tensor, cos: Tensor, sin: Tensor, width: int) -> Tensor:
    cos, sin = (x[:, None, :, : width // 2] for x in (cos, sin))
    left, right = x_BNSD[..., : width // 2], x_BNSD[..., width // 2 : width]
    return torch.cat([left * cos - right * sin, right * cos + left * sin, x_BNSD[..., width:]], dim=-1)


def _is_wide(rotate: Callable[..., Any], half: bool) -> bool | None:
    """Whether `rotate` computes in fp32 and casts back; None if it rounds in neither way."""
    q, k, cos, sin = _rope_probe(64, 64, half, torch.bfloat16)
    out = rotate(q, k, cos, sin)[0]
    if equals_in_bits(out, _turn(q, cos, sin, 64)):
        return False
    wide = _turn(q.float(), cos.float(), sin.float(), 64).to(q.dtype)
    exact = rotate(q, k, cos.float(), sin.float())[0]
    return True if equals_in_bits(out, wide) and equals_in_bits(exact, wide) else None


def _hands_tables_on(forward: FunctionType) -> bool:
    """Whether the tables that `forward` turns by are those that it was given, unchanged. Reads its source."""
    try:
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(forward))).body
    except (OSError, TypeError):
        return False
    assert isinstance(function, ast.FunctionDef)
    nodes = list(ast.walk(function))
    calls = [node for node in nodes if isinstance(node, ast.Call) and _is_name(node.func, ROTATE)]
    tables = [table for call in calls for table in call.args[2:4]]
    names = {table.id for table in tables if isinstance(table, ast.Name)}
    stored = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    given = {each.arg for each in (*function.args.args, *function.args.kwonlyargs)} - set(stored)
    unpacked = [
        target.id
        for node in nodes
        if isinstance(node, ast.Assign) and (_is_none(node.value) or any(_is_name(node.value, name) for name in given))
        for pair in node.targets
        if isinstance(pair, ast.Tuple)
        for target in pair.elts
        if isinstance(target, ast.Name)
    ]
    plain = bool(calls) and len(tables) == 2 * len(calls) and all(isinstance(table, ast.Name) for table in tables)
    return plain and all(name in given or unpacked.count(name) == stored.count(name) > 0 for name in names)


def _is_none(node: ast.expr) -> bool:
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return all(isinstance(part, ast.Constant) and part.value is None for part in parts)


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _names_in(module: nn.Module) -> tuple[str, ...]:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return () if code is None else code.co_names
