"""The layout of the package: allowed imports, and sizes of parts and files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "vlkd_pl"
FLOORS = [
    ["errors", "batch"],
    ["distributed", "files", "text_files", "images"],
    ["losses", "weights"],
    ["clip"],
    ["models"],
    ["shards"],
    ["data"],
    ["features", "metrics"],
    ["evaluation"],
    ["training"],
    ["datamodules"],
    ["modules"],
    ["prepare", "sample"],
    ["pipeline"],
    ["demo"],
    ["commands"],
    ["cli"],
    ["__main__", "__init__"],
]
"""From the ground up: a part imports from lower floors, and from itself."""

FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
ALSO = {"cli": {"__init__"}, "commands": {"__init__"}}
"""``__init__`` holds the version and the names of the public classes."""


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
    others = imported(path) - {part} - ALSO.get(part, set())
    assert [other for other in sorted(others) if FLOOR_OF[other] >= FLOOR_OF[part]] == []


def test_sizes():
    """No part holds a quarter of the code, no file more than 400 lines, and ten files at most lie at the top."""
    num_lines = {path: len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    of_part = {}
    for path, num in num_lines.items():
        part = path.relative_to(SOURCE).parts[0]
        of_part[part] = of_part.get(part, 0) + num
    assert max(of_part.values()) <= sum(num_lines.values()) / 4
    assert [str(path) for path, num in num_lines.items() if num > 400] == []
    assert len(list(SOURCE.glob("*.py"))) <= 10


@pytest.mark.parametrize("name", ["vlkd_pl", "vlkd_pl.cli"])
def test_importing_is_light(name):
    code = f"import sys, {name}; print({{'torch', 'transformers', 'pytorch_lightning'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
