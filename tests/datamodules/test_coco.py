"""Caption files of COCO's, Karpathy's and NoCaps' formats, and folders of captioned images."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from file_contents import write_json
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.clip.transform import clip_transform
from vlkd_pl.data.coco_files import CaptionedImage, CaptionFiles, COCOCaptions, read_coco_captions
from vlkd_pl.datamodules.coco import COCODataModule
from vlkd_pl.datamodules.image_folder import CaptionFolderDataModule
from vlkd_pl.datamodules.nocaps import NoCapsDataModule


def draw(path, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((80, 70), 50).convert(mode).save(path)


def set_up(module):
    module.setup("test")
    return module.samples


# The validation of the distillation


@pytest.fixture
def files(tmp_path):
    """Two captioned images, one of them grey, and one without a caption."""
    for name, mode in (("a.jpg", "RGB"), ("b.png", "L")):
        draw(tmp_path / name, mode)
    content = {
        "images": [
            {"id": 5, "file_name": "a.jpg"},
            {"id": 9, "file_name": "none.jpg"},
            {"id": 7, "file_name": "b.png"},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "caption": "grey"},
            {"id": 2, "image_id": 5, "caption": "one"},
            {"id": 3, "image_id": 5, "caption": "two"},
        ],
    }
    write_json(tmp_path / "captions.json", content)
    return tmp_path


def test_images_with_their_captions(files):
    data = COCOCaptions(files / "captions.json", files, clip_transform(32))
    assert [(item["image_id"], item["references"]) for item in (data[0], data[1])] == [
        (5, ["one", "two"]),
        (7, ["grey"]),
    ]
    assert len(data) == 2
    assert data[1]["image"].shape == (3, 32, 32)
    torch.testing.assert_close(data[0]["image"], clip_transform(32)(Image.open(files / "a.jpg")))
    assert len(COCOCaptions(files / "captions.json", files, clip_transform(32), num_samples=1)) == 1


def test_missing_images_are_named(files):
    (files / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images of .*captions.json are missing: .*first: .*b\.png"):
        COCOCaptions(files / "captions.json", files, clip_transform(32))


def test_wrong_files(files):
    with pytest.raises(FileNotFoundError, match="no caption file at"):
        COCOCaptions(files / "nothing.json", files, clip_transform(32))
    for content, message in (
        ("[]", "not a caption file"),
        ("{", "not a caption file"),
        ('{"images": [], "annotations": []}', "no image"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}', "no image with a caption"),
        (
            '{"images": [{"id": "a", "file_name": "a.jpg"}], "annotations": [{"image_id": "a", "caption": "b"}]}',
            "id is not a number",
        ),
    ):
        (files / "wrong.json").write_text(content)
        with pytest.raises(MisconfigurationException, match=message) as caught:
            COCOCaptions(files / "wrong.json", files, clip_transform(32))
        assert "wrong.json" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("list_name", "field", "value", "error"),
    [
        ("annotations", "caption", None, "annotations, entry 2 has null as caption: it must be a text"),
        ("annotations", "caption", 5, "annotations, entry 2 has 5 as caption"),
        ("annotations", "caption", ["one"], "annotations, entry 2 has a list of 1 as caption"),
        ("annotations", "caption", "\ud83d", "annotations, entry 2 has .* as caption"),
        ("annotations", "image_id", None, "annotations, entry 2 has null as image_id: it must be a number or a text"),
        ("annotations", "image_id", 5.0, "annotations, entry 2 has 5.0 as image_id"),
        ("annotations", "image_id", float("nan"), "annotations, entry 2 has NaN as image_id"),
        ("images", "id", True, "images, entry 2 has true as id"),
        ("images", "id", 10**30, "images, entry 2 has 10+ as id"),
        ("images", "file_name", {}, "images, entry 2 has an object of 0 as file_name"),
        ("images", "domain", 5, "images, entry 2 has 5 as domain"),
    ],
)
def test_fields_of_another_type_are_reported_when_the_file_is_read(files, list_name, field, value, error):
    content = json.loads((files / "captions.json").read_text())
    content[list_name][1][field] = value
    write_json(files / "captions.json", content)
    error = rf"^.*captions\.json is not a caption file of COCO's format: {error}[^\n]*$"
    with pytest.raises(MisconfigurationException, match=error):
        COCOCaptions(files / "captions.json", files, clip_transform(32))


@pytest.mark.parametrize("list_name", ["annotations", "images"])
def test_ids_may_be_texts_in_one_place(files, list_name):
    expected = read_coco_captions(files / "captions.json")
    content = json.loads((files / "captions.json").read_text())
    for item in content[list_name]:
        key = "image_id" if "image_id" in item else "id"
        item[key] = str(item[key])
    write_json(files / "captions.json", content)
    assert read_coco_captions(files / "captions.json") == expected
    assert len(COCOCaptions(files / "captions.json", files, clip_transform(32))) == 2


def test_a_byte_order_mark_is_no_harm(files):
    expected = read_coco_captions(files / "captions.json")
    (files / "captions.json").write_bytes(b"\xef\xbb\xbf" + (files / "captions.json").read_bytes())
    assert read_coco_captions(files / "captions.json") == expected


# COCO


@pytest.fixture
def coco_file(tmp_path):
    """captions_val2014.json as COCO publishes it, with two images."""
    ids = (391895, 42)
    content = {
        "info": {"description": "COCO 2014 Dataset", "version": "1.0", "year": 2014, "contributor": "", "url": ""},
        "images": [
            {
                "license": 3,
                "file_name": f"COCO_val2014_{image_id:012d}.jpg",
                "coco_url": f"http://images.cocodataset.org/val2014/COCO_val2014_{image_id:012d}.jpg",
                "height": 70,
                "width": 80,
                "date_captured": "2013-11-14 11:18:45",
                "flickr_url": "",
                "id": image_id,
            }
            for image_id in ids
        ],
        "licenses": [{"url": "", "id": 3, "name": "Attribution-NonCommercial-NoDerivs License"}],
        "annotations": [
            {"image_id": 42, "id": 641613, "caption": "A dog among shoes."},
            {"image_id": 391895, "id": 770337, "caption": "A man on a dirt bike. "},
            {"image_id": 42, "id": 645309, "caption": "Shoes with a dog — asleep."},
        ],
    }
    for image in content["images"]:
        draw(tmp_path / "val2014" / image["file_name"])
    return write_json(tmp_path / "captions_val2014.json", content)


def test_a_coco_file(coco_file, tmp_path, clip_folder):
    module = COCODataModule(coco_file, str(tmp_path / "val2014"), clip=str(clip_folder), num_workers=0)
    assert set_up(module) == [
        CaptionedImage(
            391895, tmp_path / "val2014" / "COCO_val2014_000000391895.jpg", ["A man on a dirt bike. "], None
        ),
        CaptionedImage(
            42,
            tmp_path / "val2014" / "COCO_val2014_000000000042.jpg",
            ["A dog among shoes.", "Shoes with a dog — asleep."],
        ),
    ]
    (batch,) = module.test_dataloader()
    assert batch["image"].shape == (2, 3, 64, 64)
    assert batch["samples"] == module.samples
    assert batch["unreadable"] == []


def test_a_coco_file_without_captions(coco_file, tmp_path, clip_folder):
    content = json.loads(Path(coco_file).read_text())
    del content["annotations"]
    path = write_json(tmp_path / "image_info_test2014.json", content)
    samples = set_up(COCODataModule(path, str(tmp_path / "val2014"), clip=str(clip_folder)))
    assert [(sample.image_id, sample.references) for sample in samples] == [(391895, []), (42, [])]


def test_a_coco_file_has_no_splits(coco_file, tmp_path, clip_folder):
    module = COCODataModule(coco_file, str(tmp_path / "val2014"), "test", clip=str(clip_folder))
    with pytest.raises(MisconfigurationException, match=r"captions_val2014.json has no splits: give .* or leave split"):
        module.setup("test")


def test_only_images_that_are_used_must_exist(coco_file, tmp_path, clip_folder):
    (tmp_path / "val2014" / "COCO_val2014_000000000042.jpg").unlink()
    options = {"annotations": coco_file, "images": str(tmp_path / "val2014"), "clip": str(clip_folder)}
    assert [sample.image_id for sample in set_up(COCODataModule(num_samples=1, **options))] == [391895]
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images of .*json are missing: .*000042.jpg$"):
        COCODataModule(**options).setup("test")
    with pytest.raises(FileNotFoundError, match=r"no folder of images at .*nowhere"):
        COCODataModule(**options | {"images": str(tmp_path / "nowhere")}).setup("test")


@pytest.fixture
def karpathy(tmp_path):
    """dataset_coco.json as Karpathy publishes it, with an image of each split."""
    images = []
    for number, (split, folder) in enumerate(
        (("test", "val2014"), ("restval", "val2014"), ("train", "train2014"), ("val", "val2014"), ("test", "val2014"))
    ):
        sentences = [
            {
                "tokens": ["image", str(number), word],
                "raw": f"Image {number}, {word}.",
                "imgid": number,
                "sentid": 10 * number + index,
            }
            for index, word in enumerate(("one", "two"))
        ]
        images.append(
            {
                "filepath": folder,
                "sentids": [sentence["sentid"] for sentence in sentences],
                "filename": f"COCO_{folder}_{100 + number:012d}.jpg",
                "imgid": number,
                "split": split,
                "sentences": sentences,
                "cocoid": 100 + number,
            }
        )
        draw(tmp_path / folder / images[-1]["filename"])
    return write_json(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})


def test_karpathys_splits(karpathy, tmp_path, clip_folder):
    samples = set_up(COCODataModule(karpathy, str(tmp_path), "test", clip=str(clip_folder)))
    assert samples == [
        CaptionedImage(
            number, tmp_path / "val2014" / f"COCO_val2014_{number:012d}.jpg", [f"Image {n}, {w}." for w in words]
        )
        for number, n, words in ((100, 0, ("one", "two")), (104, 4, ("one", "two")))
    ]
    for split, ids in (("restval", [101]), ("train", [102]), ("val", [103]), (None, [100, 101, 102, 103, 104])):
        assert [sample.image_id for sample in read_coco_captions(karpathy, split)] == ids


def test_karpathys_images_without_their_sub_folders(karpathy, tmp_path, clip_folder):
    folder = str(tmp_path / "val2014")
    samples = set_up(COCODataModule(karpathy, folder, "test", clip=str(clip_folder)))
    assert [sample.file.parent for sample in samples] == [tmp_path / "val2014"] * 2
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images of .*dataset_coco.json are missing"):
        COCODataModule(karpathy, folder, "train", clip=str(clip_folder)).setup("test")


def test_an_unknown_split(karpathy):
    with pytest.raises(MisconfigurationException, match=r"no image of the split dev: give train, restval, val or test"):
        read_coco_captions(karpathy, "dev")


def test_an_image_twice(coco_file, karpathy):
    for path, repeated in ((coco_file, 42), (karpathy, 104)):
        content = json.loads(Path(path).read_text())
        content["images"].append(content["images"][-1])
        write_json(Path(path), content)
        with pytest.raises(MisconfigurationException, match=rf"json holds images more than once: .*\[{repeated}\]"):
            read_coco_captions(path)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"images": {"a": 1}},
        {"images": [1]},
        {"images": [{"id": 1}]},
        {"images": [{"id": 1, "file_name": None}]},
        {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]},
        {"images": [{"sentences": [{"raw": "a"}], "filename": "a.jpg"}]},
        {"images": [{"sentences": ["a"], "filename": "a.jpg", "cocoid": 1}]},
        {"images": [{"sentences": None, "filename": "a.jpg", "cocoid": 1}]},
        {"images": [{"sentences": [{"raw": None}], "filename": "a.jpg", "cocoid": 1}]},
        {"images": [{"sentences": [{"raw": "a"}], "filename": "a.jpg", "cocoid": None}]},
        {"images": [{"sentences": [{"raw": "a"}], "filename": "a.jpg", "filepath": None, "cocoid": 1}]},
        {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": None},
        None,
        5,
        "images",
        [],
    ],
)
def test_other_formats_are_reported_in_one_line(tmp_path, content):
    path = write_json(tmp_path / "other.json", content)
    with pytest.raises(MisconfigurationException, match=r"^.*other\.json is not a caption file of COCO's format: .*$"):
        read_coco_captions(path)


# Training


def training(path, folder, clip_folder, split=None, **options):
    """A module that trains on these files, and its loader."""
    module = COCODataModule(
        path,
        str(folder),
        split if isinstance(split, str) else None,
        train=CaptionFiles(path, str(folder), split),
        clip=str(clip_folder),
        num_workers=0,
        **options,
    )
    module.setup("fit")
    return module, module.train_dataloader()


def test_training_is_on_train_and_restval_by_caption(karpathy, tmp_path, clip_folder):
    module, loader = training(karpathy, tmp_path, clip_folder, ["train", "restval"], train_batch_size=4)
    assert module.training_references() == {
        102: ["Image 2, one.", "Image 2, two."],
        101: ["Image 1, one.", "Image 1, two."],
    }
    (batch,) = loader
    assert batch["image"].shape == (4, 3, 64, 64)
    labels = sorted(
        (sample.image_id, *captions) for sample, captions in zip(batch["samples"], batch["labels"], strict=True)
    )
    assert labels == [(n, f"Image {n - 100}, {word}.") for n in (101, 102) for word in ("one", "two")]


def test_training_by_image_has_all_captions_of_each(coco_file, tmp_path, clip_folder):
    _, loader = training(coco_file, tmp_path / "val2014", clip_folder, train_by="image", train_batch_size=2)
    (batch,) = loader
    labels = {sample.image_id: captions for sample, captions in zip(batch["samples"], batch["labels"], strict=True)}
    assert labels == {
        391895: ["A man on a dirt bike. "],
        42: ["A dog among shoes.", "Shoes with a dog — asleep."],
    }


def test_validation_can_have_other_files(karpathy, coco_file, tmp_path, clip_folder):
    val = CaptionFiles(coco_file, str(tmp_path / "val2014"))
    module = COCODataModule(karpathy, str(tmp_path), "test", val=val, train=val, clip=str(clip_folder))
    for stage, ids in (("fit", [391895, 42]), ("validate", [391895, 42]), ("test", [100, 104])):
        module.setup(stage)
        assert [sample.image_id for sample in module.samples] == ids
    assert list(dict.fromkeys(sample.image_id for sample in module.training)) == [391895, 42]


def order_of(loader):
    return [
        (sample.image_id, *captions) for b in loader for sample, captions in zip(b["samples"], b["labels"], strict=True)
    ]


def test_each_epoch_has_another_order_of_the_same_seed(karpathy, tmp_path, clip_folder):
    module, loader = training(karpathy, tmp_path, clip_folder, ["test", "train", "val"], train_batch_size=1)
    first = order_of(loader)
    module.load_state_dict({"num_trained_batches": 8})
    second = order_of(loader)
    assert sorted(first) == sorted(second)
    assert first != second
    again, loader = training(karpathy, tmp_path, clip_folder, ["test", "train", "val"], train_batch_size=1)
    assert order_of(loader) == first
    again.load_state_dict({"num_trained_batches": 11})
    assert order_of(loader) == second[3:]
    _, loader = training(karpathy, tmp_path, clip_folder, ["test", "train", "val"], train_batch_size=1, seed=1)
    assert order_of(loader) != first


def test_batches_are_counted_when_they_are_trained_on(karpathy, tmp_path, clip_folder):
    module, loader = training(karpathy, tmp_path, clip_folder, "test", train_batch_size=1)
    module.trainer = SimpleNamespace(training=True, predicting=False)
    for batch in [*loader][:3]:
        module.on_before_batch_transfer(batch, 0)
    module.trainer.training = False
    for batch in module.val_dataloader():
        module.on_before_batch_transfer(batch, 0)
    assert module.state_dict() == {"num_trained_batches": 3}


def test_nothing_to_train_on(coco_file, tmp_path, clip_folder):
    module = COCODataModule(coco_file, str(tmp_path / "val2014"), clip=str(clip_folder))
    with pytest.raises(MisconfigurationException, match=r"nothing to train on: give data\.train"):
        module.setup("fit")
    content = json.loads(Path(coco_file).read_text()) | {"annotations": []}
    with pytest.raises(MisconfigurationException, match=r"bare\.json holds no caption to train on"):
        training(write_json(tmp_path / "bare.json", content), tmp_path / "val2014", clip_folder)


# NoCaps


@pytest.fixture
def nocaps(tmp_path):
    """nocaps_val_4500_captions.json as NoCaps publishes it, with an image of each domain."""
    domains = ("in-domain", "near-domain", "out-domain")
    content = {
        "licenses": [],
        "info": {"url": "http://nocaps.org", "date_created": "2018/11/06", "version": "0.1", "year": 2018},
        "images": [
            {
                "id": number,
                "open_images_id": f"0013ea208702090{number}",
                "height": 70,
                "width": 80,
                "coco_url": "",
                "file_name": f"0013ea208702090{number}.jpg",
                "license": 0,
                "date_captured": "2018-11-06 11:04:33",
                "domain": domain,
            }
            for number, domain in enumerate(domains)
        ],
        "annotations": [
            {"image_id": number, "id": 10 * number + index, "caption": f"Caption {index} of {number}."}
            for number in range(3)
            for index in range(10)
        ],
    }
    for image in content["images"]:
        draw(tmp_path / "nocaps" / image["file_name"])
    return write_json(tmp_path / "nocaps_val_4500_captions.json", content)


def test_nocaps_validation_has_domains(nocaps, tmp_path, clip_folder):
    samples = set_up(NoCapsDataModule(nocaps, str(tmp_path / "nocaps"), clip=str(clip_folder)))
    assert [sample.domain for sample in samples] == ["in-domain", "near-domain", "out-domain"]
    assert samples[2].references == [f"Caption {index} of 2." for index in range(10)]
    assert samples[2].file == tmp_path / "nocaps" / "0013ea2087020902.jpg"


def test_nocaps_test_has_neither_captions_nor_domains(nocaps, tmp_path, clip_folder):
    content = json.loads(Path(nocaps).read_text())
    del content["annotations"]
    for image in content["images"]:
        del image["domain"]
    path = write_json(tmp_path / "nocaps_test_image_info.json", content)
    samples = set_up(NoCapsDataModule(path, str(tmp_path / "nocaps"), clip=str(clip_folder)))
    assert [(sample.image_id, sample.references, sample.domain) for sample in samples] == [
        (number, [], None) for number in range(3)
    ]


def test_captions_without_domains_are_not_nocaps(coco_file, tmp_path, clip_folder):
    module = NoCapsDataModule(coco_file, str(tmp_path / "val2014"), clip=str(clip_folder))
    with pytest.raises(MisconfigurationException, match=r"captions_val2014\.json has images without the field domain"):
        module.setup("test")


# Folders of captioned images


@pytest.fixture
def caption_folder(tmp_path):
    for name, text in (("b/1.jpg", "a fish\n\n a red fish \n"), ("a/2.PNG", "\ufeffein Boot über See\r\nein Boot")):
        draw(tmp_path / "own" / name)
        (tmp_path / "own" / name).with_suffix(".txt").write_bytes(text.encode())
    return tmp_path / "own"


def test_a_folder_with_captions(caption_folder, clip_folder):
    (caption_folder / "b" / "1.json").write_text("{}")  # as img2dataset leaves
    assert set_up(CaptionFolderDataModule(str(caption_folder), clip=str(clip_folder))) == [
        CaptionedImage("a/2.PNG", caption_folder / "a" / "2.PNG", ["ein Boot über See", "ein Boot"]),
        CaptionedImage("b/1.jpg", caption_folder / "b" / "1.jpg", ["a fish", "a red fish"]),
    ]


def test_images_without_captions_are_named(caption_folder, clip_folder):
    draw(caption_folder / "3.jpg")
    (caption_folder / "b" / "1.txt").write_text(" \n")
    with pytest.raises(FileNotFoundError, match=r"2 of 3 images in .*own have no captions .*3\.jpg, .*1\.jpg$"):
        CaptionFolderDataModule(str(caption_folder), clip=str(clip_folder)).setup("test")


def test_captions_in_another_encoding(caption_folder, clip_folder):
    (caption_folder / "b" / "1.txt").write_bytes("über".encode("latin-1"))
    with pytest.raises(MisconfigurationException, match=r"1\.txt is not UTF-8"):
        CaptionFolderDataModule(str(caption_folder), clip=str(clip_folder)).setup("test")


def test_an_empty_folder(tmp_path, clip_folder):
    with pytest.raises(FileNotFoundError, match=f"there are no images in {tmp_path}: give another folder"):
        CaptionFolderDataModule(str(tmp_path), clip=str(clip_folder)).setup("test")


def test_captions_without_a_list_of_images(tmp_path):
    rows = [(7, "a fish"), (5, "a boat"), (7, "one fish")]
    write_json(tmp_path / "bare.json", {"annotations": [{"image_id": key, "caption": text} for key, text in rows]})
    read = read_coco_captions(tmp_path / "bare.json")
    assert [(image.image_id, image.references) for image in read] == [(7, ["a fish", "one fish"]), (5, ["a boat"])]
