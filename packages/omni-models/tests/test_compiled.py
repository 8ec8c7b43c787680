"""Laws of fused kernels as a compiler sees them, who takes less than Triton's interpreter, and needs no GPU."""

import re
from importlib.util import find_spec
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="needs triton"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]
CALLS = {
    "_act_mul": (2, 1),
    "_grad_act_mul": (3, 2),
    "_rms_norm": (4, 2),
    "_rms_norm of heads": (2, 2),
    "_grad_rms_norm": (10, 2),
    "_grad_rms_norm of heads": (8, 2),
    "_grad_rms_norm of the widest": (6, 2),
    "_rotate": (8, 4),
    "_rotate back, half of each head": (0, 0),
}
"""How many loads and stores of 16 bytes there are at least in bf16, where sizes and strides divide by 16."""


def plan(name: str, dtype: str) -> tuple[Any, dict[str, str], dict[str, Any], int]:
    """A kernel, the types of its arguments, its constants, and warps."""
    from omni_models import triton_gated, triton_rms_norm, triton_rotate

    kernel, _, kind = name.partition(" ")
    x, width = f"*{dtype}", {"of heads": 128, "of the widest": 16384}.get(kind, 4096)
    rows, block, warps = triton_rms_norm._plan(width)
    norm = {"H": width, "OFFSET": 0.0, "NARROW": True, "ROWS": rows, "BLOCK": block}
    more = {"WEIGH": True, "PREFETCH": rows * block <= triton_rms_norm._PREFETCH}
    steps = [f"{y}_{step}" for y in ("q", "k") for step in ("row", "head", "token")]
    steps += [f"{y}_{step}" for y in ("cos", "sin") for step in ("row", "token")]
    half, pairs, rest = (32, 32, 64) if "half" in kind else (64, 64, 1)
    turn = {"N": 32, "K": 8, "D": 128, "HALF": half, "Q_BLOCKS": 2, "BACK": "back" in kind, "HEADS": 16}
    match kernel:
        case "_act_mul" | "_grad_act_mul":
            pointers = ("d_gate", "d_up", "d_out") if "grad" in kernel else ("out",)
            types = dict.fromkeys((*pointers, "gate", "up"), x) | {"N": "i64"}
            return getattr(triton_gated, kernel), types, {"GELU": True, "BLOCK": triton_gated._BLOCK}, 4
        case "_rms_norm":
            types = {"out": x, "rstd": "*fp32", "x": x, "weight": x, "step": "i32", "R": "i32", "eps": "fp32"}
            return triton_rms_norm._rms_norm, types, norm, warps
        case "_grad_rms_norm":
            types = dict.fromkeys(("d_x", "d_out", "x", "weight"), x) | dict.fromkeys(("parts", "rstd"), "*fp32")
            types |= dict.fromkeys(("d_step", "step", "R", "TILES"), "i32")
            return triton_rms_norm._grad_rms_norm, types, norm | more, warps
    types = dict.fromkeys(("q_out", "k_out", "q", "k", "cos", "sin"), x) | dict.fromkeys((*steps, "S"), "i32")
    return triton_rotate._rotate, types, turn | {"PAIRS": pairs, "REST": rest}, 4


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", CALLS)
def test_kernels_compile_and_read_16_bytes_at_once(name: str, dtype: str) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, types, constants, warps = plan(name, dtype)
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={each: types.get(each, "constexpr") for each in names},
        constexprs={(names.index(each),): value for each, value in constants.items()},
        attrs={(names.index(each),): [["tt.divisibility", 16]] for each in types if each != "eps"},
    )
    options = {"num_warps": warps, "enable_fp_fusion": not name.startswith("_rotate")}
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    wide = [len(re.findall(rf"{do}\.global(?:\.\w+)*\.v4\.b32", code)) for do in ("ld", "st")]
    assert all(have >= want for have, want in zip(wide, CALLS[name], strict=True)), wide
    assert not name.startswith("_rotate") or "fma" not in code
