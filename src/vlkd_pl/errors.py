"""The exceptions that the package raises for input it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ModelFileError(ValueError):
    """A file or folder of weights, of a configuration or of a tokenizer is corrupt, incomplete or of another model.

    Raised by everything that loads a CLIP, a BART, a model folder or a checkpoint. The message is one line: what is
    wrong, in which file, and what to do.
    """


class MissingPackageError(ImportError):
    """A package that one feature needs is not installed. The message is one line and names the extra that brings it."""


def missing_package(reason: object, extra: str) -> MissingPackageError:
    """The error for a package that an extra of this package brings.

    Args:
        reason: What is missing.
        extra: Name of the extra, as ``setup.cfg`` has it.
    """
    return MissingPackageError(
        f"{reason}: it comes with the extra {extra}; run pip install '.[{extra}]' in the checkout of vlkd_pl"
    )


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Imports inside are of packages that an extra of this package brings.

    Args:
        extra: Name of the extra.

    Raises:
        MissingPackageError: An import fails.
    """
    try:
        yield
    except ImportError as error:
        raise missing_package(error, extra) from error
