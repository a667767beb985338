"""A picture of images with their captions, for a person to see learning happen."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw, ImageFont
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from vlkd_pl.clip.transform import IMAGE_MEAN, IMAGE_STD
from vlkd_pl.files import atomic_write

_TILE = 168
_LINE = 15
_MARGIN = 8
_CHARACTERS = 27


class PanelItem(NamedTuple):
    """A picture of the panel.

    Attributes:
        image: (3, H, W) uint8; or floats, normalised as CLIP takes it.
        said: What the model said of it.
        truth: What a person said.
    """

    image: Tensor
    said: str
    truth: str


def caption_panel(shown: Sequence[PanelItem], columns: int = 4) -> Image.Image:
    """Draws images in a grid, each above what the model said in black and what a person said in grey.

    Args:
        shown: The images.
        columns: Images in a row.

    Returns:
        An RGB image.
    """
    said = [textwrap.wrap(each.said, _CHARACTERS) or ["(nothing)"] for each in shown]
    wanted = [textwrap.wrap(each.truth, _CHARACTERS) for each in shown]
    num_lines = max(len(a) + len(b) for a, b in zip(said, wanted, strict=True))
    width, height = _TILE + 2 * _MARGIN, _TILE + _LINE * num_lines + 2 * _MARGIN
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    panel = Image.new("RGB", (width * columns, height * rows), "white")
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(size=12)
    for index, each in enumerate(shown):
        left, top = width * (index % columns) + _MARGIN, height * (index // columns) + _MARGIN
        panel.paste(_tile(each.image), (left, top))
        top += _TILE + 2
        for lines, fill in ((said[index], "black"), (wanted[index], "grey")):
            for line in lines:
                draw.text((left, top), line, fill=fill, font=font)
                top += _LINE
    return panel


def log_panel(trainer: pl.Trainer, name: str, panel: Image.Image, folder: str | None) -> Path | None:
    """Writes a panel to the run's log folder and to every logger that takes images.

    Args:
        trainer: Holds the loggers and the step.
        name: What it is called in the logs.
        panel: The image.
        folder: The run's log folder, where it has one.

    Returns:
        The PNG file; None where the run has no folder, or where it cannot be written, which is warned of.
    """
    loggers: list[Any] = trainer.loggers
    for logger in loggers:
        if hasattr(logger, "log_image"):  # Weights & Biases
            logger.log_image(name, [panel], step=trainer.global_step)
        elif hasattr(logger.experiment, "add_image"):  # TensorBoard
            logger.experiment.add_image(name, np.asarray(panel), trainer.global_step, dataformats="HWC")
    if folder is None:
        return None
    path = Path(folder) / "panels" / f"{name.replace('/', '_')}_{trainer.global_step:06d}.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            panel.save(file, "PNG")
    except OSError as error:
        rank_zero_warn(f"the caption panel {path} cannot be written ({error})")
        return None
    return path


def _tile(image: Tensor) -> Image.Image:
    """The image, as large as a tile."""
    if image.is_floating_point():
        std, mean = (torch.tensor(each).view(3, 1, 1) for each in (IMAGE_STD, IMAGE_MEAN))
        image = ((image.float().cpu() * std + mean).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
