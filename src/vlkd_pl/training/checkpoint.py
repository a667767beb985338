"""Checkpoints without the frozen CLIP, and the loading of one stage's weights into the next."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from vlkd_pl.clip.frozen import FrozenCLIP
from vlkd_pl.errors import ModelFileError
from vlkd_pl.models.bart import differs_from
from vlkd_pl.models.vlkd import MAX_PREFIX_LENGTH, ImageFeatures, VLKDModel
from vlkd_pl.shards.addresses import check_address, is_address
from vlkd_pl.weights.model_files import first_line
from vlkd_pl.weights.reader import read_pickle, read_tensors
from vlkd_pl.weights.unpickler import StoredTensor

MODEL_PREFIX = "model."
"""Prefix of a ``VLKDModel``'s weights in the state dict of a module."""
_MOST_CHARACTERS = 300
CLIP_PREFIX = "model.clip."
"""What the names of the frozen CLIP's weights begin with in a module's state dict."""

CLIP_FINGERPRINT = "clip_fingerprint"


def read_checkpoint(path: str | Path, required: Iterable[str] = (), map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint file without ever unpickling objects from it.

    Args:
        path: A regular file on a local disk, or an address; see ``check_address``.
        required: Entries that the checkpoint must have besides ``state_dict``.
        map_location: Where the tensors go; see ``torch.load``.

    Returns:
        The entries of the checkpoint; ``state_dict`` maps names to tensors.

    Raises:
        FileNotFoundError: The file does not exist.
        ModelFileError: It is no regular file, is corrupt, or is not a checkpoint that ``vlkd-pl fit`` wrote.
        MisconfigurationException: The address is of a scheme that is not read.
    """
    if is_address(str(path)):
        check_address(str(path))
    else:
        if not Path(path).exists():
            raise FileNotFoundError(f"there is no checkpoint at {path}")
        if not Path(path).is_file():  # a FIFO would block, a device may never end
            kind = "a directory" if Path(path).is_dir() else "not a regular file"
            raise ModelFileError(f"the checkpoint {path} is {kind}: give a .ckpt file that vlkd-pl fit wrote")
    try:
        with fsspec.open(str(path), "rb") if is_address(str(path)) else open(path, "rb") as file:
            with zipfile.ZipFile(file) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("its records are compressed")  # PyTorch never does: it may be a bomb
            file.seek(0)
            checkpoint = torch.load(file, map_location=map_location, weights_only=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no checkpoint at {path}") from error
    except Exception as error:  # what a corrupt pickle raises differs with every byte
        raise ModelFileError(f"the checkpoint {path} is corrupt or not a checkpoint ({first_line(error)})") from error
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise ModelFileError(f"{path} is not a checkpoint that vlkd-pl fit wrote: it has no state_dict of tensors")
    missing = [entry for entry in required if entry not in checkpoint]
    if missing:
        raise ModelFileError(f"{path} is not a checkpoint that vlkd-pl fit wrote: it lacks {', '.join(missing)}")
    return checkpoint


def check_weights(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Check that a checkpoint holds exactly a module's weights.

    Args:
        checkpoint: The entries of a checkpoint.
        module: The module that the weights are for.

    Raises:
        ModelFileError: Weights are missing, left over, or of other shapes.
    """
    weights, expected = checkpoint["state_dict"], module.state_dict()
    faults = [f"it lacks {name}" for name in expected if name not in weights]
    faults += [f"it also holds {name}" for name in weights if name not in expected]
    faults += [
        f"its {name} has the shape {tuple(weights[name].shape)} and not {tuple(weight.shape)}"
        for name, weight in expected.items()
        if name in weights and isinstance(weight, Tensor) and weights[name].shape != weight.shape
    ]
    if faults:
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise ModelFileError(
            f"the checkpoint does not fit this {type(module).__name__}: {faults[0]}{more}: give a checkpoint of the "
            "same module, CLIP and BART"
        )


def drop_clip(checkpoint: dict[str, Any], model: VLKDModel) -> None:
    """Remove the frozen CLIP from a checkpoint, and store its fingerprint instead."""
    weights = checkpoint["state_dict"]
    checkpoint["state_dict"] = {name: value for name, value in weights.items() if not name.startswith(CLIP_PREFIX)}
    checkpoint[CLIP_FINGERPRINT] = model.clip.fingerprint


def restore_clip(checkpoint: dict[str, Any], model: VLKDModel) -> None:
    """Add the model's CLIP to a checkpoint of ``drop_clip``, so that it loads strictly.

    Raises:
        ModelFileError: The checkpoint belongs to another kind of module.
        MisconfigurationException: The checkpoint was trained with another CLIP.
    """
    trained_with = checkpoint.get(CLIP_FINGERPRINT)
    if trained_with is None:
        raise ModelFileError("the checkpoint does not say which CLIP it was trained with: it is not of a VLKDModule")
    if trained_with != model.clip.fingerprint:
        raise MisconfigurationException(
            f"the checkpoint was trained with the CLIP {trained_with}, but --model.clip is the CLIP "
            f"{model.clip.fingerprint}: give the CLIP that it was trained with"
        )
    checkpoint["state_dict"].update({f"{CLIP_PREFIX}{name}": value for name, value in model.clip.state_dict().items()})


def take_weights(checkpoint: dict[str, Any], module: Any) -> None:
    """Reduce a checkpoint of a ``VLKDModule`` to the weights of its model, so that it loads into another module.

    Args:
        checkpoint: Entries of the checkpoint, which are changed.
        module: LightningModule with a model.

    Raises:
        ModelFileError: The checkpoint is of another model.
        MisconfigurationException: The checkpoint was trained with another CLIP.
    """
    restore_clip(checkpoint, module.model)
    weights = checkpoint["state_dict"]
    checkpoint["state_dict"] = {name: value for name, value in weights.items() if name.startswith(MODEL_PREFIX)}
    check_weights(checkpoint, module)


def load_model(
    clip: str | None,
    bart: str | None,
    image_features: ImageFeatures | None = None,
    clip_sha256: str | None = None,
    init_from: str | None = None,
    prefix_length: int | None = None,
) -> VLKDModel:
    """Join a CLIP and a BART, or load the model of an earlier stage.

    Args:
        clip: Name, file or folder of the CLIP; None for that of the model folder ``init_from``.
        bart: Hugging Face name or folder of the BART; None for that of the model folder ``init_from``.
        image_features: ``pooled``, ``patches`` or ``all``; by default that of the model folder, or ``pooled``.
        clip_sha256: Expected sha256 of the CLIP's file, as for ``FrozenCLIP.load``.
        init_from: Folder that ``VLKDModel.save_pretrained`` wrote, or checkpoint of a ``VLKDModule`` or a subclass,
            with the weights of BART and the projections.
        prefix_length: Number of tokens that W_i makes of each image token; by default that of the model folder, or 1.

    Raises:
        FileNotFoundError: The CLIP, the BART or ``init_from`` does not exist.
        ModelFileError: A file is corrupt, incomplete, or belongs to another model.
        MisconfigurationException: ``clip`` or ``bart`` is missing; or the weights of ``init_from`` have other sizes,
            or were trained with another CLIP, BART, other image features or another prefix length.
    """
    if prefix_length is not None and not 1 <= prefix_length <= MAX_PREFIX_LENGTH:
        raise MisconfigurationException(
            f"model.prefix_length is {prefix_length}: give a number from 1 to {MAX_PREFIX_LENGTH}"
        )
    if init_from is not None and not Path(init_from).exists():
        raise FileNotFoundError(f"init_from: there is no model folder or checkpoint at {init_from}")
    if init_from is not None and Path(init_from).is_dir():
        model = VLKDModel.from_pretrained(init_from)
        _check_same(model, clip, bart, image_features, clip_sha256, init_from, prefix_length)
        return model
    if clip is None or bart is None:
        raise MisconfigurationException(
            "give both clip and bart to the model, also with a checkpoint as init_from; or a model folder as init_from"
        )
    model = VLKDModel.load(clip, bart, image_features or "pooled", clip_sha256, prefix_length or 1)
    if init_from is not None:
        load_weights(model, init_from)
    return model


def _check_same(
    model: VLKDModel,
    clip: str | None,
    bart: str | None,
    image_features: ImageFeatures | None,
    clip_sha256: str | None,
    init_from: str,
    prefix_length: int | None,
) -> None:
    """Check that a CLIP and a BART passed together with a model folder are those of the folder.

    Raises:
        FileNotFoundError: The CLIP or the BART does not exist.
        MisconfigurationException: The CLIP, the BART, the image features or the prefix length differ from the folder's.
    """
    for name, value in (("image_features", image_features), ("prefix_length", prefix_length)):
        if value not in (None, getattr(model, name)):
            raise MisconfigurationException(
                f"init_from: {init_from} was trained with {name} {getattr(model, name)}, not {value}: leave {name} out"
            )
    remedy = "leave out that of the two that is wrong (null in a config), or give another model folder"
    if clip is not None and (other := FrozenCLIP.load(clip, clip_sha256).fingerprint) != model.clip.fingerprint:
        raise MisconfigurationException(
            f"init_from: {init_from} holds the CLIP {model.clip.fingerprint}, but model.clip, {clip}, is the CLIP "
            f"{other}: {remedy}"
        )
    if bart is not None and (difference := differs_from(bart, model.bart, model.tokenizer)):
        raise MisconfigurationException(
            f"init_from: the BART in {init_from} is another than model.bart, {bart}, which has {difference}: {remedy}"
        )


def load_weights(model: VLKDModel, path: str | Path) -> None:
    """Load the weights of a checkpoint into a model, except the frozen CLIP.

    Args:
        model: Model whose BART and projections are loaded.
        path: Checkpoint of a ``VLKDModule`` or of a subclass; nothing in it is executed.

    Raises:
        FileNotFoundError: There is no such file.
        ModelFileError: The file is corrupt, or not such a checkpoint.
        MisconfigurationException: The weights have other sizes, or were trained with another CLIP.
    """
    path = Path(path)
    checkpoint = read_pickle(path)
    stored = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(stored, dict) or not isinstance(checkpoint.get(CLIP_FINGERPRINT), str):
        raise ModelFileError(f"{path} is not a checkpoint of a model with CLIP and BART that vlkd-pl fit wrote")
    tensors = {name: value for name, value in stored.items() if isinstance(value, StoredTensor)}
    weights = read_tensors({name: value for name, value in tensors.items() if name.startswith(MODEL_PREFIX)}, path)
    load_checkpoint_weights(model, {CLIP_FINGERPRINT: checkpoint[CLIP_FINGERPRINT], "state_dict": weights}, path)


def load_checkpoint_weights(model: VLKDModel, checkpoint: dict[str, Any], path: str | Path | None) -> None:
    """Load the weights in a checkpoint's entries into a model, except the frozen CLIP.

    Args:
        model: Model whose BART and projections are loaded.
        checkpoint: Entries of the checkpoint, with ``state_dict`` and the CLIP's fingerprint.
        path: File of the checkpoint, for error messages.

    Raises:
        MisconfigurationException: The weights have other sizes, or were trained with another CLIP.
    """
    restore_clip(checkpoint, model)
    weights = {
        name.removeprefix(MODEL_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(MODEL_PREFIX)
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise MisconfigurationException(
            f"init_from: {path} does not fit --model.bart and --model.clip: {reason[:_MOST_CHARACTERS]}"
        ) from error
