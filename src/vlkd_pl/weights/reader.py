"""Reading of tensors from weights files without executing anything in them.

``torch.jit.load`` runs an archive's ``__setstate__``, and a pickle may name any function. Here the pickles in PyTorch's
files are interpreted without looking up any name: an object becomes a ``StoredObject``, and a tensor a
``StoredTensor``, whose position in the file is checked before it is read.
"""

from __future__ import annotations

import io
import mmap
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vlkd_pl.errors import ModelFileError
from vlkd_pl.weights.model_files import check_model_file, first_line
from vlkd_pl.weights.unpickler import MAX_DEPTH, MAX_NAME, Storage, StoredObject, StoredTensor, unpickled

_MOST_PICKLE_BYTES = 64 << 20
_MOST_TENSORS = 100_000
_GROWTH = 4
"""Maximum of the tensors' bytes as a multiple of the file's: compressed or shared ones may take more than the file."""
_SLACK = 1 << 20

_ZIP = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MODULE = re.compile(r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*)\]\n  __buffers__ = \[(.*)\]", re.MULTILINE)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights in a file of safetensors or of PyTorch.

    Args:
        path: A safetensors file; a file of ``torch.save`` with a state dict, possibly as ``state_dict``,
            ``model_state_dict`` or ``model`` of a checkpoint, possibly of a model wrapped for several GPUs; or a
            TorchScript archive.

    Returns:
        Tensors by their names in the state dict.

    Raises:
        FileNotFoundError: The file does not exist.
        ModelFileError: The file is corrupt, or holds no state dict.

    Example:
        >>> from vlkd_pl.sample import CLIP_FOLDER
        >>> read_weights(Path(CLIP_FOLDER, "clip.safetensors"))["text_projection"].shape
        torch.Size([256, 256])
    """
    check_model_file(path)
    if _is_safetensors(path):
        try:
            return _unwrapped(safetensors.torch.load_file(path), path)
        except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise _corrupt(path, error) from error
    return read_tensors(_unwrapped(read_pickle(path), path), path)


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a file's weights from its header alone.

    Args:
        path: A file as for ``read_weights``.

    Returns:
        Shapes by the names of the weights.

    Raises:
        FileNotFoundError: The file does not exist.
        ModelFileError: The file is corrupt, or holds no state dict.

    Example:
        >>> from vlkd_pl.sample import CLIP_FOLDER
        >>> weight_shapes(Path(CLIP_FOLDER, "clip.safetensors"))["text_projection"]
        (256, 256)
    """
    check_model_file(path)
    if not _is_safetensors(path):
        return {name: stored.shape for name, stored in _unwrapped(read_pickle(path), path).items()}
    try:
        with safetensors.safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise _corrupt(path, error) from error
    return _without_prefix(shapes)


def read_tensors(tensors: Mapping[str, StoredTensor], path: Path) -> dict[str, Tensor]:
    """Read stored tensors into memory.

    Args:
        tensors: Stored tensors of ``read_pickle``, by their names.
        path: The file that they are stored in.

    Raises:
        ModelFileError: A tensor lies outside the file, or all take far more memory than the file's size.
    """
    room = _GROWTH * path.stat().st_size + _SLACK
    num_bytes = sum(torch.Size(stored.shape).numel() * stored.storage.dtype.itemsize for stored in tensors.values())
    storages = {id(stored.storage): stored.storage for stored in tensors.values()}
    if max(num_bytes, sum(storage.num_bytes for storage in storages.values())) > room:
        raise ModelFileError(f"{path} is corrupt: its tensors take more than {_GROWTH} times the file's size")
    try:
        return {name: stored.read() for name, stored in tensors.items()}
    except Exception as error:  # zipfile and torch raise many classes; each means that the file is corrupt
        raise _corrupt(path, error) from error


def read_pickle(path: Path) -> Any:
    """Read a file of ``torch.save`` or ``torch.jit.save`` without executing anything in it.

    Args:
        path: The file.

    Returns:
        The stored dicts with string keys, lists, tuples and plain values, with a ``StoredTensor`` for each tensor and
        a ``StoredObject`` for any other object; the state dict of a TorchScript archive.

    Raises:
        FileNotFoundError: The file does not exist.
        ModelFileError: The file is corrupt, or not of this format.
    """
    check_model_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(len(_ZIP))
        if start == _ZIP:
            return _read_zip(path)
        if start[:1] == b"\x80":
            return _read_legacy(path)
    except ModelFileError:
        raise
    except Exception as error:  # pickletools and zipfile raise many classes; each means that the file is corrupt
        raise _corrupt(path, error) from error
    raise ModelFileError(
        f"{path} is not a file of weights: give one of safetensors, of torch.save, or a TorchScript archive"
    )


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _corrupt(path: Path, error: Exception) -> ModelFileError:
    return ModelFileError(f"{path} is corrupt or not a file of weights ({first_line(error)}): download it again")


