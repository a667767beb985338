"""Every figure of the sample world over several seeds, with 95% intervals.

python benchmarks/sample_world.py run distilled objectives --seeds 0 1 2 3 4
python benchmarks/sample_world.py report

``run`` draws the sample world and caches its features where they are missing, and repeats nothing that is finished; two
calls for different seeds may run at the same time. ``report`` prints the tables of docs/sample_world.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import statistics
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

from vlkd_pl.batch import GLUE_LABELS
from vlkd_pl.cli import main as vlkd_pl
from vlkd_pl.data.vqa_files import read_questions
from vlkd_pl.files import write_text
from vlkd_pl.models.decoding import Decoding, answer
from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.sample import BART_FOLDER, CLIP_FOLDER
from vlkd_pl.sample.language import captions, questions
from vlkd_pl.sample.scenes import distinct_scenes

WORLD = Path("runs/sample/world")
FEATURES = Path("runs/sample/features")
CANDIDATES = Path("runs/sample/answers.txt")
RUNS = Path("runs/figures")

# two-sided 95% quantiles of Student's t for 1 to 9 degrees of freedom
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

_QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger.class_path=CSVLogger",
]


@dataclass(frozen=True)
class Row:
    """A model of a table: how it is trained, and what it is tested on.

    Attributes:
        fit: Configurations and options of ``vlkd-pl fit``; empty for a model of another row.
        tests: Names of entries of ``TESTS`` or ``TEXT_TASKS``.
        model_of: Row whose model is tested, or that training starts from; empty for plain BART.
        route: Route of text in the tasks of ``TEXT_TASKS``.
    """

    fit: tuple[str, ...] = ()
    tests: tuple[str, ...] = ("captions", "answers")
    model_of: str = ""
    route: str = "around"


def _options(*configs: str, **options: str) -> tuple[str, ...]:
    return (*(f"--config={name}.yaml" for name in configs), *(f"--{key}={value}" for key, value in options.items()))


def _questions(kind: str, split: str) -> dict[str, str]:
    return {
        "data.questions": f"{WORLD}/{kind}_questions_{split}.json",
        "data.annotations": f"{WORLD}/{kind}_annotations_{split}.json",
        "data.images": f"{WORLD}/images/{split}",
    }


_ANSWERS = ("zeroshot_vqav2", "sample/zeroshot_vqav2")
_KNOWLEDGE = ("zeroshot_okvqa", "sample/zeroshot_okvqa")
_CAPTIONS = ("sample/distill", "sample/after")
_UNSEEN = {"data.evaluation.test_captions": f"{WORLD}/captions_unseen.json"}

_RERANKED = {"model.decoding.num_candidates": "6", "model.decoding.rerank": "true"}
_SAMPLED = {"model.decoding.num_beams": "1", "model.decoding.num_candidates": "16", "model.decoding.sample": "true"}
_CAPTION_STRATEGIES = {
    "captions": {},
    "captions, greedy": {"model.decoding.num_beams": "1"},
    "captions, free decoding": {"model.decoding.reading": "free"},
    "captions, of six beams the nearest": _RERANKED,
    "captions, of 16 samples the nearest": _RERANKED | _SAMPLED,
}
_ANSWER_STRATEGIES = {
    "answers": {},
    "caption-then-answer": {"model.caption_first": "true"},
    "answers, free decoding": {"model.decoding.reading": "free"},
    "answers, from a list": {"model.candidates": str(CANDIDATES)},
    "answers, of six beams the nearest": {"model.decoding.num_beams": "6"} | _RERANKED,
}
_STRATEGIES = {
    f"{name}{suffix}": _options(*configs, **data, **options)
    for suffix, split, captions_of in (("", "test", {}), (", unseen", "unseen", _UNSEEN))
    for configs, data, strategies in (
        (_CAPTIONS, captions_of, _CAPTION_STRATEGIES),
        (_ANSWERS, _questions("vqa", split), _ANSWER_STRATEGIES),
    )
    for name, options in strategies.items()
}

TESTS: dict[str, tuple[str, ...]] = {
    **_STRATEGIES,
    **{f"captions, m={m}": _options(*_CAPTIONS, **{"model.num_masks": str(m)}) for m in (1, 2, 4, 5, 6, 8)},
    "knowledge": _options(*_KNOWLEDGE, **_questions("okvqa", "test")),
    "answers by domain": _options("vqa_karpathy", "sample/vqa_karpathy"),
    "captions, fine-tuned": _options("captioning_coco", "sample/captioning_coco"),
    "answers, fine-tuned": _options("vqa_vqav2", "sample/vqa_vqav2"),
    "knowledge, fine-tuned": _options("zeroshot_okvqa", "overlays/okvqa_finetuned", "sample/zeroshot_okvqa"),
}
"""Options of ``vlkd-pl test`` by the name of the test."""

TEXT_TASKS: dict[str, tuple[str, ...]] = {
    **{task: _options("glue", "sample/glue", **{"model.task": task}) for task in GLUE_LABELS},
    "XSum": _options("summarization_xsum", "sample/summarization_xsum"),
}
"""Options of ``vlkd-pl fit`` and ``vlkd-pl test`` by the name of the task that a model is fine-tuned and tested on."""

_DISTILL = ("--config=sample/distill.yaml", f"--data.features={FEATURES}")
_FINE_TUNED_ANSWERS = ("answers, fine-tuned", "knowledge, fine-tuned")
_PAPER = (*_DISTILL, "--config=sample/paper.yaml")
_WITHOUT_BOTH = ("--model.ttdm_weight=0", "--model.itcl_weight=0")
_MORE_MASKS = (*_PAPER, "--data.masking.mask_share=[0.3,0.8,1.0,1.0,1.0]")
_ALL_TESTS = ("captions", "captions, unseen", "answers", "answers, unseen", "caption-then-answer", "knowledge", "text")

GROUPS: dict[str, dict[str, Row]] = {
    "distilled": {"distilled": Row(_DISTILL, _ALL_TESTS)},
    "text as image": {"without text as image": Row((*_DISTILL, "--data.text_corpus.text_as_image=0"), _ALL_TESTS)},
    "objectives": {
        "more masks": Row(_MORE_MASKS),
        "w/o TTDM": Row((*_MORE_MASKS, "--model.ttdm_weight=0")),
        "w/o ITCL": Row((*_MORE_MASKS, "--model.itcl_weight=0")),
        "w/o both": Row((*_MORE_MASKS, *_WITHOUT_BOTH)),
    },
    "fine-tuned": {
        "captioning": Row(
            _options("captioning_coco", "sample/captioning_coco"), ("captions, fine-tuned",), model_of="distilled"
        ),
        "SCST": Row(
            _options("scst_coco", "sample/captioning_coco", "sample/scst_coco"),
            ("captions, fine-tuned",),
            model_of="captioning",
        ),
        "1% of the questions": Row(
            _options("vqa_vqav2", "overlays/vqav2_1percent", "sample/vqa_vqav2", "sample/vqav2_1percent"),
            _FINE_TUNED_ANSWERS,
            model_of="distilled",
        ),
        "all questions": Row(
            _options("vqa_vqav2", "sample/vqa_vqav2"), ("answers by domain", *_FINE_TUNED_ANSWERS), model_of="distilled"
        ),
        "common questions": Row(
            _options("vqa_karpathy", "sample/vqa_karpathy"), ("answers by domain",), model_of="distilled"
        ),
        "zero-shot": Row(tests=("answers by domain", *_FINE_TUNED_ANSWERS), model_of="distilled"),
    },
    "text": {
        "plain BART": Row(tests=tuple(TEXT_TASKS)),
        "distilled, around": Row(tests=tuple(TEXT_TASKS), model_of="distilled"),
        "distilled, through": Row(tests=tuple(TEXT_TASKS), model_of="distilled", route="through"),
    },
    "decoding": {
        "decoding": Row(tests=tuple(name for name in _STRATEGIES if name not in _ALL_TESTS), model_of="distilled")
    },
    "masks": {
        "masks": Row(tests=tuple(name for name in TESTS if name.startswith("captions, m=")), model_of="distilled")
    },
    "size": {
        "more masks": Row(_MORE_MASKS),
        "1/3 of the pairs": Row((*_MORE_MASKS, "--data.subset_size=5333")),
        "1/30 of the pairs": Row((*_MORE_MASKS, "--data.subset_size=533")),
        "1/30 of the pairs, w/o both": Row((*_MORE_MASKS, "--data.subset_size=533", *_WITHOUT_BOTH)),
    },
    "paper": {
        "paper-faithful": Row(_PAPER),
        "more masks": Row(_MORE_MASKS),
        "closed form": Row((*_PAPER, "--model.start=closed_form")),
        "prefix": Row((*_PAPER, "--model.image_features=pooled", "--model.prefix_length=24")),
        "rate of 1.5e-3": Row((*_PAPER, "--model.optimization.learning_rate=1.5e-3")),
    },
}
"""Rows of each table by its name."""


class Interval(NamedTuple):
    """Mean of several seeds, with its 95% interval.

    Attributes:
        mean: Mean of the values.
        half_width: Half the width of Student's interval; infinite for one value.
        num: Number of values, from 1.
    """

    mean: float
    half_width: float
    num: int

    def __str__(self) -> str:
        if self.num == 1:
            return f"{self.mean:.1f}"
        return f"{self.mean:.1f} [{self.mean - self.half_width:.1f}, {self.mean + self.half_width:.1f}]"


def interval(values: Sequence[float]) -> Interval:
    """Compute the mean of several seeds and Student's 95% interval.

    >>> str(interval([1.0, 2.0, 3.0]))
    '2.0 [-0.5, 4.5]'
    """
    num = len(values)
    half = _T95[num - 2] * statistics.stdev(values) / math.sqrt(num) if num > 1 else math.inf
    return Interval(statistics.fmean(values), half, num)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], metavar="TABLE", help=", ".join(GROUPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    rows = {name: row for group in options.groups or GROUPS for name, row in GROUPS[group].items()}
    if options.command == "run":
        warnings.filterwarnings("ignore")
        transformers.utils.logging.disable_progress_bar()
        make_world()
        for seed in options.seeds:
            for name, row in rows.items():
                run(name, row, seed)
    print(report(rows))


def make_world() -> None:
    """Draw the sample world, cache its CLIP features, and list its answers, where that has not been done."""
    if not WORLD.is_dir():
        _call("sample", str(WORLD))
    if not FEATURES.is_dir():
        _call("cache", "--config=sample/distill.yaml", "--model.image_features=all", f"--output={FEATURES}")
    if not CANDIDATES.is_file():
        val = read_questions(*(WORLD / f"vqa_{part}_val.json" for part in ("questions", "annotations")))
        answers = {text for question in val for text in question.answers}
        write_text(CANDIDATES, "".join(f"{text}\n" for text in sorted(answers)))


def run(name: str, row: Row, seed: int) -> None:
    """Train and test a row with one seed, as far as that has not been done."""
    folder = _folder(name, seed)
    start = _folder(row.model_of, seed) / "fit" / "model" if row.model_of else WORLD / "bart"
    model = folder / "fit" / "model" if row.fit else start
    if row.fit and not (model / "config.json").is_file():
        _fit(folder / "fit", seed, *row.fit, *([f"--model.init_from={start}"] if row.model_of else []))
    for test in row.tests:
        run_dir = f"--run_dir={folder / test}"
        if (folder / test / "scores.json").is_file():
            continue
        if test == "text":
            (folder / test).mkdir(parents=True, exist_ok=True)
            (folder / test / "scores.json").write_text(json.dumps({"scores": text_scores(model, seed)}, indent=1))
        elif test in TEXT_TASKS:
            task = (*TEXT_TASKS[test], f"--model.model={model}", f"--model.route={row.route}")
            _fit(folder / test / "fit", seed, *task)
            best = folder / test / "fit" / "checkpoints" / "best.ckpt"
            _call("test", *task, f"--ckpt_path={best}", run_dir, *_QUIET)
            shutil.rmtree(best.parent)
        else:
            _call("test", *TESTS[test], f"--model.init_from={model}", run_dir, *_QUIET)


def _fit(run_dir: Path, seed: int, *options: str) -> None:
    last = run_dir / "checkpoints" / "last.ckpt"
    resumed = [f"--ckpt_path={last}"] if last.is_file() else []
    if not resumed:  # what a run leaves that was interrupted before its first checkpoint
        shutil.rmtree(run_dir, ignore_errors=True)
    seeds = (f"--seed_everything={seed}", f"--data.seed={seed}")
    _call("fit", *options, f"--run_dir={run_dir}", *seeds, *resumed, *_QUIET)


def text_scores(model: Path, seed: int, num_scenes: int = 200) -> dict[str, float]:
    """Answer questions about a person's caption of scenes of the split ``test``, from text alone.

    Returns:
        The shares of right answers in percent by kind of question: ``before``, with the plain BART; after distillation
        ``through`` W'_e W_e and ``around`` it; each by the answer alone and by the whole text (``, whole``), where the
        model writes passage, question and answer.
    """
    rng = random.Random(f"text questions {seed}")
    pairs = [
        (question, f"{rng.choice(captions(scene))}.")
        for scene in distinct_scenes(rng, "test", num_scenes)
        for question in questions(scene, rng)
    ]
    through = VLKDModel.from_pretrained(model).eval()
    around, before = VLKDModel.from_pretrained(model).eval(), VLKDModel.load(CLIP_FOLDER, BART_FOLDER).eval()
    for plain in (around, before):  # both projections leave the encoder's output as it is
        for projection in (plain.text_projection, plain.text_back_projection):
            torch.nn.init.eye_(projection.weight)
    scores = {}
    for name, answering in {"before": before, "through": through, "around": around}.items():
        for suffix, reading in (("", "forced"), (", whole", "free")):
            decoding = Decoding(max_new_tokens=10, reading=reading)
            texts = [question.text for question, _ in pairs]
            replies = answer(answering, None, texts, decoding, passages=[passage for _, passage in pairs])
            right: dict[str, list[bool]] = defaultdict(list)
            for (question, _), reply in zip(pairs, replies, strict=True):
                is_right = reply[0].text == question.answer and not reply[0].off_prompt
                right[question.kind].append(is_right)
                right["overall"].append(is_right)
            scores |= {f"{name}{suffix}: {kind}": 100 * statistics.fmean(values) for kind, values in right.items()}
    return scores


def report(rows: Mapping[str, Row]) -> str:
    """Format what is finished as one Markdown table a test, the mean of the seeds with its interval in each cell."""
    return "\n\n".join(_tables(rows))


_KINDS = ("color", "count", "object", "place", "relation", "size", "yes/no")
_ANSWER_COLUMNS = {
    "overall": "accuracy/overall",
    "shuffled image": "accuracy_shuffled_image/overall",
    **{kind: f"accuracy/question: {kind}" for kind in _KINDS},
    **{f"{kind}, shuffled": f"accuracy_shuffled_image/question: {kind}" for kind in _KINDS},
}
_CAPTION_COLUMNS = {"CIDEr": "cider", "shuffled image": "cider_shuffled", "recall@1": "bart_text_to_image_r1"}


def _columns(test: str, scores: Mapping[str, float]) -> dict[str, str]:
    """Heading of each score of a test that is reported, with its name in the file of scores."""
    if test.startswith("captions"):
        return _CAPTION_COLUMNS
    if test == "answers by domain":
        return {name.removeprefix("accuracy/"): name for name in scores if "domain" in name}
    return {name: name for name in scores} if test in ("text", *TEXT_TASKS, "GLUE") else _ANSWER_COLUMNS


def _tables(rows: Mapping[str, Row]) -> Iterator[str]:
    tests = dict.fromkeys(test for row in rows.values() for test in row.tests)
    for test in tests:
        files = {name: sorted(_folder(name, 0).parent.glob(f"*/{test}/scores.json")) for name in rows}
        yield from _table(test, {name: [_read(path) for path in paths] for name, paths in files.items()})
    if tests.keys() & set(GLUE_LABELS):
        yield from _table("GLUE", {name: list(_glue_scores(_folder(name, 0).parent)) for name in rows})


def _glue_scores(folder: Path) -> Iterator[dict[str, float]]:
    """Scores of the eight tasks, and their mean, of each seed that has all of them."""
    for seed in sorted(folder.glob("*")):
        files = {task: seed / task / "scores.json" for task in GLUE_LABELS}
        if all(path.is_file() for path in files.values()):
            scores = {task: _read(path)["score"] for task, path in files.items()}
            yield scores | {"mean": statistics.fmean(scores.values())}


def _table(test: str, rows: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[str]:
    """A table of the runs of each row, where there are any."""
    scores = {name: runs for name, runs in rows.items() if runs}
    if not scores:
        return
    columns = _columns(test, next(iter(scores.values()))[0])
    reported = {
        head: name for head, name in columns.items() if any(name in run for runs in scores.values() for run in runs)
    }
    lines = [f"{test} | seeds | {' | '.join(reported)}", " | ".join(["---"] * (2 + len(reported)))]
    for name, runs in scores.items():
        cells = [str(interval([run[score] for run in runs if score in run])) for score in reported.values()]
        lines.append(f"{name} | {len(runs)} | {' | '.join(cells)}")
    yield "\n".join(f"| {line} |" for line in lines)


def _read(path: Path) -> dict[str, float]:
    record = json.loads(path.read_text())
    units = record.get("units", {})
    return {name: value * (100 if units.get(name) == "fraction" else 1) for name, value in record["scores"].items()}


def _folder(name: str, seed: int) -> Path:
    return RUNS / name.replace("/", " of ") / str(seed)


def _call(*arguments: str) -> None:
    status = vlkd_pl(arguments)
    if status:
        raise SystemExit(f"vlkd-pl {' '.join(arguments)} failed with status {status}")


if __name__ == "__main__":
    main()
