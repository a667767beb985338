"""The benchmark files: their paths in the configurations, their published sizes, and their sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.batch import GLUETask
from vlkd_pl.data.coco_files import read_coco_captions
from vlkd_pl.data.glue_files import LAYOUTS, read_tsv
from vlkd_pl.data.image_files import ImageFinder, check_present
from vlkd_pl.data.vqa_files import read_questions, read_split
from vlkd_pl.data.xsum_files import iter_documents

Counts = dict[str, int]

_IMAGES = "{images}"


class BenchmarkFile(NamedTuple):
    """File of a benchmark, or several files that are read together.

    Attributes:
        names: Paths below the benchmark's folder, or below the folder of COCO's images if they begin with
            ``{images}``.
        read: Function that reads the files and counts their contents by kind; it raises what the data modules raise.
        published: Published counts by kind; any of several numbers is accepted.
        source: Address to download the files from.
        needed: Whether a configuration uses the files.
    """

    names: tuple[str, ...]
    read: Callable[[Sequence[Path]], Counts]
    published: Mapping[str, int | tuple[int, ...]]
    source: str
    needed: bool = True


class FileReport(NamedTuple):
    """Result of the check of a benchmark's file.

    Attributes:
        names: Paths of the files.
        counts: Contents of the files, as text.
        exists: Whether all files exist.
        problem: Problem of the files; empty for none.
        source: Address to download the files from.
        needed: Whether a configuration uses the files.
    """

    names: str
    counts: str
    exists: bool
    problem: str
    source: str
    needed: bool


def check_files(benchmark: str, folder: Path, images: Path) -> Iterator[FileReport]:
    """Check the files of a benchmark against the published counts.

    Args:
        benchmark: Name of the benchmark, a key of ``BENCHMARKS``.
        folder: Folder of the benchmark: ``data/vqav2``.
        images: Folder of COCO's images, with ``train2014`` and ``val2014``: ``data/coco``.

    Yields:
        A report on each file, as soon as it has been read.

    Example:
        >>> report = next(check_files("okvqa", Path("missing"), Path("missing")))
        >>> report.exists, report.needed
        (False, True)
    """
    for file in BENCHMARKS[benchmark]:
        paths = [
            images / name.removeprefix(_IMAGES).lstrip("/") if name.startswith(_IMAGES) else folder / name
            for name in file.names
        ]
        counts: Counts = {}
        missing = [str(path) for path in paths if not path.exists()]
        try:
            counts = {} if missing else file.read(paths)
            problem = f"no {' and no '.join(missing)}" if missing else _difference(counts, file.published)
        except (OSError, MisconfigurationException) as error:
            problem = str(error)
        yield FileReport(
            " and ".join(map(str, paths)),
            ", ".join(f"{count:,} {what}" for what, count in counts.items()),
            not missing,
            problem,
            file.source,
            file.needed,
        )


def _difference(counts: Counts, published: Mapping[str, int | tuple[int, ...]]) -> str:
    wrong = []
    for what, allowed in published.items():
        numbers = allowed if isinstance(allowed, tuple) else (allowed,)
        if counts.get(what, 0) not in numbers:
            wrong.append(f"{' or '.join(f'{number:,}' for number in numbers)} {what} were published")
    return ", ".join(wrong)


def _karpathy(paths: Sequence[Path]) -> Counts:
    (path,) = paths
    counts = {split: len(read_coco_captions(path, split)) for split in ("train", "restval", "val", "test")}
    return counts | {"captions": sum(len(image.references) for image in read_coco_captions(path))}


def _captions(paths: Sequence[Path]) -> Counts:
    images = read_coco_captions(paths[0])
    domains = Counter(image.domain for image in images if image.domain is not None)
    return {
        "images": len(images),
        "captions": sum(len(image.references) for image in images),
        **dict(sorted(domains.items())),
    }


def _questions(paths: Sequence[Path]) -> Counts:
    questions = read_questions(*paths)
    return {"questions": len(questions), "answers": sum(len(question.answers) for question in questions)}


def _split(paths: Sequence[Path]) -> Counts:
    domains = Counter(read_split(paths[0]).values())
    return {"questions": domains.total(), **{name: domains[name] for name in sorted(domains) if name}}


def _images_of_captions(paths: Sequence[Path]) -> Counts:
    annotations, folder = paths
    finder = ImageFinder(folder)
    return _images([finder.by_name(str(image.file)) for image in read_coco_captions(annotations)], annotations)


def _images_of_questions(paths: Sequence[Path]) -> Counts:
    questions, folder = paths
    finder = ImageFinder(folder)
    image_ids = {question.image_id for question in read_questions(questions)}
    return _images([finder.by_number(image_id) for image_id in sorted(image_ids)], questions)


def _images(files: Sequence[Path], named_in: Path) -> Counts:
    """Count images, after checking that every file exists and is not empty.

    Raises:
        FileNotFoundError: The file of an image is missing or empty.
    """
    check_present(files, named_in)
    empty = [str(path) for path in files if path.stat().st_size == 0]
    if empty:
        raise FileNotFoundError(
            f"{len(empty)} of {len(files)} images of {named_in} are empty files: unpack them again; first: "
            f"{', '.join(empty[:3])}"
        )
    return {"images": len(files)}


def _glue_samples(task: GLUETask) -> Callable[[Sequence[Path]], Counts]:
    def read(paths: Sequence[Path]) -> Counts:
        samples, corrupt = read_tsv(paths[0], task)
        return {"samples": len(samples), "corrupt lines": len(corrupt)}

    return read


def _documents(split: str) -> Callable[[Sequence[Path]], Counts]:
    def read(paths: Sequence[Path]) -> Counts:
        usable = Counter(bool(document.text and document.summary) for document in iter_documents(str(paths[0]), split))
        return {f"{split} documents": usable.total(), "of them without text or summary": usable[False]}

    return read


_COCO_ANNOTATIONS = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"
_COCO_IMAGES = "the images, http://images.cocodataset.org/zips/train2014.zip and val2014.zip"
_VQA = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
_OKVQA = "https://okvqa.allenai.org/static/data"
_OKVQA_QUESTIONS = "OpenEnded_mscoco_val2014_questions.json"
_GLUE = "https://dl.fbaipublicfiles.com/glue/data"


def _vqa_files(split: str, archive: str, num_questions: int, num_images: int) -> Iterator[BenchmarkFile]:
    questions = f"v2_OpenEnded_mscoco_{split}_questions.json"
    yield BenchmarkFile(
        (questions, f"v2_mscoco_{split}_annotations.json"),
        _questions,
        {"questions": num_questions, "answers": 10 * num_questions},
        f"{_VQA}/v2_Questions_{archive}_mscoco.zip and {_VQA}/v2_Annotations_{archive}_mscoco.zip",
    )
    yield BenchmarkFile(
        (questions, f"{_IMAGES}/{split}"),
        _images_of_questions,
        {"images": num_images},
        f"the images, http://images.cocodataset.org/zips/{split}.zip",
    )


def _glue_files() -> Iterator[BenchmarkFile]:
    for task, (archive, sizes) in _GLUE_SIZES.items():
        for name, size in sizes.items():
            yield BenchmarkFile(
                (f"{LAYOUTS[task].folder}/{name}.tsv",),
                _glue_samples(task),
                {"samples": size},
                archive,
                needed=not name.startswith("test"),
            )


# Without corrupt lines, as in the card of https://huggingface.co/datasets/nyu-mll/glue. QQP was published twice, the
# second time (QQP-clean) without three of its lines.
_GLUE_SIZES: dict[GLUETask, tuple[str, dict[str, int | tuple[int, ...]]]] = {
    "cola": (f"{_GLUE}/CoLA.zip", {"train": 8_551, "dev": 1_043, "test": 1_063}),
    "sst2": (f"{_GLUE}/SST-2.zip", {"train": 67_349, "dev": 872, "test": 1_821}),
    "rte": (f"{_GLUE}/RTE.zip", {"train": 2_490, "dev": 277, "test": 3_000}),
    "mrpc": (
        "https://dl.fbaipublicfiles.com/senteval/senteval_data/msr_paraphrase_train.txt and msr_paraphrase_test.txt, "
        f"dev by {_GLUE}/mrpc_dev_ids.tsv",
        {"train": 3_668, "dev": 408, "test": 1_725},
    ),
    "qqp": (f"{_GLUE}/QQP-clean.zip", {"train": (363_846, 363_849), "dev": 40_430, "test": 390_965}),
    "mnli": (
        f"{_GLUE}/MNLI.zip",
        {
            "train": 392_702,
            "dev_matched": 9_815,
            "dev_mismatched": 9_832,
            "test_matched": 9_796,
            "test_mismatched": 9_847,
        },
    ),
    "qnli": (f"{_GLUE}/QNLIv2.zip", {"train": 104_743, "dev": 5_463, "test": 5_463}),
    "stsb": (f"{_GLUE}/STS-B.zip", {"train": 5_749, "dev": 1_500, "test": 1_379}),
}

BENCHMARKS: dict[str, list[BenchmarkFile]] = {
    # Karpathy and Fei-Fei (2015): 5,000 images of val2014 each for val and test, the rest for restval; the captions
    # are all of COCO's own files
    "coco": [
        BenchmarkFile(
            ("dataset_coco.json",),
            _karpathy,
            {"train": 82_783, "restval": 30_504, "val": 5_000, "test": 5_000, "captions": 616_767},
            "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
        ),
        BenchmarkFile(
            ("annotations/captions_val2014.json",),
            _captions,
            {"images": 40_504, "captions": 202_654},
            _COCO_ANNOTATIONS,
        ),
        BenchmarkFile(
            ("annotations/captions_train2014.json",),
            _captions,
            {"images": 82_783, "captions": 414_113},
            _COCO_ANNOTATIONS,
            needed=False,
        ),
        BenchmarkFile(("dataset_coco.json", _IMAGES), _images_of_captions, {"images": 123_287}, _COCO_IMAGES),
    ],
    # https://nocaps.org/download
    "nocaps": [
        BenchmarkFile(
            ("nocaps_val_4500_captions.json",),
            _captions,
            {"images": 4_500, "captions": 45_000, "in-domain": 648, "near-domain": 2_938, "out-domain": 914},
            "https://nocaps.s3.amazonaws.com/nocaps_val_4500_captions.json",
        ),
        BenchmarkFile(
            ("nocaps_val_4500_captions.json", "images"),
            _images_of_captions,
            {"images": 4_500},
            "the images, at the addresses in the field coco_url of this file of https://nocaps.org/download",
        ),
        BenchmarkFile(
            ("nocaps_test_image_info.json",),
            _captions,
            {"images": 10_600},
            "https://s3.amazonaws.com/nocaps/nocaps_test_image_info.json",
            needed=False,
        ),
    ],
    # https://visualqa.org/download.html; the images are all of COCO's. The split by rare answers:
    # https://github.com/j-min/VL-T5/issues/6
    "vqav2": [
        *_vqa_files("train2014", "Train", 443_757, 82_783),
        *_vqa_files("val2014", "Val", 214_354, 40_504),
        *(
            BenchmarkFile(
                (f"karpathy_{split}.json",),
                _split,
                published,
                "https://github.com/j-min/VL-T5's data/vqa",
            )
            for split, published in (
                ("train", {"questions": 605_102}),
                ("val", {"questions": 26_729}),
                ("test", {"questions": 26_280, "in-domain": 24_722, "out-of-domain": 1_558}),
            )
        ),
    ],
    # The card of https://huggingface.co/datasets/HuggingFaceM4/OK-VQA; with those for training they are the 14,055
    # questions on 14,031 images of Marino et al. (2019)
    "okvqa": [
        BenchmarkFile(
            (_OKVQA_QUESTIONS, "mscoco_val2014_annotations.json"),
            _questions,
            {"questions": 5_046, "answers": 50_460},
            f"{_OKVQA}/{_OKVQA_QUESTIONS}.zip and {_OKVQA}/mscoco_val2014_annotations.json.zip",
        ),
        BenchmarkFile(
            (_OKVQA_QUESTIONS, f"{_IMAGES}/val2014"),
            _images_of_questions,
            {"images": 5_033},
            "the images, http://images.cocodataset.org/zips/val2014.zip",
        ),
    ],
    "glue": list(_glue_files()),
    # https://github.com/EdinburghNLP/XSum and the card of https://huggingface.co/datasets/EdinburghNLP/xsum
    "xsum": [
        BenchmarkFile(
            (".",),
            _documents(split),
            {f"{split} documents": size},
            "https://huggingface.co/datasets/EdinburghNLP/xsum, which the configuration takes from there itself, or "
            "https://github.com/EdinburghNLP/XSum",
        )
        for split, size in (("train", 204_045), ("val", 11_332), ("test", 11_334))
    ],
}
"""The files of each benchmark that ``vlkd-pl prepare`` checks."""
