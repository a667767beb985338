"""The download of CC3M's list, with a stand-in for img2dataset, and the counts of its links."""

import csv
import io
import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
from damaged_shards import image, pair, tar

from vlkd_pl.cli import main
from vlkd_pl.prepare import download as download_file
from vlkd_pl.shards.reader import read_shard

LINKS_PER_SHARD = 8


class Downloader:
    """Stand-in for img2dataset: every third link is dead, every seventh is not an image."""

    def __init__(self, record):
        self.record = record
        self.left = ()

    @property
    def calls(self):
        """The options of each call, stored in a file because the calls are in other processes."""
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def download(self, **options):
        with self.record.open("a") as file:
            file.write(f"{json.dumps(options)}\n")
        output = Path(options["output_folder"])
        output.mkdir(exist_ok=True)
        assert options["url_col"] == "url"
        assert options["caption_col"] == "caption"
        with open(options["url_list"], newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))
        per_shard = options["number_sample_per_shard"]
        for shard in range(-(-len(rows) // per_shard)):
            if shard in self.left or (output / f"{shard:05d}_stats.json").exists():
                continue
            numbers = range(shard * per_shard, min(len(rows), (shard + 1) * per_shard))
            good = [i for i in numbers if i % 3 and i % 7]
            dead = sum(i % 3 == 0 for i in numbers)
            samples = [pair(f"{i:09d}", image(i), rows[i]["caption"].encode()) for i in good]
            (output / f"{shard:05d}.tar").write_bytes(tar(*samples))
            statistics = {
                "count": len(numbers),
                "successes": len(good),
                "failed_to_download": dead,
                "failed_to_resize": len(numbers) - len(good) - dead,
                "duration": 1.0,
                "start_time": 0.0,
                "end_time": 1.0,
                "status_dict": {"success": len(good), "HTTP Error 404: Not SearchResult": dead},
            }
            (output / f"{shard:05d}_stats.json").write_text(json.dumps(statistics))


@pytest.fixture
def downloader(monkeypatch, tmp_path):
    downloader = Downloader(tmp_path / "calls.jsonl")
    monkeypatch.setitem(sys.modules, "img2dataset", SimpleNamespace(download=downloader.download))
    monkeypatch.setattr(download_file, "_LINKS_PER_SHARD", LINKS_PER_SHARD)
    return downloader


@pytest.fixture
def tsv(tmp_path):
    """A list in CC3M's format: twenty links, and lines without a link."""
    lines = [f'"fish" number {i}\thttp://example.org/{i}.jpg' for i in range(20)]
    invalid = ["caption\turl", "no address", "\thttp://example.org/a.jpg", "a secret\tfile:///etc/passwd", ""]
    path = tmp_path / "Train_GCC-training.tsv"
    path.write_text("".join(f"{line}\n" for line in [*lines[:9], *invalid, *lines[9:]]))
    return path


GOOD = [i for i in range(20) if i % 3 and i % 7]


def prepare(source, folder, *options):
    return main(["prepare", "cc3m", str(source), str(folder), "--num-workers=1", *options])


def test_links_become_shards(downloader, tsv, tmp_path, capsys):
    folder = tmp_path / "cc3m"
    assert prepare(tsv, folder, "--download-side=300", "--download-threads=5") == 0
    (call,) = downloader.calls
    assert (call["image_size"], call["resize_mode"], call["resize_only_if_bigger"]) == (300, "keep_ratio", True)
    assert (call["processes_count"], call["thread_count"], call["output_format"]) == (1, 5, "webdataset")
    assert (call["enable_wandb"], call["incremental_mode"], call["input_format"]) == (False, "incremental", "tsv")
    captions = [raw["txt"].decode() for raw in read_shard(str(folder / "00000.tar"))]
    assert captions == [f'"fish" number {i}' for i in GOOD]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["links"] == {
        "count": 20,
        "successes": len(GOOD),
        "failed_to_download": 7,
        "failed_to_resize": 13 - len(GOOD),
        "why": {"HTTP Error 404: Not SearchResult": 7},
        "shards": 3,
        "broken_lines": 5,
    }
    assert "20 links, 7 of them dead (35.0%)" in capsys.readouterr().out
    assert prepare(tsv, folder, "--download-side=300") == 0
    assert len(downloader.calls) == 1
    assert prepare(tsv, folder) == 1
    assert "with other download_side" in capsys.readouterr().err


def test_a_download_that_was_cut_resumes(downloader, tsv, tmp_path, capsys):
    downloader.left = (1,)
    assert prepare(tsv, tmp_path / "cc3m") == 1
    assert "img2dataset did not finish 1 of 3 shards" in capsys.readouterr().err
    downloader.left = ()
    statistics = tmp_path / "cc3m" / "download" / "00002_stats.json"
    statistics.write_bytes(statistics.read_bytes()[:20])  # killed while it was written
    (tmp_path / "cc3m" / "download" / "00002.tar").write_bytes(b"")
    assert prepare(tsv, tmp_path / "cc3m") == 0
    assert prepare(tsv, tmp_path / "uncut") == 0
    assert len(downloader.calls) == 3
    for name in ("00000.tar", "manifest.json"):
        assert (tmp_path / "cc3m" / name).read_bytes() == (tmp_path / "uncut" / name).read_bytes()


class Site(BaseHTTPRequestHandler):
    """Server on which every third address is dead and every seventh is not an image; it waits after some requests."""

    requests = 0
    limit = math.inf

    def do_GET(self):
        type(self).requests += 1
        while type(self).requests > type(self).limit:
            time.sleep(0.001)
        number = int(Path(self.path).stem)
        self.send_response(200 if number % 3 else 404)
        self.end_headers()
        if number % 3:
            self.wfile.write(image(number) if number % 7 else b"<html>")

    def log_message(self, *arguments):
        pass


class WebDownloader:
    """Stand-in for img2dataset that writes a shard's statistics after its tar."""

    def download(self, **options):
        output = Path(options["output_folder"])
        output.mkdir(exist_ok=True)
        with open(options["url_list"], newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))
        per_shard = options["number_sample_per_shard"]
        for shard in range(-(-len(rows) // per_shard)):
            if not (output / f"{shard:05d}_stats.json").exists():
                self.write(output / f"{shard:05d}", list(enumerate(rows))[shard * per_shard :][:per_shard])

    def write(self, path, rows):
        counts = Counter()
        with open(f"{path}.tar", "wb", buffering=0) as file, tarfile.open(fileobj=file, mode="w") as archive:
            for number, row in rows:
                try:
                    content = urllib.request.urlopen(row["url"]).read()
                except urllib.error.HTTPError as error:
                    counts[str(error)] += 1
                    continue
                if content == b"<html>":
                    counts["no image"] += 1
                    continue
                counts["success"] += 1
                for extension, part in (("jpg", content), ("txt", row["caption"].encode())):
                    member = tarfile.TarInfo(f"{number:09d}.{extension}")
                    member.size = len(part)
                    archive.addfile(member, io.BytesIO(part))
        statistics = {"count": len(rows), "successes": counts["success"], "failed_to_resize": counts["no image"]}
        statistics |= {"failed_to_download": len(rows) - counts["success"] - counts["no image"], "status_dict": counts}
        Path(f"{path}_stats.json").write_text(json.dumps(statistics))


def test_a_killed_download_ends_as_the_uncut_one(downloader, tmp_path, monkeypatch):
    """SIGKILL at random moments of the download and of the resharding."""
    monkeypatch.setitem(sys.modules, "img2dataset", SimpleNamespace(download=WebDownloader().download))
    rng = random.Random()
    context = multiprocessing.get_context("fork")
    num_killed = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        tsv = tmp_path / "links.tsv"
        site = f"http://127.0.0.1:{server.server_port}"
        tsv.write_text("".join(f"fish number {i}\t{site}/{i}.jpg\n" for i in range(20)))
        for num_requests in (rng.randrange(1, 8), rng.randrange(1, 8), rng.randrange(1, 6), rng.randrange(1, 4)):
            until = Site.limit = Site.requests + num_requests
            process = context.Process(target=prepare, args=(tsv, tmp_path / "cc3m"))
            process.start()
            while Site.requests < until and process.is_alive():
                time.sleep(0.0005)
            time.sleep(rng.random() * 0.03)
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            num_killed += process.exitcode == -signal.SIGKILL and not (tmp_path / "cc3m" / "manifest.json").exists()
        assert num_killed > 1
        Site.limit = math.inf
        assert prepare(tsv, tmp_path / "cc3m") == 0
        assert prepare(tsv, tmp_path / "uncut") == 0
        server.shutdown()
    links = json.loads((tmp_path / "uncut" / "manifest.json").read_text())["links"]
    assert (links["count"], links["successes"], links["failed_to_download"]) == (20, len(GOOD), 7)
    names = sorted(path.name for path in (tmp_path / "uncut").glob("*.*"))
    assert sorted(path.name for path in (tmp_path / "cc3m").glob("*.*")) == names
    for name in names:
        assert (tmp_path / "cc3m" / name).read_bytes() == (tmp_path / "uncut" / name).read_bytes()


def alive(pid):
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_nothing_continues_when_the_command_is_killed(tsv, tmp_path, monkeypatch):
    """Otherwise img2dataset's processes would write into the shards of the next run."""
    pid_file = tmp_path / "pids"

    def download(**options):
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        pid_file.with_name("half").write_text(f"{os.getpid()} {worker.pid}")
        pid_file.with_name("half").replace(pid_file)
        worker.wait()

    monkeypatch.setitem(sys.modules, "img2dataset", SimpleNamespace(download=download))
    command = multiprocessing.get_context("fork").Process(target=prepare, args=(tsv, tmp_path / "cc3m"))
    command.start()
    while not pid_file.exists():
        assert command.is_alive()
        time.sleep(0.01)
    pids = [int(pid) for pid in pid_file.read_text().split()]
    assert all(map(alive, pids))
    command.kill()
    command.join()
    end = time.monotonic() + 20
    while any(map(alive, pids)):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_shards_downloaded_before_need_no_img2dataset(downloader, tsv, tmp_path, monkeypatch):
    assert prepare(tsv, tmp_path / "cc3m") == 0
    monkeypatch.setitem(sys.modules, "img2dataset", None)
    shards = tmp_path / "cc3m" / "download"
    os.remove(shards / "00001_stats.json")
    assert prepare(shards, tmp_path / "again") == 0
    assert (tmp_path / "again" / "00000.tar").read_bytes() == (tmp_path / "cc3m" / "00000.tar").read_bytes()
    links = json.loads((tmp_path / "again" / "manifest.json").read_text())["links"]
    assert (links["shards"], links["count"]) == (2, 12)


def test_without_img2dataset(tsv, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "img2dataset", None)
    assert prepare(tsv, tmp_path / "cc3m") == 1
    message = capsys.readouterr().err
    assert "pip install '.[prepare]'" in message
    assert message.count("\n") == 1


def test_a_list_without_links(tmp_path, capsys):
    (tmp_path / "list.tsv").write_text("no\nlinks\n")
    assert prepare(tmp_path / "list.tsv", tmp_path / "cc3m") == 1
    assert "holds no line with a caption, a tab and an address" in capsys.readouterr().err
