"""How the forward of an attention is proven to turn queries and keys, by one of `ROTATES` and its tables.

Three proofs make one: the function turns the two halves of a head (Su et al., 2021, arXiv:2104.09864), the forward
hands the tables on as it was given them, and the second half of the model's tables repeats the first.

Dimensions: B rows, S tokens a row, N heads, D head dim.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from omni_models.proofs import UNFIT, copy_probe, draw, equals, equals_in_bits
from omni_models.support import is_attention

ROTATE, ROTATE_FLAT = "apply_rotary_pos_emb", "apply_rotary_pos_emb_vision"
"""What transformers calls the function that turns queries and keys, in the globals of a modeling file: of a decoder,
and of a tower, whose tokens are those of all images in one row, as a rule without a dim for rows."""
ROTATES = (ROTATE, ROTATE_FLAT)
_OPTIONS = {"unsqueeze_dim", "position_ids"}
"""What that function may take beside queries, keys and tables."""


@dataclass(frozen=True, slots=True)
class Rope:
    """How a forward turns queries and keys.

    Attributes:
        rotate: the function of the modeling file.
        half: its tables have one column for two features; otherwise the second half of the columns repeats the first.
        wide: it computes in fp32 whatever it is given.
        flat: it takes tokens before heads, (S, N, D) or (B, S, N, D), and tables of (S, D) or (B, S, D), as
            `ROTATE_FLAT` does; otherwise (B, N, S, D) and (B, S, D), as `ROTATE` does.
        dim: of the heads, if they may be padded, see `wide_heads`; 0 leaves them as they are.
    """

    rotate: Callable[..., tuple[Tensor, Tensor]]
    half: bool
    wide: bool
    flat: bool = False
    dim: int = 0

    @property
    def name(self) -> str:
        """What the forward calls it."""
        return ROTATE_FLAT if self.flat else ROTATE


def looks_like_attention(module: nn.Module) -> bool:
    """Whether its forward turns queries and keys, or should."""
    names = _names_in(module)
    return not set(ROTATES).isdisjoint(names) or (is_attention(module) and "ALL_ATTENTION_FUNCTIONS" in names)


def prove_rope(module: nn.Module, repeats: Mapping[str, bool | str]) -> Rope | str:
    """How the forward of `module` turns queries and keys, or why that is not told, in words.

    Args:
        module: an attention.
        repeats: what `prove_tables` gave for its model.
    """
    forward = type(module).forward
    called = {name for name in _names_in(module) if name.startswith("apply_") and "rotary" in name}
    name = next((name for name in ROTATES if name in called), None)
    if name is None:
        return f"its forward does not call {ROTATE}"
    if others := sorted(called - {name}):
        return f"its forward chooses between {name} and {', '.join(others)}"
    if not isinstance(forward, FunctionType) or hasattr(forward, "__wrapped__"):
        return "its forward is decorated, so its code cannot be bound anew without losing that"
    rotate: Any = forward.__globals__.get(name)
    flat = name == ROTATE_FLAT
    turn = _by_row(rotate) if flat else rotate
    half = None if turn is None else _prove_rotate(turn)
    wide = None if turn is None or half is None else _is_wide(turn, half)
    reasons = (
        (half is None, f"its {name} turns something else than the two halves of a head"),
        (wide is None, f"its {name} rounds in its own way"),
        (not _hands_tables_on(forward, name), "its forward may change the position tables before it uses them"),
        (isinstance(repeats[name], str), repeats[name]),
        (not half and not repeats[name], "the second half of its position tables does not repeat the first"),
    )
    return next((str(why) for holds, why in reasons if holds), None) or Rope(rotate, bool(half), bool(wide), flat)


def prove_tables(model: PreTrainedModel) -> dict[str, bool | str]:
    """By name in `ROTATES`, whether all such position tables of `model` repeat their first half; or why that cannot be
    told, in words.
    """
    return {ROTATE: _prove_tables(model, _encode), ROTATE_FLAT: _prove_tables(model, _encode_flat)}


def _prove_tables(
    model: PreTrainedModel, encode: Callable[[nn.Module, dict[str, Any]], tuple[Tensor, Tensor] | None]
) -> bool | str:
    repeats = []
    for module in model.modules():
        if not any("inv_freq" in name for name, _ in module.named_buffers(recurse=False)):
            continue
        probe = copy_probe(module, {}, torch.Generator().manual_seed(0))
        kinds = getattr(module, "layer_types", None)
        for kind in kinds if isinstance(kinds, (list, tuple, set)) else [None]:
            options = {} if kind is None else {"layer_type": kind}
            if (tables := encode(probe, options)) is not None:
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


def _encode_flat(probe: nn.Module, options: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """The tables (S, D) of a module of position encodings, or None if it is not one of rows and columns of patches."""
    position_S2 = torch.tensor([[0, 3], [1, 2], [2, 7], [5, 1]], device="cpu")
    try:
        tables = type(probe).forward(probe, torch.ones(4, 8, device="cpu"), position_S2, **options)
    except UNFIT:
        return None
    known = isinstance(tables, tuple) and len(tables) == 2
    return tables if known and all(isinstance(x, Tensor) and x.ndim == 2 and len(x) == 4 for x in tables) else None


def _by_row(rotate: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]] | None:
    """A function of (B, N, S, D), as `ROTATE` is, by one of tokens first; None if that takes anything else.

    It raises ValueError unless rows give the same alone, together, and with tables that have no rows.
    """
    try:
        names = list(inspect.signature(rotate).parameters)
    except (TypeError, ValueError):
        return None
    if names != ["q", "k", "cos", "sin"]:
        return None

    def rotate_rows(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        heads = [x.transpose(1, 2) for x in (q, k)]
        rows = list(zip(*heads, cos, sin, strict=True))
        alone = zip(*(rotate(*row) for row in rows), strict=True)
        shared = zip(*(rotate(q[None], k[None], *tables) for q, k, *tables in rows), strict=True)
        together = rotate(*heads, cos, sin)
        for whole, each, parts in zip(together, alone, shared, strict=True):
            if not torch.equal(whole, torch.stack(each)) or not torch.equal(whole, torch.cat(parts)):
                raise ValueError("rows are not turned alike alone and together")
        return tuple(x.transpose(1, 2) for x in together)

    return rotate_rows


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


def _hands_tables_on(forward: FunctionType, name: str) -> bool:
    """Whether the tables that `forward` turns by are those that it was given, unchanged. Reads its source."""
    try:
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(forward))).body
    except (OSError, TypeError):
        return False
    assert isinstance(function, ast.FunctionDef)
    nodes = list(ast.walk(function))
    calls = [node for node in nodes if isinstance(node, ast.Call) and _is_name(node.func, name)]
    tables = [table for call in calls for table in call.args[2:4]]
    names = {table.id for table in tables if isinstance(table, ast.Name)}
    stored = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    given = {each.arg for each in (*function.args.args, *function.args.kwonlyargs)} - set(stored)
    unpacked = [
        target.id
        for node in nodes
        if isinstance(node, ast.Assign) and (_is_none(node.value) or any(_is_name(node.value, each) for each in given))
        for pair in node.targets
        if isinstance(pair, ast.Tuple)
        for target in pair.elts
        if isinstance(target, ast.Name)
    ]
    plain = bool(calls) and len(tables) == 2 * len(calls) and all(isinstance(table, ast.Name) for table in tables)
    return plain and all(each in given or unpacked.count(each) == stored.count(each) > 0 for each in names)


def _is_none(node: ast.expr) -> bool:
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return all(isinstance(part, ast.Constant) and part.value is None for part in parts)


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _names_in(module: nn.Module) -> tuple[str, ...]:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return () if code is None else code.co_names
