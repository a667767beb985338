"""Files are written atomically."""

import hashlib
import itertools
import os
from contextlib import suppress

import pytest
from killing import Killed, kill_at

from vlkd_pl.files import atomic_update, atomic_write, complete_update, file_sha256, finish, write_text


def test_a_file_has_its_name_once_it_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_write(path) as file:
        file.write(b"one")
        file.flush()
        assert [(item.name, item.read_bytes()) for item in tmp_path.iterdir()] == [("a.txt.part", b"one")]
    assert [(item.name, item.read_bytes()) for item in tmp_path.iterdir()] == [("a.txt", b"one")]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_was_there_stays_where_writing_fails(tmp_path, error):
    path = tmp_path / "a.txt"
    write_text(path, "före")

    def fail():
        with atomic_write(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert [(item.name, item.read_text("utf-8")) for item in tmp_path.iterdir()] == [("a.txt", "före")]


def test_what_cannot_be_put_on_the_disk_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "before")

    def full(number):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="the disk is full"):
        write_text(path, "after")
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("a.txt", "before")]


def test_several_may_write_the_same_file(tmp_path):
    path, notes = tmp_path / "a.txt", tmp_path / "notes"
    notes.mkdir()
    with atomic_write(path, notes / "1.part") as first, atomic_write(path, notes / "2.part") as second:
        first.write(b"first")
        second.write(b"second")
        assert {part.name for part in notes.iterdir()} == {"1.part", "2.part"}
    assert path.read_bytes() == b"first"  # which ended last
    assert not list(notes.iterdir())


def test_a_file_that_is_open_for_long_is_finished(tmp_path):
    file = (tmp_path / "a.part").open("wb")
    file.write(b"one")
    finish(file, tmp_path / "a.txt")
    assert file.closed
    assert [(item.name, item.read_bytes()) for item in tmp_path.iterdir()] == [("a.txt", b"one")]


def test_checksums_are_of_all_or_of_the_rest(tmp_path):
    content = bytes(range(256)) * 10_000  # more than is read at once
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert file_sha256(tmp_path / "a", 5_000) == hashlib.sha256(content[5_000:]).hexdigest()


def write_together(folder, text):
    with atomic_update(folder, "first") as incomplete:
        for path in ("first", "second", "sub/third", f"sub/{text}"):
            (incomplete / path).parent.mkdir(exist_ok=True)
            (incomplete / path).write_text(text)


def read_together(folder):
    """The texts of the files for a reader that opens the first one first."""
    if not (folder / "first").is_file():
        return set()
    texts = {path.read_text() for path in folder.rglob("*") if path.is_file() and ".incoming" not in str(path)}
    assert not list(folder.glob("sub/old")) or texts == {"old"}
    return texts


@pytest.mark.parametrize("earlier", [True, False])
def test_a_kill_at_any_moment_leaves_files_of_one_kind(tmp_path, earlier):
    for number in itertools.count():
        folder = tmp_path / f"{earlier}{number}"
        if earlier:
            write_together(folder, "old")
        with pytest.MonkeyPatch.context() as patch:
            state = kill_at(patch, number)
            with suppress(Killed):
                write_together(folder, "new")
        contents = read_together(folder)  # without knowing of updates: nothing rather than a mixture
        assert contents in (set(), {"old"}, {"new"})
        complete_update(folder, "first")
        contents = read_together(folder)
        assert contents in ({"old"} if earlier else set(), {"new"})
        write_together(folder, "newer")
        assert read_together(folder) == {"newer"}
        assert not list(folder.glob(".incoming*"))
        if not state["dead"]:
            break
    assert number > 10


def test_what_is_not_replaced_stays(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    write_together(tmp_path, "old")
    write_together(tmp_path, "new")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with suppress(OSError), atomic_update(tmp_path, "first") as incomplete:
        (incomplete / "first").write_text("newer")
        raise OSError("full")
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second", "sub", "notes.txt"}
    assert (tmp_path / "first").read_text() == "new"
