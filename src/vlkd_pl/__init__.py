"""VLKD: vision-language knowledge distillation, as PyTorch Lightning modules.

Public names are imported on first use, so that ``import vlkd_pl`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "CC3MDataModule": "vlkd_pl.data.cc3m",
    "ExportModel": "vlkd_pl.checkpoint",
    "FrozenCLIP": "vlkd_pl.models.clip",
    "VLKDModel": "vlkd_pl.models.vlkd",
    "VLKDModule": "vlkd_pl.modules.vlkd",
}

__all__ = ["CC3MDataModule", "ExportModel", "FrozenCLIP", "VLKDModel", "VLKDModule", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vlkd_pl' has no attribute {name!r}")
