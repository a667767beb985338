"""Writing of the sample world in the formats of the real data: webdataset shards, a text corpus, captions, classes."""

from __future__ import annotations

import io
import json
import math
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from vlkd_pl.sample import BART_FOLDER, CLIP_FOLDER
from vlkd_pl.sample.glue import write_glue
from vlkd_pl.sample.language import captions, random_caption, random_line
from vlkd_pl.sample.renderer import IMAGE_SIZE, render
from vlkd_pl.sample.scenes import (
    COLORS,
    OBJECTS,
    PLACES,
    SIZES,
    UNSEEN_COMBINATIONS,
    Item,
    Scene,
    Split,
    distinct_scenes,
    random_scene,
)
from vlkd_pl.sample.vqa import DATE, file_info, write_questions
from vlkd_pl.sample.xsum import write_documents

Domain = Literal["in-domain", "near-domain", "out-domain"]
"""NoCaps' domains: training images hold all, some or none of a scene's combinations of color and object."""

_QUESTION_SHARE = 0.5
"""Share of the corpus's lines that must be a passage with its question, in addition to those that are by chance."""
_SPLITS: tuple[Split, ...] = ("val", "test", "unseen", "train")
_UNSEEN_SHARE: dict[Domain, float] = {"in-domain": 0.0, "near-domain": 0.5, "out-domain": 1.0}


def write_world(
    folder: Path,
    num_pairs: int,
    num_shards: int,
    num_texts: int,
    num_evaluation: int,
    seed: int,
    num_finetuning: int = 2000,
) -> None:
    """Write the whole sample world.

    Args:
        folder: Folder that the world is written to; for training,

            - ``shards/00000.tar`` … in img2dataset's layout and ``corpus.txt``, one passage a line, a tab
              before a question about it;
            - ``clip/`` and ``bart/``, the small models;

            and for fine-tuning and evaluation, with the images under ``images/`` and {split} one of ``train``,
            ``val``, ``test`` and ``unseen``,

            - ``captions_{split}.json``: COCO's caption format;
            - ``dataset_coco.json``: ``train``, ``val`` and ``test`` in the format of Karpathy's splits;
            - ``vqa_questions_{split}.json`` and ``vqa_annotations_{split}.json``: VQA v2's format;
            - ``vqa_karpathy_{split}.json``: VL-T5's split of them by rare answers;
            - ``okvqa_questions_{split}.json`` and ``okvqa_annotations_{split}.json``: OK-VQA's format, knowledge
              questions about facts in the corpus; for evaluation, of objects whose facts training hardly asks for;
            - ``nocaps_val_captions.json`` and ``nocaps_test_image_info.json``: NoCaps' format, with other images;
            - ``classes/test/{object}/`` and ``class_names.txt``: a folder of images for each class;
            - ``glue/``: the eight tasks of GLUE in its format, in the same language;
            - ``xsum/{split}.source`` and ``.target`` for ``train``, ``val`` and ``test``: documents and summaries in
              the format of fairseq's XSum, one a line, in the same language.
        num_pairs: Number of images with captions in all shards.
        num_shards: Number of shards.
        num_texts: Number of lines of the text corpus.
        num_evaluation: Number of images of each evaluation split, all with different descriptions; NoCaps' files get
            three tenths of it for each domain, and the class folders together about as many.
        seed: Seed of all scenes, images and lines.
        num_finetuning: Number of images of the split ``train``, and of lines of each training set of GLUE.
    """
    write_shards(folder / "shards", num_pairs, num_shards, random.Random(f"pairs {seed}"))
    write_corpus(folder / "corpus.txt", num_texts, random.Random(f"texts {seed}"))
    scenes: dict[str, dict[int, Scene]] = {}
    first_id = 1
    for split in _SPLITS:
        rng = random.Random(f"{split} {seed}")
        drawn = distinct_scenes(rng, split, num_finetuning if split == "train" else num_evaluation)
        write_coco_captions(folder, split, drawn, first_id, rng)
        write_questions(folder, split, drawn, first_id, random.Random(f"vqa {split} {seed}"))
        scenes[split] = dict(enumerate(drawn, start=first_id))
        first_id += len(drawn)
    write_karpathy(folder, {split: scenes[split] for split in ("train", "val", "test")})
    write_nocaps(folder, math.ceil(3 * num_evaluation / 10), random.Random(f"nocaps {seed}"))
    write_classes(folder, math.ceil(num_evaluation / len(OBJECTS)), random.Random(f"classes {seed}"))
    for split in ("train", "val", "test"):
        write_documents(folder / "xsum", split, list(scenes[split].values()), random.Random(f"xsum {split} {seed}"))
    write_glue(folder / "glue", num_finetuning, num_evaluation, random.Random(f"glue {seed}"))
    for source in (CLIP_FOLDER, BART_FOLDER):
        shutil.copytree(source, folder / Path(source).name, dirs_exist_ok=True)


