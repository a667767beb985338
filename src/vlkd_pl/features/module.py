"""The module that computes the features of a cache with a frozen CLIP."""

from __future__ import annotations

from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from vlkd_pl.batch import ShardBatch
from vlkd_pl.clip.frozen import FrozenCLIP
from vlkd_pl.models.vlkd import ImageFeatures


class Features(NamedTuple):
    """CLIP's features of a batch.

    Attributes:
        image_tokens: Image tokens (B, 1 + N, D) float32 of ``FrozenCLIP.encode_image``, or (B, 1, D) for the pooled
            embedding only.
        clip_text_embedding: Text embeddings t_eos (B, D) float32.
    """

    image_tokens: Tensor
    clip_text_embedding: Tensor


class FeatureModule(pl.LightningModule):
    """Encodes images and texts with a frozen CLIP, for prediction only.

    Args:
        clip: The frozen CLIP.
        image_features: Image features V of Eq. (1) that a model uses. All tokens are encoded except for ``pooled``,
            since ITCL always uses the pooled embedding.
    """

    def __init__(self, clip: FrozenCLIP, image_features: ImageFeatures) -> None:
        super().__init__()
        self.clip = clip
        self.num_tokens = 1 if image_features == "pooled" else 1 + clip.num_patches

    def predict_step(self, batch: ShardBatch, batch_index: int) -> Features:
        """Return the features of a batch, which may be empty."""
        if not batch["texts"]:
            dim = self.clip.embedding_dim
            device = batch["image"].device
            return Features(torch.empty(0, self.num_tokens, dim, device=device), torch.empty(0, dim, device=device))
        image_tokens = self.clip.encode_image(batch["image"])[:, : self.num_tokens]
        return Features(image_tokens, self.clip.encode_text(batch["clip_text_ids"]))
