"""Which part of the package may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "vlkd_pl"
ALLOWED = {
    "__init__": set(),
    "__main__": {"cli"},
    "cli": {"__init__", "failures"},  # commands are imported by name, when they are run
    "addresses": set(),
    "batch": set(),
    "distributed": set(),
    "errors": set(),
    "failures": set(),
    "openai_clip": set(),
    "model_files": set(),
    "weights": {"model_files"},
    "bart": {"model_files", "weights"},
    "files": set(),
    "reading": set(),
    "vocabulary": set(),
    "losses": {"distributed", "vocabulary"},
    "optim": set(),
    "checkpoint": {"distributed", "models", "bart", "model_files", "weights"},
    "models": {"models", "files", "model_files", "weights", "bart", "openai_clip"},
    "metrics": {"metrics", "files"},
    "data": {"data", "batch", "distributed", "files", "model_files", "weights", "bart", "openai_clip", "reading"},
    "modules": {
        "bart",
        "modules",
        "models",
        "losses",
        "metrics",
        "optim",
        "checkpoint",
        "batch",
        "distributed",
        "table",
        "openai_clip",
        "files",
        "reading",
    },
    "table": set(),
    "logs": {"files"},
    "predictions": {"distributed", "files"},
    "progress": set(),
    "resume": {"checkpoint", "files", "model_files", "runs"},
    "runs": {"checkpoint", "logs", "predictions"},
    "sharding": {"distributed"},
    "pipeline": {"models", "data", "model_files"},
    "demo": {"pipeline", "models", "data"},
    "commands": {
        "__init__",  # the names of the public classes
        "commands",
        "batch",
        "demo",
        "files",
        "logs",
        "modules",
        "data",
        "distributed",
        "models",
        "metrics",
        "pipeline",
        "predictions",
        "reading",
        "resume",
        "runs",
        "table",
    },
}


def imported(path):
    """The parts of the package that a file imports, anywhere in it."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module]
        parts |= {[*name.split("."), "__init__"][1] for name in names if name.split(".")[0] == "vlkd_pl"}
    return parts


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_directions(path):
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert imported(path) - {"addresses", "errors"} <= ALLOWED[part]


@pytest.mark.parametrize("name", ["vlkd_pl", "vlkd_pl.cli"])
def test_importing_is_light(name):
    code = f"import sys, {name}; print({{'torch', 'transformers', 'pytorch_lightning'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
