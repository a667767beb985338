"""Reading of a user's text and JSON files: decoded as UTF-8, split at line feeds, and checked field by field."""

from __future__ import annotations

import gc
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

_MISSING = object()
_MAX_ID = 2**63 - 1
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_MAX_EXCERPT = 60


def refuse(message: str) -> NoReturn:
    """Raise a ``MisconfigurationException``, and import Lightning only now, since that takes seconds."""
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    raise MisconfigurationException(message)


def iter_lines(path: str | Path) -> Iterator[str]:
    """Read a text file line by line.

    Args:
        path: File in UTF-8, with or without a byte order mark.

    Yields:
        Each line, also empty ones, without its line feed or carriage return and line feed. Other characters, such as
        form feed, U+0085 or U+2028, do not end a line.

    Raises:
        FileNotFoundError: The file does not exist.
        MisconfigurationException: The file cannot be read, or is not UTF-8; the message names the byte.
    """
    try:
        with Path(path).open("rb") as file:
            offset = 0
            for line in file:
                yield _decode(line, str(path), offset).removesuffix("\n").removesuffix("\r")
                offset += len(line)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file at {path}") from error
    except OSError as error:
        refuse(f"{path} cannot be read: {error.strerror}")


def _decode(data: bytes, file: str, offset: int = 0) -> str:
    """Decode bytes that begin at an offset of a file; a byte order mark at offset 0 is removed."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        place, value = offset + error.start, data[error.start]
        refuse(f"{file} is not UTF-8 at byte {place} (0x{value:02x}, {error.reason}): save it as UTF-8")
    if "\0" in text:
        refuse(f"{file} is not UTF-8 text: byte {offset + data.index(0)} is 0x00: save it as UTF-8")
    return text.removeprefix("\ufeff") if offset == 0 else text


Pairs: TypeAlias = list[tuple[str, Any]]
"""Names and values of a JSON object's fields, in the order of the file."""


def json_object(pairs: Pairs) -> dict[str, Any]:
    """Make a JSON object of its fields; a repeated field gets a marker, which ``Entries`` refuses."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        entry |= {name: _Repeated() for name, count in counts.items() if count > 1}
    return entry


def read_json(
    path: str | Path, file_format: str = "a JSON file", make_object: Callable[[Pairs], Any] = json_object
) -> Any:
    """Read a JSON file.

    Args:
        path: File in UTF-8, with or without a byte order mark.
        file_format: Expected format, for error messages: ``a COCO caption file``.
        make_object: Function from the fields of an object to the value that stands for it.

    Returns:
        Value of the file.

    Raises:
        FileNotFoundError: The file does not exist.
        MisconfigurationException: The file cannot be read, or is not JSON in UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file at {path}") from error
    except OSError as error:
        refuse(f"{path} cannot be read: {error.strerror}")
    complaint = f"{path} is not {file_format}"
    text = _decode(data, f"{complaint}: it")
    del data  # hundreds of megabytes, which the parser does not need
    return parse_json(text, complaint, make_object)


def parse_json(text: str, complaint: str, make_object: Callable[[Pairs], Any] = json_object) -> Any:
    """Parse JSON.

    Args:
        text: JSON text.
        complaint: Start of the error message, which names the file and the expected format.
        make_object: Function from the fields of an object to the value that stands for it.

    Raises:
        MisconfigurationException: The text is not JSON.
    """
    collects = gc.isenabled()
    gc.disable()  # it would scan the million objects of a large file again and again, and find no garbage
    try:
        return json.loads(text, object_pairs_hook=make_object)
    except RecursionError:
        refuse(f"{complaint}: lists or objects are nested too deeply")
    except ValueError as error:
        refuse(f"{complaint}: {error}")
    finally:
        if collects:
            gc.enable()


class _Repeated:
    """Marker for a field that an object has more than once."""


