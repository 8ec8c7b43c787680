"""What an optimizer is asked for, without torch, so that whoever reads flags needs none."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class AdamWConfig:
    """AdamW (Loshchilov and Hutter, 2017, arXiv:1711.05101) and gradient clipping."""

    lr: float = 1e-3
    """Learning rate at the peak of the schedule."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moments."""
    eps: float = 1e-8
    """Added to the square root of the second moment."""
    weight_decay: float = 0.1
    """Decay of matrices; vectors (norms, biases) do not decay."""
    max_norm: float = 1.0
    """Largest global gradient norm; inf turns clipping off."""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of both moments. bfloat16: 4 bytes a parameter less; what changes them is computed in float32, and rounded up or
    down by dice, so that it is right on average. Dice depend on step, parameter and place on its rank alone: a run that
    goes on throws them as if it had never stopped; one on another mesh throws others."""
    offload: bool = False
    """Hold both moments in pinned memory of the host, from where they come in pieces when parameters are updated. Frees
    8 bytes a parameter on the GPU (4 in bfloat16); tensors under 1 MiB stay; not on a CPU. An update takes as long as
    the link to the host needs for them."""
    lr_scale: tuple[tuple[str, float], ...] = ()
    """Modules by name, and what the learning rate of their parameters is multiplied by; of modules inside each other,
    the innermost counts."""


OptimConfig = AdamWConfig
