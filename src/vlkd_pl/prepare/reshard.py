"""Resharding of image-text pairs: checking them, and writing the good ones to equal shards with a manifest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset
from webdataset.writer import TarWriter

from vlkd_pl.data.workers import worker_init_fn
from vlkd_pl.files import atomic_write, write_text
from vlkd_pl.prepare.limits import LOSS_REASONS, PreparationDecoder, SampleLimits
from vlkd_pl.prepare.manifest import MANIFEST, file_record, read_manifest
from vlkd_pl.shards.decoder import (
    RawSample,
    image_extension,
    skip_summary,
)
from vlkd_pl.shards.reader import read_shard

Progress = Callable[[str, int, int], None]
"""Function that shows progress, from the name of the task, the number of finished items, and their total."""

_UNFINISHED = "unfinished"


class _Part(NamedTuple):
    """Samples of one source shard that form a part of a new shard.

    Attributes:
        source: Path of the source shard.
        places: Indices of the samples in the source shard, in order.
    """

    source: str
    places: list[int]


class ShardCheck(Dataset[int]):
    """Check of source shards, with a note in JSON for each: its good samples, and the others by reason.

    Args:
        sources: Paths of the source shards.
        folder: Folder for the notes; shards with a note are not checked again.
        limits: Limits on the samples.
    """

    def __init__(self, sources: Sequence[str], folder: Path, limits: SampleLimits) -> None:
        self.sources = sources
        self.folder = folder
        self.limits = limits

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> int:
        """Check a source shard and write its note.

        Raises:
            OSError: The shard cannot be read, or the note cannot be written.
        """
        if not self._path(index).is_file():
            path = self._path(index)
            write_text(path, json.dumps(self._checked(self.sources[index])), _unfinished(path, self.folder))
        return index

    def note(self, index: int) -> dict[str, Any]:
        """Read the note of a source shard.

        It holds the number of ``samples``; the numbers ``lost`` by reason; the ``places`` of the good samples and
        their ``digests`` in hexadecimal; and ``skipped_in_training``, place and reason of those that training skips.
        """
        return json.loads(self._path(index).read_bytes())

    def _path(self, index: int) -> Path:
        return self.folder / f"checked-{index:05d}.json"

    def _checked(self, source: str) -> dict[str, Any]:
        decoder = PreparationDecoder(self.limits.max_pixels)
        lost: Counter[str] = Counter()
        keys: set[str] = set()
        places: list[int] = []
        digests: list[str] = []
        skipped: list[tuple[int, str]] = []
        num_samples = 0
        try:
            for place, raw in enumerate(read_shard(source)):
                num_samples += 1
                sample, skip_reason = decoder(raw)
                if isinstance(sample, str):
                    lost[sample] += 1
                    continue
                width, height = sample["image"].tolist()
                reason = self.limits.reason(width, height, sample["text"])
                if reason is None and sample["key"] in keys:
                    reason = "repeated_key"
                if reason is not None:
                    lost[reason] += 1
                    continue
                keys.add(sample["key"])
                places.append(place)
                digests.append(_digest(raw[image_extension(raw) or ""], sample["text"]))
                if skip_reason is not None:
                    skipped.append((place, skip_reason))
        except tarfile.ReadError:
            lost["broken_tar"] += 1
        return {
            "samples": num_samples,
            "lost": lost,
            "places": places,
            "digests": "".join(digests),
            "skipped_in_training": skipped,
        }


class ShardWriter(Dataset[int]):
    """Writer of new shards with running numbers as keys, and with a note for each that the manifest collects.

    Args:
        parts: For each new shard, the parts of source shards that it consists of.
        first_keys: For each new shard, the key of its first sample.
        folder: Folder for the new shards; a shard with a note is not written again.
        notes: Folder for the notes.
    """

    def __init__(self, parts: Sequence[Sequence[_Part]], first_keys: Sequence[int], folder: Path, notes: Path) -> None:
        self.parts = parts
        self.first_keys = first_keys
        self.folder = folder
        self.notes = notes

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> int:
        """Write a new shard and its note.

        Raises:
            OSError: A shard cannot be read or written.
        """
        path = self.folder / f"{index:05d}.tar"
        note = self._path(index)
        if not (note.is_file() and path.is_file() and path.stat().st_size == self.note(index)["bytes"]):
            with atomic_write(path, _unfinished(path, self.notes)) as file:
                self._write(index, file)
            described = file_record(path, sum(len(part.places) for part in self.parts[index]))
            write_text(note, json.dumps(described), _unfinished(note, self.notes))
        return index

    def note(self, index: int) -> dict[str, Any]:
        """Read the note of a new shard: ``name``, ``samples``, ``bytes`` and ``sha256``."""
        return json.loads(self._path(index).read_bytes())

    def _path(self, index: int) -> Path:
        return self.notes / f"written-{index:05d}.json"

    def _write(self, index: int, file: IO[bytes]) -> None:
        key = self.first_keys[index]
        with TarWriter(file, encoder=False, mtime=0) as archive:  # 0: the same bytes each time
            for part in self.parts[index]:
                for raw in _at(part):
                    parts = {name: raw[name] for name in (image_extension(raw), "txt", "json") if name in raw}
                    archive.write({"__key__": f"{key:09d}", **parts})
                    key += 1


def prepare_shards(
    sources: Sequence[str],
    folder: Path,
    limits: SampleLimits,
    samples_per_shard: int,
    request: dict[str, Any],
    links: dict[str, Any] | None,
    num_workers: int,
    progress: Progress,
) -> dict[str, Any]:
    """Check shards, and write their good samples to new shards ``{folder}/00000.tar`` … of equal size.

    Shards are read twice, first to check them and then to write the new ones. Both steps resume after an interruption,
    and the result does not depend on interruptions or on the number of workers.

    Args:
        sources: Paths of shards in img2dataset's format.
        folder: Folder for the new shards, ``manifest.json`` and, until the end, the folder ``unfinished``.
        limits: Limits on the samples.
        samples_per_shard: Number of samples in each new shard except the last, from 1.
        request: Settings that determine the result; see ``begin``.
        links: Results of the download for the manifest; None without a download.
        num_workers: Number of processes; with 1, the main process does the work.
        progress: Function that shows the progress.

    Returns:
        The manifest.

    Raises:
        MisconfigurationException: No sample is within the limits.
        OSError: A file cannot be read or written.
    """
    notes = folder / _UNFINISHED
    check = ShardCheck(sources, notes, limits)
    _run(check, "checking", num_workers, progress)
    checked = [check.note(index) for index in range(len(sources))]
    duplicate = _duplicates([note["digests"] for note in checked])
    good: list[_Part] = []
    skipped: Counter[str] = Counter()
    for source, note in zip(sources, checked, strict=True):
        mask, duplicate = np.split(duplicate, [len(note["places"])])
        good.append(_Part(source, np.array(note["places"], dtype=np.int64)[~mask].tolist()))
        note["lost"]["duplicate"] = int(mask.sum())
        good_places = set(good[-1].places)
        skipped.update(reason for place, reason in note.get("skipped_in_training", ()) if place in good_places)
    lost = {reason: sum(note["lost"].get(reason, 0) for note in checked) for reason in LOSS_REASONS}
    if not any(part.places for part in good):
        raise MisconfigurationException(
            f"no sample of {len(sources)} shards is within the limits ({skip_summary(lost, 'they are empty')})"
        )
    parts = list(_parts(good, samples_per_shard))
    writer = ShardWriter(parts, [index * samples_per_shard for index in range(len(parts))], folder, notes)
    _run(writer, "writing", num_workers, progress)
    shards = [writer.note(index) for index in range(len(parts))]
    manifest = {
        "request": request,
        "samples": sum(shard["samples"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "read": sum(note["samples"] for note in checked),
        "lost": lost,
        "skipped_in_training": skipped,
        "links": links,
        "sources": [
            {
                "name": Path(source).name,
                "read": note["samples"],
                "lost": {reason: note["lost"][reason] for reason in LOSS_REASONS if note["lost"].get(reason)},
            }
            for source, note in zip(sources, checked, strict=True)
        ],
        "shards": shards,
    }
    path = folder / MANIFEST
    write_text(path, json.dumps(manifest, indent=1) + "\n", _unfinished(path, notes))
    shutil.rmtree(notes)
    return manifest


def begin(folder: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Prepare a folder for new or interrupted work.

    Args:
        folder: Folder for the new shards; created if it is missing.
        request: Settings that determine the result, in JSON's types.

    Returns:
        The manifest if the same work has been finished; otherwise None.

    Raises:
        MisconfigurationException: The folder holds work with other settings, or other shards.
    """
    notes = folder / _UNFINISHED
    manifest = read_manifest(folder)
    if manifest is not None:
        _check_same(folder, manifest.get("request"), request)
        if all(_has_size(folder / shard["name"], shard["bytes"]) for shard in manifest["shards"]):
            shutil.rmtree(notes, ignore_errors=True)
            return manifest
    elif (notes / "request.json").is_file():
        _check_same(folder, json.loads((notes / "request.json").read_bytes()), request)
    elif any(folder.glob("*.tar")):
        raise MisconfigurationException(f"{folder} holds shards of another origin: give another folder")
    notes.mkdir(parents=True, exist_ok=True)
    for left in notes.glob("*.part"):  # of an interrupted run
        left.unlink(missing_ok=True)
    write_text(notes / "request.json", json.dumps(request))
    return None


