"""Interpretation of the pickles in PyTorch's files without executing anything in them."""

from __future__ import annotations

import pickletools
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

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
MAX_DEPTH = 100
MAX_NAME = 1000
_MOST_DIMENSIONS = 8
_CONSTANTS = {
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


class Source(Protocol):
    """File that storages are read from."""

    def read(self, key: str, num_bytes: int) -> bytes:
        """Read the bytes of a storage."""
        ...


class Storage:
    """Memory of one or more tensors in a file, read on first use."""

    def __init__(self, dtype: torch.dtype, key: str, numel: int, source: Source) -> None:
        self.dtype = dtype
        self.key = key
        self.numel = numel
        self.source = source

    @property
    def num_bytes(self) -> int:
        """Size in the file, in bytes."""
        return self.numel * self.dtype.itemsize

    @cached_property
    def content(self) -> Tensor:
        """All elements (numel,)."""
        if not self.numel:
            return torch.empty(0, dtype=self.dtype)
        return torch.frombuffer(bytearray(self.source.read(self.key, self.num_bytes)), dtype=self.dtype)


class StoredTensor(NamedTuple):
    """Tensor in a file that has not been read yet.

    Attributes:
        storage: Storage that the tensor is a view of.
        offset: Index of the tensor's first element in the storage.
        shape: Shape of the tensor.
        stride: Step in the storage between neighbours, for each dimension.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """Read the tensor into memory."""
        return self.storage.content.as_strided(self.shape, self.stride, self.offset)


class StoredObject:
    """Placeholder for a pickled object of any other class, which is neither imported nor run.

    Attributes:
        name: Name of the class or function in the pickle.
        state: Pickled state of the object; None without a state.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = None


class _Name(str):
    """Name of a class or function that a pickle refers to; it is never imported."""

    __slots__ = ()


def unpickled(file: Any, source: Source, storages: dict[str, Storage] | None = None) -> Any:
    """Interpret the pickle at a file's position, and leave the position at its end.

    Args:
        file: File in memory, so that no opcode can read past its end.
        source: File that the tensors will be read from.
        storages: Dict that receives the storages of the pickle, by their keys.

    Returns:
        The unpickled value, with ``StoredTensor`` and ``StoredObject`` in it.

    Raises:
        Exception: An exception of any class: the file is not a pickle, or has an opcode that weights do not need.
    """
    storages = {} if storages is None else storages
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any

    def popped() -> list[Any]:
        """Pop the items above the last mark."""
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
                # string keys only, since the hashes of numbers and tuples can be made to collide
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
    """Replace a call in the pickle by a tensor, a dict or a placeholder."""
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
    """Check that a tensor lies within its storage and repeats no elements, which would multiply the file's size."""
    sizes = [offset, *shape, *stride]
    if not isinstance(storage, Storage) or not all(type(size) is int and 0 <= size < 1 << 62 for size in sizes):
        raise ValueError("a tensor has no valid storage, shape or stride")
    numel, last = 1, offset
    for size, step in zip(shape, stride, strict=True):
        numel *= size
        last += (size - 1) * step
    if len(shape) > _MOST_DIMENSIONS or (numel and max(last + 1, numel) > storage.numel):
        raise ValueError(f"a tensor of shape {list(shape)} does not fit in its storage of {storage.numel}")
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _storage(reference: Any, source: Source, storages: dict[str, Storage]) -> Storage:
    _, kind, key, _, numel, *view = reference
    dtype = _DTYPES.get(kind.removeprefix("torch.")) if isinstance(kind, _Name) else None
    if dtype is None or not isinstance(key, str) or type(numel) is not int or numel < 0 or view not in ([], [None]):
        raise ValueError(f"it has a tensor of an unknown kind, {kind}")
    storage = storages.setdefault(key, Storage(dtype, key, numel, source))
    if (storage.dtype, storage.numel) != (dtype, numel):
        raise ValueError(f"it describes tensor {key} in two ways")
    return storage
