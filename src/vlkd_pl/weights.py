"""Tensors out of weights files, of which nothing is ever executed.

``torch.jit.load`` runs an archive's ``__setstate__``, and a pickle may name any function. Here the pickles in PyTorch's
files are interpreted by hand: a name is never looked up, an object becomes ``StoredObject``, and a tensor a
``StoredTensor``, whose place in the file is checked before it is read.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import re
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vlkd_pl.errors import ModelFileError
from vlkd_pl.model_files import check_model_file, first_line

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
# A real file has fewer by far: the largest CLIP's archive has about 100,000 in 500 kB.
_MOST_OPCODES = 2_000_000
_MOST_PICKLE_BYTES = 64 << 20
_MOST_TENSORS = 100_000
_MOST_DEPTH = 100
_MOST_NAME = 1000
_MOST_DIMENSIONS = 8
_GROWTH = 4
"""Times the file's size that its tensors may take: compressed or shared ones can take more than the file."""
_SLACK = 1 << 20

_ZIP = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_CONSTANTS = {
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_MODULE = re.compile(r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*)\]\n  __buffers__ = \[(.*)\]", re.MULTILINE)


class _Source(Protocol):
    """A file that storages are read from."""

    def read(self, key: str, num_bytes: int) -> bytes:
        """A storage's bytes."""
        ...


class _Storage:
    """The memory of one or several tensors in a file, read when it is first asked for."""

    def __init__(self, dtype: torch.dtype, key: str, numel: int, source: _Source) -> None:
        self.dtype = dtype
        self.key = key
        self.numel = numel
        self.source = source

    @property
    def num_bytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @cached_property
    def content(self) -> Tensor:
        if not self.numel:
            return torch.empty(0, dtype=self.dtype)
        return torch.frombuffer(bytearray(self.source.read(self.key, self.num_bytes)), dtype=self.dtype)


class StoredTensor(NamedTuple):
    """A tensor in a file, still to be read.

    Attributes:
        storage: The memory that it is a view of.
        offset: Elements of it before its first.
        shape: Its shape.
        stride: Elements of the storage from one of its elements to the next, for each dimension.
    """

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor."""
        return self.storage.content.as_strided(self.shape, self.stride, self.offset)


class StoredObject:
    """An object of any other class, with its state where it has one; nothing of the class is known or run.

    Attributes:
        name: What its file calls the class or function that would make it.
        state: What it would be set to, None without.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = None


class _Name(str):
    """Of a class or function that a pickle refers to: never imported."""

    __slots__ = ()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the weights in a file of safetensors or of PyTorch.

    Args:
        path: A file in safetensors' format; a state dict that ``torch.save`` wrote, also as ``state_dict``,
            ``model_state_dict`` or ``model`` of a checkpoint, also of a model wrapped for several GPUs; or a
            TorchScript archive.

    Raises:
        FileNotFoundError: There is no such file.
        ModelFileError: It is corrupt, or holds no state dict.
    """
    check_model_file(path)
    if _is_safetensors(path):
        try:
            return _unwrapped(safetensors.torch.load_file(path), path)
        except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise _corrupt(path, error) from error
    return read_tensors(_unwrapped(read_pickle(path), path), path)


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each weight that ``read_weights`` reads, of which the file's header alone is read.

    Raises:
        FileNotFoundError: There is no such file.
        ModelFileError: It is corrupt, or holds no state dict.
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
    """Reads tensors of ``read_pickle``.

    Args:
        tensors: Some of the file's, by their names.
        path: The file.

    Raises:
        ModelFileError: They lie outside of the file, or take far more memory than it has bytes.
    """
    room = _GROWTH * path.stat().st_size + _SLACK
    num_bytes = sum(torch.Size(stored.shape).numel() * stored.storage.dtype.itemsize for stored in tensors.values())
    storages = {id(stored.storage): stored.storage for stored in tensors.values()}
    if max(num_bytes, sum(storage.num_bytes for storage in storages.values())) > room:
        raise ModelFileError(f"{path} is corrupt: its tensors take more than {_GROWTH} times the file's size")
    try:
        return {name: stored.read() for name, stored in tensors.items()}
    except Exception as error:  # zipfile and torch have errors of many classes: each means that the file is corrupt
        raise _corrupt(path, error) from error


def read_pickle(path: Path) -> Any:
    """What a file of ``torch.save`` or ``torch.jit.save`` holds, without running anything of it.

    Args:
        path: The file.

    Returns:
        Its dicts with strings as keys, lists, tuples and plain values; ``StoredTensor`` for a tensor; and
        ``StoredObject`` for any other object. Of a TorchScript archive, the state dict.

    Raises:
        FileNotFoundError: There is no such file.
        ModelFileError: It is none, or corrupt.
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
    except Exception as error:  # pickletools, zipfile and the checks have many: each means that the file is corrupt
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
    """The state dict in what a file holds, without what trainers put around it."""
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
    """Names as they are in a model that is not wrapped for several GPUs."""
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


# PyTorch's two formats


class _ZipSource:
    """The members of an archive, each with as many bytes as its directory tells."""

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
    """The storages behind the pickles of a file from before PyTorch 1.6."""

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
    content = _unpickled(io.BytesIO(source.member("data.pkl")), source)
    if source.has(f"{source.root}/constants.pkl"):  # a TorchScript archive
        return _script_state_dict(content, _script_modules(source))
    return content