def shard_request(sources: Sequence[str], limits: SampleLimits, samples_per_shard: int) -> dict[str, Any]:
    """The settings that determine the new shards, for ``begin``."""
    return {
        "sources": [[Path(source).name, Path(source).stat().st_size] for source in sources],
        "samples_per_shard": samples_per_shard,
        "limits": asdict(limits),
    }


def _parts(parts: Sequence[_Part], samples_per_shard: int) -> Iterator[list[_Part]]:
    """Distribute parts of source shards to new shards."""
    shard: list[_Part] = []
    room = samples_per_shard
    for source, places in parts:
        while places:
            shard.append(_Part(source, places[:room]))
            places, room = places[room:], room - len(places[:room])
            if room == 0:
                yield shard
                shard, room = [], samples_per_shard
    if shard:
        yield shard


def _at(part: _Part) -> Iterator[RawSample]:
    """Read the raw samples of a part, and its shard no further."""
    places = set(part.places)
    return islice(read_shard(part.source, lambda key, path, place: place in places), len(places))


def _duplicates(digests: Sequence[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Mark each digest that repeats an earlier one, over all shards."""
    pairs = np.frombuffer(bytes.fromhex("".join(digests)), dtype=np.uint64).reshape(-1, 2)
    order = np.lexsort(pairs.T)  # stable: equal digests keep their order
    repeats = np.zeros(len(pairs), dtype=np.bool_)
    repeats[order[1:]] = (pairs[order[1:]] == pairs[order[:-1]]).all(axis=1)
    return repeats


def _digest(content: bytes, text: str) -> str:
    return hashlib.blake2b(text.encode() + b"\0" + content, digest_size=16).hexdigest()


def _unfinished(path: Path, folder: Path) -> Path:
    """Temporary path of a file, one for each process, since those of a killed run may still be writing."""
    return folder / f"{path.name}.{os.getpid()}.part"


def _run(dataset: Dataset[int], what: str, num_workers: int, progress: Progress) -> None:
    total = len(dataset)  # type: ignore[arg-type]
    progress(what, 0, total)
    for number, _ in enumerate(make_loader(dataset, num_workers), start=1):
        progress(what, number, total)


def make_loader(dataset: Dataset[Any], num_workers: int) -> DataLoader[Any]:
    """Make a loader that computes a dataset's items in order; its workers end with the main process, even if killed."""
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers if num_workers > 1 else 0,
        worker_init_fn=worker_init_fn,
        generator=torch.Generator(),
    )


def _has_size(path: Path, num_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == num_bytes


def _check_same(folder: Path, before: Any, now: dict[str, Any]) -> None:
    if before != now:
        keys = before.keys() | now.keys() if isinstance(before, dict) else now.keys()
        other = sorted(key for key in keys if not isinstance(before, dict) or before.get(key) != now.get(key))
        raise MisconfigurationException(
            f"{folder} was prepared with other {' and '.join(other)}: use the same values, or another folder"
        )
