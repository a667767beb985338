"""Public names: listed, imported on first use, and typed for checkers."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import vlkd_pl

SOURCE = Path(vlkd_pl.__file__)
RIGHT = """
import vlkd_pl
from vlkd_pl import Execution, Optimization, VLKDModule
from vlkd_pl.metrics import GLUEScore
module = VLKDModule("clip", "bart", optimization=Optimization(warmup_epochs=0.5), execution=Execution(compile=True))
caption: str | list[str] = vlkd_pl.VLKD.from_pretrained("model").caption("image.jpg")
score = GLUEScore("cola")
"""
WRONG = {
    "VLKDModule(temprature=0.1)": "call-arg",
    'VLKDModule("clip", "bart", "pool")': "arg-type",
    "VLKDModule(learning_rate=1e-3)": "call-arg",
    "Optimization(betas=0.9)": "arg-type",
    "vlkd_pl.CaptionModule()": "attr-defined",
    "from vlkd_pl.metrics import GlueScore": "attr-defined",
    'GLUEScore("coal")': "arg-type",
}

SETTINGS = """
[mypy]
mypy_path = {source}
follow_imports = silent
ignore_missing_imports = true
[mypy-torch.*,transformers.*,pytorch_lightning.*,torchmetrics.*,numpy.*,PIL.*,huggingface_hub.*]
follow_imports = skip
"""


def imports_for_checkers():
    """The imports under TYPE_CHECKING, from each name to its module."""
    block = next(node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    return {alias.asname: node.module for node in block.body for alias in node.names}


def test_checkers_see_what_is_imported():
    assert imports_for_checkers() == vlkd_pl._MODULES


def test_all_names_are_listed():
    assert set(vlkd_pl.__all__) <= set(dir(vlkd_pl))


@pytest.mark.parametrize("name", sorted(vlkd_pl._MODULES))
def test_each_name_is_that_of_its_module(name):
    assert getattr(vlkd_pl, name) is getattr(importlib.import_module(vlkd_pl._MODULES[name]), name)


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'CaptionModule'"):
        vlkd_pl.CaptionModule  # noqa: B018


def test_a_wrong_call_is_an_error_of_the_type_checker(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text("".join([RIGHT, *(f"{line}\n" for line in WRONG)]))
    command = [sys.executable, "-m", "mypy", f"--config-file={tmp_path / 'mypy.ini'}", "right.py", "wrong.py"]
    (tmp_path / "mypy.ini").write_text(SETTINGS.format(source=SOURCE.parents[1]))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == len(WRONG), done.stdout
    first = RIGHT.count("\n") + 1
    for number, (error, code) in enumerate(zip(errors, WRONG.values(), strict=True), first):
        assert error.startswith(f"wrong.py:{number}: error: "), error
        assert error.endswith(f"[{code}]"), error
