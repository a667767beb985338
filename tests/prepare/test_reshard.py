"""Resharding: checks, new shards and manifest; an interrupted run resumes to the same bytes."""

import io
import json
import multiprocessing
import os
import random
import resource
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from damaged_shards import image, member, pair, tar
from image_files import exif, orientation_block, with_exif
from PIL import Image

from vlkd_pl.cli import main
from vlkd_pl.datamodules.cc3m import CC3MDataModule
from vlkd_pl.prepare.limits import LOSS_REASONS
from vlkd_pl.shards.reader import read_shard

NUM_SAMPLES = 120
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Six shards of twenty samples; each caption states the sample's number, and each third has another size."""
    folder = tmp_path_factory.mktemp("source")
    for shard in range(6):
        samples = []
        for i in range(20 * shard, 20 * shard + 20):
            size = (66, 66 + 40 * (i % 3))
            samples.append([*pair(f"{i:05d}", image(i, size), f"fish {i}".encode()), member(f"{i:05d}.json", b"{}")])
        (folder / f"{shard:05d}.tar").write_bytes(tar(*samples))
    return folder


@pytest.fixture(scope="module")
def uncut(source, tmp_path_factory):
    """A run without an interruption."""
    folder = tmp_path_factory.mktemp("uncut")
    assert prepare(source, folder) == 0
    return folder


def prepare(source, folder, *options, samples_per_shard=32, num_workers=1):
    numbers = [f"--samples-per-shard={samples_per_shard}", f"--num-workers={num_workers}"]
    return main(["prepare", "cc3m", str(source), str(folder), *numbers, *map(str, options)])


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def captions(folder):
    return [raw["txt"].decode() for path in sorted(folder.glob("*.tar")) for raw in read_shard(str(path))]


def test_samples_keep_their_order_and_get_running_numbers(uncut, source):
    assert captions(uncut) == [f"fish {i}" for i in range(NUM_SAMPLES)]
    shards = [list(read_shard(str(path))) for path in sorted(uncut.glob("*.tar"))]
    assert [len(shard) for shard in shards] == [32, 32, 32, 24]
    numbered = [raw for shard in shards for raw in shard]
    assert [raw["__key__"] for raw in numbered] == [f"{i:09d}" for i in range(NUM_SAMPLES)]
    before = [raw for path in sorted(source.glob("*.tar")) for raw in read_shard(str(path))]
    assert [{**raw, "__key__": ""} for raw in numbered] == [{**raw, "__key__": ""} for raw in before]


def test_the_manifest_lists_every_shard(uncut, capsys):
    manifest = json.loads((uncut / "manifest.json").read_text())
    assert (manifest["samples"], manifest["read"], manifest["links"]) == (NUM_SAMPLES, NUM_SAMPLES, None)
    assert manifest["lost"] == dict.fromkeys(LOSS_REASONS, 0)
    for shard in manifest["shards"]:
        output = subprocess.run(["sha256sum", uncut / shard["name"]], capture_output=True, text=True, check=True).stdout
        assert output.split()[0] == shard["sha256"]
        assert (uncut / shard["name"]).stat().st_size == shard["bytes"]
    assert sum(shard["samples"] for shard in manifest["shards"]) == NUM_SAMPLES
    assert set(content(uncut)) == {"manifest.json", *(shard["name"] for shard in manifest["shards"])}


def test_the_number_of_workers_changes_nothing(uncut, source, tmp_path):
    assert prepare(source, tmp_path, num_workers=2) == 0
    assert content(tmp_path) == content(uncut)


def test_what_is_finished_is_not_done_again(uncut, source, capsys):
    before = {path: path.stat().st_mtime_ns for path in uncut.iterdir()}
    assert prepare(source, uncut) == 0
    assert capsys.readouterr().out.startswith("already finished: 120 samples in 4 shards")
    assert {path: path.stat().st_mtime_ns for path in uncut.iterdir()} == before


def test_a_shard_that_went_missing_is_written_again(uncut, source, tmp_path):
    assert prepare(source, tmp_path) == 0
    (tmp_path / "00001.tar").unlink()
    assert prepare(source, tmp_path) == 0
    assert content(tmp_path) == content(uncut)


KILLS = {
    "before_anything_is_checked": "unfinished/request.json",
    "while_shards_are_checked": "unfinished/checked-00002.json",
    "when_all_are_checked": "unfinished/checked-00005.json",
    "when_a_shard_is_written": "00001.tar",
    "while_shards_are_written": "unfinished/written-00002.json",
    "when_all_are_written": "manifest.json",
}


