"""What is asked for to keep experts busy, without torch, so that whoever reads flags needs none."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BalanceConfig:
    """How experts are kept equally busy."""

    loss: float | None = None
    """Weight of the balance loss, over the tokens of all ranks. Left out: what the model's configuration asks for,
    which is 0 unless it sets output_router_logits."""
    rate: float = 0.0
    """What a step adds to the router's bias of each expert that had too little to do, and takes from the others
    (DeepSeek-V3 uses 0.001). 0 leaves biases alone."""
