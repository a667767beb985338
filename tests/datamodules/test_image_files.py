"""Images in files: finding them, reading them, and unreadable ones."""

import os
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.clip.transform import clip_transform
from vlkd_pl.data.image_files import (
    ImageDataset,
    ImageFile,
    ImageFinder,
    check_present,
    collate_images,
    iter_image_files,
    read_lines,
)
from vlkd_pl.datamodules.image_folder import FolderDataModule
from vlkd_pl.images import as_rgb


def draw(path, mode="RGB", size=(40, 32), **options):
    """Writes an image with a dark upper half and a bright lower half."""
    image = Image.new("L", size, 40)
    ImageDraw.Draw(image).rectangle((0, size[1] // 2, *size), fill=200)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert(mode).save(path, **options)
    return path


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def image_paths(folder):
    return [path.relative_to(folder).as_posix() for path in iter_image_files([folder])]


# Folders


def test_images_come_in_the_order_of_names_one_folder_at_a_time(tmp_path):
    touch(tmp_path, "b/2.png", "b/10.JPG", "a/x/1.jpeg", "a/3.WebP", "z.tif", "c.bmp")
    assert image_paths(tmp_path) == ["c.bmp", "z.tif", "a/3.WebP", "a/x/1.jpeg", "b/10.JPG", "b/2.png"]


def test_hidden_files_and_other_files_are_left_out(tmp_path):
    touch(tmp_path, "a.jpg", "a.txt", "jpg", "._a.jpg", ".jpg", ".cache/b.jpg", "Thumbs.db")
    assert image_paths(tmp_path) == ["a.jpg"]
    assert image_paths(tmp_path / ".cache") == ["b.jpg"]  # the folder itself was asked for


def test_files_are_taken_as_they_are(tmp_path):
    touch(tmp_path, "a.jpg", "notes.dat")
    paths = [tmp_path / "notes.dat", str(tmp_path / "nowhere.jpg"), tmp_path]
    assert list(iter_image_files(paths)) == [*map(Path, paths[:2]), tmp_path / "a.jpg"]


def test_links_are_followed_once(tmp_path):
    touch(tmp_path, "elsewhere/2.jpg", "images/1.jpg", "images/inner/3.jpg")
    images = tmp_path / "images"
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    (images / "linked_again").symlink_to(tmp_path / "elsewhere")
    (images / "inner" / "loop").symlink_to(images)
    (tmp_path / "elsewhere" / "loop").symlink_to(images / "inner")
    (images / "itself.jpg").symlink_to(images / "itself.jpg")
    assert image_paths(images) == ["1.jpg", "itself.jpg", "inner/3.jpg", "linked/2.jpg"]
    (tmp_path / "top").symlink_to(images)
    assert image_paths(tmp_path / "top") == image_paths(images)


def test_a_folder_that_cannot_be_read_is_warned_of(tmp_path, monkeypatch):
    touch(tmp_path, "open/1.jpg", "shut/2.jpg")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.warns(UserWarning, match=r"the folder .*shut is skipped, since it cannot be read: Permission denied"):
        assert image_paths(tmp_path) == ["open/1.jpg"]


# Finding


def test_by_name_in_sub_folders_or_next_to_each_other(tmp_path):
    touch(tmp_path, "val2014/1.jpg", "2.jpg")
    finder = ImageFinder(tmp_path)
    assert finder.by_name("val2014/1.jpg") == tmp_path / "val2014" / "1.jpg"
    assert finder.by_name("val2014/2.jpg") == tmp_path / "2.jpg"
    assert finder.by_name("2.jpg") == tmp_path / "2.jpg"
    assert not finder.by_name("1.jpg").exists()


@pytest.mark.parametrize(
    "name", ["COCO_val2014_000000000042.jpg", "000000000042.jpg", "val2014/42.JPG", "a/b/7_042.png"]
)
def test_by_number(tmp_path, name):
    touch(tmp_path, name, "000000000421.jpg", "COCO_val2014_000000000142.jpg", "000000000042_mask.jpg", "42/cover.jpg")
    finder = ImageFinder(tmp_path)
    assert finder.by_number(42) == tmp_path / name
    assert finder.by_number(43) == tmp_path / "000000000043.jpg"


def test_of_several_images_with_a_number_the_first_jpg_is_taken(tmp_path):
    names = ["annotations/000000000042.png", "val2014/COCO_val2014_000000000042.jpg", "val2017/000000000042.jpg"]
    touch(tmp_path, *names)
    for name in (names[1], names[2], names[0]):
        assert ImageFinder(tmp_path).by_number(42) == tmp_path / name
        (tmp_path / name).unlink()


def test_the_folder_is_listed_once(tmp_path, monkeypatch):
    touch(tmp_path, *(f"{number:012d}.jpg" for number in range(20)))
    calls = []
    monkeypatch.setattr(
        "vlkd_pl.data.image_files.iter_image_files", lambda paths: calls.append(paths) or iter_image_files(paths)
    )
    finder = ImageFinder(tmp_path)
    check_present([finder.by_number(number) for number in range(20)], "questions.json")
    assert len(calls) == 1


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder of images at .*nowhere: give the one"):
        ImageFinder(tmp_path / "nowhere")
    files = [tmp_path / f"{number}.jpg" for number in range(5)]
    files[3].touch()
    with pytest.raises(FileNotFoundError, match=r"4 of 5 images of x.json are missing: give .*0\.jpg, .*2\.jpg$"):
        check_present(files, "x.json")
    check_present([files[3]], "x.json")


# Reading


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("grey.jpg", "L"),
        ("cmyk.jpg", "CMYK"),
        ("palette.png", "P"),
        ("palette.gif", "P"),
        ("rgba.png", "RGBA"),
        ("grey_alpha.png", "LA"),
    ],
)
def test_every_mode_looks_the_same(tmp_path, name, mode):
    image = Image.open(draw(tmp_path / name, mode))
    assert image.mode == mode
    plain = Image.open(draw(tmp_path / "plain.png"))
    read, expected = (np.asarray(pixels, dtype=float) for pixels in (as_rgb(image), plain))
    assert read.shape == (32, 40, 3)
    assert abs(read - expected).max() < 8
    transform = clip_transform(16)
    item = ImageDataset([ImageFile(tmp_path / name, name)], transform)[0]
    assert (item[0].int() - transform(plain).int()).abs().max() < 14


