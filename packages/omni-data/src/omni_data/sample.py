"""A document ready to be packed: its tokens, which of them to learn, and what they refer to that is not text. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Dimensions: N tokens.

    Attributes:
        tokens_N: token ids, int32, placeholders of images and sounds included.
        learn_N: which tokens to learn, bool; None is all of them. The label of a token is learnt where that token is.
        media: by the name of the argument that the model calls it, arrays whose first dimension goes along with the
            placeholders, in the order of these; arrays of several samples are joined along it.
    """

    tokens_N: NDArray[np.int32]
    learn_N: NDArray[np.bool_] | None = None
    media: Mapping[str, NDArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens_N)


def sample_of(tokens: Sequence[int] | NDArray[np.integer], learn: Sequence[bool] | None = None) -> Sample:
    """The sample of these tokens, all of which are learnt, or those that `learn` says.

    Raises:
        ValueError: if `learn` is not as long as `tokens`.
    """
    if learn is not None and len(learn) != len(tokens):
        raise ValueError(f"learn says of {len(learn)} tokens whether to learn them, but there are {len(tokens)}.")
    learn_N = None if learn is None else np.fromiter(learn, np.bool_, len(learn))
    return Sample(np.fromiter(tokens, np.int32, len(tokens)), learn_N)
