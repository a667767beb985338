"""What a checkpoint holds and how one stage's weights start the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from vlkd_pl.distributed import gather_objects
from vlkd_pl.models.vlkd import VLKDModel

CLIP_PREFIX = "model.clip."
"""What the names of the frozen CLIP's weights begin with in a module's state dict."""

_FINGERPRINT = "clip_fingerprint"
_RANDOM_STATES = "random_states"


def drop_clip(checkpoint: dict[str, Any], model: VLKDModel) -> None:
    """Takes the frozen CLIP out of a checkpoint and leaves its fingerprint: what never changes need not be kept."""
    weights = checkpoint["state_dict"]
    checkpoint["state_dict"] = {name: value for name, value in weights.items() if not name.startswith(CLIP_PREFIX)}
    checkpoint[_FINGERPRINT] = model.clip.fingerprint


def restore_clip(checkpoint: dict[str, Any], model: VLKDModel) -> None:
    """Puts the model's own CLIP into a checkpoint that ``drop_clip`` made, so that it loads strictly.

    Raises:
        MisconfigurationException: The checkpoint was trained with another CLIP.
    """
    trained_with = checkpoint.get(_FINGERPRINT)
    if trained_with != model.clip.fingerprint:
        raise MisconfigurationException(
            f"the checkpoint was trained with the CLIP {trained_with}, but --model.clip is the CLIP "
            f"{model.clip.fingerprint}: give the CLIP that it was trained with"
        )
    checkpoint["state_dict"].update({f"{CLIP_PREFIX}{name}": value for name, value in model.clip.state_dict().items()})


def keep_random_states(checkpoint: dict[str, Any]) -> None:
    """Puts each rank's random state into a checkpoint; to be called on all ranks."""
    state = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None}
    checkpoint[_RANDOM_STATES] = gather_objects([state])


def random_state_of(checkpoint: dict[str, Any], rank: int) -> dict[str, Tensor | None] | None:
    """The random state that ``rank`` had when the checkpoint was written; None where there were fewer ranks."""
    states = checkpoint.get(_RANDOM_STATES, [])
    return states[rank] if rank < len(states) else None


def set_random_state(state: dict[str, Tensor | None]) -> None:
    """Continues the sequence of random numbers from ``state``."""
    if state["cpu"] is not None:
        torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def load_weights(model: VLKDModel, path: str | Path) -> None:
    """Starts a model from the weights of an earlier stage; the frozen CLIP stays as it is.

    Args:
        model: Gets the weights of BART and of the projections.
        path: A folder written by ``VLKDModel.save_pretrained``, or a checkpoint of a ``VLKDModule`` or of a subclass.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
        MisconfigurationException: The weights are of another size, or were trained with another CLIP.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"init_from: there is no model folder or checkpoint at {path}")
    if path.is_dir():
        source = VLKDModel.from_pretrained(path)
        if source.image_features != model.image_features:
            raise MisconfigurationException(
                f"init_from: {path} was trained with image_features {source.image_features}, not "
                f"{model.image_features}: give --model.image_features {source.image_features}"
            )
        checkpoint = {
            _FINGERPRINT: source.clip.fingerprint,
            "state_dict": {f"model.{k}": v for k, v in source.state_dict().items()},
        }
    else:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    restore_clip(checkpoint, model)
    prefix = "model."
    weights = {
        name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items() if name.startswith(prefix)
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise MisconfigurationException(
            f"init_from: {path} does not fit --model.bart and --model.clip: {error}"
        ) from error


class ExportModel(pl.Callback):
    """Writes the model of a ``VLKDModule`` as one folder, ready for ``VLKDModel.from_pretrained``, when training ends.

    Args:
        dirpath: The folder; ``model`` in the run's log folder by default.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Writes the folder on the first rank."""
        log_dir = trainer.log_dir or trainer.default_root_dir  # asked on all ranks: it is broadcast
        if trainer.is_global_zero:
            folder = Path(self.dirpath or Path(log_dir) / "model")
            model: Any = module.model
            model.save_pretrained(folder)
            print(f"model: {folder}")
