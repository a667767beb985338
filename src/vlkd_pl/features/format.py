"""The file format of a feature cache: a safetensors file for each shard, and an index."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd_pl.batch import ShardEnd
from vlkd_pl.files import file_sha256, finish
from vlkd_pl.shards.subset import key_hash

FeatureType = Literal["float16", "int8"]
"""Types of the stored image tokens; those in ``QUANTIZERS`` have a scale for each token, and others are cast to."""

INDEX_FILE = "index.json"
SUFFIX = ".safetensors"
HEADER_SIZE = 4096
"""Bytes of a file's header, with its length and padding: the image tokens begin at a page."""

SETTINGS = "settings"
SKIPPED = "skipped"

_SHA256 = "sha256"
_TYPES = {"F16": np.float16, "I8": np.int8, "I16": np.int16, "I64": np.int64, "U64": np.uint64, "U8": np.uint8}
_TYPE_NAMES = {np.dtype(dtype): name for name, dtype in _TYPES.items()}
_TENSORS = {"image_tokens", "clip_text_embedding", "captions", "caption_ends", "keys", "key_ends", "key_hashes"}


class FeatureSettings(NamedTuple):
    """The settings that decide the content of a cache.

    Attributes:
        clip: Fingerprint of the CLIP.
        image_size: Width and height of an image in pixels after CLIP's preprocessing.
        image_features: ``pooled`` for the pooled embedding only; ``all`` for the patches as well.
        dtype: Type of the image tokens.
        subset_size: Number of samples of the uniform subset that was cached; None for all.
        max_image_pixels: Largest number of pixels of an image; larger images were skipped.
        skip_non_rgb: Whether images of another mode than RGB were skipped.
        draft_decoding: Whether JPEG images were decoded at a fraction of their size.
    """

    clip: str
    image_size: int
    image_features: Literal["pooled", "all"]
    dtype: FeatureType
    subset_size: int | None
    max_image_pixels: int
    skip_non_rgb: bool
    draft_decoding: bool = False

    def num_bytes(self, num_tokens: int, embedding_dim: int) -> int:
        """Return the bytes of a sample without caption and key.

        Args:
            num_tokens: Number of image tokens of a sample.
            embedding_dim: Dimension of CLIP's embeddings.
        """
        of_token = np.dtype(self.dtype).itemsize * embedding_dim + (2 if self.dtype in QUANTIZERS else 0)
        return num_tokens * of_token + 2 * embedding_dim + 24


class CacheIndex(NamedTuple):
    """The content of a cache's ``index.json``.

    Attributes:
        settings: Settings that the cache was made with.
        skipped: Number of samples of the shards that were skipped for each reason.
        files: Number of samples in each file by its path relative to the folder, without its suffix.
    """

    settings: FeatureSettings
    skipped: dict[str, int]
    files: dict[str, int]


