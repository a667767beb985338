"""Verification of shards, against a manifest or by decoding."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from vlkd_pl.prepare.limits import LOSS_REASONS, PreparationDecoder, SampleLimits
from vlkd_pl.prepare.manifest import MANIFEST, file_record, read_manifest
from vlkd_pl.prepare.reshard import Progress, make_loader
from vlkd_pl.shards.decoder import (
    skip_summary,
)
from vlkd_pl.shards.reader import SHARD_ERRORS, count_samples, read_shard


class ShardReport(NamedTuple):
    """Result of a shard's verification.

    Attributes:
        name: File name of the shard.
        num_samples: Number of samples in the shard.
        problem: Problem of the shard; empty for none.
        skipped_in_training: Number of readable samples that training skips by default, by reason; empty if the shard
            was not decoded.
    """

    name: str
    num_samples: int
    problem: str
    skipped_in_training: dict[str, int]


class ShardVerification(Dataset[ShardReport]):
    """Verification of a folder's shards by its manifest or, without one, by decoding every sample.

    Args:
        folder: Folder of shards.

    Attributes:
        has_manifest: Whether the folder has a manifest.
        skipped_in_training: Number of samples that training skips by default, by reason, from the manifest.

    Raises:
        FileNotFoundError: The folder does not exist or holds no shard.
        MisconfigurationException: The manifest cannot be read.

    Example:
        >>> from random import Random
        >>> from tempfile import TemporaryDirectory
        >>> from vlkd_pl.sample.writers import write_shards
        >>> with TemporaryDirectory() as folder:
        ...     write_shards(Path(folder), num_pairs=3, num_shards=1, rng=Random(0))
        ...     ShardVerification(Path(folder))[0]
        ShardReport(name='00000.tar', num_samples=3, problem='', skipped_in_training={})
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder at {folder}: give one of .tar files")
        self.folder = folder
        manifest = read_manifest(folder)
        self.has_manifest = manifest is not None
        self.skipped_in_training: dict[str, int] = (manifest or {}).get("skipped_in_training", {})
        self.listed = {shard["name"]: shard for shard in manifest["shards"]} if manifest is not None else {}
        self.names = sorted({path.name for path in folder.glob("*.tar")} | self.listed.keys())
        if not self.names:
            raise FileNotFoundError(f"there are no shards in {folder}: give a folder of .tar files")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> ShardReport:
        """Verify a shard."""
        name = self.names[index]
        try:
            if self.has_manifest:
                return ShardReport(name, *self._compared(self.folder / name, self.listed.get(name)), {})
            return ShardReport(name, *_decoded(self.folder / name))
        except SHARD_ERRORS as error:
            return ShardReport(name, 0, f"cannot be read: {error}", {})

    def reports(self, num_workers: int, progress: Progress) -> Iterator[ShardReport]:
        """Iterate over the reports of all shards, in order, with ``num_workers`` processes."""
        for number, report in enumerate(make_loader(self, num_workers), start=1):
            progress("verifying", number, len(self))
            yield ShardReport(*report)

    @staticmethod
    def _compared(path: Path, listed: dict[str, Any] | None) -> tuple[int, str]:
        if listed is None:
            return 0, f"is not in {MANIFEST}"
        if not path.is_file():
            return 0, "is missing"
        record = file_record(path, count_samples(str(path)))
        wrong = [
            f"{what} {record[what]}, not {listed.get(what)}"
            for what in ("bytes", "sha256", "samples")
            if record[what] != listed.get(what)
        ]
        return record["samples"], "has " + " and ".join(wrong) if wrong else ""


def _decoded(path: Path) -> tuple[int, str, dict[str, int]]:
    """Decode a shard: its number of samples, its problem, and the counts of samples that training skips."""
    decoder = PreparationDecoder(SampleLimits.max_pixels)
    keys: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    problems = []
    try:
        for raw in read_shard(str(path)):
            keys[raw["__key__"]] += 1
            sample, skip_reason = decoder(raw)
            if isinstance(sample, str):
                lost[sample] += 1
            elif skip_reason is not None:
                skipped[skip_reason] += 1
    except tarfile.ReadError as error:
        problems.append(f"is corrupt after {keys.total()} samples: {error}")
    lost["repeated_key"] = keys.total() - len(keys)
    problems.append(skip_summary({reason: lost[reason] for reason in LOSS_REASONS}, ""))
    return keys.total(), ", ".join(filter(None, problems)), dict(skipped)
