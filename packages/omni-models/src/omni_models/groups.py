"""Which tokens see each other both ways: those of an image, in models that lay such a mask over the causal one.

Here no mask is made: attention is told the groups (`group_ids`), which ride as a keyword of `model(...)` like the ends
of documents do. Gemma 3's groups are runs of image tokens, so two images need text between them to be apart, which
their processor writes.

Dimensions: B rows, S tokens a row.
"""

import inspect
from typing import Final

import torch
from torch import Tensor, nn
from transformers.configuration_utils import PreTrainedConfig

from omni_models.media import IMAGE, token_kinds

GROUPED: Final = ("gemma3",)
"""Types whose groups are runs of image tokens."""


def overlays_images(module: nn.Module) -> bool:
    """Whether `module` lets the tokens of an image see one another by a mask laid over the causal one."""
    source = inspect.getsource(inspect.unwrap(type(module).forward))
    return any(name in source for name in ("block_sequence_ids", "or_mask_function"))


def group_images(config: PreTrainedConfig, tokens_BS: Tensor, segments_BS: Tensor) -> Tensor | None:
    """What to pass as `group_ids` of packed rows, int64 (B, S): 1, 2, ... for the images of a row, 0 for other tokens.
    None for models whose tokens see no later ones. Pure.

    Args:
        config: of the model.
        tokens_BS: on the host, as segments are.
        segments_BS: 1, 2, ... for the documents of a row, 0 for padding.
    """
    if config.model_type not in GROUPED:
        return None
    kinds = torch.from_numpy(token_kinds(config, tokens_BS.flatten().numpy())).view(tokens_BS.shape)
    seen_BS = (kinds == IMAGE) & (segments_BS > 0)
    starts_BS = seen_BS.clone()
    starts_BS[:, 1:] &= ~seen_BS[:, :-1] | (segments_BS[:, 1:] != segments_BS[:, :-1])
    return starts_BS.cumsum(1) * seen_BS
