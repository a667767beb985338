"""Cached features at an address: the copy that training reads."""

import json
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import pytest
from feature_files import SETTINGS, write_feature_file
from file_contents import contents
from pytorch_lightning.utilities.exceptions import MisconfigurationException

import vlkd_pl.shards.remote
from vlkd_pl.datamodules.cc3m import CC3MDataModule
from vlkd_pl.features.cache import FeatureCache, write_index
from vlkd_pl.features.remote_copy import default_copy, fetch_cache


class Site(SimpleHTTPRequestHandler):
    """A folder; the first connection for each file ends after ``lifetime`` bytes."""

    lifetime = None
    num_requests: ClassVar = Counter()

    def copyfile(self, source, outputfile):
        self.num_requests[self.path] += 1
        outputfile.write(source.read(self.lifetime if self.num_requests[self.path] == 1 else None))

    def log_message(self, *arguments):
        pass


@pytest.fixture
def cache(tmp_path):
    """A cache of three files, one of them in a subfolder."""
    folder = tmp_path / "cache"
    (folder / "part").mkdir(parents=True)
    names = ["0", "part/1", "2"]
    for seed, num in enumerate((11, 3, 6)):
        write_feature_file(folder / f"{names[seed]}.safetensors", num, seed)
    write_index(folder, names, SETTINGS)
    return folder


@pytest.fixture
def address(cache, monkeypatch):
    """The address of a server of the cache."""
    monkeypatch.setattr(vlkd_pl.shards.remote, "FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(Site, "num_requests", Counter())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, directory=str(cache))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_copy_is_the_cache(cache, address, tmp_path):
    fetch_cache(address, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(cache)
    assert FeatureCache(tmp_path / "copy").captions([0, 19]) == FeatureCache(cache).captions([0, 19])


def test_complete_files_are_not_copied_again(cache, address, tmp_path):
    fetch_cache(f"{address}/", tmp_path / "copy")
    intact = tmp_path / "copy" / "0.safetensors"
    (tmp_path / "copy" / "2.safetensors").write_bytes(b"cut")
    before = intact.stat().st_mtime_ns
    write_feature_file(cache / "part" / "1.safetensors", 3, 7)  # rewritten
    fetch_cache(address, tmp_path / "copy")
    assert intact.stat().st_mtime_ns == before
    assert contents(tmp_path / "copy") == contents(cache)


def test_reading_resumes_after_a_lost_connection(cache, address, tmp_path, monkeypatch):
    monkeypatch.setattr(Site, "lifetime", 5000)
    fetch_cache(address, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(cache)
    assert max(Site.num_requests.values()) > 1


@pytest.mark.parametrize(
    ("name", "damaged", "error", "message"),
    [
        ("index.json", None, FileNotFoundError, "it is not a cache, or an unfinished one"),
        ("index.json", b"{", MisconfigurationException, "cannot be read"),
        ("2.safetensors", None, MisconfigurationException, "2.safetensors cannot be copied to"),
        ("2.safetensors", b"short", MisconfigurationException, "is damaged: it has no header"),
    ],
)
def test_what_cannot_be_copied_is_reported(cache, address, tmp_path, name, damaged, error, message):
    (cache / name).unlink()
    if damaged is not None:
        (cache / name).write_bytes(damaged)
    with pytest.raises(error, match=message):
        fetch_cache(address, tmp_path / "copy")
    assert not (tmp_path / "copy" / name).exists()
    assert not list((tmp_path / "copy").rglob("*.part"))


def test_flipped_bits_are_found(cache, address, tmp_path):
    flipped = bytearray((cache / "2.safetensors").read_bytes())
    flipped[5000] ^= 1
    (cache / "2.safetensors").write_bytes(flipped)
    with pytest.raises(MisconfigurationException, match="another sha256"):
        fetch_cache(address, tmp_path / "copy")
    assert not (tmp_path / "copy" / "2.safetensors").exists()


def test_no_file_is_written_outside_of_the_folder(cache, address, tmp_path):
    index = json.loads((cache / "index.json").read_text())
    index["files"]["../outside"] = 1
    (cache / "index.json").write_text(json.dumps(index))
    with pytest.raises(MisconfigurationException, match=r"names the file '\.\./outside', outside of its folder"):
        fetch_cache(address, tmp_path / "copy")
    with pytest.raises(MisconfigurationException, match="commands are not run"):
        fetch_cache("pipe://cat", tmp_path / "copy")


def test_the_data_module_copies_before_it_reads(world, address, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folders = {None: default_copy(address), str(tmp_path / "named"): tmp_path / "named"}
    for named, folder in folders.items():
        data = CC3MDataModule(
            "", world.clip, world.bart, 4, num_workers=0, features=address, features_copy=named, image_size=64
        )
        data.prepare_data()
        data.setup("fit")
        assert data.cache.folder == folder
        assert len(next(iter(data.train_dataloader()))["image_tokens"]) == 4
    assert default_copy(address).is_relative_to(tmp_path / "home")
