"""Writes the sample world in the formats of the real data: webdataset shards, COCO caption files, a text corpus."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from pathlib import Path

from vlkd_pl.data.sample.language import captions, random_caption, random_line
from vlkd_pl.data.sample.renderer import IMAGE_SIZE, render
from vlkd_pl.data.sample.scenes import Scene, Split, distinct_scenes, random_scene

MODELS = Path(__file__).parent / "models"
"""The small CLIP and the small BART that ship with the package."""

_EVALUATION_SPLITS: tuple[Split, ...] = ("val", "test", "unseen")


def write_world(folder: Path, num_pairs: int, num_shards: int, num_texts: int, num_evaluation: int, seed: int) -> None:
    """Writes the whole sample world.

    Args:
        folder: Gets ``shards/00000.tar`` … (img2dataset's layout), ``corpus.txt``, ``images/``, ``captions_val.json``,
            ``captions_test.json`` and ``captions_unseen.json`` (COCO's caption format), ``clip/`` and ``bart/``.
        num_pairs: Pictures with captions over all shards.
        num_shards: Shards.
        num_texts: Lines of the text corpus.
        num_evaluation: Pictures of each evaluation split; no two have the same description.
        seed: Decides every scene, picture and line.
    """
    write_shards(folder / "shards", num_pairs, num_shards, random.Random(f"pairs {seed}"))
    write_corpus(folder / "corpus.txt", num_texts, random.Random(f"texts {seed}"))
    first_id = 1
    for split in _EVALUATION_SPLITS:
        rng = random.Random(f"{split} {seed}")
        write_coco_captions(folder, split, distinct_scenes(rng, split, num_evaluation), first_id, rng)
        first_id += num_evaluation
    for name in ("clip", "bart"):
        shutil.copytree(MODELS / name, folder / name, dirs_exist_ok=True)


def write_shards(folder: Path, num_pairs: int, num_shards: int, rng: random.Random) -> None:
    """Writes tar files of ``key.jpg``, ``key.txt`` and ``key.json``, as img2dataset does."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
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
                _add(archive, f"{index:09d}.jpg", _jpeg(scene, rng))
                _add(archive, f"{index:09d}.txt", caption.encode())
                _add(archive, f"{index:09d}.json", json.dumps(record).encode())


def write_corpus(path: Path, num_texts: int, rng: random.Random) -> None:
    """Writes one passage a line."""
    lines: list[str] = []
    while len(lines) < num_texts:
        line = random_line(rng)
        # beside pictures, the prompt of captions must not call for a question after the caption
        if not (line.startswith("A picture of") and "?" in line):
            lines.append(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_coco_captions(folder: Path, split: str, scenes: list[Scene], first_id: int, rng: random.Random) -> None:
    """Writes ``captions_{split}.json`` in COCO's caption format, and the pictures under ``images/{split}/``."""
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


def _jpeg(scene: Scene, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    render(scene, rng).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
