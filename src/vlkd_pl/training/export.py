"""Export of the model folder at the end of training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from safetensors import SafetensorError
from transformers import BartForConditionalGeneration

from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.training.checkpoint import CLIP_FINGERPRINT, load_checkpoint_weights, load_weights


class ExportModel(pl.Callback):
    """Callback that writes the trained model to a folder for ``VLKDModel.from_pretrained`` at the end of training.

    If a ``ModelCheckpoint`` monitors a score, the model of its best checkpoint is written; otherwise that of the last
    step. A run that was resumed into another log folder considers only the checkpoints since then.

    Args:
        dirpath: Folder of the model; by default ``model`` in the run's log folder.

    Example:
        >>> ExportModel("runs/distill/model").dirpath
        'runs/distill/model'
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath

    def folder(self, trainer: pl.Trainer) -> Path:
        """The folder that the model of a run is written to; a collective operation."""
        log_dir = trainer.log_dir or trainer.default_root_dir  # asked on all ranks: it is broadcast
        return Path(self.dirpath or Path(log_dir) / "model")

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write the folder on the first rank, also where a resumed run finds nothing left to train.

        Raises:
            MisconfigurationException: It cannot be written.
        """
        folder = self.folder(trainer)
        weights = trainer.strategy.lightning_module_state_dict()  # asked on all ranks: shards are gathered
        if not trainer.is_global_zero:
            return
        trained: Any = module.model
        model: Any = _unsharded(trained)
        best = _best_checkpoint(trainer)
        if best is not None:
            load_weights(model, best.best_model_path)
        else:
            load_checkpoint_weights(model, {CLIP_FINGERPRINT: model.clip.fingerprint, "state_dict": weights}, None)
        try:
            model.save_pretrained(folder)
        except (OSError, SafetensorError) as error:
            raise MisconfigurationException(
                f"the model folder {folder} cannot be written ({error}), and what was there stays: make room, and run "
                "the same command with --ckpt_path last, which writes it without training again"
            ) from error
        print(f"model: {folder}" + (f", of {best.monitor} {best.best_model_score:.4f}" if best is not None else ""))


def _unsharded(model: VLKDModel) -> VLKDModel:
    """A model of the same parts on the CPU; its weights are still to be loaded, but for CLIP's."""
    bart = BartForConditionalGeneration(model.bart.config)
    return VLKDModel(copy.deepcopy(model.clip).cpu(), bart, model.tokenizer, model.image_features, model.prefix_length)


def _best_checkpoint(trainer: pl.Trainer) -> ModelCheckpoint | None:
    """The first callback that has kept a checkpoint for its score, and has it still."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_score is not None:
            if Path(callback.best_model_path).is_file():
                return callback
            rank_zero_warn(f"{callback.best_model_path} is gone: the exported model is that of the last step")
    return None
