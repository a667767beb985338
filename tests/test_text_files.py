"""Text and JSON files of users, and the one-line errors for invalid ones."""

import json
import subprocess
import sys

import pytest
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.text_files import Entries, iter_lines, parse_json, read_json


def lines_of(path, content):
    path.write_bytes(content)
    return list(iter_lines(path))


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\xef\xbb\xbf", [""]),
        (b"\n", [""]),
        (b"a\n\nb", ["a", "", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\rb\n", ["a\rb"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
        ("a\u2028b\x85c\x0cd\x1ce\u2029f\x0bg\n".encode(), ["a\u2028b\x85c\x0cd\x1ce\u2029f\x0bg"]),
        ("caf\u00e9 \U0001f600\n".encode(), ["caf\u00e9 \U0001f600"]),
    ],
)
def test_lines_end_at_line_feeds_alone(tmp_path, content, lines):
    assert lines_of(tmp_path / "a.txt", content) == lines


@pytest.mark.parametrize(
    ("content", "byte"),
    [
        (b"one\ncaf\xe9\n", r"at byte 7 \(0xe9, "),
        (b"\xef\xbb\xbfcaf\xe9\n", r"at byte 6 \(0xe9, "),
        ("a\n".encode("utf-16"), r"at byte 0 \(0xff, "),
        ("a\n".encode("utf-16-le"), "byte 1 is 0x00"),
        (b"a\nb\0\n", "byte 3 is 0x00"),
        (b"\xed\xa0\xbd\n", "at byte 0 "),
    ],
)
def test_another_encoding_is_reported_by_file_and_byte(tmp_path, content, byte):
    with pytest.raises(MisconfigurationException, match=rf"^.*a\.txt is .*UTF-8.*{byte}.*: save it as UTF-8$"):
        lines_of(tmp_path / "a.txt", content)


@pytest.mark.parametrize("read", [read_json, lambda path: list(iter_lines(path))])
def test_what_is_no_file(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"^there is no file at .*nothing$"):
        read(tmp_path / "nothing")
    with pytest.raises(MisconfigurationException, match=rf"^{tmp_path} cannot be read: Is a directory$"):
        read(tmp_path)


def test_json_may_have_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_json(tmp_path / "a.json") == {"a": "é"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b'{"a": 1', "Expecting"),
        (b"[" * 100_000, "lists or objects are nested too deeply"),
        (b'[{"a": ' * 50_000, "lists or objects are nested too deeply"),
        (b"9" * 5000, r"Exceeds the limit"),
    ],
)
def test_what_is_no_json(tmp_path, content, reason):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(MisconfigurationException, match=rf"^.*a\.json is not a list: [^\n]*{reason}[^\n]*$"):
        read_json(tmp_path / "a.json", "a list")
    (tmp_path / "a.json").write_bytes(b'{"a": "caf\xe9"}')
    with pytest.raises(MisconfigurationException, match=r"^.*a\.json is not a list: it is not UTF-8 at byte 10 \(0xe9"):
        read_json(tmp_path / "a.json", "a list")


def entries(*values):
    return Entries([{"key": value} for value in values], "a.json: rows")


@pytest.mark.parametrize("items", [None, 5, "text", True, {}, {"a": 1}])
def test_what_is_no_list(items):
    with pytest.raises(MisconfigurationException, match=r"^a\.json: rows must be a list, but is .*$"):
        Entries(items, "a.json: rows")


@pytest.mark.parametrize("item", [None, 5, "text", [1, 2]])
def test_what_is_no_list_of_objects(item):
    with pytest.raises(MisconfigurationException, match=r"^a\.json: rows, entry 2 is .*: it must be an object$"):
        Entries([{}, item], "a.json: rows")


@pytest.mark.parametrize(
    ("value", "excerpt"),
    [
        (None, "null"),
        (5, "5"),
        (1.5, "1.5"),
        (float("nan"), "NaN"),
        (float("-inf"), "-Infinity"),
        (True, "true"),
        ([], "a list of 0"),
        ([["a"], "b"], "a list of 2"),
        ({"a": 1}, "an object of 1"),
        ("\ud83d", r'"\\ud83d"'),
    ],
)
def test_a_text_must_be_one(value, excerpt):
    with pytest.raises(
        MisconfigurationException, match=rf"^a\.json: rows, entry 2 has {excerpt} as key: it must be a te"
    ):
        entries("a text", value).texts("key")
    with pytest.raises(MisconfigurationException, match=r"^a\.json: rows, entry 1 has no key: it must be a text$"):
        Entries([{}], "a.json: rows").texts("key")
    nested = [{"list": [{"key": "a"}]}, {"list": [{"key": "b"}, {"key": value}]}]
    with pytest.raises(
        MisconfigurationException, match=rf"^a\.json: rows, entry 2: list, entry 2 has {excerpt} as key"
    ):
        Entries(nested, "a.json: rows").nested_texts("list", "key")


def test_a_long_value_is_shown_in_part():
    with pytest.raises(MisconfigurationException) as raised:
        entries("9" * 1000).numbers("key")
    assert len(str(raised.value)) < 150


def test_a_text_may_have_a_default():
    assert Entries([{}, {"key": None}, {"key": "a"}], "").texts("key", None) == [None, None, "a"]
    assert Entries([{}, {"key": "a"}], "").texts("key", "") == ["", "a"]
    with pytest.raises(MisconfigurationException, match="has null as key"):
        entries(None).texts("key", "")


def test_numbers_may_be_written_as_texts():
    assert entries("42", 42, "-3", 0).ids("key") == [42, 42, -3, 0]
    assert entries("a.jpg", " 42", "042", "4.2", "9" * 30).ids("key") == ["a.jpg", " 42", "042", "4.2", "9" * 30]
    assert entries("42", 42, "000042").numbers("key") == [42, 42, 42]


@pytest.mark.parametrize("value", [None, 4.0, float("nan"), True, [], {}, "", 2**63, -(2**70)])
def test_ids_are_numbers_or_texts(value):
    with pytest.raises(MisconfigurationException, match=r"^a\.json: rows, entry 2 has .* as key: it must be a number "):
        entries(1, value).ids("key")


def test_ids_are_in_unicode():
    with pytest.raises(
        MisconfigurationException, match=r"^a\.json: rows, entry 2 has .* as key: it must be a text in Un"
    ):
        entries(1, "\ud83d").ids("key")


@pytest.mark.parametrize("value", [-1, "-1", "a", " 42", "9" * 5000])
def test_numbers_are_whole_and_from_zero(value):
    with pytest.raises(MisconfigurationException, match=r"^a\.json: rows, entry 2 has .*: it must be a whole number"):
        entries(1, value).numbers("key")


def test_a_field_that_stands_twice_is_refused_where_it_is_read():
    rows = Entries(parse_json('[{"key": "a", "key": "b", "other": "c"}]', "a.json"), "a.json")
    assert rows.texts("other") == ["c"]
    with pytest.raises(MisconfigurationException, match=r"^a\.json, entry 1 has two values as key: it must be a text$"):
        rows.texts("key")


def test_reading_is_light():
    code = "import sys, vlkd_pl.text_files; print({'torch', 'pytorch_lightning'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_json_is_what_the_standard_library_reads(tmp_path):
    content = {"a": [1, 2.5, None, True, "é", {"b": {}}], "c": float("inf")}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_json(tmp_path / "a.json") == content
