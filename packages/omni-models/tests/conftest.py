"""Tiny models of several families, and the devices to try things on."""

import pytest
import torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a GPU are skipped where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Each device there is."""
    return request.param


@pytest.fixture(autouse=True)
def compiled_anew(request: pytest.FixtureRequest) -> None:
    """Each test is a model of its own, and torch compiles no function for more than eight kinds of arguments."""
    if request.node.get_closest_marker("gpu"):
        torch.compiler.reset()
