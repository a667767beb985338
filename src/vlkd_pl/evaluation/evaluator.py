"""The base class of evaluators, which collect results over batches and ranks and turn them into a report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from vlkd_pl.distributed import gather_objects
from vlkd_pl.evaluation.report import Report


class Identified(Protocol):
    """A result with an id."""

    @property
    def id(self) -> Any:
        """Key that is unique to the evaluated thing, such as the number of an image or of a question."""


class GeneratedText(Protocol):
    """A result of decoding after a prompt."""

    @property
    def off_prompt(self) -> bool | None:
        """Return whether the model left the prompt; None where that is unknown."""


Result = TypeVar("Result", bound=Identified)


class Evaluator(ABC, Generic[Result]):
    """Collects results over batches and ranks, and computes a report of them; needs no Trainer.

    Of several results with the same id the last counts, since a distributed sampler repeats some samples.

    Args:
        panel_size: Most images that results keep for the panel; at least 0.
    """

    def __init__(self, panel_size: int = 16) -> None:
        self.panel_size = panel_size
        self._results: dict[Any, Result] = {}

    def __len__(self) -> int:
        """Number of results with different ids."""
        return len(self._results)

    def update(self, results: Iterable[Result]) -> None:
        """Add the results of a batch.

        Args:
            results: Results of one or more evaluated samples.
        """
        for result in results:
            self._results[result.id] = result

    def synchronize(self) -> None:
        """Gather the results of all ranks on each of them; to be called on all ranks."""
        results = gather_objects(list(self._results.values()))
        self.reset()
        self.update(results)

    def compute(self) -> Report:
        """Compute the report of all results, in the order of their ids.

        Raises:
            ValueError: There are no results.
        """
        if not self._results:
            raise ValueError("there are no results to evaluate: call update first")
        return self.report([self._results[key] for key in sorted(self._results, key=_order)])

    def reset(self) -> None:
        """Drop all results."""
        self._results.clear()

    def panel_image(self, image: Tensor, index: int) -> Tensor | None:
        """Copy an image to the CPU for the panel, while the panel has room.

        Args:
            image: (3, H, W) uint8 or normalized floats.
            index: Row of the image in its batch, whose results have not been added yet.

        Returns:
            The image on the CPU, or None where the panel is full.
        """
        return image.cpu() if len(self) + index < self.panel_size else None

    @abstractmethod
    def report(self, results: Sequence[Result]) -> Report:
        """Compute the report of results.

        Args:
            results: At least one result, sorted by id and each id once.
        """


def count_off_prompt(results: Sequence[GeneratedText]) -> int | None:
    """Count the results that left the prompt.

    Args:
        results: Results of a model, or of a file of predictions.

    Returns:
        The number of results, or None where it is unknown of all.
    """
    left_prompt = [result.off_prompt for result in results if result.off_prompt is not None]
    return sum(left_prompt) if left_prompt else None


def _order(key: Any) -> tuple[bool, Any]:
    """Sort key for ids of which some are numbers and some are strings."""
    return isinstance(key, str), key