def _read_legacy(path: Path) -> Any:
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    source = _LegacySource(content)
    if _unpickled(content, source) != _LEGACY_MAGIC:
        raise ModelFileError(f"{path} is a pickle, not a file of torch.save: write the state dict with torch.save")
    _unpickled(content, source)  # the format's version
    machine = _unpickled(content, source)
    if machine.get("little_endian") is not True:
        raise ModelFileError(f"{path} was written on a machine of another byte order: write it on a little-endian one")
    storages: dict[str, _Storage] = {}
    root = _unpickled(content, source, storages)
    place = content.tell()
    keys = _unpickled(content, source)
    place = content.tell()
    for key in keys:
        source.places[key] = place + 8
        if int.from_bytes(content[place : place + 8], "little") != storages[key].numel:
            raise ValueError(f"tensor {key} has another size than the pickle tells")
        place += 8 + storages[key].num_bytes
    return root


# TorchScript's modules


def _script_modules(source: _ZipSource) -> dict[str, set[str]]:
    """The names of the parameters and buffers of each class of an archive, which its code lists."""
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
    """What ``torch.jit.load(…).state_dict()`` gives, of an archive's unpickled object."""
    if not isinstance(root, StoredObject) or root.name not in modules:
        raise ValueError("it is a TorchScript archive without a module")
    tensors: dict[str, StoredTensor] = {}
    pending = [("", root)]
    room = _MOST_TENSORS
    while pending:
        prefix, module = pending.pop()
        if not isinstance(module.state, dict):
            raise ValueError(f"{module.name} can only be restored by running its own code, which is never done")
        room -= len(module.state)
        if room < 0 or len(prefix) > _MOST_NAME or prefix.count(".") > _MOST_DEPTH:
            raise ValueError("it has more modules than a model has")
        for name, value in module.state.items():
            if isinstance(value, StoredTensor) and name in modules[module.name]:
                tensors[prefix + name] = value
            elif isinstance(value, StoredObject) and value.name in modules:
                pending.append((f"{prefix}{name}.", value))
    return tensors


# Pickles


def _unpickled(file: Any, source: _Source, storages: dict[str, _Storage] | None = None) -> Any:
    """Interprets a pickle from a file's position on, and leaves the file behind it.

    Args:
        file: A file in memory; no opcode of a pickle reads more than there is.
        source: What tensors will be read from.
        storages: Gets the storages that the pickle refers to, by their keys.

    Raises:
        Exception: Of whatever class: it is not a pickle, or has an opcode that no file of weights has.
    """
    storages = {} if storages is None else storages
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any

    def popped() -> list[Any]:
        """The items above the last mark."""
        place = marks.pop()
        items = stack[place:]
        del stack[place:]
        return items

    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number == _MOST_OPCODES:
            raise ValueError("its pickle is larger than a model's")
        name = opcode.name
        if name in _CONSTANTS:
            stack.append({"NEWTRUE": True, "NEWFALSE": False}.get(name, argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
        elif name == "TUPLE":
            stack.append(tuple(popped()))
        elif name in ("EMPTY_LIST", "EMPTY_SET"):
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else popped()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else popped()
            if isinstance(stack[-1], dict):
                # strings alone: of numbers and tuples some could be found whose hashes take for ever
                pairs = zip(items[::2], items[1::2], strict=True)
                stack[-1].update((key, value) for key, value in pairs if isinstance(key, str))
        elif name == "GLOBAL":
            stack.append(_Name(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [_Name(f"{stack[-2]:s}.{stack[-1]:s}")]
        elif name in ("NEWOBJ", "REDUCE"):
            stack[-2:] = [_made(stack[-2], stack[-1])]
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], StoredObject):
                stack[-1].state = state
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop(), source, storages))
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"its pickle has the opcode {name}")
    raise ValueError("its pickle is cut off")


def _made(name: Any, arguments: Any) -> Any:
    """What a pickle would make by a call: tensors and dicts, and anything else without being called."""
    if not isinstance(name, _Name):
        raise ValueError("its pickle calls something without a name")
    if name == "collections.OrderedDict" and arguments == ():
        return {}
    if name == "torch._utils._rebuild_parameter":
        return arguments[0]
    if name == "torch._utils._rebuild_tensor_v2":
        return _tensor(*arguments[:4])
    return StoredObject(name)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    """A tensor, when it lies within its storage.

    One that repeats elements would take more memory than the file has bytes, and weights never do.
    """
    sizes = [offset, *shape, *stride]
    if not isinstance(storage, _Storage) or not all(type(size) is int and 0 <= size < 1 << 62 for size in sizes):
        raise ValueError("a tensor has no valid storage, shape or stride")
    numel, last = 1, offset
    for size, step in zip(shape, stride, strict=True):
        numel *= size
        last += (size - 1) * step
    if len(shape) > _MOST_DIMENSIONS or (numel and max(last + 1, numel) > storage.numel):
        raise ValueError(f"a tensor of shape {list(shape)} does not fit in its storage of {storage.numel}")
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _storage(reference: Any, source: _Source, storages: dict[str, _Storage]) -> _Storage:
    _, kind, key, _, numel, *view = reference
    dtype = _DTYPES.get(kind.removeprefix("torch.")) if isinstance(kind, _Name) else None
    if dtype is None or not isinstance(key, str) or type(numel) is not int or numel < 0 or view not in ([], [None]):
        raise ValueError(f"it has a tensor of an unknown kind, {kind}")
    storage = storages.setdefault(key, _Storage(dtype, key, numel, source))
    if (storage.dtype, storage.numel) != (dtype, numel):
        raise ValueError(f"it describes tensor {key} in two ways")
    return storage
