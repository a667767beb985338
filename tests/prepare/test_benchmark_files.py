"""The benchmark files are checked at the configurations' paths, and missing or truncated files are reported."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest

from vlkd_pl.cli import main
from vlkd_pl.data.coco_files import read_coco_captions
from vlkd_pl.prepare import benchmark_files
from vlkd_pl.sample.writers import write_world

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The sample world, whose files have the benchmarks' formats."""
    folder = tmp_path_factory.mktemp("drawn")
    write_world(folder, 4, 1, 10, 10, 0, 12)
    return folder


@pytest.fixture
def data(drawn, tmp_path):
    """The files of the sample world under the names of the benchmark files."""
    data = tmp_path / "data"
    for benchmark in ("coco/annotations", "nocaps", "vqav2", "okvqa"):
        (data / benchmark).mkdir(parents=True)
    for split, of in (("train2014", "train"), ("val2014", "val")):
        shutil.copytree(drawn / "images" / of, data / "coco" / split)
        for part in ("questions", "annotations"):
            prefix = "v2_OpenEnded_mscoco" if part == "questions" else "v2_mscoco"
            shutil.copy(drawn / f"vqa_{part}_{of}.json", data / "vqav2" / f"{prefix}_{split}_{part}.json")
        shutil.copy(drawn / f"captions_{of}.json", data / "coco" / "annotations" / f"captions_{split}.json")
    shutil.copytree(drawn / "images" / "test", data / "coco" / "val2014", dirs_exist_ok=True)
    karpathy = json.loads((drawn / "dataset_coco.json").read_text())
    of_train = [image for image in karpathy["images"] if image["split"] == "train"]
    for image in karpathy["images"]:
        image["filepath"] = "train2014" if image["split"] == "train" else "val2014"
    for image in of_train[:5]:
        image["split"] = "restval"
    (data / "coco" / "dataset_coco.json").write_text(json.dumps(karpathy))
    for split in ("train", "val", "test"):
        shutil.copy(drawn / f"vqa_karpathy_{split}.json", data / "vqav2" / f"karpathy_{split}.json")
    shutil.copy(drawn / "okvqa_questions_val.json", data / "okvqa" / "OpenEnded_mscoco_val2014_questions.json")
    shutil.copy(drawn / "okvqa_annotations_val.json", data / "okvqa" / "mscoco_val2014_annotations.json")
    shutil.copy(drawn / "nocaps_val_captions.json", data / "nocaps" / "nocaps_val_4500_captions.json")
    shutil.copytree(drawn / "images" / "nocaps", data / "nocaps" / "images")
    for benchmark in ("glue", "xsum"):
        shutil.copytree(drawn / benchmark, data / benchmark)
    return data


@pytest.fixture
def any_number(monkeypatch):
    """Remove the published counts."""
    unnumbered = {
        name: [file._replace(published={}) for file in files] for name, files in benchmark_files.BENCHMARKS.items()
    }
    monkeypatch.setattr(benchmark_files, "BENCHMARKS", unnumbered)


