"""Casts of parameters to the dtype of compute, made by the update that changed them and kept for the passes after it.

A cast is only as good as the promise that nothing changes its parameter until the next update, so it is kept by who
asks for it, `update(..., keep_casts=True)`, and dropped where memory of parameters is handed out.
"""

import torch
from torch import Tensor, nn

_CAST = "omni_cast"
"""The attribute of a parameter that holds its cast, of its own kind: plain or a DTensor."""


def kept_cast(param: nn.Parameter) -> Tensor | None:
    """The cast that is kept of `param`, without history; None if there is none."""
    return getattr(param, _CAST, None)


def keep_cast(param: nn.Parameter, dtype: torch.dtype) -> Tensor:
    """A tensor like `param`, in `dtype` and kept as its cast, for the caller to fill. What was kept is overwritten."""
    kept = kept_cast(param)
    if kept is None or kept.dtype != dtype:
        kept = torch.empty_like(param, dtype=dtype, requires_grad=False)
        setattr(param, _CAST, kept)
    return kept


def drop_cast_(param: nn.Parameter) -> None:
    """Forget the cast of `param`, if one is kept."""
    vars(param).pop(_CAST, None)
