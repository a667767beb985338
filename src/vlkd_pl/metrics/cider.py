"""CIDEr-D (Vedantam et al., 2015) of many captions at once: two metrics, and the reward of SCST."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd_pl.files import atomic_write
from vlkd_pl.metrics.base import SampleMetric, check_lengths, text_hash, tokenized_captions
from vlkd_pl.metrics.pairing import check_references
from vlkd_pl.metrics.ptb import tokenize

Key = TypeVar("Key", bound=Hashable)
_Hashes = NDArray[np.uint64]

_MAX_ORDER = 4
_SIGMA = 6.0
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, the golden ratio of 2^64
_FORMAT_VERSION = 1


class CIDEr(SampleMetric):
    """CIDEr-D of captions as the COCO caption evaluation computes it: the mean over all images.

    ``update`` receives image ids, one predicted caption for each, and all reference captions of each; an image counts
    once. Document frequencies are counted over the references of all images that any process has received. Captions
    are tokenized as the COCO caption evaluation does. Tables print a score of 1.0 as 100.

    Example:
        >>> from vlkd_pl.metrics import CIDEr
        >>> metric = CIDEr()
        >>> metric.update([1], ["A red fish."], [["a red fish", "a fish"]])
        >>> metric.update([2], ["two boats"], [["two boats at night"]])
        >>> round(float(metric.compute()), 3)
        3.897
    """

    row_dtype = torch.int64

    def update(
        self, ids: Sequence[Hashable] | Tensor, predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> None:
        """Add the hashed words of B captions and of their references.

        Args:
            ids: B image ids.
            predictions: B captions.
            references: All reference captions of each image.
        """
        rows = []
        for prediction, texts in tokenized_captions(ids, predictions, references):
            hashed = _hashed([prediction, *texts])
            rows.append([len(hashed.num_words), *hashed.num_words.tolist(), *hashed.words.view(np.int64).tolist()])
        self._append(ids, rows)

    def compute(self) -> Tensor:
        """Return the mean score, a scalar in [0, 10], float64."""
        predictions, references, num_references = [], [], []
        for row in self._unique_rows():
            num_texts = int(row[0])
            num_words, words = row[1 : 1 + num_texts].cpu().numpy(), row[1 + num_texts :].cpu().numpy().view(np.uint64)
            predictions.append(_Hashed(words[: num_words[0]], num_words[:1]))
            references.append(_Hashed(words[num_words[0] :], num_words[1:]))
            num_references.append(num_texts - 1)
        scores = _cider_d(_joined(predictions), _joined(references), np.array(num_references))
        return torch.tensor(scores.mean(), dtype=torch.float64)


class CIDErD(SampleMetric, Generic[Key]):
    """CIDEr-D of captions against references that are fixed beforehand: the mean over the images received.

    Document frequencies are those of all references, whichever images ``update`` receives; ``CIDEr`` counts them over
    the images received. Equal to ``CIDEr`` where all images are received. Captions are tokenized as the COCO caption
    evaluation does. Tables print a score of 1.0 as 100.

    Args:
        references: All reference captions of each image.

    Raises:
        ValueError: There are no images, or one has no references.

    Example:
        >>> from vlkd_pl.metrics import CIDErD
        >>> metric = CIDErD({1: ["a red fish", "a fish"], 2: ["two boats at night"]})
        >>> metric.update([1], ["A red fish."])
        >>> round(float(metric.compute()), 3)
        4.757
    """

    def __init__(self, references: Mapping[Key, Sequence[str]]) -> None:
        super().__init__()
        self._reward = CIDErDReward({key: list(map(tokenize, texts)) for key, texts in references.items()})

    def update(self, ids: Sequence[Key], predictions: Sequence[str]) -> None:
        """Add the scores of B captions.

        Args:
            ids: B image ids, keys of ``references``.
            predictions: B captions.

        Raises:
            KeyError: An image has no references.
        """
        check_lengths(ids=ids, predictions=predictions)
        self._append(ids, [[score] for score in self._reward(ids, list(map(tokenize, predictions))).tolist()])

    def compute(self) -> Tensor:
        """Return the mean score, a scalar in [0, 10], float64."""
        return torch.cat(self._unique_rows()).mean()


class CIDErDReward(Generic[Key]):
    """CIDEr-D of captions against references that are fixed beforehand, fast enough for every training step.

    Everything about the references is computed once. N-grams are 64-bit hashes: among COCO's ten million n-grams the
    probability that any two have the same hash is below 1 in 100,000. Captions are tokens with spaces between them,
    as ``vlkd_pl.metrics.tokenize`` returns them.

    Args:
        references: All reference captions of each image. Document frequencies are counted over these images.
        cache: A folder for a file of everything that is computed from the references; None to compute it each time.

    Raises:
        ValueError: There are no images, or one has no references.

    Example:
        >>> from vlkd_pl.metrics import CIDErDReward
        >>> reward = CIDErDReward({1: ["a red fish", "a fish"], 2: ["two boats at night"]})
        >>> reward([1, 1, 2], ["a red fish", "a fish", "a fish"]).round(3).tolist()
        [4.757, 3.507, 0.0]
    """

    def __init__(self, references: Mapping[Key, Sequence[str]], cache: str | Path | None = None) -> None:
        check_references(references, references.values())
        if not references:
            raise ValueError("there are no references: CIDEr needs those of one image at least")
        self._row_of = {key: row for row, key in enumerate(references)}
        num_references = np.array([len(texts) for texts in references.values()])
        file = Path(cache) / f"cider_{_fingerprint(references)}.npz" if cache is not None else None
        if file is not None and file.is_file():
            with np.load(file, allow_pickle=False) as content:
                arrays = dict(content)
        else:
            arrays = _index(_hashed([text for texts in references.values() for text in texts]), num_references)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(file, file.with_suffix(f".{os.getpid()}.npz")) as temporary:  # a name for each rank
                    np.savez(temporary, **arrays)  # type: ignore[arg-type]
        self._scorer = _Scorer(arrays, num_references)
        if not self._scorer.is_informative:
            warnings.warn(
                "CIDEr-D is 0 for every caption, since the references of all images hold the same n-grams: "
                f"they are of {len(references)} image{'s' * (len(references) > 1)}",
                stacklevel=2,
            )

    def __call__(self, images: Sequence[Key], captions: Sequence[str]) -> NDArray[np.float64]:
        """Score captions, each against all references of its image.

        Args:
            images: The image of each caption; an image may occur several times.
            captions: N captions.

        Returns:
            (N,) scores from 0 to 10; tables print 1.0 as 100.

        Raises:
            KeyError: An image has no references.
        """
        rows = np.array([self._row_of[image] for image in images], dtype=np.int64)
        return self._scorer.score(rows, _hashed(captions))


def cider_d(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Compute CIDEr-D with the document frequencies of the references, as ``pycocoevalcap`` does.

    Args:
        predictions: One caption for each of N images, as tokens with spaces between them.
        references: All reference captions of each image, likewise.

    Returns:
        (N,) scores from 0 to 10; tables print 1.0 as 100.
    """
    num_references = np.array([len(texts) for texts in references])
    return _cider_d(_hashed(predictions), _hashed([text for texts in references for text in texts]), num_references)