def kill(source, folder, num_workers, is_time):
    """Start a run in another process, and kill it after some time."""
    run = FORK.Process(target=prepare, args=(source, folder), kwargs={"num_workers": num_workers})
    run.start()
    while run.is_alive() and not is_time():
        time.sleep(0.0005)
    run.kill()
    run.join()


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("awaited", KILLS.values(), ids=KILLS)
def test_a_killed_run_resumes_to_the_same_bytes(uncut, source, tmp_path, awaited, num_workers):
    rng = random.Random(awaited)
    expected = content(uncut)
    for delay in (None, rng.uniform(0, 0.3), rng.uniform(0, 0.3)):
        end = time.monotonic() + (delay or 60)
        kill(
            source,
            tmp_path,
            num_workers,
            lambda delay=delay, end=end: time.monotonic() > end or (delay is None and (tmp_path / awaited).exists()),
        )
        assert all(path.read_bytes() == expected[path.name] for path in tmp_path.glob("*.*"))
    # while the killed one's workers may still be at work
    assert prepare(source, tmp_path, num_workers=num_workers) == 0
    assert content(tmp_path) == expected


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_full_disk_is_reported_in_one_line(uncut, source, tmp_path, capfd, num_workers):
    def run():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # less than a shard
        os._exit(prepare(source, tmp_path, num_workers=num_workers))

    process = FORK.Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == 1
    output = capfd.readouterr().err
    assert output.startswith("vlkd-pl prepare cc3m: ")
    assert output.endswith("File too large\n")
    assert output.count("\n") == 1
    assert not list(tmp_path.glob("*.tar"))
    assert prepare(source, tmp_path) == 0
    assert content(tmp_path) == content(uncut)


def test_damaged_samples_are_lost_and_counted(damaged, tmp_path, capsys):
    assert prepare(damaged.folder, tmp_path, samples_per_shard=5) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert {"good": manifest["samples"], **manifest["lost"]} == {"not_rgb": 0, **damaged.prepared}
    num_lost = sum(manifest["lost"].values()) - manifest["lost"]["broken_tar"]
    assert manifest["samples"] + num_lost == manifest["read"]
    assert f"{damaged.prepared['broken_tar']} broken_tar" in capsys.readouterr().out
    assert manifest["skipped_in_training"] == {"not_rgb": 1}
    assert main(["prepare", "check", str(tmp_path), "--num-workers=1"]) == 0
    for path in tmp_path.glob("*.tar"):
        with tarfile.open(path) as archive:
            assert all(header.isreg() and header.name[:9].isdecimal() for header in archive)
        for raw in read_shard(str(path)):
            image = next(raw[extension] for extension in ("jpg", "png") if extension in raw)
            Image.open(io.BytesIO(image)).load()
            assert raw["txt"].decode("utf-8", "replace").strip()


@pytest.fixture
def grey(tmp_path):
    """Shards with four samples that training skips by default, one of them a duplicate."""
    folder = tmp_path / "grey"
    folder.mkdir()
    palette = image(6, mode="P", file_format="PNG")
    (folder / "0.tar").write_bytes(
        tar(
            pair("0", image(0), b"a fish"),
            pair("1", image(1, mode="L"), b"a fish"),
            pair("2", image(2, mode="CMYK"), b"a fish"),
            pair("3", image(3, size=(200, 70)), b"two fish"),
        )
    )
    (folder / "1.tar").write_bytes(
        tar(pair("1", image(1, mode="L"), b"a fish"), pair("p", palette, b"a fish", "png"), pair("4", b"damaged"))
    )
    return folder


