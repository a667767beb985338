"""Folders of images for each class."""

import pytest
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.data.image_folders import LabelledImage
from vlkd_pl.datamodules.image_folder import ClassFolderDataModule


@pytest.fixture
def folder(tmp_path):
    """Two classes, and files that belong to none."""
    for name in ("red_fish/b.JPEG", "red_fish/more/a.png", "boat/1.jpg", ".cache/1.jpg", "stray.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    return tmp_path / "images"


@pytest.fixture
def build(folder, clip_folder):
    def build_module(**options):
        return ClassFolderDataModule(**{"images": str(folder), "clip": str(clip_folder), "num_workers": 0} | options)

    return build_module


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "class_names.txt"
    path.write_text("ship \n\nfish, red\n", encoding="utf-8")
    return path


def test_classes_are_the_folders_in_order(build, folder):
    module = build(batch_size=2)
    module.setup("test")
    assert module.samples == [
        LabelledImage("boat/1.jpg", folder / "boat" / "1.jpg", 0),
        LabelledImage("red_fish/b.JPEG", folder / "red_fish" / "b.JPEG", 1),
        LabelledImage("red_fish/more/a.png", folder / "red_fish" / "more" / "a.png", 1),
    ]
    assert module.class_names == ["boat", "red fish"]
    assert [[sample.label for sample in batch["samples"]] for batch in module.test_dataloader()] == [[0, 1], [1]]


def test_class_names_from_a_file(build, names):
    module = build(class_names=str(names), num_samples=1)
    module.setup("test")
    assert module.class_names == ["ship", "fish, red"]
    assert len(module.samples) == 1


def test_class_folders_may_be_links(build, folder, tmp_path):
    (folder / "boat").rename(tmp_path / "elsewhere")
    (folder / "boat").symlink_to(tmp_path / "elsewhere")
    module = build()
    module.setup("test")
    assert module.samples[0] == LabelledImage("boat/1.jpg", folder / "boat" / "1.jpg", 0)


def test_another_number_of_names_than_folders(build, names):
    names.write_text("ship\n")
    with pytest.raises(
        MisconfigurationException, match=r"class_names\.txt names 1 classes, but .*images has 2 folders"
    ):
        build(class_names=str(names)).setup("test")


def test_missing_files_are_named(build, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt, the file of class names, does not exist"):
        build(class_names=str(tmp_path / "nowhere.txt")).setup("test")
    with pytest.raises(FileNotFoundError, match=r"no folder of images at .*nowhere"):
        build(images=str(tmp_path / "nowhere")).setup("test")


def test_a_class_without_images_is_named(build, folder):
    (folder / "apple").mkdir()
    (folder / "apple" / "a.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 folders in .*images have no images: .* first: apple$"):
        build().setup("test")


def test_a_folder_without_folders(build, folder):
    with pytest.raises(FileNotFoundError, match=r"there are no folders in .*boat: give one folder of images for each"):
        build(images=str(folder / "boat")).setup("test")