def parse_index(content: bytes) -> CacheIndex:
    """Parse the ``index.json`` of a cache.

    Args:
        content: Bytes of the file.

    Raises:
        ValueError: If it is corrupt, or names a file outside of the cache's folder.
    """
    try:
        index = json.loads(content)
        parsed = CacheIndex(FeatureSettings(**index[SETTINGS]), index[SKIPPED], index["files"])
        counts = [*parsed.skipped.values(), *parsed.files.values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("it is not the index of a cache") from error
    if parsed.settings.dtype not in get_args(FeatureType) or parsed.settings.image_features not in ("pooled", "all"):
        raise ValueError(f"it has the settings {parsed.settings}")
    if (
        not parsed.files
        or "broken_tar" not in parsed.skipped
        or not all(type(num) is int and num >= 0 for num in counts)
    ):
        raise ValueError("it has no valid numbers of samples")
    for name in parsed.files:
        if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise ValueError(f"it names the file {name!r}, outside of its folder")
    return parsed


class DamagedFileError(Exception):
    """A file of a cache is damaged."""


def quantized(image_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize image tokens to int8, with a scale for each token.

    The error of an entry is at most half a step, and a step is the token's largest entry / 127: a token, which has
    length 1, has an error of about 0.0023 √D · its largest entry. On the sample world that is 0.6%. The ITCL of a batch
    differs by up to 0.3%, ICTI by 0.04%, and TTDM, whose text embeddings stay in float16, by 0.007% as in float16. The
    gradient differs by 0.3% of its length, against 0.05% in float16 (``benchmarks/int8_features.py``).

    Args:
        image_tokens: Image tokens (B, T, D).

    Returns:
        Steps (B, T, D) int8 in [-127, 127], and the scales (B, T) float16 by which to multiply them.

    >>> steps, scales = quantized(torch.tensor([[[0.5, -1.0]]]))
    >>> steps.tolist(), (steps * scales.float().unsqueeze(-1)).round(decimals=2).tolist()
    ([[[64, -127]]], [[[0.5, -1.0]]])
    """
    scales = (image_tokens.abs().amax(-1) / 127).half().clamp_min(torch.finfo(torch.float16).tiny)
    steps = (image_tokens.float() / scales.float().unsqueeze(-1)).round().clamp(-127, 127)
    return steps.to(torch.int8), scales


QUANTIZERS: dict[FeatureType, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"int8": quantized}
"""From image tokens to what is stored of them and the scales (B, T) float16 by which to multiply it."""


class FeatureWriter:
    """Writes a file of a cache atomically, holding one batch of image tokens in memory.

    Args:
        path: Path of the file, which exists only after ``finish``.
        settings: Settings that the cache is made with.
    """

    def __init__(self, path: Path, settings: FeatureSettings) -> None:
        self.path = path
        self.settings = settings
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.with_name(f"{path.name}.part").open("wb")
        self._file.write(bytes(HEADER_SIZE))
        self._digest = hashlib.sha256()
        self._shape: tuple[int, ...] = ()
        self._num = 0
        self._scales: list[NDArray[np.float16]] = []
        self._embeddings: list[NDArray[np.float16]] = []
        self._texts: list[bytes] = []
        self._keys: list[bytes] = []
        self._key_hashes: list[int] = []

    def append(
        self, image_tokens: Tensor, clip_text_embedding: Tensor, texts: Sequence[str], keys: Sequence[str]
    ) -> None:
        """Append samples.

        Args:
            image_tokens: Image tokens (B, T, D) float32, on any device.
            clip_text_embedding: Text embeddings (B, D) float32.
            texts: Captions of the B samples.
            keys: Keys of the B samples.
        """
        if quantize := QUANTIZERS.get(self.settings.dtype):
            stored, scales = quantize(image_tokens)
            self._scales.append(scales.cpu().numpy())
        else:
            stored = image_tokens.to(getattr(torch, self.settings.dtype))
        self._write(stored.cpu().numpy())
        self._shape = tuple(stored.shape[1:])
        self._num += len(texts)
        self._embeddings.append(clip_text_embedding.half().cpu().numpy())
        self._texts += [text.encode() for text in texts]
        self._keys += [key.encode(errors="surrogateescape") for key in keys]
        self._key_hashes += [key_hash(key) for key in keys]

    def finish(self, end: ShardEnd) -> None:
        """Write all but the image tokens and the header, and rename the file to its path.

        Args:
            end: Keys of all samples of the shard, and how many were skipped.
        """
        skipped = sorted((Counter(end.key_hashes) - Counter(self._key_hashes)).elements())
        # ordered so that each begins at a multiple of its type's size
        tensors: dict[str, NDArray[Any]] = {
            "clip_text_embedding": np.concatenate(self._embeddings),
            "key_hashes": np.array(self._key_hashes + skipped, dtype=np.uint64),
            "caption_ends": np.cumsum([len(text) for text in self._texts], dtype=np.int64),
            "key_ends": np.cumsum([len(key) for key in self._keys], dtype=np.int64),
        }
        if self._scales:
            tensors["image_scales"] = np.concatenate(self._scales)
        tensors["captions"] = np.frombuffer(b"".join(self._texts), dtype=np.uint8)
        tensors["keys"] = np.frombuffer(b"".join(self._keys), dtype=np.uint8)

        stored = np.dtype(self.settings.dtype)
        header: dict[str, Any] = {}
        place = self._num * int(np.prod(self._shape)) * stored.itemsize
        header["image_tokens"] = _described(stored, (self._num, *self._shape), 0, place)
        for name, tensor in tensors.items():
            self._write(tensor)
            header[name] = _described(tensor.dtype, tensor.shape, place, place + tensor.nbytes)
            place += tensor.nbytes
        header["__metadata__"] = {
            SETTINGS: json.dumps(self.settings._asdict()),
            SKIPPED: json.dumps(end.skipped),
            _SHA256: self._digest.hexdigest(),
        }
        content = json.dumps(header).encode()
        self._file.seek(0)
        self._file.write((HEADER_SIZE - 8).to_bytes(8, "little") + content.ljust(HEADER_SIZE - 8))
        finish(self._file, self.path)

    def _write(self, array: NDArray[Any]) -> None:
        content = np.ascontiguousarray(array).data
        self._file.write(content)
        self._digest.update(content)


class FeatureFile:
    """A file of a cache, mapped into memory on first access.

    Args:
        path: Path of a file that ``FeatureWriter`` has finished.

    Attributes:
        settings: Settings that the cache was made with.
        skipped: Number of samples of the shard that were skipped for each reason.

    Raises:
        DamagedFileError: If the file is invalid or truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[str, tuple[str, list[int], int, int]] = {}
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                header = json.loads(file.read(HEADER_SIZE)[8:])
            metadata = header.pop("__metadata__")
            for name, described in header.items():
                begin, end = described["data_offsets"]
                dtype, shape = described["dtype"], described["shape"]
                if begin < 0 or end - begin != math.prod(shape) * np.dtype(_TYPES[dtype]).itemsize:
                    raise ValueError(f"{name} has another size than its shape")
                self._places[name] = (dtype, shape, begin, end)
            self.settings = FeatureSettings(**json.loads(metadata[SETTINGS]))
            self.skipped: dict[str, int] = json.loads(metadata[SKIPPED])
            self._sha256: str = metadata[_SHA256]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedFileError(f"{path} is damaged: it has no header of a cache") from error
        self.size = HEADER_SIZE + max((place[3] for place in self._places.values()), default=0)
        if self.size != size or not self._places.keys() >= _TENSORS:
            raise DamagedFileError(f"{path} is damaged: it has {size} bytes, and {self.size} by its header")

    def __len__(self) -> int:
        return self._places["image_tokens"][1][0]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the memory map, which another process creates again."""
        mapped = ("_bytes", "image_tokens", "image_scales", "clip_text_embedding", "_texts", "_keys")
        return {name: value for name, value in self.__dict__.items() if name not in mapped}

    @property
    def token_shape(self) -> tuple[int, int]:
        """The number T of image tokens of a sample, and their dimension D."""
        _, tokens, dim = self._places["image_tokens"][1]
        return tokens, dim

    @cached_property
    def image_tokens(self) -> NDArray[Any]:
        """Image tokens (N, T, D) float16 or int8."""
        return self._tensor("image_tokens")

    @cached_property
    def image_scales(self) -> NDArray[Any]:
        """Scales (N, T) float16 of image tokens in int8."""
        return self._tensor("image_scales")

    @cached_property
    def clip_text_embedding(self) -> NDArray[Any]:
        """Text embeddings (N, D) float16."""
        return self._tensor("clip_text_embedding")

    @property
    def key_hashes(self) -> NDArray[np.uint64]:
        """Hashes of the keys of the N samples, and then of the skipped samples."""
        return self._tensor("key_hashes")

    def caption(self, row: int) -> str:
        """Return the caption of a sample."""
        return _string(*self._texts, row)

    def key(self, row: int) -> str:
        """Return the key of a sample."""
        return _string(*self._keys, row)

    def check_content(self) -> None:
        """Read the whole file, and compare its checksum.

        Raises:
            DamagedFileError: If the content has changed since it was written.
        """
        if file_sha256(self.path, HEADER_SIZE) != self._sha256:
            raise DamagedFileError(f"{self.path} is damaged: its content has another sha256 than when it was written")

    @cached_property
    def _texts(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return self._tensor("captions"), self._tensor("caption_ends")

    @cached_property
    def _keys(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return self._tensor("keys"), self._tensor("key_ends")

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        # not numpy's memmap, which holds a file descriptor for each file: datasets have thousands of files
        mapped: NDArray[np.uint8] = torch.from_file(str(self.path), False, self.size, dtype=torch.uint8).numpy()
        return mapped

    def _tensor(self, name: str) -> NDArray[Any]:
        dtype, shape, begin, end = self._places[name]
        return self._bytes[HEADER_SIZE + begin : HEADER_SIZE + end].view(_TYPES[dtype]).reshape(shape)


def _described(dtype: np.dtype[Any], shape: Sequence[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": _TYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}


def _string(content: NDArray[np.uint8], ends: NDArray[np.int64], row: int) -> str:
    return content[ends[row - 1] if row else 0 : ends[row]].tobytes().decode(errors="surrogateescape")
