"""The folders and small files of a model: found at once or refused in one line, whatever they hold."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import GatedRepoError, RepositoryNotFoundError

from vlkd_pl.errors import ModelFileError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_SECONDS = 5
_GIT_LFS = b"version https://git-lfs"
_MOST_JSON_BYTES = 16 << 20
_MOST_MERGES_BYTES = 32 << 20
_MOST_MERGES = 49152 - 256 - 2  # OpenAI's tokenizer uses no more, however many the file holds
_OPENAI_VOCAB_SIZE = 49408
_NUM_BYTE_TOKENS = 512
_NUM_SPECIAL_TOKENS = 2


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class where the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_model_file(path: Path) -> None:
    """Check that a file of a model is a regular file with content of its own.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: It does not exist.
        ModelFileError: It is a folder, a device, empty, unreadable, or a git-lfs pointer.
    """
    try:
        if not path.is_file():
            if not path.exists():
                raise FileNotFoundError(f"there is no file {path}")
            raise ModelFileError(f"{path} is not a file: give the path of a file")
        with path.open("rb") as file:
            start = file.read(len(_GIT_LFS))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from error
    if not start:
        raise ModelFileError(f"{path} is empty: download or write it again")
    if start == _GIT_LFS:
        raise ModelFileError(f"{path} is a git-lfs pointer, not the file itself: run git lfs pull where it came from")


def read_config(path: Path) -> dict[str, Any]:
    """Read the JSON object in a ``config.json`` or an index of a model.

    Args:
        path: The file.

    Raises:
        ModelFileError: It is missing, or not a JSON object.
    """
    try:
        check_model_file(path)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path} is missing: the folder is not a model's, or was not copied completely") from error
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise ModelFileError(f"{path} is larger than {_MOST_JSON_BYTES >> 20} MiB: it is not a model's configuration")
    try:
        config = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not valid JSON ({first_line(error)}): copy or write it again") from error
    if not isinstance(config, dict):
        raise ModelFileError(f"{path} holds a JSON {type(config).__name__}, not an object: copy or write it again")
    return config


def read_merges(path: Path) -> bytes:
    """Read a gzip file of byte-pair merges.

    Args:
        path: The file.

    Returns:
        The file as it is.

    Raises:
        ModelFileError: It is not a gzip file of merges, or a larger one than any tokenizer's.
    """
    check_model_file(path)
    if path.stat().st_size > _MOST_MERGES_BYTES:
        raise ModelFileError(f"{path} is larger than {_MOST_MERGES_BYTES >> 20} MiB: it does not hold merges")
    content = path.read_bytes()
    merges_vocab_size(content, str(path))
    return content


def merges_vocab_size(merges: bytes, name: str = "merges") -> int:
    """The size of the vocabulary that byte-pair merges make with OpenAI's tokenizer.

    Args:
        merges: A gzip file of merges: a line of comment, then two symbols in each line.
        name: What the file is called in errors.

    Raises:
        ModelFileError: It is not such a file, or unpacks to more than any tokenizer's does.
    """
    try:
        with gzip.open(io.BytesIO(merges)) as file:
            text = file.read(_MOST_MERGES_BYTES + 1)
        if len(text) > _MOST_MERGES_BYTES:
            raise ModelFileError(f"{name} unpacks to more than {_MOST_MERGES_BYTES >> 20} MiB: it does not hold merges")
        lines = text.decode().split("\n")[1 : _MOST_MERGES + 1]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ModelFileError(
            f"{name} is not a gzip file of byte-pair merges ({first_line(error)}): copy it again from where the CLIP "
            "came from"
        ) from error
    for number, line in enumerate(lines, 2):
        if len(line.split()) != 2:
            raise ModelFileError(f"{name}: line {number} holds {line[:40]!r}, not two symbols to merge")
    return _NUM_BYTE_TOKENS + len(lines) + _NUM_SPECIAL_TOKENS


def check_merges(path: Path, vocab_size: int, merges: bytes | None) -> None:
    """Check that merges make as many tokens as a CLIP embeds.

    Args:
        path: The CLIP's file, for the error.
        vocab_size: Tokens that the CLIP embeds.
        merges: Its own merges; None for OpenAI's.

    Raises:
        ModelFileError: They do not.
    """
    made = _OPENAI_VOCAB_SIZE if merges is None else merges_vocab_size(merges, f"the merges of {path}")
    if made != vocab_size:
        source = "its own merges.txt.gz makes" if merges is not None else "it has no merges.txt.gz, and OpenAI's makes"
        raise ModelFileError(
            f"the CLIP {path} embeds {vocab_size} tokens, but {source} {made}: give a folder with clip.safetensors and "
            "the merges.txt.gz that it was trained with"
        )


def model_folder(name: str, what: str, files: Sequence[str] | None = None, **options: Any) -> Path:
    """The folder of a model on this machine, downloaded from the Hugging Face hub where it is not one yet.

    Args:
        name: A folder, or ``owner/name`` on the hub.
        what: What it is to hold, for errors.
        files: Patterns of the files that are downloaded; all by default. Those of ``.bin`` files are left out where
            there are weights in safetensors.
        **options: ``revision``, ``cache_dir``, ``force_download``, ``local_files_only`` and ``token`` of
            ``snapshot_download``.

    Raises:
        FileNotFoundError: There is no such folder, and no such name on the hub, or the hub cannot be reached.
        ModelFileError: It is a file.
    """
    path = Path(name)
    if path.is_dir():
        return path
    remedy = f"give the folder of {what}, or owner/name on the Hugging Face hub"
    if path.exists():
        raise ModelFileError(f"{what} cannot be loaded from {name}: it is a file; {remedy}")
    if "://" in name:
        raise FileNotFoundError(f"{what} cannot be loaded from {name}: addresses are not read; {remedy}")
    if not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"{what} cannot be loaded from {name}: there is no such folder; {remedy}")
    # where its first part is a folder here, a name is a mistyped path rather than one on the hub
    local_only = options.pop("local_files_only", False) or path.parent.is_dir()
    reason = f"is not asked, since {path.parent} is a folder here" if path.parent.is_dir() else "is not to be asked"
    options = {key: value for key, value in options.items() if value is not None}
    if not local_only:
        try:
            asked = {key: options[key] for key in ("revision", "token") if key in options}
            info = HfApi().model_info(name, timeout=_HUB_SECONDS, **asked)
            names = [sibling.rfilename for sibling in info.siblings or []]
            return Path(snapshot_download(name, allow_patterns=_patterns(files, names), **options))
        except (RepositoryNotFoundError, GatedRepoError) as error:
            raise FileNotFoundError(
                f"{what} cannot be loaded from {name}: there is no such folder, and none on the Hugging Face hub that "
                f"you may read; {remedy}"
            ) from error
        except Exception as error:  # of many classes, by the hub's client and its version: a cached copy may do
            reason = f"does not answer ({first_line(error)})"
    try:
        return Path(snapshot_download(name, local_files_only=True, **options))
    except Exception as error:
        raise FileNotFoundError(
            f"{what} cannot be loaded from {name}: there is no such folder, and the Hugging Face hub {reason}; {remedy}"
        ) from error


def _patterns(files: Sequence[str] | None, names: Sequence[str]) -> list[str] | None:
    """What to download: of weights in two formats, safetensors alone."""
    if files is None:
        return None
    has_safetensors = "model.safetensors" in names or "model.safetensors.index.json" in names
    return [pattern for pattern in files if not (has_safetensors and ".bin" in pattern)]
