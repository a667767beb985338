"""What modules and callbacks ask of a data module, as Protocols that are checked before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

Contract = TypeVar("Contract")


@runtime_checkable
class TokenizesForCLIP(Protocol):
    """A data module with CLIP's tokenizer."""

    @property
    def clip_tokenizer(self) -> Callable[[Sequence[str]], Tensor]:
        """Function from B texts to CLIP's token ids (B, L) int64."""


@runtime_checkable
class HasTrainingCaptions(TokenizesForCLIP, Protocol):
    """A data module whose training captions can be read before training, for the closed-form start."""

    def training_captions(self, num: int) -> list[str]:
        """Read training captions.

        Args:
            num: Most captions to read.
        """


@runtime_checkable
class HasTrainingReferences(Protocol):
    """A data module that lists all reference captions of its training images, for the reward of SCST."""

    def training_references(self) -> Mapping[int | str, Sequence[str]]:
        """List the reference captions of each training image, by the image's id."""


@runtime_checkable
class HasClassNames(TokenizesForCLIP, Protocol):
    """A data module of images with a class each."""

    class_names: list[str]


@runtime_checkable
class HasSamples(TokenizesForCLIP, Protocol):
    """A data module that lists its samples after ``setup``."""

    samples: Sequence[Any]


class FeatureCacheChecks(Protocol):
    """A cache of CLIP's features that knows the CLIP it was made with."""

    def check_clip(self, fingerprint: str, image_features: Any) -> None:
        """Raise MisconfigurationException where the cache is of another CLIP or lacks features.

        Args:
            fingerprint: Fingerprint of the model's CLIP.
            image_features: Image features that the model reads.
        """


@runtime_checkable
class HasFeatureCache(Protocol):
    """A data module that may read CLIP's features from a cache."""

    cache: FeatureCacheChecks | None


@runtime_checkable
class CountsSkippedSamples(Protocol):
    """A data module that skips corrupt samples and counts them."""

    @property
    def skipped(self) -> Mapping[str, int]:
        """Number of samples that this rank skipped, by the reason."""

    def report(self) -> str:
        """Describe in one line what was skipped on all ranks; to be called on all ranks."""


def data_of(trainer: pl.Trainer, contract: type[Contract], module: str, needs: str) -> Contract:
    """Return the trainer's data module after checking that it fulfils a contract.

    Args:
        trainer: Trainer with a data module.
        contract: A Protocol of this file.
        module: Name of the module that asks, for the error.
        needs: What the contract gives, for the error.

    Raises:
        MisconfigurationException: There is no data module, or it does not fulfil the contract.
    """
    data = data_module(trainer)
    if not isinstance(data, contract):
        raise MisconfigurationException(
            f"{module} needs {needs}, which {type(data).__name__ if data is not None else 'no data module'} does not "
            "have: give another class as data"
        )
    return data


def data_module(trainer: pl.Trainer) -> Any:
    """Return the trainer's data module, or None where it was called with data loaders."""
    return getattr(trainer, "datamodule", None)