def _unwrapped(content: Any, path: Path) -> dict[str, Any]:
    """Extract the state dict from a file's content, which may be a trainer's checkpoint."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if isinstance(content, StoredObject):
        raise ModelFileError(f"{path} holds a pickled {content.name}, not a state dict: save model.state_dict() alone")
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} holds a {type(content).__name__}, not the state dict of a CLIP or BART")
    tensors = {name: value for name, value in content.items() if isinstance(value, StoredTensor | Tensor)}
    if not tensors:
        raise ModelFileError(f"{path} holds no tensors by name: give the state dict of a CLIP or BART")
    return _without_prefix(tensors)


def _without_prefix(tensors: dict[str, Any]) -> dict[str, Any]:
    """Remove the prefix ``module.`` of a model that was wrapped for several GPUs."""
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


# PyTorch's two formats


class _ZipSource:
    """The members of a zip archive, whose sizes are checked against its directory."""

    def __init__(self, path: Path) -> None:
        self.archive = zipfile.ZipFile(path)
        roots = [name.split("/")[0] for name in self.archive.namelist() if name.count("/") == 1]
        self.root = next((root for root in roots if self.has(f"{root}/data.pkl")), "")
        if not self.root:
            raise ValueError("it is a zip file without data.pkl")

    def has(self, name: str) -> bool:
        return name in self.archive.NameToInfo

    def member(self, name: str, most: int = _MOST_PICKLE_BYTES) -> bytes:
        info = self.archive.getinfo(f"{self.root}/{name}")
        if info.file_size > most:
            raise ValueError(f"{name} has {info.file_size} bytes")
        return self.archive.read(info)

    def read(self, key: str, num_bytes: int) -> bytes:
        content = self.member(f"data/{key}", num_bytes)
        if len(content) != num_bytes:
            raise ValueError(f"tensor {key} has {len(content)} bytes instead of {num_bytes}")
        return content


class _LegacySource:
    """The storages that follow the pickles in a file from before PyTorch 1.6."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.places: dict[str, int] = {}

    def read(self, key: str, num_bytes: int) -> bytes:
        place = self.places[key]
        content = self.content[place : place + num_bytes]
        if len(content) != num_bytes:
            raise ValueError(f"tensor {key} is cut off")
        return content


def _read_zip(path: Path) -> Any:
    source = _ZipSource(path)
    if source.has(f"{source.root}/byteorder") and source.member("byteorder") != b"little":
        raise ModelFileError(f"{path} was written on a machine of another byte order: write it on a little-endian one")
    content = unpickled(io.BytesIO(source.member("data.pkl")), source)
    if source.has(f"{source.root}/constants.pkl"):  # a TorchScript archive
        return _script_state_dict(content, _script_modules(source))
    return content


def _read_legacy(path: Path) -> Any:
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    source = _LegacySource(content)
    if unpickled(content, source) != _LEGACY_MAGIC:
        raise ModelFileError(f"{path} is a pickle, not a file of torch.save: write the state dict with torch.save")
    unpickled(content, source)  # the format's version
    machine = unpickled(content, source)
    if machine.get("little_endian") is not True:
        raise ModelFileError(f"{path} was written on a machine of another byte order: write it on a little-endian one")
    storages: dict[str, Storage] = {}
    root = unpickled(content, source, storages)
    place = content.tell()
    keys = unpickled(content, source)
    place = content.tell()
    for key in keys:
        source.places[key] = place + 8
        if int.from_bytes(content[place : place + 8], "little") != storages[key].numel:
            raise ValueError(f"tensor {key} has another size than its pickle states")
        place += 8 + storages[key].num_bytes
    return root


# TorchScript's modules


def _script_modules(source: _ZipSource) -> dict[str, set[str]]:
    """The names of the parameters and buffers of each class, read from the archive's code."""
    modules = {}
    start = f"{source.root}/code/"
    room = _MOST_PICKLE_BYTES
    for name in source.archive.namelist():
        if name.startswith(start) and name.endswith(".py"):
            code = source.member(name.removeprefix(f"{source.root}/"), room)
            room -= len(code)
            package = name.removeprefix(start).removesuffix(".py").replace("/", ".")
            for match in _MODULE.finditer(code.decode()):
                modules[f"{package}.{match[1]}"] = set(re.findall(r'"([^"]+)"', f"{match[2]} {match[3]}"))
    return modules


def _script_state_dict(root: Any, modules: Mapping[str, set[str]]) -> dict[str, StoredTensor]:
    """The state dict of an archive's root module, equal to ``torch.jit.load(…).state_dict()``."""
    if not isinstance(root, StoredObject) or root.name not in modules:
        raise ValueError("it is a TorchScript archive without a module")
    tensors: dict[str, StoredTensor] = {}
    pending = [("", root)]
    room = _MOST_TENSORS
    while pending:
        prefix, module = pending.pop()
        if not isinstance(module.state, dict):
            raise ValueError(f"{module.name} can only be restored by running its code, which is never done")
        room -= len(module.state)
        if room < 0 or len(prefix) > MAX_NAME or prefix.count(".") > MAX_DEPTH:
            raise ValueError("it has more modules than a model has")
        for name, value in module.state.items():
            if isinstance(value, StoredTensor) and name in modules[module.name]:
                tensors[prefix + name] = value
            elif isinstance(value, StoredObject) and value.name in modules:
                pending.append((f"{prefix}{name}.", value))
    return tensors
