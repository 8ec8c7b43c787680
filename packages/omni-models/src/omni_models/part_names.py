"""The parts of a model that sees, by name, without torch, so that whoever reads flags needs none."""

from typing import Final, Literal, get_args

ModelPart = Literal["tower", "projector", "language"]
PARTS: Final[tuple[ModelPart, ...]] = get_args(ModelPart)
