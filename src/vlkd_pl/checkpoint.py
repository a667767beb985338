"""What a checkpoint holds and how one stage's weights start the next."""

from __future__ import annotations

import copy
import random
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import BartForConditionalGeneration

from vlkd_pl.addresses import check_address, is_address
from vlkd_pl.bart import differs_from
from vlkd_pl.distributed import gather_objects, gather_on_first_rank, is_sharded, sharded_as
from vlkd_pl.errors import ModelFileError
from vlkd_pl.model_files import first_line
from vlkd_pl.models.clip import FrozenCLIP
from vlkd_pl.models.vlkd import ImageFeatures, VLKDModel
from vlkd_pl.weights import StoredTensor, read_pickle, read_tensors

_MODEL_PREFIX = "model."
_MOST_CHARACTERS = 300
CLIP_PREFIX = "model.clip."
"""What the names of the frozen CLIP's weights begin with in a module's state dict."""

_FINGERPRINT = "clip_fingerprint"
_RANDOM_STATES = "random_states"
_PENDING_GRADIENTS = "pending_gradients"

RandomState = dict[str, Any]


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
    """Takes the frozen CLIP out of a checkpoint and leaves its fingerprint: what never changes need not be kept."""
    weights = checkpoint["state_dict"]
    checkpoint["state_dict"] = {name: value for name, value in weights.items() if not name.startswith(CLIP_PREFIX)}
    checkpoint[_FINGERPRINT] = model.clip.fingerprint


def restore_clip(checkpoint: dict[str, Any], model: VLKDModel) -> None:
    """Puts the model's own CLIP into a checkpoint that ``drop_clip`` made, so that it loads strictly.

    Raises:
        ModelFileError: It is the checkpoint of something else.
        MisconfigurationException: The checkpoint was trained with another CLIP.
    """
    trained_with = checkpoint.get(_FINGERPRINT)
    if trained_with is None:
        raise ModelFileError("the checkpoint does not say which CLIP it was trained with: it is not of a VLKDModule")
    if trained_with != model.clip.fingerprint:
        raise MisconfigurationException(
            f"the checkpoint was trained with the CLIP {trained_with}, but --model.clip is the CLIP "
            f"{model.clip.fingerprint}: give the CLIP that it was trained with"
        )
    checkpoint["state_dict"].update({f"{CLIP_PREFIX}{name}": value for name, value in model.clip.state_dict().items()})


def random_state() -> RandomState:
    """The state of all that this process draws random numbers from."""
    numpy_state: Any = np.random.get_state()
    name, words, *rest = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (name, words.tolist(), *rest),  # a list, since an array would have to be unpickled
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: RandomState) -> None:
    """Continues the sequences of random numbers from ``state``."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def keep_random_states(checkpoint: dict[str, Any]) -> None:
    """Puts each rank's random state into a checkpoint; to be called on all ranks."""
    checkpoint[_RANDOM_STATES] = gather_objects([random_state()])


def random_state_of(checkpoint: dict[str, Any], rank: int) -> RandomState | None:
    """The random state that ``rank`` had when the checkpoint was written; None where there were fewer ranks."""
    states = checkpoint.get(_RANDOM_STATES, [])
    return states[rank] if rank < len(states) else None


