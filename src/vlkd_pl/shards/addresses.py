"""Addresses of files that are not on a local disk, and which of them are read."""

from __future__ import annotations

import os
import re

import fsspec
from pytorch_lightning.utilities.exceptions import MisconfigurationException

URL_SCHEMES = ("s3", "gs", "gcs", "http", "https")
"""The schemes of the addresses that are read: S3, Google Cloud Storage, and HTTP."""

SCHEMES_VARIABLE = "VLKD_PL_URL_SCHEMES"
"""The environment variable that names further schemes of fsspec to read, separated by commas."""

_SCHEME = re.compile(r"[A-Za-z][\w+.-]+:")


def is_address(path: str) -> bool:
    """Whether a path is an address for fsspec, such as ``s3://bucket/a.tar``, and not that of a local file."""
    return "://" in path


def check_address(path: str) -> None:
    """Makes sure that a path is a local one, or an address of ``URL_SCHEMES`` or of a scheme that the user allows.

    Of a chained address, as ``zip://a.tar::s3://bucket/a.zip``, the scheme of every link must be allowed.

    Args:
        path: A path or address, whose braces have been expanded.

    Raises:
        MisconfigurationException: It is a command, as webdataset's ``pipe:``, or of another scheme; or the package
            that reads it is missing.
    """
    if not is_address(path) and not _SCHEME.match(path):
        return
    refusal = f"{path} is neither a path nor an address that is read ({'://, '.join(URL_SCHEMES)}://)"
    if not is_address(path):
        raise MisconfigurationException(f"{refusal}: commands are not run")
    allowed = {*URL_SCHEMES, *os.environ.get(SCHEMES_VARIABLE, "").replace(",", " ").split()}
    refused = [scheme for scheme in _schemes(path) if scheme not in allowed]
    if refused:
        raise MisconfigurationException(
            f"{refusal}: commands are not run, a local file is given by its path, and other schemes are read where the "
            f"environment variable {SCHEMES_VARIABLE} names them, here {','.join(dict.fromkeys(refused))}"
        )
    for scheme in _schemes(path):
        try:
            fsspec.get_filesystem_class(scheme)
        except ValueError as error:
            raise MisconfigurationException(f"{path} is of a scheme that fsspec does not know: {scheme}") from error
        except ImportError as error:
            raise MisconfigurationException(
                f"{path} needs a further package ({error}): for S3 and GCS run pip install '.[remote]' in the "
                "checkout of vlkd_pl"
            ) from error


def _schemes(path: str) -> list[str]:
    """The schemes of the links of an address, as fsspec takes them apart."""
    links = path.split("::")
    return [
        link.split("://")[0] if "://" in link else link if re.fullmatch("[a-z]+", link) else "file" for link in links
    ]
