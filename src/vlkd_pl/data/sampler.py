"""Training order: shuffled in each epoch, and resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import Dataset, DistributedSampler


class EpochOrder(DistributedSampler[Any]):
    """A sampler that shuffles samples in each epoch and yields pairs of epoch and index.

    The order is a function of the seed and the epoch only. A rank resumes after the batches that it has been trained
    on: Lightning counts the batches of a resumed epoch, but would begin it with its first samples, and with workers
    even in the order of epoch 0. Lightning would replace the sampler if it were not a ``DistributedSampler``.

    Args:
        num_samples: Number of samples of all ranks.
        batch_size: Number of samples in a batch of one rank; samples at the end of an epoch that do not fill a batch of
            every rank are dropped.
        num_trained_batches: Returns the number of batches that this rank has been trained on in all epochs.
        seed: Seed of the orders.
        rank: Number of this rank.
        world_size: Number of ranks.

    Raises:
        MisconfigurationException: If there are fewer samples than one batch of every rank needs.

    >>> list(EpochOrder(5, batch_size=2, num_trained_batches=lambda: 3))
    [(1, 3), (1, 0)]
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        num_trained_batches: Callable[[], int],
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(range(num_samples), world_size, rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.num_trained_batches = num_trained_batches
        self.num_batches = num_samples // (batch_size * world_size)
        if self.num_batches == 0:
            raise MisconfigurationException(
                f"{num_samples} training samples do not fill a batch of {batch_size} in each of {world_size} "
                "processes: take a smaller batch, or give more samples"
            )

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the epoch and the index of each remaining sample of this rank in the epoch."""
        epoch, num_done = divmod(self.num_trained_batches(), self.num_batches)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.dataset))  # type: ignore[arg-type]
        indices = order[self.rank :: self.num_replicas][: len(self)]
        for index in indices[num_done * self.batch_size :].tolist():
            yield epoch, index


class Sized(Protocol):
    """A list or a ``Dataset``, which returns samples by index."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int, /) -> Any:
        """Return a sample."""


class OrderedDataset(Dataset[Any]):
    """A dataset that returns samples by the keys of ``EpochOrder``, the same in every epoch.

    Args:
        samples: Samples by index.

    >>> OrderedDataset(["boat", "fish"])[3, 1]
    'fish'
    """

    def __init__(self, samples: Sized) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """Return a sample.

        Args:
            key: Number of the epoch and index of the sample.
        """
        return self.samples[key[1]]
