"""The sample world: small scenes, their texts, and a CLIP and a BART that were trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlkd_pl.models.vlkd import ImageFeatures, VLKDModel

CLIP_FOLDER = str(Path(__file__).parent / "models" / "clip")
"""Folder of the sample world's CLIP, which ships with the package."""

BART_FOLDER = str(Path(__file__).parent / "models" / "bart")
"""Folder of the sample world's BART and its tokenizer, which ship with the package."""


def sample_model(image_features: ImageFeatures = "pooled", seed: int = 0) -> VLKDModel:
    """Join the sample world's CLIP and BART to a small model that has not been distilled yet.

    It loads in less than a second and serves examples and tests; its captions make no sense before distillation.

    Args:
        image_features: CLIP outputs that the decoder attends to: ``pooled``, ``patches`` or ``all``.
        seed: Seed of the random projections.

    Example:
        >>> model = sample_model()
        >>> model.clip.image_size, model.clip.embedding_dim, model.bart.config.d_model
        (64, 256, 128)
    """
    import torch

    from vlkd_pl.models.vlkd import VLKDModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VLKDModel.load(CLIP_FOLDER, BART_FOLDER, image_features)
