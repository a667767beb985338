"""Check that predictions and ground truths have the same keys."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from itertools import islice


def check_pairing(truths: Collection[Hashable], predictions: Collection[Hashable], unit: str) -> None:
    """Check that every ground truth has a prediction and every prediction a ground truth.

    Args:
        truths: The keys of the ground truths.
        predictions: The keys of the predictions.
        unit: The noun for one key, such as ``image``.

    Raises:
        ValueError: There is nothing to score, or the keys differ; the message has their number and the first three.
    """
    missing, unknown = set(truths) - set(predictions), set(predictions) - set(truths)
    faults = []
    if missing:
        named = first_few(key for key in truths if key in missing)
        faults.append(f"{len(missing)} of {len(truths)} {unit}s have no prediction ({named})")
    if unknown:
        named = first_few(key for key in predictions if key in unknown)
        faults.append(f"{len(unknown)} of {len(predictions)} predictions are for an unknown {unit} ({named})")
    if not truths and not predictions:
        faults.append(f"there are no {unit}s to score")
    if faults:
        raise ValueError("; ".join(faults))


def check_references(ids: Iterable[Hashable], references: Iterable[Sequence[str]]) -> None:
    """Check that every image has a reference caption.

    Args:
        ids: The image ids.
        references: All reference captions of each image.

    Raises:
        ValueError: An image has none; the message has the number of such images and the first three.
    """
    has_references = [(key, bool(texts)) for key, texts in zip(ids, references, strict=True)]
    bare = [key for key, has_some in has_references if not has_some]
    if bare:
        raise ValueError(f"{len(bare)} of {len(has_references)} images have no reference caption ({first_few(bare)})")


def first_few(keys: Iterable[Hashable]) -> str:
    """Return the first three keys as an error message lists them."""
    return "first: " + ", ".join(map(repr, islice(keys, 3)))