def write_shards(folder: Path, num_pairs: int, num_shards: int, rng: random.Random) -> None:
    """Write shards of ``key.jpg``, ``key.txt`` and ``key.json``, in img2dataset's format.

    Args:
        folder: Folder that the shards are written to.
        num_pairs: Number of images with captions in all shards.
        num_shards: Number of shards.
        rng: Random generator of the scenes, captions and images.
    """
    from webdataset.writer import TarWriter  # imports torch, which the command's --help need not

    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        with (folder / f"{shard:05d}.tar").open("wb") as file, TarWriter(file, encoder=False, mtime=0) as archive:
            for index in range(num_pairs * shard // num_shards, num_pairs * (shard + 1) // num_shards):
                scene = random_scene(rng, "train")
                caption = random_caption(rng, scene)
                record = {
                    "key": f"{index:09d}",
                    "caption": caption,
                    "width": IMAGE_SIZE,
                    "height": IMAGE_SIZE,
                    "status": "success",
                }
                parts = {"jpg": _jpeg(scene, rng), "txt": caption.encode(), "json": json.dumps(record).encode()}
                archive.write({"__key__": record["key"], **parts})


def write_corpus(path: Path, num_texts: int, rng: random.Random) -> None:
    """Write the text corpus, one passage a line; a tab separates a passage from what is reconstructed from it.

    That is a question with its answer, or the passage in the caption prompt, which also stands alone on a line.
    """
    lines: list[str] = []
    while len(lines) < num_texts:
        line = random_line(rng, _QUESTION_SHARE)
        is_caption = line.text.startswith("A picture of")
        # in training with images, a question must not become the continuation of the caption prompt
        if not (is_caption and "?" in line.text):
            lines.append(line.in_corpus)
        if is_caption and "?" not in line.text:
            lines.append(f"{line.text.removeprefix('A picture of ')}\t{line.text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines[:num_texts]), encoding="utf-8")


def write_coco_captions(folder: Path, split: str, scenes: list[Scene], first_id: int, rng: random.Random) -> None:
    """Write ``captions_{split}.json`` in COCO's caption format, and the images under ``images/{split}/``."""
    images, annotations = [], []
    (folder / "images" / split).mkdir(parents=True, exist_ok=True)
    for image_id, scene in enumerate(scenes, start=first_id):
        name = f"{split}/{image_id:012d}.jpg"
        (folder / "images" / name).write_bytes(_jpeg(scene, rng))
        images.append({"id": image_id, "file_name": name, "width": IMAGE_SIZE, "height": IMAGE_SIZE})
        annotations += [
            {"id": 10 * image_id + index, "image_id": image_id, "caption": caption}
            for index, caption in enumerate(captions(scene))
        ]
    info = {"description": f"sample world, split {split}", "version": "1.0"}
    content = {"info": info, "licenses": [], "images": images, "annotations": annotations}
    (folder / f"captions_{split}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def write_karpathy(folder: Path, scenes: Mapping[str, Mapping[int, Scene]]) -> None:
    """Write ``dataset_coco.json``: the images and captions of ``write_coco_captions`` in Karpathy's format.

    Args:
        folder: Folder that the file is written to; an image is ``images/{filepath}/{filename}``.
        scenes: Scenes of each split, by the ids of their images.
    """
    images: list[dict[str, Any]] = []
    for split, split_scenes in scenes.items():
        for image_id, scene in split_scenes.items():
            sentences = [
                {"tokens": re.findall(r"\w+", text), "raw": text, "imgid": len(images), "sentid": 10 * image_id + index}
                for index, text in enumerate(captions(scene))
            ]
            images.append(
                {
                    "filepath": split,
                    "sentids": [sentence["sentid"] for sentence in sentences],
                    "filename": f"{image_id:012d}.jpg",
                    "imgid": len(images),
                    "split": split,
                    "sentences": sentences,
                    "cocoid": image_id,
                }
            )
    content = {"images": images, "dataset": "coco"}
    (folder / "dataset_coco.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def write_nocaps(folder: Path, num_domain: int, rng: random.Random) -> None:
    """Write ``nocaps_val_captions.json`` and ``nocaps_test_image_info.json``, the images under ``images/nocaps/``.

    The format is NoCaps' (https://nocaps.org/download); the test file has no captions and domains. All scenes
    are held out of training, but one description may come twice: few scenes hold unseen combinations alone.

    Args:
        folder: Folder that the two files and the images are written to.
        num_domain: Number of images of each domain in each file.
        rng: Random generator of the scenes and images.
    """
    (folder / "images" / "nocaps").mkdir(parents=True, exist_ok=True)
    domains = list(_UNSEEN_SHARE) * num_domain
    for part in ("val", "test"):
        first_id = 0 if part == "val" else len(domains)
        images, annotations = [], []
        for image_id, domain in enumerate(domains, start=first_id):
            scene = _scene_of_domain(rng, domain)
            # ends in a letter, since a number at the end would be taken for an id of COCO
            open_images_id = f"{image_id:015x}f"
            (folder / "images" / "nocaps" / f"{open_images_id}.jpg").write_bytes(_jpeg(scene, rng))
            images.append(
                {
                    "id": image_id,
                    "open_images_id": open_images_id,
                    "file_name": f"nocaps/{open_images_id}.jpg",
                    "coco_url": "",
                    "width": IMAGE_SIZE,
                    "height": IMAGE_SIZE,
                    "license": 0,
                    "date_captured": DATE,
                    **({"domain": domain} if part == "val" else {}),
                }
            )
            annotations += [
                {"image_id": image_id, "id": 5 * image_id + index, "caption": caption}
                for index, caption in enumerate(captions(scene))
            ]
        content = {"info": file_info(f"sample world, novel combinations, {part}"), "licenses": [], "images": images}
        name = "nocaps_test_image_info.json"
        if part == "val":
            content["annotations"] = annotations
            name = "nocaps_val_captions.json"
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


def write_classes(folder: Path, num_class: int, rng: random.Random) -> None:
    """Write images of one object under ``classes/test/{object}/``, and ``class_names.txt``, one class a line.

    The scenes are those of the split ``test``, and come more than once: its images differ, its descriptions are few.

    Args:
        folder: Folder that the class folders, in torchvision's ``ImageFolder`` layout, and the file are written to.
        num_class: Number of images of each class.
        rng: Random generator of the scenes and images.
    """
    for name in OBJECTS:
        every = [
            Scene("one", (Item(color, name),), place, size=size)
            for color in COLORS
            for place in PLACES
            for size in SIZES
        ]
        held_out = [scene for scene in every if scene.split == "test"]
        (folder / "classes" / "test" / name).mkdir(parents=True, exist_ok=True)
        for index in range(num_class):
            path = folder / "classes" / "test" / name / f"{index}.jpg"
            path.write_bytes(_jpeg(rng.choice(held_out), rng))
    (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in sorted(OBJECTS)), encoding="utf-8")


def _scene_of_domain(rng: random.Random, domain: Domain) -> Scene:
    while True:
        scene = random_scene(rng, "test")
        unseen = [Item(*combination) for combination in rng.sample(sorted(UNSEEN_COMBINATIONS), len(scene.items))]
        swapped = [rng.random() < _UNSEEN_SHARE[domain] for _ in unseen]
        items = [new if swap else item for new, item, swap in zip(unseen, scene.items, swapped, strict=True)]
        scene = replace(scene, items=tuple(items))
        mixed = any(swapped) and not all(swapped)
        distinct = len({item.object for item in items}) == len(items)
        # half of the scenes with an unseen combination are in the text corpus
        if distinct and mixed == (domain == "near-domain") and scene.split in ("test", "unseen"):
            return scene


def _jpeg(scene: Scene, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    render(scene, rng).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