class Entries:
    """List of objects in a JSON file, whose fields are checked for their types.

    Args:
        items: Value that should be a list of objects.
        place: File and field of the list, for error messages: ``captions.json: annotations``.
        is_numbered: Whether error messages name an entry by its number in the list, from 1.

    Raises:
        MisconfigurationException: ``items`` is not a list of objects.

    Example:
        >>> entries = Entries([{"id": 7, "caption": "a fish"}], "captions.json: annotations")
        >>> entries.texts("caption")
        ['a fish']
        >>> entries.texts("id")
        Traceback (most recent call last):
        lightning_fabric.utilities.exceptions.MisconfigurationException: captions.json: annotations, entry 1 has 7 as...
    """

    def __init__(self, items: Any, place: str, is_numbered: bool = True) -> None:
        self.items = items
        self.place = place
        self.is_numbered = is_numbered
        if type(items) is not list:
            refuse(f"{place} must be a list, but is {_excerpt(items)}")
        self._check("", items, {dict}, "an object")

    def __len__(self) -> int:
        return len(self.items)

    def values(self, name: str, types: set[type], kind: str, default: Any = _MISSING) -> list[Any]:
        """The values of a field in all entries.

        Args:
            name: Name of the field.
            types: Allowed types, without their subclasses.
            kind: Allowed types in words, for error messages.
            default: Value for entries without the field, which is also allowed in the file; without a default, every
                entry must have the field.

        Raises:
            MisconfigurationException: An entry lacks the field, or its value has another type.
        """
        values = [item.get(name, default) for item in self.items]
        self._check(name, values, types if default is _MISSING else types | {type(default)}, kind)
        return values

    def texts(self, name: str, default: Any = _MISSING) -> list[Any]:
        """The values of a text field, as ``values``; texts that UTF-8 cannot encode are refused."""
        texts = self.values(name, {str}, "a text", default)
        self._check_encodable(name, texts)
        return texts

    def ids(self, name: str) -> list[int | str]:
        """The values of an identifier field: whole numbers or texts; a text such as ``"42"`` becomes a number."""
        ids = self.values(name, {int, str}, "a number or a text")
        if set(map(type, ids)) != {int}:
            self._check_encodable(name, ids)
            ids = [int(value) if type(value) is str and _NUMBER.fullmatch(value) else value for value in ids]
        for index, value in enumerate(ids):
            if value == "" or (type(value) is int and abs(value) > _MAX_ID):
                self._refuse(index, name, value, "a number below 2^63 or a text")
        return ids

    def numbers(self, name: str) -> list[int]:
        """The values of a field with identifiers from 0, which may be written as texts."""
        numbers = []
        for index, value in enumerate(self.ids(name)):
            if type(value) is str and value.isdecimal() and len(value) <= _MAX_EXCERPT:  # with leading zeros
                value = int(value)
            if type(value) is not int or not 0 <= value <= _MAX_ID:
                self._refuse(index, name, value, "a whole number from 0")
            numbers.append(value)
        return numbers

    def nested_texts(self, name: str, nested_name: str) -> list[list[str]]:
        """The texts in a field of nested objects, one list for each entry."""
        lists = self.values(name, {list}, "a list")
        try:
            texts = [item[nested_name] for item in chain.from_iterable(lists)]
            is_good = set(map(type, texts)) <= {str} and is_encodable("".join(texts))
        except (KeyError, TypeError):
            is_good = False
        if is_good:  # one check for all, since there are hundreds of thousands of short lists
            rest = iter(texts)
            return [list(islice(rest, len(items))) for items in lists]
        return [Entries(items, f"{self._entry(index)}: {name}").texts(nested_name) for index, items in enumerate(lists)]

    def _check(self, name: str, values: Sequence[Any], types: set[type], kind: str) -> None:
        if not set(map(type, values)) <= types:
            index = next(index for index, value in enumerate(values) if type(value) not in types)
            self._refuse(index, name, values[index], kind)

    def _check_encodable(self, name: str, values: Sequence[Any]) -> None:
        if not is_encodable("".join(value for value in values if type(value) is str)):
            index = next(index for index, value in enumerate(values) if type(value) is str and not is_encodable(value))
            self._refuse(index, name, values[index], "a text in Unicode, without halves of surrogate pairs")

    def _refuse(self, index: int, name: str, value: Any, kind: str) -> NoReturn:
        if value is _MISSING:
            problem = f"has no {name}"
        else:
            problem = f"has {_excerpt(value)} as {name}" if name else f"is {_excerpt(value)}"
        refuse(f"{self._entry(index)}{'' if self.is_numbered else ': it'} {problem}: it must be {kind}")

    def _entry(self, index: int) -> str:
        return f"{self.place}, entry {index + 1}" if self.is_numbered else self.place


def is_encodable(text: str) -> bool:
    r"""Return whether a text can be encoded in UTF-8; JSON may hold half of a surrogate pair.

    Example:
        >>> is_encodable("a fish"), is_encodable("\ud83d")
        (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _excerpt(value: Any) -> str:
    """Describe a value in a few characters of ASCII."""
    if isinstance(value, _Repeated):
        return "two values"
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= _MAX_EXCERPT else f"{text[:_MAX_EXCERPT]}..."