class _Hashed(NamedTuple):
    """Captions as the hashes of their words.

    Attributes:
        words: (W,) uint64, the words of all captions.
        num_words: (N,) int64, the number of words of each caption.
    """

    words: _Hashes
    num_words: NDArray[np.int64]


def _hashed(captions: Sequence[str]) -> _Hashed:
    """Hash the words of captions."""
    split = [caption.split() for caption in captions]
    num_words = np.fromiter(map(len, split), np.int64, len(split))
    words = np.fromiter(map(_hash_of.__getitem__, chain.from_iterable(split)), np.int64, int(num_words.sum()))
    return _Hashed(words.view(np.uint64), num_words)


def _joined(parts: Sequence[_Hashed]) -> _Hashed:
    """Concatenate hashed captions."""
    return _Hashed(*map(np.concatenate, zip(*parts, strict=True)))


def _cider_d(predictions: _Hashed, references: _Hashed, num_references: NDArray[np.int64]) -> NDArray[np.float64]:
    """Score one prediction for each image; the references of an image follow those of the image before it."""
    scorer = _Scorer(_index(references, num_references), num_references)
    return scorer.score(np.arange(len(num_references)), predictions)


class _Scorer:
    """Scores captions against indexed references.

    Args:
        arrays: The ``_index`` of the references.
        num_references: (I,) the number of references of each image.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], num_references: NDArray[np.int64]) -> None:
        self._frequencies = _Table(arrays["grams"])
        self._pairs = _Table(arrays["pairs"])
        # the last entry is for n-grams that occur in no reference: their frequency counts as 1
        self._information = np.log(len(num_references)) - np.log(np.append(arrays["frequency"], 1))
        self.is_informative = bool(self._information[:-1].any())
        self._counts = arrays["counts"]
        self._norms, self._num_bigrams = arrays["norms"], arrays["num_bigrams"]
        self._num_references = num_references

    def score(self, rows: NDArray[np.int64], captions: _Hashed) -> NDArray[np.float64]:
        """Score N captions.

        Args:
            rows: (N,) the row of each caption's image among the references.
            captions: N captions.

        Returns:
            (N,) scores from 0 to 10.
        """
        grams, owners, orders = _grams(captions)
        _, first, count = np.unique(grams ^ _spread(owners), return_index=True, return_counts=True)
        grams, owners, orders = grams[first], owners[first], orders[first]
        information = self._information[self._frequencies.find(grams)]
        cells, num_cells = owners * _MAX_ORDER + orders, len(rows) * _MAX_ORDER
        norms = np.sqrt(np.bincount(cells, np.square(count * information), num_cells))
        pair = self._pairs.find(grams ^ _spread(rows[owners]))
        matched = pair < len(self._counts)
        in_references = self._counts[pair[matched]]
        shared = np.minimum(count[matched, None], in_references) * in_references
        weighted = shared * np.square(information[matched, None])
        dot = np.stack([np.bincount(cells[matched], column, num_cells) for column in weighted.T], -1)
        scale = norms.reshape(-1, _MAX_ORDER, 1) * self._norms[rows]
        cosine = dot.reshape(scale.shape) / np.where(scale > 0, scale, 1.0)
        # a caption's length is its number of bigrams
        difference = np.maximum(captions.num_words - 1, 0)[:, None] - self._num_bigrams[rows]
        similarity = cosine.mean(1) * np.exp(-np.square(difference) / (2 * _SIGMA**2))
        scores: NDArray[np.float64] = 10 * similarity.sum(1) / self._num_references[rows]
        return scores


class _Table:
    """Finds hashes among sorted ones, from a table of where each leading bit pattern starts."""

    def __init__(self, keys: _Hashes) -> None:
        bits = max(1, len(keys).bit_length())
        self._shift = np.uint64(64 - bits)
        starts = np.arange(2**bits, dtype=np.uint64) << self._shift
        self._starts = np.searchsorted(keys, starts).astype(np.int32)
        self._keys = np.append(keys, np.uint64(2**64 - 1))
        self._missing = len(keys)

    def find(self, keys: _Hashes) -> NDArray[np.int64]:
        """Return the row of each key; the number of rows where a key is missing."""
        rows = self._starts[keys >> self._shift]
        behind = np.flatnonzero(self._keys[rows] < keys)
        while len(behind):
            rows[behind] += 1
            behind = behind[self._keys[rows[behind]] < keys[behind]]
        return np.where(self._keys[rows] == keys, rows, self._missing)


class _WordHashes(dict[str, int]):
    """The signed hash of each word, the same in every process."""

    def __missing__(self, word: str) -> int:
        value = self[word] = text_hash(word)
        return value


_hash_of = _WordHashes()


def _grams(captions: _Hashed) -> tuple[_Hashes, NDArray[np.int64], NDArray[np.int64]]:
    """Return all n-grams of captions as hashes, the numbers of their captions, and their orders minus one."""
    words, num_words = captions
    owner = np.repeat(np.arange(len(num_words)), num_words)
    left = np.repeat(np.cumsum(num_words), num_words) - np.arange(len(words))  # words from this one to the end
    grams, owners, orders = [words], [owner], [np.zeros_like(owner)]
    for order in range(1, _MAX_ORDER):
        longer = left[: max(0, len(words) - order)] > order
        hashes = grams[0][: len(longer)]
        for step in range(1, order + 1):
            hashes = hashes * _MULTIPLIER + words[step : step + len(longer)]
        grams.append(hashes[longer])
        owners.append(owner[: len(longer)][longer])
        orders.append(np.full(len(grams[-1]), order))
    return np.concatenate(grams), np.concatenate(owners), np.concatenate(orders)


def _spread(numbers: NDArray[np.int64]) -> _Hashes:
    """Return a hash of each number, to be combined with the hashes of n-grams."""
    hashes = (numbers.astype(np.uint64) + np.uint64(1)) * _MULTIPLIER
    hashes ^= hashes >> np.uint64(32)
    return hashes * _MULTIPLIER


def _index(references: _Hashed, num_references: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Compute what scoring needs of the references of I images, at most R of each.

    Returns:
        ``grams``, sorted, and ``frequency``, the number of images whose references contain each; ``pairs``, the sorted
        hashes of an image with an n-gram, and ``counts`` (pairs, R); ``norms`` (I, 4, R) and ``num_bigrams`` (I, R).
    """
    num_images = len(num_references)
    shape = num_images, int(num_references.max())
    image = np.repeat(np.arange(num_images), num_references)
    number = np.arange(len(image)) - np.repeat(np.cumsum(num_references) - num_references, num_references)
    grams, owners, orders = _grams(references)
    _, first, count = np.unique(grams ^ _spread(owners), return_index=True, return_counts=True)
    grams, owners, orders = grams[first], owners[first], orders[first]
    pairs, first, row = np.unique(grams ^ _spread(image[owners]), return_index=True, return_inverse=True)
    counts = np.zeros((len(pairs), shape[1]), np.uint16)
    counts[row, number[owners]] = count
    distinct, frequency = np.unique(grams[first], return_counts=True)
    information = np.log(num_images) - np.log(frequency[np.searchsorted(distinct, grams)])
    norms = np.zeros((shape[0], _MAX_ORDER, shape[1]))
    np.add.at(norms, (image[owners], orders, number[owners]), np.square(count * information))
    num_bigrams = np.zeros(shape, np.int64)
    num_bigrams[image, number] = np.maximum(references.num_words - 1, 0)
    return {
        "grams": distinct,
        "frequency": frequency,
        "pairs": pairs,
        "counts": counts,
        "norms": np.sqrt(norms),
        "num_bigrams": num_bigrams,
    }


def _fingerprint(references: Mapping[Key, Sequence[str]]) -> str:
    """Return a digest of the references, their images and their order."""
    digest = hashlib.sha256(f"format {_FORMAT_VERSION}".encode())
    for key, texts in references.items():
        digest.update(repr((key, list(texts))).encode())
    return digest.hexdigest()[:16]
