"""What a plan has to know of a model, whoever describes it."""

from typing import Protocol


class ModelFacts(Protocol):
    """What a planner needs to know of a model. Structural: any object with these attributes will do."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the repeated blocks, in the order in which the forward pass runs them."""
        ...

    @property
    def num_heads(self) -> int:
        """Query heads of one attention layer."""
        ...

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads of one attention layer."""
        ...

    @property
    def head(self) -> str:
        """Name of the module after the blocks that makes the output; "" if it shares parameters with another."""
        ...

    @property
    def decoder(self) -> str:
        """Name of the module that takes embedded rows through the blocks; "" is the model itself."""
        ...

    @property
    def rotaries(self) -> tuple[str, ...]:
        """Names of the modules whose encoding of a position depends on the whole row."""
        ...

    @property
    def unsplittable(self) -> tuple[str, ...]:
        """Why a row cannot be cut between ranks, in words; empty if it can."""
        ...

    @property
    def mlps(self) -> tuple[str, ...]:
        """Names of the feed-forward modules in blocks that treat each token alone, and draw no random numbers."""
        ...

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the modules that hold the weights of many experts."""
        ...

    @property
    def expert_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parameters in those modules, each once; their first dim is that of the experts."""
        ...

    @property
    def unspreadable(self) -> tuple[str, ...]:
        """Why experts cannot be spread over ranks, in words; empty if they can."""
        ...