def test_what_training_skips_by_default_is_reported(grey, tmp_path, capsys, monkeypatch, clip_folder, bart_folder):
    output = "stored, but skipped in training by default: 3 not_rgb (used with --data.image_limits.skip_non_rgb false)"
    folder = tmp_path / "out"
    for first_line in (
        "7 samples read, skipped: 1 unreadable_image, 1 duplicate",
        "already finished: 5 samples in 1 shards",
    ):
        assert prepare(grey, folder, samples_per_shard=9) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(first_line)
        assert lines[-1] == output
    assert json.loads((folder / "manifest.json").read_text())["skipped_in_training"] == {"not_rgb": 3}
    assert check(folder) == 0
    assert capsys.readouterr().out.splitlines()[-1] == output
    (folder / "manifest.json").unlink()
    assert main(["prepare", "check", str(folder), "--num-workers=2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == output
    module = CC3MDataModule(str(folder / "*.tar"), str(clip_folder), str(bart_folder), batch_size=2, num_workers=0)
    module.setup("fit")
    assert [module.decoder(raw, 0) is None for raw in read_shard(module.shard_source.shards[0])] == [
        False,
        True,
        True,
        False,
        True,
    ]
    assert module.skipped["not_rgb"] == 3


def test_images_above_the_default_of_training_are_reported(grey, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vlkd_pl.prepare.limits.MAX_IMAGE_PIXELS", 10_000)
    assert prepare(grey, tmp_path / "out", "--max-pixels", 20_000) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["skipped_in_training"] == {"not_rgb": 3, "too_large": 1}
    assert (
        "by default: 3 not_rgb, 1 too_large (used with --data.image_limits.skip_non_rgb false, "
        in capsys.readouterr().out
    )
    assert prepare(grey, tmp_path / "small", "--max-pixels", 9_000) == 0
    manifest = json.loads((tmp_path / "small" / "manifest.json").read_text())
    assert (manifest["skipped_in_training"], manifest["lost"]["too_large"]) == ({"not_rgb": 3}, 1)


@pytest.mark.parametrize("address", ["s3://bucket/{0..3}.tar", "file:///data/0.tar", "simplecache::file:///0.tar"])
def test_shards_at_an_address_are_refused_in_one_line(tmp_path, capsys, address):
    assert prepare(address, tmp_path / "out") == 1
    message = f"{address} is a remote address: give the path of a local file or folder"
    assert capsys.readouterr().err == f"vlkd-pl prepare cc3m: {message}\n"


def test_nothing_is_written_where_an_archive_says(damaged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir("/tmp"))
    assert prepare(damaged.folder, tmp_path / "inner" / "prepared") == 0
    assert os.listdir(tmp_path) == ["inner"]
    assert os.listdir(tmp_path / "inner") == ["prepared"]
    assert "absolute.jpg" not in set(os.listdir("/tmp")) - set(before)
    assert not any(b"root:" in path.read_bytes() for path in (tmp_path / "inner" / "prepared").iterdir())


def test_memory_is_bounded(damaged, tmp_path):
    """Images and tars that would expand to gigabytes are refused."""

    def measure(output):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert prepare(damaged.folder, tmp_path) == 0
        output.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)

    output = FORK.Queue()
    run = FORK.Process(target=measure, args=(output,))
    run.start()
    assert output.get(timeout=60) < 100  # MB
    run.join()


def test_prepared_shards_are_trained_on(uncut, clip_folder, bart_folder):
    module = CC3MDataModule(
        str(uncut / "*.tar"), str(clip_folder), str(bart_folder), batch_size=NUM_SAMPLES, num_workers=0
    )
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    texts = module.collator.infilling.tokenizer.batch_decode(batch["bart_text_ids"], skip_special_tokens=True)
    assert sorted(texts) == sorted(f"fish {i}" for i in range(NUM_SAMPLES))


def test_images_keep_their_metadata_good_or_damaged(tmp_path):
    """New shards keep the orientation tag, by which readers turn the image."""
    blocks = [orientation_block(6), exif((0x011A, 2, 4, b"72\0\0"), (0x0128, 3, 1, 2), (0x8769, 4, 1, 8))]
    images = [with_exif(block)["jpeg"] for block in blocks]
    (tmp_path / "in").mkdir()
    pairs = [pair(str(number), image, b"a red fish") for number, image in enumerate(images)]
    (tmp_path / "in" / "0.tar").write_bytes(tar(*pairs))
    assert prepare(tmp_path / "in", tmp_path / "out", "--min-side", 24) == 0
    assert [raw["jpg"] for raw in read_shard(str(tmp_path / "out" / "00000.tar"))] == images


def test_limits_are_options(source, tmp_path):
    assert prepare(source, tmp_path, "--max-aspect-ratio", 1.5, "--min-side", 60) == 0
    assert captions(tmp_path) == [f"fish {i}" for i in range(NUM_SAMPLES) if i % 3 == 0]
    assert json.loads((tmp_path / "manifest.json").read_text())["lost"]["too_long_or_flat"] == 80


def test_the_first_of_equal_samples_stays(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.tar").write_bytes(tar(pair("a", image(0), b"a fish"), pair("b", image(0), b"two fish")))
    (tmp_path / "in" / "1.tar").write_bytes(tar(pair("a", image(0), b"two fish "), pair("b", image(1), b"a fish")))
    assert prepare(tmp_path / "in", tmp_path / "out") == 0
    assert captions(tmp_path / "out") == ["a fish", "two fish", "a fish"]
    sources = json.loads((tmp_path / "out" / "manifest.json").read_text())["sources"]
    assert [source["lost"] for source in sources] == [{}, {"duplicate": 1}]


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "finished"])
def test_another_request_for_the_same_folder_is_refused(uncut, source, tmp_path, capsys, begun):
    if begun:
        (tmp_path / "unfinished").mkdir()
        request = json.loads((uncut / "manifest.json").read_text())["request"]
        (tmp_path / "unfinished" / "request.json").write_text(json.dumps(request))
    folder = tmp_path if begun else uncut
    before = content(uncut)
    assert prepare(source, folder, "--min-words", 1) == 1
    assert f"{folder} was prepared with other limits" in capsys.readouterr().err
    assert prepare(source / "0000[0-4].tar", folder) == 1
    assert "with other sources: use the same values, or another folder" in capsys.readouterr().err
    assert content(uncut) == before


def test_shards_of_others_are_not_written_over(source, capsys):
    before = content(source)
    assert prepare(source, source) == 1
    assert "holds shards of another origin" in capsys.readouterr().err
    assert content(source) == before


def test_sources_that_are_no_good(tmp_path, capsys):
    assert prepare(tmp_path / "*.tar", tmp_path / "out") == 1
    assert capsys.readouterr().err.startswith("vlkd-pl prepare cc3m: no file matches ")
    (tmp_path / "empty").mkdir()
    assert prepare(tmp_path / "empty", tmp_path / "out") == 1
    assert "there are no shards in" in capsys.readouterr().err
    assert prepare("pipe:cat a.tar", tmp_path / "out") == 1
    assert "neither a path nor an allowed address" in capsys.readouterr().err
    (tmp_path / "a.tar").write_bytes(tar(pair("a", image(0), b"fish")))
    assert prepare(tmp_path / "a.tar", tmp_path / "out") == 1
    assert "no sample of 1 shards is within the limits (1 caption_length)" in capsys.readouterr().err


def check(folder):
    return main(["prepare", "check", str(folder), "--num-workers=1"])


def test_check_by_manifest(uncut, source, tmp_path, capsys):
    for path in uncut.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert check(tmp_path) == 0
    assert capsys.readouterr().out == "4 shards, 120 samples, by manifest.json: no shards with problems\n"
    whole = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(whole[:2_000] + b"?" + whole[2_001:])  # in an image
    (tmp_path / "00001.tar").unlink()
    (tmp_path / "00002.tar").write_bytes(whole)
    (tmp_path / "00003.tar").write_bytes(b"")
    (tmp_path / "00004.tar").write_bytes(whole)
    assert check(tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("00000.tar has sha256 ")
    assert lines[1] == "00001.tar is missing"
    assert lines[2].startswith("00002.tar has")
    assert lines[3].startswith("00003.tar cannot be read")
    assert lines[4] == "00004.tar is not in manifest.json"
    assert lines[5] == "5 shards, 64 samples, by manifest.json: 5 shards with problems"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "5",
        "{}",
        '{"shards": null}',
        '{"shards": [{"name": null, "bytes": 1}]}',
        '{"shards": [{"name": "a"}]}',
    ],
)
def test_manifests_of_another_format(source, tmp_path, capsys, content):
    (tmp_path / "manifest.json").write_text(content)
    assert check(tmp_path) == 1
    printed = capsys.readouterr().err
    assert "manifest.json is not a manifest of vlkd-pl prepare: " in printed
    assert printed.count("\n") == 1


def test_check_without_manifest(source, damaged, tmp_path, capsys):
    assert check(source) == 0
    assert capsys.readouterr().out == "6 shards, 120 samples, by decoding every sample: no shards with problems\n"
    assert check(damaged.folder) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "images.tar 7 unreadable_image, 2 too_large" in lines
    assert "samples.tar 2 missing_part, 3 empty_text, 1 repeated_key" in lines
    assert any(line.startswith("truncated_between.tar is corrupt after 3 samples: the end mark") for line in lines)
    assert not any(line.startswith(("good.tar", "empty.tar", "grey.tar", "limits.tar")) for line in lines)
    assert check(tmp_path) == 1
    assert "there are no shards in" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "{}",
        '{"shards": [{"name": "../a.tar", "bytes": 1}]}',
        '{"shards": [], "skipped_in_training": {"not_rgb": "1"}}',
    ],
)
def test_a_manifest_of_others(tmp_path, capsys, text):
    (tmp_path / "manifest.json").write_text(text)
    assert check(tmp_path) == 1
    assert str(tmp_path / "manifest.json") in capsys.readouterr().err
    assert prepare(Path(__file__).parent, tmp_path) == 1
