"""What is asked of adapters, without torch, so that whoever reads flags needs none."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Adapters beside linear layers, which are trained instead of the model."""

    rank: int = 0
    """Of each adapter; 0: none, all is trained."""
    alpha: float = 16.0
    """What an adapter gives is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Linear layers: the last parts of their names (q_proj), or regular expressions for whole names
    ('.*visual.*qkv'). Left out: all in the blocks of the decoder, but routers, and what peft takes for experts."""
    dropout: float = 0.0
    """Share of the inputs of adapters that is dropped."""
    save: tuple[str, ...] = ()
    """Modules that are trained whole and kept with the adapters, by their names: lm_head, for example."""
