"""Training order: shuffled in each epoch, and resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import Dataset, DistributedSampler


class EpochOrder(DistributedSampler[Any]):
    """Shuffles samples, and says with each its epoch.

    The order is a function of the seed and the epoch alone. A rank starts behind the batches that it has been trained
    on: Lightning itself counts the batches of a resumed epoch, but begins it with its first samples, and with workers
    even in the order of epoch 0. It is a ``DistributedSampler`` for Lightning to leave it in its place.

    Args:
        num_samples: Samples of all ranks.
        batch_size: Samples in a batch of one rank; those at an epoch's end that do not fill a batch of every rank are
            left out of it.
        num_trained_batches: Tells how many batches this rank has been trained on, of all epochs.
        seed: Decides the orders.
        rank: Number of this rank.
        world_size: Ranks.

    Raises:
        MisconfigurationException: There are fewer samples than one batch of every rank needs.
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
        """The epoch and the number of each sample of this rank that is left of the epoch."""
        epoch, num_done = divmod(self.num_trained_batches(), self.num_batches)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.dataset))  # type: ignore[arg-type]
        own = order[self.rank :: self.num_replicas][: len(self)]
        for index in own[num_done * self.batch_size :].tolist():
            yield epoch, index


class Sized(Protocol):
    """What can be asked for a sample by its number: a list, or a ``Dataset``."""

    def __len__(self) -> int:
        """The number of samples."""

    def __getitem__(self, index: int, /) -> Any:
        """A sample."""


class OrderedDataset(Dataset[Any]):
    """Gives samples by the keys of ``EpochOrder``, in every epoch the same.

    Args:
        samples: The samples by their numbers.
    """

    def __init__(self, samples: Sized) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """The sample.

        Args:
            key: The epoch and the sample's number.
        """
        return self.samples[key[1]]
