"""CIDEr-D of many captions at once: the reward of Self-Critical Sequence Training."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from vlkd_pl.files import atomic_write
from vlkd_pl.metrics.pairing import first_few

Key = TypeVar("Key", bound=Hashable)
_Hashes = NDArray[np.uint64]

_MAX_ORDER = 4
_SIGMA = 6.0
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, the golden ratio of 2^64
_FORMAT_VERSION = 1


class CIDErD(Generic[Key]):
    """CIDEr-D (Vedantam et al., 2015) with the document frequencies of the references, as ``pycocoevalcap`` has it.

    Everything about the references is computed once. N-grams are 64-bit hashes: among the ten million of COCO the odds
    that any two are taken for one are below 1 in 100,000. Captions are tokens with spaces between them, as
    ``vlkd_pl.metrics.ptb.tokenize`` gives them.

    Args:
        references: All captions of each image. Document frequencies are counted over these images.
        cache: A folder that what is computed of the references is kept in and taken from, in a file named for them.

    Raises:
        ValueError: There is no image, or one without a reference.
    """

    def __init__(self, references: Mapping[Key, Sequence[str]], cache: str | Path | None = None) -> None:
        bare = [key for key, texts in references.items() if not texts]
        if bare:
            raise ValueError(f"{len(bare)} of {len(references)} images have no reference caption ({first_few(bare)})")
        if not references:
            raise ValueError("there are no references: CIDEr needs those of one image at least")
        self._row_of = {key: row for row, key in enumerate(references)}
        file = Path(cache) / f"cider_{_fingerprint(references)}.npz" if cache is not None else None
        if file is not None and file.is_file():
            with np.load(file, allow_pickle=False) as content:
                arrays = dict(content)
        else:
            arrays = _index(list(references.values()))
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(file, file.with_suffix(f".{os.getpid()}.npz")) as unfinished:  # by each rank its own
                    np.savez(unfinished, **arrays)  # type: ignore[arg-type]
        self._frequencies = _Table(arrays["grams"])
        self._pairs = _Table(arrays["pairs"])
        # of n-grams that are in no reference, which come last, the frequency is taken for 1
        self._information = np.log(len(references)) - np.log(np.append(arrays["frequency"], 1))
        if not self._information[:-1].any():
            warnings.warn(
                "CIDEr-D is 0 for every caption, since no n-gram tells the references of one image from another's: "
                f"they are of {len(references)} image{'s, and all equal' * (len(references) > 1)}",
                stacklevel=2,
            )
        self._counts = arrays["counts"]
        self._norms, self._num_bigrams = arrays["norms"], arrays["num_bigrams"]
        self._num_references = np.array([len(texts) for texts in references.values()])

    def __call__(self, images: Sequence[Key], captions: Sequence[str]) -> NDArray[np.float64]:
        """Scores captions, each against all references of its image.

        Args:
            images: The image of each caption; one may come several times.
            captions: N captions.

        Returns:
            (N,) from 0 to 10; 1.0 is what tables print as 100.

        Raises:
            KeyError: An image has no references.
        """
        rows = np.array([self._row_of[image] for image in images], dtype=np.int64)
        grams, owners, orders, num_words = _grams(captions)
        _, first, count = np.unique(grams ^ _spread(owners), return_index=True, return_counts=True)
        grams, owners, orders = grams[first], owners[first], orders[first]
        information = self._information[self._frequencies.find(grams)]
        cells, num_cells = owners * _MAX_ORDER + orders, len(captions) * _MAX_ORDER
        norms = np.sqrt(np.bincount(cells, np.square(count * information), num_cells))
        found = self._pairs.find(grams ^ _spread(rows[owners]))
        told = found < len(self._counts)
        in_references = self._counts[found[told]]
        shared = np.minimum(count[told, None], in_references) * in_references * np.square(information[told, None])
        dot = np.stack([np.bincount(cells[told], column, num_cells) for column in shared.T], -1)
        scale = norms.reshape(-1, _MAX_ORDER, 1) * self._norms[rows]
        cosine = dot.reshape(scale.shape) / np.where(scale > 0, scale, 1.0)
        difference = np.maximum(num_words - 1, 0)[:, None] - self._num_bigrams[rows]  # its length is that in bigrams
        similarity = cosine.mean(1) * np.exp(-np.square(difference) / (2 * _SIGMA**2))
        scores: NDArray[np.float64] = 10 * similarity.sum(1) / self._num_references[rows]
        return scores


class _Table:
    """Finds hashes among sorted ones: their first bits tell about where they are."""

    def __init__(self, keys: _Hashes) -> None:
        bits = max(1, len(keys).bit_length())
        self._shift = np.uint64(64 - bits)
        starts = np.arange(2**bits, dtype=np.uint64) << self._shift
        self._starts = np.searchsorted(keys, starts).astype(np.int32)
        self._keys = np.append(keys, np.uint64(2**64 - 1))
        self._missing = len(keys)

    def find(self, keys: _Hashes) -> NDArray[np.int64]:
        """The row of each key; one behind the last where it is not there."""
        rows = self._starts[keys >> self._shift]
        behind = np.flatnonzero(self._keys[rows] < keys)
        while len(behind):
            rows[behind] += 1
            behind = behind[self._keys[rows[behind]] < keys[behind]]
        return np.where(self._keys[rows] == keys, rows, self._missing)


class _WordHashes(dict[str, int]):
    """The hash of each word, the same in every process."""

    def __missing__(self, word: str) -> int:
        value = self[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return value


_hash_of = _WordHashes()


def _grams(captions: Sequence[str]) -> tuple[_Hashes, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """All n-grams of captions, their captions' numbers and their orders less one; and each caption's words."""
    split = [caption.split() for caption in captions]
    num_words = np.fromiter(map(len, split), np.int64, len(split))
    words = np.fromiter((_hash_of[word] for text in split for word in text), np.uint64, int(num_words.sum()))
    owner = np.repeat(np.arange(len(split)), num_words)
    left = np.repeat(np.cumsum(num_words), num_words) - np.arange(len(words))  # words from this one on
    grams, owners, orders = [words], [owner], [np.zeros_like(owner)]
    for order in range(1, _MAX_ORDER):
        longer = left[: max(0, len(words) - order)] > order
        hashes = grams[0][: len(longer)]
        for step in range(1, order + 1):
            hashes = hashes * _MULTIPLIER + words[step : step + len(longer)]
        grams.append(hashes[longer])
        owners.append(owner[: len(longer)][longer])
        orders.append(np.full(len(grams[-1]), order))
    return np.concatenate(grams), np.concatenate(owners), np.concatenate(orders), num_words


def _spread(numbers: NDArray[np.int64]) -> _Hashes:
    """A hash of each number, to be mixed with those of n-grams."""
    hashes = (numbers.astype(np.uint64) + np.uint64(1)) * _MULTIPLIER
    hashes ^= hashes >> np.uint64(32)
    return hashes * _MULTIPLIER


def _index(references: Sequence[Sequence[str]]) -> dict[str, NDArray[Any]]:
    """What scoring needs of I images' references, of which there are R at most.

    Returns:
        ``grams``, sorted, and the ``frequency`` of each: in how many images' references it is; ``pairs``, the sorted
        hashes of an image with an n-gram, and ``counts`` (pairs, R); ``norms`` (I, 4, R) and ``num_bigrams`` (I, R).
    """
    num_each = np.array([len(texts) for texts in references])
    shape = len(references), int(num_each.max())
    image = np.repeat(np.arange(len(references)), num_each)
    number = np.arange(len(image)) - np.repeat(np.cumsum(num_each) - num_each, num_each)
    grams, owners, orders, num_words = _grams([text for texts in references for text in texts])
    _, first, count = np.unique(grams ^ _spread(owners), return_index=True, return_counts=True)
    grams, owners, orders = grams[first], owners[first], orders[first]
    pairs, first, row = np.unique(grams ^ _spread(image[owners]), return_index=True, return_inverse=True)
    counts = np.zeros((len(pairs), shape[1]), np.uint16)
    counts[row, number[owners]] = count
    distinct, frequency = np.unique(grams[first], return_counts=True)
    information = np.log(len(references)) - np.log(frequency[np.searchsorted(distinct, grams)])
    norms = np.zeros((shape[0], _MAX_ORDER, shape[1]))
    np.add.at(norms, (image[owners], orders, number[owners]), np.square(count * information))
    num_bigrams = np.zeros(shape, np.int64)
    num_bigrams[image, number] = np.maximum(num_words - 1, 0)
    return {
        "grams": distinct,
        "frequency": frequency,
        "pairs": pairs,
        "counts": counts,
        "norms": np.sqrt(norms),
        "num_bigrams": num_bigrams,
    }


def _fingerprint(references: Mapping[Key, Sequence[str]]) -> str:
    """Changes with any reference, its image or their order."""
    digest = hashlib.sha256(f"format {_FORMAT_VERSION}".encode())
    for key, texts in references.items():
        digest.update(repr((key, list(texts))).encode())
    return digest.hexdigest()[:16]