def test_one_bit_images(tmp_path):
    assert np.unique(as_rgb(Image.open(draw(tmp_path / "a.png", "1")))).tolist() == [0, 255]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_keeps_its_tones(tmp_path, name):
    tones = np.array([[0, 256, 32768, 65535]], dtype=np.uint16).repeat(4, 0)
    Image.fromarray(tones).save(tmp_path / name)
    assert np.asarray(as_rgb(Image.open(tmp_path / name)))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_float_images_are_refused(tmp_path):
    Image.fromarray(np.random.default_rng(0).random((8, 8), dtype=np.float32)).save(tmp_path / "a.tif")
    image, _, reason = ImageDataset([ImageFile(tmp_path / "a.tif", "a")], clip_transform(8))[0]
    assert image is None
    assert "pixels are floats" in reason


def test_images_are_turned_as_their_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # half a turn
    image = as_rgb(Image.open(draw(tmp_path / "a.jpg", exif=exif)))
    assert image.getpixel((20, 2))[0] > 190
    assert image.getpixel((20, 30))[0] < 50


@pytest.fixture
def folder(tmp_path):
    """Two images, and files between them that are not images."""
    draw(tmp_path / "1.jpg")
    whole = draw(tmp_path / "2_truncated.jpg", size=(200, 200)).read_bytes()
    (tmp_path / "2_truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "3_text.png").write_text("no image")
    (tmp_path / "4_empty.jpg").touch()
    draw(tmp_path / "5.png", "L")
    return tmp_path


NO_IMAGES = ["2_truncated.jpg", "3_text.png", "4_empty.jpg"]


def folder_module(folder, clip_folder, **options):
    return FolderDataModule(str(folder), clip=str(clip_folder), **({"num_workers": 0} | options))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_file_is_listed(folder, clip_folder, num_workers):
    module = folder_module(folder, clip_folder, batch_size=3, num_workers=num_workers)
    module.setup("predict")
    first, second = module.predict_dataloader()
    assert first["image"].shape == (1, 3, 64, 64)
    assert first["image"].dtype == torch.uint8
    assert first["samples"] == [ImageFile(folder / "1.jpg", "1.jpg")]
    assert second["samples"] == [ImageFile(folder / "5.png", "5.png")]
    torch.testing.assert_close(first["image"][0], module.images.transform(Image.open(folder / "1.jpg")))
    reasons = first["unreadable"] + second["unreadable"]
    assert [Path(reason.split(": ")[0]).name for reason in reasons] == NO_IMAGES
    assert "truncated" in reasons[0]


def test_a_batch_with_nothing_readable(folder, clip_folder):
    module = folder_module(folder, clip_folder)
    items = [ImageDataset([ImageFile(folder / name, name)], module.images.transform)[0] for name in NO_IMAGES]
    batch = collate_images(items)
    assert len(batch["image"]) == len(batch["samples"]) == 0
    assert len(batch["unreadable"]) == 3


def test_a_decompression_bomb_is_no_image(folder, clip_folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)  # up to twice as many only warn
    draw(folder / "5.png", size=(150, 100))
    module = folder_module(folder, clip_folder, batch_size=5)
    module.setup("predict")
    (batch,) = module.predict_dataloader()
    assert [sample.image_id for sample in batch["samples"]] == ["1.jpg"]
    assert "decompression bomb" in batch["unreadable"][-1]


class Counting(pl.LightningModule):
    """Counts the images it is given."""

    num_images = 0

    def test_step(self, batch, batch_index):
        self.num_images += len(batch["samples"])

    predict_step = validation_step = test_step


class Untouched(Counting):
    """Must not be reached."""

    def setup(self, stage):
        raise AssertionError("the model was set up")


@pytest.fixture
def trainer():
    return pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)


