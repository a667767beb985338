"""Remote shards: listing, reading, and resuming after a lost connection."""

import http.server
import io
import tarfile
import threading
from functools import partial

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from pytorch_lightning.utilities.exceptions import MisconfigurationException

import vlkd_pl.shards.addresses
import vlkd_pl.shards.remote
from vlkd_pl.data.shard_source import ImageLimits
from vlkd_pl.datamodules.cc3m import CC3MDataModule
from vlkd_pl.errors import MissingPackageError
from vlkd_pl.features.remote_copy import fetch_cache
from vlkd_pl.shards.reader import find_shards, read_captions, read_shard
from vlkd_pl.shards.remote import NUM_RETRIES, open_file
from vlkd_pl.shards.subset import UniformSubset
from vlkd_pl.training.checkpoint import read_checkpoint

NUM_SHARDS = 3
TEXTS = [f"fish {number}" for number in range(8)]


class FlakyFileSystem(MemoryFileSystem):
    """A memory file system whose connections fail after ``lifetime`` bytes, with an error or an early end."""

    protocol = "flaky"
    cachable = False
    lifetime = 0
    ends_early = False
    is_gone = ""
    only_streams = False
    num_read = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def _open(self, path, *args, **options):
        if self.is_gone and path.endswith(self.is_gone):
            raise ConnectionError("the host is gone")
        return FlakyFile(super()._open(path, *args, **options))


class FlakyFile:
    def __init__(self, file):
        self.file = file
        self.left = FlakyFileSystem.lifetime
        self.size = len(file.getvalue())

    def seek(self, position):
        if FlakyFileSystem.only_streams and position:
            raise ValueError("Cannot seek streaming HTTP file")
        self.file.seek(position)

    def read(self, size):
        if not self.left and FlakyFileSystem.ends_early:
            return b""
        if not self.left:
            raise ConnectionResetError("reset by peer")
        content = self.file.read(min(size, self.left))
        self.left -= len(content)
        FlakyFileSystem.num_read += len(content)
        return content

    def close(self):
        self.file.close()


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)


