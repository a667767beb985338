"""A feature cache: CLIP's features of a dataset, which ``vlkd-pl cache`` writes once and training reads at random.

A cache is a folder with a safetensors file for each shard and ``index.json``, which is written last. A file holds the
samples of its shard in their order:

- ``image_tokens`` (N, T, D) float16, T being 1 for the pooled embedding alone; or int8 with ``image_scales`` (N, T);
- ``clip_text_embedding`` (N, D) float16;
- ``captions`` and ``keys``, concatenated UTF-8, with the byte where each ends: ``caption_ends``, ``key_ends``;
- ``key_hashes``, by which uniform subsets are drawn: of the N samples, and then of the skipped samples.

Rows are read through a memory map. Random batches of 512 pooled embeddings are read more than ten times as fast as from
Arrow with ``datasets`` or with the lazy slices of safetensors; batches of 145 tokens 8.9 and 1.6 times as fast
(``benchmarks/feature_formats.py``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from vlkd_pl.features.format import (
    INDEX_FILE,
    QUANTIZERS,
    SETTINGS,
    SKIPPED,
    SUFFIX,
    DamagedFileError,
    FeatureFile,
    FeatureSettings,
    parse_index,
)
from vlkd_pl.files import write_text
from vlkd_pl.shards.decoder import SKIP_REASONS, skip_summary
from vlkd_pl.shards.subset import subset_threshold

_KEYS = {name: f"image_limits.{name}" for name in ("max_image_pixels", "skip_non_rgb", "draft_decoding")}
"""Arguments of the data module that are not at its top level."""

_REMEDY = "give the same vlkd-pl cache command again"


class CachedSamples(NamedTuple):
    """Samples of a cache.

    Attributes:
        image_tokens: Image tokens (B, T, D) float16, or int8.
        image_scales: Factor of each token in int8, (B, T) float16; None for tokens in float16.
        clip_text_embedding: Text embeddings (B, D) float16.
        texts: Captions of the B samples.
        keys: Keys of the B samples.
    """

    image_tokens: Tensor
    image_scales: Tensor | None
    clip_text_embedding: Tensor
    texts: list[str]
    keys: list[str]


class FeatureCache:
    """The samples of all files of a feature cache, numbered in the order of the shards.

    Args:
        folder: Folder of a cache that ``vlkd-pl cache`` has finished.

    Attributes:
        settings: Settings that the cache was made with.
        skipped: Number of samples of the shards that were skipped for each reason.

    Raises:
        FileNotFoundError: If the folder holds no cache, or an unfinished one.
        MisconfigurationException: If a file is missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            index = parse_index((self.folder / INDEX_FILE).read_bytes())
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"data.features: {folder} holds no {INDEX_FILE}: it is not a cache, or an unfinished one; make it by "
                f"vlkd-pl cache with --output {folder}, or give --data.features null to read the images"
            ) from error
        except (OSError, ValueError) as error:
            raise MisconfigurationException(
                f"data.features: {folder}/{INDEX_FILE} is damaged ({error}): {_REMEDY}"
            ) from error
        self.settings = index.settings
        self.skipped = index.skipped
        try:
            self.files = [FeatureFile(self.folder / f"{name}{SUFFIX}") for name in index.files]
        except DamagedFileError as error:
            raise MisconfigurationException(f"data.features: {error}: {_REMEDY}") from error
        for file, num in zip(self.files, index.files.values(), strict=True):
            if file.settings != self.settings or len(file) != num:
                raise MisconfigurationException(f"data.features: {file.path} is of another cache: {_REMEDY}")
        self._ends = np.cumsum([len(file) for file in self.files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def bad_shares(self) -> tuple[float, float]:
        """The share of bad samples in the shards, and the share of unreadable shards."""
        num_unreadable = self.skipped["broken_tar"]
        num_bad = sum(self.skipped.values()) - num_unreadable
        return num_bad / max(1, len(self) + num_bad), num_unreadable / len(self.files)

    @property
    def losses(self) -> str:
        """A text on what was skipped when the cache was made."""
        return f"skipped of {len(self.files)} shards: {skip_summary(self.skipped)}"

    def check_clip(self, fingerprint: str, image_features: str) -> None:
        """Check that the cache was made for a model.

        Args:
            fingerprint: Fingerprint of the model's CLIP.
            image_features: Image features that the model uses: ``pooled``, ``patches`` or ``all``.

        Raises:
            MisconfigurationException: If the features are those of another CLIP, or lack the patches.
        """
        if self.settings.clip != fingerprint:
            raise MisconfigurationException(
                f"data.features: {self.folder} was made with the CLIP {self.settings.clip}, but --model.clip is the "
                f"CLIP {fingerprint}: give the CLIP that it was made with, or another cache"
            )
        if self.settings.image_features == "pooled" and image_features != "pooled":
            raise MisconfigurationException(
                f"data.features: {self.folder} holds pooled embeddings alone, but image_features is {image_features}: "
                f"make a cache with --model.image_features {image_features}"
            )

    def check_data(self, max_bad_share: float, **settings: Any) -> None:
        """Check that the cache was made with the settings of a data module.

        Args:
            max_bad_share: Share of bad samples, or of unreadable shards, above which the cache is refused.
            **settings: Values of ``FeatureSettings`` that the cache must have been made with.

        Raises:
            MisconfigurationException: If the settings differ, or too many samples or shards were bad.
        """
        if max(self.bad_shares) > max_bad_share:
            raise MisconfigurationException(
                f"data.features: too much was bad when {self.folder} was made, {self.losses}: repair the shards and "
                f"make another cache, or raise data.image_limits.max_bad_share from {max_bad_share}"
            )
        for name, value in settings.items():
            made = getattr(self.settings, name)
            if made != value:
                raise MisconfigurationException(
                    f"data.features: {self.folder} was made with {name} {made}, not {value}: give "
                    f"--data.{_KEYS.get(name, name)} {made}, or another cache"
                )

    def subset(self, size: int | None) -> NDArray[np.int64]:
        """Return the numbers of the samples in a uniform subset, the same that ``UniformSubset`` draws from the shards.

        Args:
            size: Number of samples of the subset, skipped ones included; None for all.

        Raises:
            MisconfigurationException: If the cache holds a smaller subset, or the shards held fewer samples.
        """
        made = self.settings.subset_size
        if made is not None and (size is None or size > made):
            raise MisconfigurationException(
                f"data.features: {self.folder} holds a subset of {made} samples, but data.subset_size is {size}: give "
                f"--data.subset_size {made}, or another cache"
            )
        if size is None:
            return np.arange(len(self))
        hashes = np.concatenate([file.key_hashes for file in self.files])
        threshold = subset_threshold(hashes, size)
        chosen = hashes < threshold
        last = np.flatnonzero(hashes == threshold)[: size - np.count_nonzero(chosen)]  # of equal keys the first
        chosen[last] = True
        is_stored = np.concatenate([np.arange(len(file.key_hashes)) < len(file) for file in self.files])
        return np.flatnonzero(chosen[is_stored])

    def read(self, samples: Sequence[int] | NDArray[np.int64]) -> CachedSamples:
        """Read samples by their numbers, in any order."""
        places = self._places(samples)
        stored = np.empty((len(places), *self.files[0].token_shape), np.dtype(self.settings.dtype))
        for index, (file, row) in enumerate(places):
            stored[index] = file.image_tokens[row]
        scales = None
        if self.settings.dtype in QUANTIZERS:
            scales = torch.from_numpy(np.stack([file.image_scales[row] for file, row in places]))
        return CachedSamples(
            torch.from_numpy(stored),
            scales,
            torch.from_numpy(np.stack([file.clip_text_embedding[row] for file, row in places])),
            [file.caption(row) for file, row in places],
            [file.key(row) for file, row in places],
        )

    def captions(self, samples: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Read the captions of samples by their numbers."""
        return [file.caption(row) for file, row in self._places(samples)]

    def _places(self, samples: Sequence[int] | NDArray[np.int64]) -> list[tuple[FeatureFile, int]]:
        """Return the file and the row of each sample."""
        numbers = np.searchsorted(self._ends, samples, side="right")
        rows = np.asarray(samples) - self._ends[numbers]  # from the file's end
        files = [self.files[number] for number in numbers.tolist()]
        return [(file, row + len(file)) for file, row in zip(files, rows.tolist(), strict=True)]


def finished_file(path: Path, settings: FeatureSettings, check_content: bool = False) -> FeatureFile | None:
    """Open a file of a cache; return None if it is missing, unfinished or damaged.

    Args:
        path: Path of the file.
        settings: Settings that it must have been made with.
        check_content: Whether to read the whole file, or only its header and size.

    Raises:
        MisconfigurationException: If the file was made with other settings.
    """
    if not path.is_file():
        return None
    try:
        file = FeatureFile(path)
        if check_content:
            file.check_content()
    except DamagedFileError:
        return None
    for name, value in settings._asdict().items():
        made = getattr(file.settings, name)
        if made != value:
            raise MisconfigurationException(f"{path} was made with {name} {made}, not {value}: give another --output")
    return file


def write_index(folder: Path, names: Sequence[str], settings: FeatureSettings) -> FeatureCache:
    """Write the index of a cache whose files are complete, and open the cache.

    Args:
        folder: Folder of the cache.
        names: Names of its files in the order of the shards.
        settings: Settings that it was made with.

    Raises:
        MisconfigurationException: If a file is missing or damaged.
    """
    try:
        files = {name: FeatureFile(folder / f"{name}{SUFFIX}") for name in names}
    except DamagedFileError as error:
        raise MisconfigurationException(f"{error}: all processes must see the same folder; {_REMEDY}") from error
    index = {
        SETTINGS: settings._asdict(),
        SKIPPED: {reason: sum(file.skipped[reason] for file in files.values()) for reason in SKIP_REASONS},
        "files": {name: len(file) for name, file in files.items()},
    }
    write_text(folder / INDEX_FILE, json.dumps(index, indent=1))
    return FeatureCache(folder)
