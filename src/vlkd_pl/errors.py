"""The exceptions that the package raises for input it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ModelFileError(ValueError):
    """A model file is corrupt, incomplete or belongs to another model.

    Raised by everything that loads a CLIP, a BART, a model folder or a checkpoint. The message is one line: what is
    wrong, in which file, and what to do.
    """


class MissingPackageError(ImportError):
    """A package that an optional feature needs is not installed; the message names the extra that installs it."""


def missing_package(reason: object, extra: str) -> MissingPackageError:
    """The error that says which extra installs a missing package.

    Args:
        reason: What is missing, as the message begins.
        extra: Name of the extra in ``setup.cfg``.
    """
    return MissingPackageError(
        f"{reason}: it comes with the extra {extra}; run pip install '.[{extra}]' in the checkout of vlkd_pl"
    )


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Report a failed import inside the ``with`` block as the missing extra.

    Args:
        extra: Name of the extra in ``setup.cfg`` that installs the imported packages.

    Raises:
        MissingPackageError: An import failed.

    Example:
        >>> with needs_extra("demo"):
        ...     import a_package_that_is_missing
        Traceback (most recent call last):
        vlkd_pl.errors.MissingPackageError: No module named 'a_package_that_is_missing': it comes with the extra demo...
    """
    try:
        yield
    except ImportError as error:
        raise missing_package(error, extra) from error
