"""The examples in docstrings run, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil
import random

import numpy as np
import pytest
import torch

import vlkd_pl
from vlkd_pl import losses, metrics
from vlkd_pl.errors import MissingPackageError

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(vlkd_pl.__path__, "vlkd_pl.") if module.name != "vlkd_pl.__main__"
)
PUBLIC = {vlkd_pl: vlkd_pl.__all__, metrics: getattr(metrics, "__all__", ()), losses: losses.__all__}


def examples(thing):
    """The examples in the docstrings of a class with its methods, or of a function."""
    return [example for test in doctest.DocTestFinder().find(thing) for example in test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, monkeypatch, tmp_path):
    try:
        module = importlib.import_module(name)
    except MissingPackageError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names])
def test_every_public_name_has_an_example(module, name):
    thing = getattr(module, name)
    if not inspect.isclass(thing) and not inspect.isfunction(thing):
        pytest.skip("a constant")
    assert examples(thing)
