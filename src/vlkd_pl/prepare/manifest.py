"""The manifest of prepared shards, ``manifest.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.files import file_sha256
from vlkd_pl.text_files import Entries, read_json

MANIFEST = "manifest.json"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of a folder of shards; None if it has no manifest.

    Args:
        folder: Folder of the shards.

    Raises:
        MisconfigurationException: The manifest has another format, or names a shard outside the folder.

    Example:
        >>> read_manifest(Path("missing")) is None
        True
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    file_format = "a manifest of vlkd-pl prepare"
    complaint = f"{path} is not {file_format}"
    manifest: dict[str, Any] = read_json(path, file_format)
    (listed,) = Entries([manifest], complaint, is_numbered=False).values("shards", {list}, "a list")
    shards = Entries(listed, f"{complaint}: shards")
    names = shards.texts("name")
    shards.values("bytes", {int}, "a number")
    (skipped,) = Entries([manifest], complaint, is_numbered=False).values(
        "skipped_in_training", {dict}, "an object", {}
    )
    for reason in skipped:
        Entries([skipped], f"{complaint}: skipped_in_training", is_numbered=False).values(reason, {int}, "a number")
    if outside := [name for name in names if Path(name).name != name]:
        raise MisconfigurationException(f"{path} names {outside[0]!r}, which is not a file of its folder")
    return manifest


def file_record(path: Path, num_samples: int) -> dict[str, Any]:
    """Describe a shard for the manifest: name, number of samples, bytes and sha256."""
    return {"name": path.name, "samples": num_samples, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
