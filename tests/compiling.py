"""Compiled blocks against plain transformers, and how often something is compiled: what ranks do."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import sequence
import torch
from experts import grads_of, make_mixture, place, step
from sequence import make_config, packed, plain_loss, worst_error
from shapes import MIXTURES
from torch._dynamo.utils import counters

from omni_mesh import MeshConfig, join_world, make_mesh, resolve_mesh
from omni_models import record_routing
from omni_parallel import RecomputeConfig

PACKINGS: Sequence[Sequence[Sequence[int]]] = (
    ((9, 1, 20, 7), (23, 3, 11), (37,), (2, 2, 30, 3)),
    ((37,), (36, 1), (37,), (18, 19)),
    ((37,), (37,), (37,), (37,)),
    ((1,) * 37, (30, 7), (5, 5, 27), (37,)),
)
"""Documents of four rows of 37 tokens, in several steps."""


def compare(
    name: str, cases: Mapping[str, tuple[MeshConfig, RecomputeConfig]]
) -> dict[str, list[tuple[float, float, str, int]]]:
    """By case, for each of `PACKINGS`: relative errors of the loss and the worst gradient, whose that is, and how many
    graphs there are so far."""
    found = {}
    with join_world(device="cpu") as world:
        start = make_mixture(name) if name in MIXTURES else sequence.make_model(name)
        for label, (config, recompute) in cases.items():
            torch._dynamo.reset()
            counters.clear()
            mesh = make_mesh(resolve_mesh(config, world.size), device_type="cpu")
            ours = place(copy.deepcopy(start), mesh, recompute, compile=True)
            found[label] = []
            for rows in PACKINGS:
                ours.zero_grad()
                with record_routing(ours, logits=True) as routing:
                    loss = step(ours, mesh, rows)
                assert len(routing.chosen) == (ours.config.num_hidden_layers if name in MIXTURES else 0)
                mine = grads_of(ours)
                if world.rank == 0:
                    plain = copy.deepcopy(start)
                    expected = plain_loss(plain, packed(list(rows))[2])
                    theirs = {key: param.grad for key, param in plain.named_parameters()}
                    graphs = counters["stats"]["unique_graphs"]
                    found[label].append((abs(loss - expected) / expected, *worst_error(mine, theirs), graphs))
    return found


def count_graphs(name: str, changes: Mapping[str, Any]) -> int:
    """How many graphs there are after a step of a model of this kind, with `changes` of its configuration."""
    torch._dynamo.reset()
    counters.clear()
    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(MeshConfig(), world.size), device_type="cpu")
        model = sequence.fill(sequence.make_kind(make_config(sequence.TYPES[name][1] | dict(changes))))
        step(place(model, mesh, compile=True), mesh, PACKINGS[0][:2])
    return counters["stats"]["unique_graphs"]
