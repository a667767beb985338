"""Text and JSON files of a user's: decoded as UTF-8, split at line feeds alone, and checked field by field."""

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
_SHOWN = 60


def refuse(message: str) -> NoReturn:
    """Raise a ``MisconfigurationException``; Lightning is imported then alone, since that takes seconds."""
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    raise MisconfigurationException(message)


def iter_lines(path: str | Path) -> Iterator[str]:
    """Read a text file line by line.

    Args:
        path: A file in UTF-8, with a byte order mark or without.

    Yields:
        The lines, also empty ones, each without the line feed, or the carriage return and line feed, that ends it.
        Nothing else ends a line: no form feed, U+0085 or U+2028.

    Raises:
        FileNotFoundError: There is no such file.
        MisconfigurationException: It cannot be read, or is no text in UTF-8; the message names the byte.
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
    """Text from the bytes of a file that stand at an offset; a byte order mark at offset 0 is left out."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        place, value = offset + error.start, data[error.start]
        refuse(f"{file} is not UTF-8 at byte {place} (0x{value:02x}, {error.reason}): save it as UTF-8")
    if "\0" in text:
        refuse(f"{file} is not a text in UTF-8: byte {offset + data.index(0)} is 0x00: save it as UTF-8")
    return text.removeprefix("\ufeff") if offset == 0 else text


Pairs: TypeAlias = list[tuple[str, Any]]
"""The fields of a JSON object in the order of the file."""


def json_object(pairs: Pairs) -> dict[str, Any]:
    """A JSON object. A field that it has twice gets a value of no JSON type, which ``Entries`` refuses."""
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
        path: A file in UTF-8, with a byte order mark or without.
        file_format: What the file must be, as errors name it.
        make_object: What becomes of each object.

    Returns:
        What the file holds.

    Raises:
        FileNotFoundError: There is no such file.
        MisconfigurationException: It cannot be read, or is no JSON in UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file at {path}") from error
    except OSError as error:
        refuse(f"{path} cannot be read: {error.strerror}")
    complaint = f"{path} is not {file_format}"
    text = _decode(data, f"{complaint}: it")
    del data  # hundreds of megabytes, which the parser has no use for
    return parse_json(text, complaint, make_object)


def parse_json(text: str, complaint: str, make_object: Callable[[Pairs], Any] = json_object) -> Any:
    """Parse JSON.

    Args:
        text: What is parsed.
        complaint: Begins the message of an error: which file it is, and that it is of another format.
        make_object: What becomes of each object.

    Raises:
        MisconfigurationException: It is no JSON.
    """
    collects = gc.isenabled()
    gc.disable()  # or it would go through the million objects of a large file, none of them garbage, again and again
    try:
        return json.loads(text, object_pairs_hook=make_object)
    except RecursionError:
        refuse(f"{complaint}: lists or objects stand in each other too many times")
    except ValueError as error:
        refuse(f"{complaint}: {error}")
    finally:
        if collects:
            gc.enable()


class _Repeated:
    """The value of a field that an object has more than once."""


class Entries:
    """The objects of a list in a JSON file, whose fields must each be of one type.

    Args:
        items: What stands in the place of the list.
        place: Which file and list it is, as errors name it: ``captions.json: annotations``.
        is_numbered: Whether errors name the entry by its number in the list, from 1.

    Raises:
        MisconfigurationException: It is no list of objects.
    """

    def __init__(self, items: Any, place: str, is_numbered: bool = True) -> None:
        self.items = items
        self.place = place
        self.is_numbered = is_numbered
        if type(items) is not list:
            refuse(f"{place}: {_shown(items)} stands in place of a list")
        self._check("", items, {dict}, "an object")

    def __len__(self) -> int:
        return len(self.items)

    def values(self, name: str, types: set[type], kind: str, default: Any = _MISSING) -> list[Any]:
        """A field of all entries.

        Args:
            name: The field.
            types: Its types; one of a type derived from these is none of them.
            kind: The same in words.
            default: Stands where an entry has no such field, and may stand in the file too; without it each entry must
                have one.

        Raises:
            MisconfigurationException: An entry lacks it, or holds something else there.
        """
        values = [item.get(name, default) for item in self.items]
        self._check(name, values, types if default is _MISSING else types | {type(default)}, kind)
        return values

    def texts(self, name: str, default: Any = _MISSING) -> list[Any]:
        """A field that holds text; see ``values``. Text that is none in UTF-8, half of an emoji, is refused too."""
        texts = self.values(name, {str}, "a text", default)
        self._check_encodable(name, texts)
        return texts

    def ids(self, name: str) -> list[int | str]:
        """A field that identifies: whole numbers and texts. A text such as ``"42"`` is the number that it writes."""
        ids = self.values(name, {int, str}, "a number or a text")
        if set(map(type, ids)) != {int}:
            self._check_encodable(name, ids)
            ids = [int(each) if type(each) is str and _NUMBER.fullmatch(each) else each for each in ids]
        for index, each in enumerate(ids):
            if each == "" or (type(each) is int and abs(each) > _MAX_ID):
                self._refuse(index, name, each, "a number below 2^63 or a text")
        return ids

    def numbers(self, name: str) -> list[int]:
        """A field that identifies by a whole number from 0, which may be written as a text."""
        numbers = []
        for index, each in enumerate(self.ids(name)):
            if type(each) is str and each.isdecimal() and len(each) <= _SHOWN:  # with zeros in front
                each = int(each)
            if type(each) is not int or not 0 <= each <= _MAX_ID:
                self._refuse(index, name, each, "a whole number from 0")
            numbers.append(each)
        return numbers

    def nested_texts(self, name: str, nested_name: str) -> list[list[str]]:
        """A field that holds a list of objects: the text that each of these has in a field of its own."""
        lists = self.values(name, {list}, "a list")
        try:
            texts = [item[nested_name] for item in chain.from_iterable(lists)]
            is_good = set(map(type, texts)) <= {str} and is_encodable("".join(texts))
        except (KeyError, TypeError):
            is_good = False
        if is_good:  # checked all at once, since there are hundreds of thousands of short lists
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
            found = f"has no {name}"
        else:
            found = f"has {_shown(value)} as {name}" if name else f"is {_shown(value)}"
        refuse(f"{self._entry(index)}{'' if self.is_numbered else ': it'} {found}: it must be {kind}")

    def _entry(self, index: int) -> str:
        return f"{self.place}, entry {index + 1}" if self.is_numbered else self.place


def is_encodable(text: str) -> bool:
    """Return whether a text can be written in UTF-8: JSON may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    """What a value is, in a few characters of ASCII."""
    if isinstance(value, _Repeated):
        return "two values"
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
