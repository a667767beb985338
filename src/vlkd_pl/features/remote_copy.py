"""Local copies of feature caches at an address, since training reads rows at random."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from vlkd_pl.features.format import HEADER_SIZE, INDEX_FILE, SUFFIX, DamagedFileError, FeatureFile, parse_index
from vlkd_pl.files import atomic_write
from vlkd_pl.shards.addresses import check_address
from vlkd_pl.shards.remote import RemoteFile

_BLOCK_SIZE = 1 << 20
_NUM_CONNECTIONS = 8


def default_copy(address: str) -> Path:
    """Return the folder that a cache at an address is copied to by default.

    >>> default_copy("s3://bucket/features").name
    '609a8823557eef46'
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "vlkd_pl" / "features" / hashlib.sha256(address.encode()).hexdigest()[:16]


def fetch_cache(address: str, folder: Path) -> None:
    """Copy a finished cache to a folder; files that equal those at the address are not copied again.

    Args:
        address: Address of the cache's folder on S3, GCS or HTTP.
        folder: Folder of the copy.

    Raises:
        FileNotFoundError: If the address holds no finished cache.
        MisconfigurationException: If the address is of another kind or does not answer, a file at it is damaged, or the
            folder has no room.
    """
    check_address(address)
    base = address.rstrip("/")
    try:
        with RemoteFile(f"{base}/{INDEX_FILE}") as remote:
            index = b"".join(_blocks(remote))
        names = [f"{name}{SUFFIX}" for name in parse_index(index).files]
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"data.features: {address} holds no {INDEX_FILE}: it is not a cache, or an unfinished one"
        ) from error
    except (OSError, ValueError) as error:
        raise MisconfigurationException(f"data.features: {base}/{INDEX_FILE} cannot be read ({error})") from error
    with ThreadPoolExecutor(_NUM_CONNECTIONS) as threads:
        copied = list(threads.map(lambda name: _fetch(f"{base}/{name}", folder / name), names))
    with atomic_write(folder / INDEX_FILE, _part(folder / INDEX_FILE)) as file:
        file.write(index)
    rank_zero_info(f"features: {sum(copied)} of {len(names)} files of {address} copied to {folder}")


def _fetch(address: str, path: Path) -> bool:
    """Copy a file unless the copy exists; return whether it was copied."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with RemoteFile(address) as remote:
            header = _header(remote)
            if _is_copied(path, header):
                return False
            with atomic_write(path, _part(path)) as file:
                file.write(header)
                for block in _blocks(remote):
                    file.write(block)
        FeatureFile(path).check_content()
    except (OSError, DamagedFileError) as error:
        if isinstance(error, DamagedFileError):
            path.unlink()
        raise MisconfigurationException(f"data.features: {address} cannot be copied to {path} ({error})") from error
    return True


def _is_copied(path: Path, header: bytes) -> bool:
    try:
        FeatureFile(path)
    except DamagedFileError:
        return False
    with path.open("rb") as file:
        return file.read(HEADER_SIZE) == header


def _header(remote: RemoteFile) -> bytes:
    """Read the header of a remote file, which holds the sha256 of the rest."""
    header = b""
    while len(header) < HEADER_SIZE and (block := remote.read(HEADER_SIZE - len(header))):
        header += block
    return header


def _blocks(remote: RemoteFile) -> Iterator[bytes]:
    while block := remote.read(_BLOCK_SIZE):
        yield block


def _part(path: Path) -> Path:
    """Return a temporary path that is unique among machines, which may share the disk."""
    return path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.part")
