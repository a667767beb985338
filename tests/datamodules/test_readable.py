"""Images that a run needs for its scores: every one is decoded before the model is used."""

import json
import shutil

import pytest
from distilling import arguments, begin_ranks, joined
from evaluations import captioning_arguments
from image_files import exif, jpeg, segment
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.cli import main
from vlkd_pl.data import image_files
from vlkd_pl.data.coco_files import EvaluationFiles
from vlkd_pl.data.image_files import check_readable
from vlkd_pl.datamodules.cc3m import CC3MDataModule

DAMAGED_EXIF = jpeg(segment(0xE1, b"Exif\0\0" + exif((0x011A, 2, 4, b"72\0\0"), (0x0128, 3, 1, 2), (0x8769, 4, 1, 8))))


@pytest.fixture
def images(world, tmp_path):
    """The world's validation images, to be damaged."""
    return shutil.copytree(world.folder / "images", tmp_path / "images") / "val"


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def the_line(capsys):
    """The one line of an error, under what Lightning prints at its start."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


@pytest.mark.parametrize("num_threads", [1, 4])
def test_all_are_counted_and_the_first_named(tmp_path, num_threads):
    files = [tmp_path / f"{number}.png" for number in range(12)]
    for file in files:
        Image.new("RGB", (20, 20)).save(file)
    check_readable(files, num_threads)
    for number in (2, 5, 7, 9):
        files[number].write_bytes(b"no image")
    with pytest.raises(
        MisconfigurationException, match=r"^4 of 12 images .*first: .*2\.png: .*; .*5\.png: .*; .*7\.png: "
    ) as caught:
        check_readable([*files, *files], num_threads)
    assert "9.png" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unexpected_error_is_reported_too(tmp_path, monkeypatch):
    """The other ranks wait for this one's report."""
    monkeypatch.setattr(image_files, "check_image", lambda file: {}["x"])
    with pytest.raises(MisconfigurationException, match=r"1 of 1 images .*a\.jpg: KeyError"):
        check_readable([tmp_path / "a.jpg"])


def test_fit_names_a_damaged_validation_image_before_training(world, images, tmp_path, capsys):
    damaged = sorted(images.iterdir())[4]
    truncate(damaged)
    options = {"data.init_args.evaluation.val_images": str(images.parent), "data.init_args.num_workers": 0}
    assert main(arguments(world, tmp_path / "run", **options)) == 1
    line = the_line(capsys)
    assert line.startswith("vlkd-pl fit: 1 of 6 images cannot be read")
    assert f"{damaged}: it cannot be decoded: image file is truncated" in line
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_the_check_is_limited_as_the_validation_is(world, images, tmp_path):
    files = sorted(images.iterdir())
    truncate(files[4])
    files[0].write_bytes(DAMAGED_EXIF)

    def setup(num_samples, stage="fit"):
        names = ("val", "test") if stage == "fit" else ("test", "val")
        captions = {f"{name}_captions": str(world.folder / "captions_val.json") for name in names}
        folders = {f"{name}_images": str(images.parent) for name in names}
        files = EvaluationFiles(**captions, **folders, num_samples=num_samples)
        module = CC3MDataModule(world.shards, world.clip, world.bart, 4, num_workers=0, evaluation=files)
        module.setup(stage)
        return module

    (batch,) = setup(4).val_dataloader()
    assert len(batch["image"]) == 4
    for stage in ("fit", "validate", "test"):
        with pytest.raises(MisconfigurationException, match="1 of 5 images cannot be read"):
            setup(5, stage)


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_fine_tuning_names_them_too(world, model_folder, images, tmp_path, capsys, command):
    truncate(sorted(images.iterdir())[0])
    files = {"annotations": str(world.folder / "dataset_coco.json"), "split": "val", "images": str(images.parent)}
    options = {"data__init_args__val": json.dumps(files)}
    if command == "test":
        options = {f"data__init_args__{name}": value for name, value in files.items()}
    command_line = captioning_arguments("captioning_coco", world, model_folder, tmp_path / "run", **options)
    assert main([command, *command_line[1:]]) == 1
    assert " images cannot be read, but every one is needed: replace them; first: " in the_line(capsys)


def test_ranks_share_the_check_and_all_stop(world, images, tmp_path):
    truncate(sorted(images.iterdir())[1])  # of the second rank's share
    options = {"data.init_args.evaluation.val_images": str(images.parent), "data.init_args.num_workers": 1}
    assert joined(begin_ranks(arguments(world, tmp_path / "run", **options), output=tmp_path / "printed")) == [1, 1]
    for rank in range(2):
        assert "vlkd-pl fit: 1 of 6 images cannot be read" in (tmp_path / f"printed.{rank}").read_text()
