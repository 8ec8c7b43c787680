"""The examples in docstrings are true."""

import doctest
from importlib import import_module
from pkgutil import iter_modules

import pytest

import omni_data


@pytest.mark.parametrize("name", [module.name for module in iter_modules(omni_data.__path__)])
def test_examples_in_docstrings_are_true(name):
    assert doctest.testmod(import_module(f"omni_data.{name}")).failed == 0
