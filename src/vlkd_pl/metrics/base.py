"""The states that all metrics of this package share: a row of numbers for each sample."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Hashable, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from vlkd_pl.metrics.pairing import check_references
from vlkd_pl.metrics.ptb import tokenize


class SampleMetric(Metric):
    """A metric that keeps a row of numbers for each sample, under the sample's id.

    A sample counts once, however often and on however many processes ``update`` receives it: ``DistributedSampler``
    repeats samples so that all ranks have equally many. The last of its rows counts. Processes may hold different
    numbers of samples, and none at all. Text never becomes a state, since torchmetrics synchronizes tensors only.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    row_dtype = torch.float64

    def __init__(self) -> None:
        super().__init__()
        # MetricCollection lets metrics share their states for good where names and values agree after one batch
        self._state_dtypes = {
            "ids": torch.int64,
            "row_lengths": torch.int64,
            f"{type(self).__name__}_rows": self.row_dtype,
        }
        for state in self._state_dtypes:
            self.add_state(state, [], dist_reduce_fx="cat")

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Synchronize the states of all processes; see ``torchmetrics.Metric.sync``."""
        # torchmetrics would gather float32 from a process without samples, and other types from the others
        for state, dtype in self._state_dtypes.items():
            if isinstance(getattr(self, state), list) and not getattr(self, state):
                setattr(self, state, [torch.empty(0, dtype=dtype, device=self.device)])
        super().sync(*args, **kwargs)

    def _append(self, ids: Sequence[Hashable] | Tensor, rows: Sequence[Sequence[float]] | Sequence[Tensor]) -> None:
        """Add rows to the states.

        Args:
            ids: B sample ids: integers, or anything whose ``repr`` is the same on all processes.
            rows: B rows of numbers, of any length.
        """
        keys = ids.tolist() if isinstance(ids, Tensor) else [_integer_id(value) for value in ids]
        tensors = [torch.as_tensor(row, dtype=self.row_dtype, device=self.device).flatten() for row in rows]
        content = [
            torch.tensor(keys, dtype=torch.int64, device=self.device),
            torch.tensor([len(row) for row in tensors], dtype=torch.int64, device=self.device),
            torch.cat([torch.empty(0, dtype=self.row_dtype, device=self.device), *tensors]),
        ]
        for state, tensor in zip(self._state_dtypes, content, strict=True):
            getattr(self, state).append(tensor)

    def _unique_rows(self) -> list[Tensor]:
        """Return the row of each sample, in the order of the integer ids.

        Raises:
            ValueError: ``update`` has received no sample.
        """
        states = [getattr(self, state) for state in self._state_dtypes]
        ids, row_lengths, values = (
            torch.cat(state) if isinstance(state, list) and state else state for state in states
        )
        if not len(ids):
            raise ValueError(f"{type(self).__name__} has no samples to score: call update before compute")
        rows = dict(zip(ids.tolist(), values.split(row_lengths.tolist()), strict=True))
        return [rows[key] for key in sorted(rows)]


def check_lengths(**arguments: Sized) -> None:
    """Check that the arguments of an ``update`` hold equally many items.

    Raises:
        ValueError: They do not.
    """
    if len({len(items) for items in arguments.values()}) > 1:
        counts = ", ".join(f"{len(items)} {name}" for name, items in arguments.items())
        raise ValueError(f"update received {counts}: pass one of each for every sample")


def tokenized_captions(
    ids: Sequence[Hashable] | Tensor, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[tuple[str, list[str]]]:
    """Tokenize a batch of captions, each by itself.

    Args:
        ids: B image ids.
        predictions: One caption for each image.
        references: All reference captions of each image.

    Returns:
        For each image the prediction and the references, as PTB tokens with spaces between them.

    Raises:
        ValueError: The arguments differ in length, or an image has no references.
    """
    check_lengths(ids=ids, predictions=predictions, references=references)
    check_references(ids.tolist() if isinstance(ids, Tensor) else ids, references)
    return [
        (tokenize(prediction), [tokenize(text) for text in texts])
        for prediction, texts in zip(predictions, references, strict=True)
    ]


def text_hash(text: str) -> int:
    """Return a signed 64-bit hash of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _integer_id(sample_id: Hashable) -> int:
    """Return the id as a signed 64-bit integer: itself where it is one, else a hash."""
    if isinstance(sample_id, numbers.Integral) and -(2**63) <= int(sample_id) < 2**63:
        return int(sample_id)
    return text_hash(repr(sample_id))