def keep_pending_gradients(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Puts gradients that wait for the rest of an accumulated step into a checkpoint; to be called on all ranks.

    Each rank has its own until the step ends: a mean of them would be rounded once more than in a run that goes on.
    """
    gradients = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            of_ranks = gather_on_first_rank(parameter.grad)
            if of_ranks is not None:  # the first rank writes
                gradients[name] = of_ranks.cpu()
    checkpoint[_PENDING_GRADIENTS] = gradients


def pending_gradients_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The gradients that waited when the checkpoint was written, (ranks, …), by the names of their parameters."""
    return checkpoint.get(_PENDING_GRADIENTS, {})


def set_pending_gradients(module: nn.Module, gradients: dict[str, Tensor], rank: int, num_ranks: int) -> None:
    """Lets an accumulated step go on from these gradients.

    Each rank takes its own. Where there were other numbers of ranks, or the parameters are sharded, it takes the mean,
    which is what becomes of them in the end.

    Args:
        module: Its parameters get them.
        gradients: See ``pending_gradients_of``.
        rank: The number of this rank.
        num_ranks: How many there are now.
    """
    for name, of_ranks in gradients.items():
        parameter = module.get_parameter(name)
        has_own = len(of_ranks) == num_ranks and not is_sharded(parameter)
        gradient = of_ranks[rank].clone() if has_own else of_ranks.mean(0)
        parameter.grad = sharded_as(parameter, gradient.to(parameter.device))


def load_model(
    clip: str | None,
    bart: str | None,
    image_features: ImageFeatures | None = None,
    clip_sha256: str | None = None,
    init_from: str | None = None,
) -> VLKDModel:
    """Joins a CLIP and a BART, or goes on from an earlier stage.

    Args:
        clip: See ``VLKDModel.load``; None for that of the model folder ``init_from``.
        bart: See ``VLKDModel.load``; None for that of the model folder ``init_from``.
        image_features: See ``VLKDModel``; that of the model folder by default, without one ``pooled``.
        clip_sha256: See ``FrozenCLIP.load``.
        init_from: A folder written by ``VLKDModel.save_pretrained``, or a checkpoint of a ``VLKDModule`` or of a
            subclass, for the weights of BART and of the projections.

    Raises:
        FileNotFoundError: CLIP, BART or ``init_from`` cannot be found.
        ModelFileError: A file of theirs is corrupt, incomplete, or of another model.
        MisconfigurationException: Something that is needed is not given; or the weights are of another size, or were
            trained with another CLIP or other image features; or a model folder is given with another CLIP or BART.
    """
    if init_from is not None and not Path(init_from).exists():
        raise FileNotFoundError(f"init_from: there is no model folder or checkpoint at {init_from}")
    if init_from is not None and Path(init_from).is_dir():
        model = VLKDModel.from_pretrained(init_from)
        _check_same(model, clip, bart, image_features, clip_sha256, init_from)
        return model
    if clip is None or bart is None:
        raise MisconfigurationException(
            "give both clip and bart to the model, also with a checkpoint as init_from; or a model folder as init_from"
        )
    model = VLKDModel.load(clip, bart, image_features or "pooled", clip_sha256)
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
) -> None:
    """Checks that what is passed beside a model folder is what the folder holds: training starts from the folder.

    Raises:
        FileNotFoundError: CLIP or BART cannot be found.
        MisconfigurationException: One differs.
    """
    remedy = "leave out that of the two that is wrong (null in a config), or give another model folder"
    if image_features not in (None, model.image_features):
        raise MisconfigurationException(
            f"init_from: {init_from} was trained with image_features {model.image_features}, not {image_features}: "
            "leave image_features out"
        )
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
    """Gives a model the weights of a checkpoint; the frozen CLIP stays as it is.

    Args:
        model: Gets the weights of BART and of the projections.
        path: A checkpoint of a ``VLKDModule`` or of a subclass; nothing in it is executed.

    Raises:
        FileNotFoundError: There is no such file.
        ModelFileError: It is no such checkpoint, or corrupt.
        MisconfigurationException: The weights are of another size, or were trained with another CLIP.
    """
    path = Path(path)
    checkpoint = read_pickle(path)
    stored = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(stored, dict) or not isinstance(checkpoint.get(_FINGERPRINT), str):
        raise ModelFileError(f"{path} is not a checkpoint of a model with CLIP and BART that vlkd-pl fit wrote")
    tensors = {name: value for name, value in stored.items() if isinstance(value, StoredTensor)}
    weights = read_tensors({name: value for name, value in tensors.items() if name.startswith(_MODEL_PREFIX)}, path)
    _load_weights(model, {_FINGERPRINT: checkpoint[_FINGERPRINT], "state_dict": weights}, path)


def _load_weights(model: VLKDModel, checkpoint: dict[str, Any], path: str | Path | None) -> None:
    restore_clip(checkpoint, model)
    weights = {
        name.removeprefix(_MODEL_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(_MODEL_PREFIX)
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise MisconfigurationException(
            f"init_from: {path} does not fit --model.bart and --model.clip: {reason[:_MOST_CHARACTERS]}"
        ) from error


class ExportModel(pl.Callback):
    """Writes the model of a ``VLKDModule`` as one folder, ready for ``VLKDModel.from_pretrained``, when training ends.

    Where a ``ModelCheckpoint`` monitors a score, it is the model of its best checkpoint, else that of the last step. A
    run that was resumed into another log folder knows only of the checkpoints since.

    Args:
        dirpath: The folder; ``model`` in the run's log folder by default.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath

    def folder(self, trainer: pl.Trainer) -> Path:
        """The folder that the model of a run goes to; to be called on all ranks."""
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
            _load_weights(model, {_FINGERPRINT: model.clip.fingerprint, "state_dict": weights}, None)
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
    return VLKDModel(copy.deepcopy(model.clip).cpu(), bart, model.tokenizer, model.image_features)


def _best_checkpoint(trainer: pl.Trainer) -> ModelCheckpoint | None:
    """The first callback that has kept a checkpoint for its score, and has it still."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_score is not None:
            if Path(callback.best_model_path).is_file():
                return callback
            rank_zero_warn(f"{callback.best_model_path} is gone: the exported model is that of the last step")
    return None
