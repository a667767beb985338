"""Functions of modules that evaluate a ``VLKDModel`` and do not train."""

from __future__ import annotations

from typing import Any, Protocol

from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.evaluation.evaluator import Evaluator
from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.training.checkpoint import MODEL_PREFIX, check_weights, restore_clip
from vlkd_pl.training.evaluation_report import EvaluationReport


class _EvaluationModule(Protocol):
    trainer: Any
    model: VLKDModel

    @property
    def evaluator(self) -> Evaluator[Any]: ...


def evaluation_callbacks(module: _EvaluationModule) -> list[Callback]:
    """Return the callback that reports the module's results.

    Args:
        module: LightningModule with a model and an evaluator.

    Raises:
        MisconfigurationException: The trainer fits, which the module cannot.
    """
    if module.trainer.state.fn == TrainerFn.FITTING:
        name = type(module).__name__
        raise MisconfigurationException(
            f"{name} only evaluates: train with vlkd-pl fit and VLKDModule, CaptioningModule or VQAModule, and give "
            f"{name} the model folder as init_from"
        )
    return [EvaluationReport(module.evaluator)]


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
