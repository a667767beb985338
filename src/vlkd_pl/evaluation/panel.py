"""A panel of images with predictions and references, which shows what a model has learned."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
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
    """An image of the panel with its texts.

    Attributes:
        image: (3, H, W) uint8, or floats normalized as CLIP takes them.
        prediction: Text of the model.
        reference: Text of a person.
    """

    image: Tensor
    prediction: str
    reference: str


def panel_items(candidates: Iterable[tuple[Tensor | None, str, str]]) -> list[PanelItem]:
    """Keep the results that have an image, as items of the panel.

    Args:
        candidates: Image, prediction and reference of each result, as in ``PanelItem``; None without an image.

    Example:
        >>> panel_items([(None, "a fish", "a red fish")])
        []
    """
    return [PanelItem(image, prediction, reference) for image, prediction, reference in candidates if image is not None]


def caption_panel(items: Sequence[PanelItem], columns: int = 4) -> Image.Image:
    """Draw images in a grid, each above the model's text in black and a person's text in grey.

    Args:
        items: At least one image with its texts.
        columns: Most images in a row.

    Returns:
        An RGB image.

    Example:
        >>> caption_panel([PanelItem(torch.zeros(3, 64, 64).byte(), "a fish", "a red fish")]).mode
        'RGB'
    """
    predictions = [textwrap.wrap(item.prediction, _CHARACTERS) or ["(nothing)"] for item in items]
    references = [textwrap.wrap(item.reference, _CHARACTERS) for item in items]
    num_lines = max(len(a) + len(b) for a, b in zip(predictions, references, strict=True))
    width, height = _TILE + 2 * _MARGIN, _TILE + _LINE * num_lines + 2 * _MARGIN
    columns = min(columns, len(items))
    rows = -(-len(items) // columns)
    panel = Image.new("RGB", (width * columns, height * rows), "white")
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(size=12)
    for index, item in enumerate(items):
        left, top = width * (index % columns) + _MARGIN, height * (index // columns) + _MARGIN
        panel.paste(_tile(item.image), (left, top))
        top += _TILE + 2
        for lines, fill in ((predictions[index], "black"), (references[index], "grey")):
            for line in lines:
                draw.text((left, top), line, fill=fill, font=font)
                top += _LINE
    return panel


def log_panel(trainer: pl.Trainer, name: str, panel: Image.Image, folder: str | None) -> Path | None:
    """Write a panel to the run's log folder and to every logger that takes images.

    Args:
        trainer: Trainer with the loggers and the step.
        name: Name in the logs, such as ``val/captions``.
        panel: The panel.
        folder: The run's log folder; None where it has no folder.

    Returns:
        The PNG file; None without a folder, or where the file cannot be written, which is only a warning.
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
    """Scale an image to the size of a tile."""
    if image.is_floating_point():
        std, mean = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_STD, IMAGE_MEAN))
        image = ((image.float().cpu() * std + mean).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
