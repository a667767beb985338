"""CLIP's features of a data set in files: what ``vlkd-pl cache`` writes once, and training reads at random.

A cache is a folder with one safetensors file for each shard, and ``index.json``, which is written last. A file holds
the samples of its shard in their order:

- ``image_tokens`` (N, T, D) float16, T being 1 for the pooled embedding alone; or int8 with ``image_scales`` (N, T);
- ``clip_text_embedding`` (N, D) float16;
- ``captions`` and ``keys``, UTF-8 one after the other, with the byte where each ends: ``caption_ends``, ``key_ends``;
- ``key_hashes``, by which uniform subsets are drawn: of the N samples, and then of those that were skipped.

It is read through a memory map, row by row. Random batches of 512 pooled embeddings came more than ten times as fast
as from Arrow through ``datasets`` or by safetensors' own lazy slices; batches of 145 tokens, 8.9 and 1.6 times as fast
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
        image_tokens: (B, T, D) float16, or int8.
        image_scales: (B, T) float16, what each token in int8 is to be multiplied by; None without.
        clip_text_embedding: (B, D) float16.
        texts: B texts.
        keys: B keys.
    """

    image_tokens: Tensor
    image_scales: Tensor | None
    clip_text_embedding: Tensor
    texts: list[str]
    keys: list[str]


class FeatureCache:
    """The samples of all files of a cache, numbered in the order of the shards.

    Args:
        folder: A folder that ``vlkd-pl cache`` has finished.

    Attributes:
        settings: What decided its content.
        skipped: How many samples of the shards were skipped for each reason.

    Raises:
        FileNotFoundError: There is none, or it is not finished.
        MisconfigurationException: A file is missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            index = parse_index((self.folder / INDEX_FILE).read_bytes())
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"data.features: {folder} holds no {INDEX_FILE}: it is no cache, or not finished; then {_REMEDY}"
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
        """The share of bad samples in the shards, and that of broken shards."""
        num_broken = self.skipped["broken_tar"]
        num_bad = sum(self.skipped.values()) - num_broken
        return num_bad / max(1, len(self) + num_bad), num_broken / len(self.files)

    @property
    def losses(self) -> str:
        """What was skipped when it was made."""
        return f"skipped of {len(self.files)} shards: {skip_summary(self.skipped)}"

    def check_clip(self, fingerprint: str, image_features: str) -> None:
        """Compares with a model.

        Args:
            fingerprint: Of its CLIP.
            image_features: ``pooled``, ``patches`` or ``all``, that it takes.

        Raises:
            MisconfigurationException: The features are another CLIP's, or the patches are needed and not there.
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
        """Compares with the arguments of a data module.

        Args:
            max_bad_share: Share of bad samples, or of broken shards, above which the cache is not to be trained on.
            **settings: Some of ``FeatureSettings``, that must be as they were.

        Raises:
            MisconfigurationException: The images were prepared or chosen in another way, or too many were bad.
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
        """The numbers of the samples in a uniform subset: those that ``UniformSubset`` has of the shards.

        Args:
            size: Samples of the subset, before any were skipped; None for all.

        Raises:
            MisconfigurationException: The cache holds a smaller subset, or the shards held fewer samples.
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
        own = np.concatenate([np.arange(len(file.key_hashes)) < len(file) for file in self.files])
        return np.flatnonzero(chosen[own])

    def read(self, samples: Sequence[int] | NDArray[np.int64]) -> CachedSamples:
        """Samples by their numbers, in any order."""
        places = self._places(samples)
        stored = np.empty((len(places), *self.files[0].token_shape), np.dtype(self.settings.dtype))
        for index, (file, row) in enumerate(places):
            stored[index] = file.image_tokens[row]
        scales = None
        if self.settings.dtype == "int8":
            scales = torch.from_numpy(np.stack([file.image_scales[row] for file, row in places]))
        return CachedSamples(
            torch.from_numpy(stored),
            scales,
            torch.from_numpy(np.stack([file.clip_text_embedding[row] for file, row in places])),
            [file.caption(row) for file, row in places],
            [file.key(row) for file, row in places],
        )

    def captions(self, samples: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The texts of samples, by their numbers."""
        return [file.caption(row) for file, row in self._places(samples)]

    def _places(self, samples: Sequence[int] | NDArray[np.int64]) -> list[tuple[FeatureFile, int]]:
        """The file of each sample, and its row there."""
        numbers = np.searchsorted(self._ends, samples, side="right")
        rows = np.asarray(samples) - self._ends[numbers]  # from the file's end
        files = [self.files[number] for number in numbers.tolist()]
        return [(file, row + len(file)) for file, row in zip(files, rows.tolist(), strict=True)]


def finished_file(path: Path, settings: FeatureSettings, check_content: bool = False) -> FeatureFile | None:
    """A file of a cache, if it has been finished and is whole.

    Args:
        path: Where it is.
        settings: What it must have been made with.
        check_content: Whether to read all of it, or to look at its header and size alone.

    Raises:
        MisconfigurationException: It was made with other settings.
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
    """Finishes a cache whose files are all there.

    Args:
        folder: The cache.
        names: Of its files, in the order of the shards.
        settings: What it was made with.

    Raises:
        MisconfigurationException: A file is missing or damaged.
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