@pytest.mark.parametrize("stage", ["test", "validate"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_scores_stop_at_unreadable_images_before_the_model_is_used(folder, clip_folder, trainer, stage, num_workers):
    (folder / "6_missing_end.jpg").write_bytes(draw(folder / "6.jpg", size=(99, 99)).read_bytes()[:-40])
    module = folder_module(folder, clip_folder, num_workers=num_workers)
    with pytest.raises(MisconfigurationException, match=r"4 of 7 images cannot be read.*: replace them; ") as caught:
        getattr(trainer, stage)(Untouched(), module)
    assert "\n" not in str(caught.value)
    assert all(f"{folder / name}: " in str(caught.value) for name in NO_IMAGES)
    assert "2_truncated.jpg: it cannot be decoded: image file is truncated" in str(caught.value)
    getattr(trainer, stage)(Counting(), folder_module(folder, clip_folder, num_samples=1))  # of the others


def test_an_image_that_becomes_unreadable_stops_in_one_line(folder, clip_folder, trainer):
    for name in NO_IMAGES:
        (folder / name).rename(folder / f".{name}")
    module = folder_module(folder, clip_folder)
    module.setup("test")
    (folder / ".2_truncated.jpg").replace(module.samples[0].file)
    with pytest.raises(MisconfigurationException, match=r"1\.jpg.*cannot be read.*replace it$"):
        trainer.test(Counting(), module)


def test_prediction_continues_after_an_unreadable_file(folder, clip_folder, trainer):
    model = Counting()
    trainer.predict(model, folder_module(folder, clip_folder, batch_size=2), return_predictions=False)
    assert model.num_images == 2


def test_a_lack_of_images_is_reported_before_the_model_is_used(tmp_path, clip_folder, trainer):
    for images, message in ((tmp_path, "there are no images in"), (tmp_path / "nowhere", "no folder of images at")):
        with pytest.raises(FileNotFoundError, match=message):
            trainer.test(Untouched(), folder_module(images, clip_folder))


# The data module


def test_folders_are_read_recursively_with_paths_as_ids(tmp_path, clip_folder):
    for name in ("b/1.jpg", "a/1.jpg", "c.png"):
        draw(tmp_path / name)
    module = folder_module(tmp_path, clip_folder, batch_size=2)
    module.setup("predict")
    ids = [[sample.image_id for sample in batch["samples"]] for batch in module.predict_dataloader()]
    assert ids == [["c.png", "a/1.jpg"], ["b/1.jpg"]]


@pytest.mark.parametrize(("num_samples", "expected"), [(1, 1), (2, 2), (9, 3), (None, 3)])
def test_num_samples(tmp_path, clip_folder, num_samples, expected):
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        draw(tmp_path / name)
    module = folder_module(tmp_path, clip_folder, num_samples=num_samples)
    module.setup("test")
    assert [sample.image_id for sample in module.samples] == ["1.jpg", "2.jpg", "3.jpg"][:expected]


@pytest.mark.parametrize("num_samples", [0, -1])
def test_num_samples_below_one_are_refused(tmp_path, clip_folder, num_samples):
    with pytest.raises(MisconfigurationException, match=f"num_samples is {num_samples}: give at least 1"):
        folder_module(tmp_path, clip_folder, num_samples=num_samples)


def test_setup_twice_reads_once(tmp_path, clip_folder):
    draw(tmp_path / "1.jpg")
    module = folder_module(tmp_path, clip_folder)
    module.setup("validate")
    samples = module.samples
    draw(tmp_path / "2.jpg")
    module.setup("test")
    assert module.samples is samples


def test_image_size_and_tokenizer_are_those_of_clip(tmp_path, clip_folder):
    draw(tmp_path / "1.jpg")
    module = folder_module(tmp_path, clip_folder, image_size=48)
    module.setup("test")
    (batch,) = module.test_dataloader()
    assert batch["image"].shape == (1, 3, 48, 48)
    assert module.clip_tokenizer(["a fish"]).shape[0] == 1
    assert module.clip_tokenizer is module.clip_tokenizer


def test_lines_of_a_text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf one \r\n\n \ntwo\xc3\xa9\n")
    assert read_lines(path) == ["one", "twoé"]
    path.write_bytes(b"caf\xe9")
    with pytest.raises(MisconfigurationException, match=r"a\.txt is not UTF-8 .*: save it as UTF-8"):
        read_lines(path)
