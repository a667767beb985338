"""Where configuration files are found: at their path, or among those that the package ships."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_IN_WHEEL = _PACKAGE / "configs"
SHIPPED = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parents[1] / "configs"
"""Folder of the shipped configuration files; a checkout has them at its top level."""


def find_config(source: str) -> Path:
    """Find a configuration file.

    Args:
        source: Path of a file, or the name of a shipped one with or without ``configs/`` before it. A file at that path
            comes first.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: Neither exists.

    >>> find_config("overlays/ddp.yaml").name
    'ddp.yaml'
    """
    path = Path(source)
    if path.exists():
        return path
    name = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    if (SHIPPED / name).is_file():  # an absolute path stays as it is
        return SHIPPED / name
    shipped = [str(file.relative_to(SHIPPED)) for file in SHIPPED.rglob("*.yaml")]
    near = get_close_matches(str(name), shipped, 1)
    hint = f": did you mean {near[0]}?" if near else ""
    raise FileNotFoundError(f"there is no configuration file {source}, neither here nor in {SHIPPED}{hint}")