def check(capsys, data, benchmark, *options):
    status = main(["prepare", benchmark, str(data / benchmark), *options])
    return status, [line.replace(f"{data}/", "") for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("benchmark", benchmark_files.BENCHMARKS)
def test_files_in_place(data, capsys, any_number, benchmark):
    status, lines = check(capsys, data, benchmark)
    assert status == 0
    assert len(lines) == len(benchmark_files.BENCHMARKS[benchmark])
    assert all(line.startswith(("complete ", "optional ")) for line in lines)


@pytest.mark.parametrize("benchmark", benchmark_files.BENCHMARKS)
def test_numbers_are_those_published(data, capsys, benchmark):
    status, lines = check(capsys, data, benchmark)
    assert status == 1
    expected = [item for item in benchmark_files.BENCHMARKS[benchmark] if item.published]
    assert sum("were published; download: " in line for line in lines) == len(expected) - ("optional" in "".join(lines))


@pytest.mark.parametrize("benchmark", benchmark_files.BENCHMARKS)
def test_nothing_in_place(tmp_path, capsys, benchmark):
    status, lines = check(capsys, tmp_path, benchmark)
    assert status == 1
    assert all(re.fullmatch("(MISSING |optional) no .*; download: .*https?://.*", line) for line in lines)


def test_what_is_held_is_reported(data, capsys, any_number):
    _, lines = check(capsys, data, "coco")
    num_captions = sum(len(image.references) for image in read_coco_captions(data / "coco" / "dataset_coco.json"))
    assert lines[0] == (
        f"complete coco/dataset_coco.json: 7 train, 5 restval, 10 val, 10 test, {num_captions} captions"
    )
    assert lines[-1] == "complete coco/dataset_coco.json and coco: 32 images"
    _, lines = check(capsys, data, "nocaps")
    assert lines[0].endswith("3 in-domain, 3 near-domain, 3 out-domain")
    _, lines = check(capsys, data, "glue")
    assert lines[0] == "complete glue/CoLA/train.tsv: 12 samples, 0 corrupt lines"
    _, lines = check(capsys, data, "xsum")
    assert lines[0] == "complete xsum: 12 train documents, 0 of them without text or summary"


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


DAMAGE = {
    "an image is missing": (
        "coco",
        lambda data: next((data / "coco" / "val2014").iterdir()).unlink(),
        "1 of 32 images of coco/dataset_coco.json are missing",
    ),
    "an image is empty": (
        "nocaps",
        lambda data: min((data / "nocaps" / "images").iterdir()).write_bytes(b""),
        "images of nocaps/nocaps_val_4500_captions.json are empty files",
    ),
    "captions are cut": (
        "coco",
        lambda data: cut(data / "coco" / "annotations" / "captions_val2014.json"),
        "captions_val2014.json is not a caption file of COCO's format",
    ),
    "no split restval": (
        "coco",
        lambda data: (data / "coco" / "dataset_coco.json").write_text(
            (data / "coco" / "dataset_coco.json").read_text().replace("restval", "train")
        ),
        "holds no image of the split restval",
    ),
    "questions are cut": (
        "vqav2",
        lambda data: cut(data / "vqav2" / "v2_OpenEnded_mscoco_train2014_questions.json"),
        "v2_OpenEnded_mscoco_train2014_questions.json is not a file of questions",
    ),
    "a folder of images is missing": (
        "okvqa",
        lambda data: shutil.rmtree(data / "coco" / "val2014"),
        "MISSING  no coco/val2014; download: the images, http://images.cocodataset.org/zips/val2014.zip",
    ),
    "a file of another task": (
        "glue",
        lambda data: shutil.copy(data / "glue" / "QNLI" / "dev.tsv", data / "glue" / "RTE" / "dev.tsv"),
        "has no column 'sentence1'",
    ),
    "summaries are missing": ("xsum", lambda data: (data / "xsum" / "val.target").unlink(), "val.target"),
}


@pytest.mark.parametrize(("benchmark", "damage", "expected"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_reported(data, capsys, any_number, benchmark, damage, expected):
    damage(data)
    status, lines = check(capsys, data, benchmark)
    assert status == 1
    wrong = [line for line in lines if line.startswith(("WRONG", "MISSING"))]
    assert any(expected in line and "; download: " in line for line in wrong)
    assert len(wrong) < len(lines)


def test_images_elsewhere(data, capsys, any_number, tmp_path):
    (data / "coco").rename(tmp_path / "images")
    assert check(capsys, data, "vqav2")[0] == 1
    assert check(capsys, data, "vqav2", f"--images={tmp_path / 'images'}")[0] == 0


def test_every_file_that_a_configuration_names_is_checked():
    named = {
        path
        for config in CONFIGS.glob("*.yaml")
        for path in re.findall(r"data/((?:coco|nocaps|vqav2|okvqa)/[\w/.-]+\.json)", config.read_text())
    }
    checked = {
        f"{benchmark}/{name}"
        for benchmark, files in benchmark_files.BENCHMARKS.items()
        for file in files
        for name in file.names
    }
    assert len(named) > 10
    assert named <= checked


def test_published_numbers_agree():
    coco, val, train, images = (benchmark.published for benchmark in benchmark_files.BENCHMARKS["coco"])
    assert coco["captions"] == val["captions"] + train["captions"]
    assert coco["train"] + coco["restval"] + coco["val"] + coco["test"] == images["images"]
    assert images["images"] == val["images"] + train["images"]
    nocaps = benchmark_files.BENCHMARKS["nocaps"][0].published
    assert nocaps["in-domain"] + nocaps["near-domain"] + nocaps["out-domain"] == nocaps["images"]
    vqa = [
        benchmark.published["questions"]
        for benchmark in benchmark_files.BENCHMARKS["vqav2"]
        if "questions" in benchmark.published
    ]
    assert sum(vqa[:2]) == sum(vqa[2:])  # VL-T5 splits all questions anew


def test_random_bytes_never_crash(data, capsys, any_number):
    rng = random.Random(0)
    for name in ("coco/dataset_coco.json", "vqav2/karpathy_val.json", "glue/CoLA/dev.tsv", "xsum/val.source"):
        content = bytearray((data / name).read_bytes())
        for _ in range(200):
            content[rng.randrange(len(content))] = rng.randrange(256)
        (data / name).write_bytes(content)
        assert check(capsys, data, name.split("/")[0])[0] in (0, 1)