def shard():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, text in enumerate(TEXTS):
            for extension, content in (("jpg", bytes(range(256)) * 20), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{number:05d}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Record the waits instead of waiting, and allow the schemes of this file."""
    waits = []
    monkeypatch.setenv("VLKD_PL_URL_SCHEMES", "memory,flaky")
    monkeypatch.setattr(vlkd_pl.shards.remote.time, "sleep", waits.append)
    return waits


@pytest.fixture
def remote():
    """Shards in memory."""
    files = MemoryFileSystem()
    for number in range(NUM_SHARDS):
        files.pipe(f"/cc3m/{number:05d}.tar", shard())
    yield "memory://cc3m"
    files.rm("/cc3m", recursive=True)


def test_braces_and_wildcards(remote):
    expected = [f"memory:///cc3m/{number:05d}.tar" for number in range(NUM_SHARDS)]
    assert find_shards(f"{remote}/*.tar") == expected
    assert find_shards(f"{remote}/{{00000..00002}}.tar") == [path.replace(":///", "://") for path in expected]
    with pytest.raises(FileNotFoundError, match=r"1 of 4 shards do not exist; first: memory://cc3m/00003\.tar"):
        find_shards(f"{remote}/{{00000..00003}}.tar")
    with pytest.raises(FileNotFoundError, match="no file matches"):
        find_shards(f"{remote}/*.zip")


@pytest.mark.parametrize(
    "pattern",
    [
        "pipe:cat a.tar",
        "pipe:curl -s https://example.org/{0..3}.tar",
        "pipe://cat a.tar",
        "nothing://a/b.tar",
        "file://FOLDER/{0..3}.tar",
        "local://FOLDER/0.tar",
        "FILE://FOLDER/0.tar",
        "{file,s3}://FOLDER/0.tar",
        "ftp://example.org/0.tar",
        "dir::file://FOLDER/0.tar",
        "filecache::memory://0.tar",
        "simplecache::FOLDER/0.tar",
        "simplecache::https://example.org/0.tar",
        "zip://*.tar::FOLDER/0.zip",
        "zip://0.tar::s3://bucket/0.zip",
        "https://example.org/0.tar:{:file,x}://FOLDER/0.tar",
    ],
)
def test_commands_and_other_schemes_are_refused(tmp_path, pattern):
    (tmp_path / "0.tar").write_bytes(shard())
    with pytest.raises(
        MisconfigurationException, match=r"neither a path nor an allowed address .* commands are not run"
    ):
        find_shards(pattern.replace("FOLDER", str(tmp_path)))


@pytest.mark.parametrize(
    "read",
    [
        lambda address, folder: list(read_shard(address)),
        lambda address, folder: UniformSubset([address], 1),
        lambda address, folder: fetch_cache(address, folder / "copy"),
        lambda address, folder: open_file(address),
    ],
)
def test_no_reader_opens_another_scheme(tmp_path, read):
    (tmp_path / "0.tar").write_bytes(shard())
    with pytest.raises(MisconfigurationException, match="for a local file give its path"):
        read(f"file://{tmp_path}/0.tar", tmp_path)


def test_a_scheme_is_allowed_by_its_name(remote, tmp_path, monkeypatch):
    (tmp_path / "0.tar").write_bytes(shard())
    monkeypatch.setenv("VLKD_PL_URL_SCHEMES", "file, simplecache")
    assert len(list(read_shard(find_shards(f"file://{tmp_path}/0.tar")[0]))) == len(TEXTS)
    with pytest.raises(MisconfigurationException, match="name it in VLKD_PL_URL_SCHEMES=memory"):
        find_shards(f"simplecache::{remote}/00000.tar")


def test_a_missing_package_is_named(monkeypatch):
    def unknown(scheme):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(vlkd_pl.shards.addresses.fsspec, "get_filesystem_class", unknown)
    with pytest.raises(MissingPackageError, match=r"Install s3fs to access S3.*pip install '\.\[remote\]'"):
        find_shards("s3://bucket/a.tar")


@pytest.mark.parametrize("pattern", ["flaky://cc3m/{00000..00002}.tar", "flaky://cc3m/*.tar"])
def test_a_store_that_does_not_answer_is_reported(remote, monkeypatch, pattern):
    def refuse(*arguments, **options):
        raise PermissionError("unable to locate credentials")

    monkeypatch.setattr(FlakyFileSystem, "exists", refuse)
    monkeypatch.setattr(FlakyFileSystem, "glob", refuse)
    with pytest.raises(MisconfigurationException, match=r"flaky://cc3m/.* cannot be reached \(unable to locate cred"):
        find_shards(pattern)


@pytest.mark.parametrize("ends_early", [False, True])
def test_reading_resumes_where_the_connection_broke(remote, monkeypatch, quick, ends_early):
    monkeypatch.setattr(FlakyFileSystem, "lifetime", 7000)
    monkeypatch.setattr(FlakyFileSystem, "ends_early", ends_early)
    retries = []
    samples = list(read_shard("flaky://cc3m/00000.tar", on_retry=lambda: retries.append(1)))
    assert samples == list(read_shard(f"{remote}/00000.tar"))
    assert len(samples) == len(TEXTS)
    num_bytes = fsspec.filesystem("memory").size("/cc3m/00000.tar")
    assert len(retries) == len(quick) == num_bytes // 7000
    assert set(quick) == {1.0}  # each read went on at the first retry


def test_retries_are_bounded_and_back_off(remote, monkeypatch, quick):
    monkeypatch.setattr(FlakyFileSystem, "lifetime", 7000)
    with open_file("flaky://cc3m/00000.tar") as file:
        assert len(file.read(512)) == 512
        monkeypatch.setattr(FlakyFileSystem, "is_gone", "00000.tar")
        file.close()
        with pytest.raises(OSError, match=r"flaky://cc3m/00000.tar cannot be read at byte 512: .*the host is gone"):
            file.read(512)
    assert quick == [2.0**retry for retry in range(NUM_RETRIES)]


@pytest.mark.parametrize("only_streams", [False, True])
def test_what_a_subset_leaves_is_seeked_over_where_a_server_can(remote, monkeypatch, only_streams):
    monkeypatch.setattr(FlakyFileSystem, "lifetime", 7_000_000)
    monkeypatch.setattr(FlakyFileSystem, "only_streams", only_streams)
    monkeypatch.setattr(FlakyFileSystem, "num_read", 0)
    samples = list(read_shard("flaky://cc3m/00000.tar", lambda key, path, place: place == 5))
    assert [sample["txt"].decode() for sample in samples] == ["fish 5"]
    num_bytes = fsspec.filesystem("memory").size("/cc3m/00000.tar")
    if only_streams:
        assert FlakyFileSystem.num_read == num_bytes
    else:
        assert FlakyFileSystem.num_read < num_bytes / 2


def test_keys_and_captions_are_read_remotely(remote):
    assert read_captions([f"{remote}/00000.tar"], 100) == TEXTS
    subset = UniformSubset([f"{remote}/00000.tar"], 4)
    assert sum(subset(f"{number:05d}") for number in range(len(TEXTS))) == 4


def stream(world, shards, **options):
    settings = {"batch_size": 4, "num_workers": 0, "image_limits": ImageLimits(max_bad_share=1.0)} | options
    module = CC3MDataModule(shards, world.clip, world.bart, **settings)
    module.setup("fit")
    return module


def take(module, num_batches):
    batches = zip(range(num_batches), module.train_dataloader(), strict=False)
    return [module.on_before_batch_transfer(batch, 0)["bart_text_ids"].tolist() for _, batch in batches]


def test_a_shard_that_is_gone_is_counted(world, monkeypatch):
    for number in range(4):
        content = (world.folder / "shards" / f"{number:05d}.tar").read_bytes()
        MemoryFileSystem().pipe(f"/world/{number:05d}.tar", content)
    monkeypatch.setattr(FlakyFileSystem, "lifetime", 50_000)
    module = stream(world, "flaky://world/*.tar")
    monkeypatch.setattr(FlakyFileSystem, "is_gone", "00002.tar")
    take(module, 11)  # of 60 pairs in four shards
    assert module.skipped["broken_tar"] == 1
    assert module.decoder.num_retries >= NUM_RETRIES
    assert f"{module.decoder.num_retries} reads tried again" in module.report()
    MemoryFileSystem().rm("/world", recursive=True)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_http_gives_what_the_disk_gives(world, num_workers):
    handler = partial(Quiet, directory=str(world.folder / "shards"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/{{00000..00003}}.tar"
    try:
        batches = take(stream(world, address, num_workers=num_workers), 8)
    finally:
        server.shutdown()
        server.server_close()
    assert batches == take(stream(world, world.shards, num_workers=num_workers), 8)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.mark.parametrize("address", ["file://{path}", "local://{path}", "simplecache::file://{path}"])
def test_checkpoints_are_not_read_from_other_schemes(tmp_path, address):
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt") == {"state_dict": {}}
    with pytest.raises(MisconfigurationException, match="neither a path nor an allowed address"):
        read_checkpoint(address.format(path=tmp_path / "a.ckpt"))
