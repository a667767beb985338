"""Scores of captions against what people wrote."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

_WORD = re.compile(r"\w+(?:'\w+)?")


def cider(references: Mapping[Key, Sequence[str]], predictions: Mapping[Key, str]) -> tuple[float, dict[Key, float]]:
    """CIDEr-D (Vedantam et al., 2015) as ``pycocoevalcap`` computes it, without Java.

    Words are lower-cased runs of letters and digits; the official evaluation splits them with the Penn Treebank
    tokenizer, which differs on few captions.

    Args:
        references: All captions of each picture.
        predictions: One caption for each of the same pictures.

    Returns:
        The mean score and that of each picture; 1.0 is what tables print as 100.

    Raises:
        ValueError: A picture has no prediction, or a prediction no picture.
    """
    from pycocoevalcap.cider.cider import Cider

    if references.keys() != predictions.keys():
        missing, unknown = list(references.keys() - predictions.keys()), list(predictions.keys() - references.keys())
        raise ValueError(
            f"predictions do not fit the references: {len(missing)} missing (first: {missing[:3]}), "
            f"{len(unknown)} unknown (first: {unknown[:3]})"
        )
    keys = list(references)
    score, per_picture = Cider().compute_score(
        {key: [words(text) for text in references[key]] for key in keys},
        {key: [words(predictions[key])] for key in keys},
    )
    return float(score), {key: float(value) for key, value in zip(keys, per_picture, strict=True)}


def words(text: str) -> str:
    """The words of a text in lower case, with single spaces between them."""
    return " ".join(_WORD.findall(text.lower()))
