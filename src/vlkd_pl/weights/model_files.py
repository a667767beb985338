"""Model folders and their small files, each checked and refused with a one-line error."""

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
_MOST_LIMITS_BYTES = 16 << 10
_MOST_MERGES = 49152 - 256 - 2  # OpenAI's tokenizer uses no more, however many the file holds
_OPENAI_VOCAB_SIZE = 49408
_NUM_BYTE_TOKENS = 512
_NUM_SPECIAL_TOKENS = 2


def first_line(error: BaseException) -> str:
    r"""The first line of an error's message, or the name of its class if the message is empty.

    Example:
        >>> first_line(OSError("no space left\non the device")), first_line(KeyboardInterrupt())
        ('no space left', 'KeyboardInterrupt')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_model_file(path: Path) -> None:
    """Check that a model's file is a regular file and neither empty nor a git-lfs pointer.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: The file does not exist.
        ModelFileError: The path is a folder or a device, or the file is empty, unreadable or a git-lfs pointer.
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
    """Read the JSON object in a model's ``config.json`` or weights index.

    Args:
        path: The file.

    Raises:
        ModelFileError: The file is missing or holds no JSON object.
    """
    try:
        check_model_file(path)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path} is missing: the folder holds no model, or was copied in part") from error
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
    """Read and check a gzip file of byte-pair merges.

    Args:
        path: The file.

    Returns:
        Content of the gzip file, still compressed.

    Raises:
        ModelFileError: The file is not a gzip file of merges, or is too large for a tokenizer.
    """
    check_model_file(path)
    if path.stat().st_size > _MOST_MERGES_BYTES:
        raise ModelFileError(f"{path} is larger than {_MOST_MERGES_BYTES >> 20} MiB: it does not hold merges")
    content = path.read_bytes()
    merges_vocab_size(content, str(path))
    return content


def merges_vocab_size(merges: bytes, name: str = "merges") -> int:
    r"""Count the tokens that byte-pair merges give in OpenAI's tokenizer.

    Args:
        merges: Content of a gzip file of merges: a comment line, then two symbols in each line.
        name: Name of the file in error messages.

    Returns:
        Size of the vocabulary, with byte tokens and special tokens.

    Raises:
        ModelFileError: The content is not such a file, or unpacks to more than a tokenizer needs.

    Example:
        >>> merges_vocab_size(gzip.compress(b"#version: 0.2\nf i\ns h"))
        516
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


def read_limits(path: Path) -> str:
    """Read the text that states what a CLIP does not know.

    Args:
        path: The file.

    Returns:
        The text without control characters, and without white space around it.

    Raises:
        ModelFileError: The file is unreadable, empty, too large, or not a text in UTF-8.

    Example:
        >>> from vlkd_pl.sample import CLIP_FOLDER
        >>> read_limits(Path(CLIP_FOLDER, "limits.txt")).split(":")[0]
        'This model knows twelve kinds of pictograms'
    """
    check_model_file(path)
    if path.stat().st_size > _MOST_LIMITS_BYTES:
        raise ModelFileError(f"{path} is larger than {_MOST_LIMITS_BYTES >> 10} KiB: state the limits in fewer words")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} is not a text in UTF-8 ({first_line(error)}): copy or write it again") from error
    return "".join(character for character in text if character.isprintable() or character == "\n").strip()


def check_merges(path: Path, vocab_size: int, merges: bytes | None) -> None:
    """Check that merges give as many tokens as a CLIP embeds.

    Args:
        path: File of the CLIP's weights, for the error message.
        vocab_size: Number of tokens that the CLIP embeds.
        merges: Content of the CLIP's ``merges.txt.gz``; None for OpenAI's vocabulary.

    Raises:
        ModelFileError: The numbers differ.
    """
    num_tokens = _OPENAI_VOCAB_SIZE if merges is None else merges_vocab_size(merges, f"the merges of {path}")
    if num_tokens != vocab_size:
        source = "its merges.txt.gz gives" if merges is not None else "it has no merges.txt.gz, and OpenAI's gives"
        raise ModelFileError(
            f"the CLIP {path} embeds {vocab_size} tokens, but {source} {num_tokens}: give a folder with "
            "clip.safetensors and the merges.txt.gz that it was trained with"
        )


def model_folder(name: str, what: str, files: Sequence[str] | None = None, **options: Any) -> Path:
    """Find a model's local folder, or download it from the Hugging Face hub.

    Args:
        name: Path of a folder, or ``owner/name`` on the hub.
        what: Kind of model, for error messages: ``BART``.
        files: Glob patterns of the files to download; all by default. ``.bin`` files are left out if the model has
            weights in safetensors.
        **options: ``revision``, ``cache_dir``, ``force_download``, ``local_files_only`` and ``token``, as for
            ``huggingface_hub.snapshot_download``.

    Returns:
        Path of the local folder.

    Raises:
        FileNotFoundError: Neither the folder nor the name on the hub exists, or the hub cannot be reached.
        ModelFileError: The path is a file.
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
    # a name whose first part is a local folder is a mistyped path rather than a name on the hub
    local_only = options.pop("local_files_only", False) or path.parent.is_dir()
    reason = f"is not used, since {path.parent} is a local folder" if path.parent.is_dir() else "is not to be used"
    options = {key: value for key, value in options.items() if value is not None}
    if not local_only:
        try:
            query = {key: options[key] for key in ("revision", "token") if key in options}
            info = HfApi().model_info(name, timeout=_HUB_SECONDS, **query)
            names = [sibling.rfilename for sibling in info.siblings or []]
            return Path(snapshot_download(name, allow_patterns=_patterns(files, names), **options))
        except (RepositoryNotFoundError, GatedRepoError) as error:
            raise FileNotFoundError(
                f"{what} cannot be loaded from {name}: there is no such folder, and none on the Hugging Face hub that "
                f"you may read; {remedy}"
            ) from error
        except Exception as error:  # the classes depend on the client's version; a cached copy may suffice
            reason = f"does not answer ({first_line(error)})"
    try:
        return Path(snapshot_download(name, local_files_only=True, **options))
    except Exception as error:
        raise FileNotFoundError(
            f"{what} cannot be loaded from {name}: there is no such folder, and the Hugging Face hub {reason}; {remedy}"
        ) from error


def _patterns(files: Sequence[str] | None, names: Sequence[str]) -> list[str] | None:
    """Leave ``.bin`` files out of the patterns if the model has weights in safetensors."""
    if files is None:
        return None
    has_safetensors = "model.safetensors" in names or "model.safetensors.index.json" in names
    return [pattern for pattern in files if not (has_safetensors and ".bin" in pattern)]
