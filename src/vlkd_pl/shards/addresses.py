"""Addresses of remote files, and which of them are allowed."""

from __future__ import annotations

import os
import re

import fsspec
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.errors import missing_package

URL_SCHEMES = ("s3", "gs", "gcs", "http", "https")
"""Schemes of the addresses that are allowed: S3, Google Cloud Storage, and HTTP."""

SCHEMES_VARIABLE = "VLKD_PL_URL_SCHEMES"
"""Environment variable with further schemes of fsspec to allow, separated by commas."""

_SCHEME = re.compile(r"[A-Za-z][\w+.-]+:")


def is_address(path: str) -> bool:
    """Return whether a path is a remote address rather than a local path.

    Example:
        >>> is_address("s3://bucket/00000.tar"), is_address("data/00000.tar")
        (True, False)
    """
    return "://" in path


def check_address(path: str) -> None:
    """Check that a path is local, or an address with a scheme of ``URL_SCHEMES`` or of ``VLKD_PL_URL_SCHEMES``.

    In a chained address, such as ``zip://a.tar::s3://bucket/a.zip``, every scheme must be allowed.

    Args:
        path: A path or an address, with its braces expanded.

    Raises:
        MisconfigurationException: The path is a command, like webdataset's ``pipe:``, or its scheme is not allowed.
        MissingPackageError: The package that reads the scheme is missing.

    Example:
        >>> check_address("https://example.com/00000.tar")
        >>> check_address("pipe:curl https://example.com/00000.tar")
        Traceback (most recent call last):
        lightning_fabric.utilities.exceptions.MisconfigurationException: pipe:curl https://... is neither a path nor...
    """
    if not is_address(path) and not _SCHEME.match(path):
        return
    refusal = f"{path} is neither a path nor an allowed address ({'://, '.join(URL_SCHEMES)}://)"
    if not is_address(path):
        raise MisconfigurationException(f"{refusal}: commands are not run")
    allowed = {*URL_SCHEMES, *os.environ.get(SCHEMES_VARIABLE, "").replace(",", " ").split()}
    refused = [scheme for scheme in _schemes(path) if scheme not in allowed]
    if refused:
        raise MisconfigurationException(
            f"{refusal}: commands are not run; for a local file give its path; to allow a scheme, name it in "
            f"{SCHEMES_VARIABLE}={','.join(dict.fromkeys(refused))}"
        )
    for scheme in _schemes(path):
        try:
            fsspec.get_filesystem_class(scheme)
        except ValueError as error:
            raise MisconfigurationException(f"{path}: fsspec does not support the scheme {scheme}") from error
        except ImportError as error:
            raise missing_package(f"{path} needs a package for its scheme ({error})", "remote") from error


def _schemes(path: str) -> list[str]:
    """The scheme of each link of a chained address, as fsspec splits it."""
    links = path.split("::")
    return [
        link.split("://")[0] if "://" in link else link if re.fullmatch("[a-z]+", link) else "file" for link in links
    ]
