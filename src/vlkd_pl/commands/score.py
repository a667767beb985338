"""``vlkd-pl score``: scores of predictions in a file, as the benchmarks' own evaluations compute them."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vlkd_pl.errors import MissingPackageError
from vlkd_pl.evaluation.table import units_of
from vlkd_pl.metrics.captions import CAPTION_METRICS
from vlkd_pl.metrics.pairing import check_pairing, check_references, first_few
from vlkd_pl.text_files import Entries, iter_lines, read_json

if TYPE_CHECKING:
    from vlkd_pl.evaluation.evaluator import Evaluator
    from vlkd_pl.evaluation.report import Report

Content = TypeVar("Content")
Truth = TypeVar("Truth")


def main(arguments: Sequence[str]) -> int:
    """Print a table of scores in percent; with ``--output`` also write them to a JSON file, with their units.

    Returns:
        0, or 1 after a line on stderr where a file is missing, is invalid, or does not match the other file.
    """
    options = _parser().parse_args(arguments[1:])
    try:
        scores: dict[str, Any] = options.score(options)
        if options.output is not None:
            options.output.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    except (OSError, ValueError, MissingPackageError) as error:
        print(f"vlkd-pl score {options.kind}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlkd-pl score", description="Score predictions as the benchmarks' own evaluations do."
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND", help="captions, vqa or summaries")

    def add(kind: str, score: Callable[[argparse.Namespace], dict[str, Any]], purpose: str) -> argparse.ArgumentParser:
        added = kinds.add_parser(kind, help=purpose, description=purpose)
        added.set_defaults(score=score)
        added.add_argument("--output", type=Path, metavar="OUT.json", help="also write the scores to this file")
        return added

    captions = add(
        "captions",
        _score_captions,
        "BLEU, METEOR, ROUGE-L, CIDEr and SPICE of captions. METEOR needs Java; SPICE needs Java 8 to 11 "
        "and the models of Stanford CoreNLP.",
    )
    captions.add_argument(
        "--references",
        type=Path,
        required=True,
        metavar="REF.json",
        help="COCO's caption format, NoCaps' with domains, or Karpathy's dataset_coco.json",
    )
    captions.add_argument(
        "--predictions",
        type=Path,
        required=True,
        metavar="PRED.json",
        help='COCO\'s result format: [{"image_id": 42, "caption": "..."}, ...]',
    )
    captions.add_argument("--split", help="split of dataset_coco.json, such as test")
    captions.add_argument(
        "--metrics",
        nargs="+",
        choices=CAPTION_METRICS,
        default=list(CAPTION_METRICS),
        metavar="METRIC",
        help=f"some of {', '.join(CAPTION_METRICS)} (default: all)",
    )
    vqa = add("vqa", _score_vqa, "VQA accuracy in percent, for VQA v2 and OK-VQA.")
    vqa.add_argument("--questions", type=Path, required=True, metavar="Q.json", help="the benchmark's questions")
    vqa.add_argument("--annotations", type=Path, required=True, metavar="A.json", help="the benchmark's annotations")
    vqa.add_argument(
        "--predictions",
        type=Path,
        required=True,
        metavar="PRED.json",
        help='VQA\'s result format: [{"question_id": 42, "answer": "..."}, ...]',
    )
    for kind, unit in ((captions, "images"), (vqa, "questions")):
        kind.add_argument(
            "--subset", action="store_true", help=f"score only the {unit} that have a prediction, instead of all"
        )
    summaries = add("summaries", _score_summaries, "F1 of ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum in percent.")
    summaries.add_argument(
        "--references", type=Path, required=True, metavar="REF.txt", help="reference summaries, one a line"
    )
    summaries.add_argument(
        "--predictions", type=Path, required=True, metavar="PRED.txt", help="their predicted summaries, one a line"
    )
    return parser


def _score_captions(options: argparse.Namespace) -> dict[str, Any]:
    from vlkd_pl.data.coco_files import read_coco_captions
    from vlkd_pl.evaluation.captioning import CaptioningEvaluator, CaptionPrediction, log_name

    predictions = as_value_error(lambda: _read_predictions(options.predictions, "image_id", "caption"))
    listed = as_value_error(lambda: read_coco_captions(options.references, options.split))
    captioned = {image.image_id: image for image in listed if image.references or image.image_id in predictions}
    images = _select(captioned, predictions, "image", options.subset)
    check_references(images, [image.references for image in images.values()])
    evaluator = CaptioningEvaluator(options.metrics, panel_size=0)
    evaluator.update(
        CaptionPrediction(key, predictions[key], image.references, image.domain) for key, image in images.items()
    )
    report = _print_report(options, evaluator)
    names = [name for names in CAPTION_METRICS.values() for name in names]
    domains = sorted({image.domain for image in images.values() if image.domain is not None})
    per_domain = {
        domain: {name: report.scores.get(f"{prefix}{log_name(name)}") for name in names}
        for domain, prefix in [*((domain, f"{domain}/") for domain in domains), ("overall", "")]
    }
    not_requested = [
        name for metric, names in CAPTION_METRICS.items() if metric not in options.metrics for name in names
    ]
    per_image = {
        row["image_id"]: {name: row[name] for name in names if name in row}
        for row in (report.files or {})["scores_per_image.json"]
    }
    return {
        **per_domain["overall"],
        "not_computed": dict.fromkeys(not_requested, f"not among --metrics {' '.join(options.metrics)}")
        | dict(report.not_computed or {}),
        **({"per_domain": per_domain} if domains else {}),
        "per_image": per_image,
        "units": units_of(names, "fraction"),
    }


def _score_vqa(options: argparse.Namespace) -> dict[str, Any]:
    from vlkd_pl.data.vqa_files import read_questions
    from vlkd_pl.evaluation.vqa import AnswerPrediction, VQAEvaluator

    predictions = as_value_error(lambda: _read_predictions(options.predictions, "question_id", "answer"))
    questions = as_value_error(lambda: read_questions(options.questions, options.annotations))
    question_of = {question.question_id: question for question in questions}
    selected = _select(question_of, predictions, "question", options.subset)
    unanswered = [key for key, question in selected.items() if not question.answers]
    if unanswered:
        raise ValueError(
            f"{options.annotations} has no answers to {len(unanswered)} questions ({first_few(unanswered)})"
        )
    evaluator = VQAEvaluator(panel_size=0)
    evaluator.update(AnswerPrediction(question, predictions[key]) for key, question in selected.items())
    report = _print_report(options, evaluator)

    def accuracies(kind: str) -> dict[str, float]:
        prefix = f"accuracy/{kind}: "
        return {name.removeprefix(prefix): score for name, score in report.scores.items() if name.startswith(prefix)}

    content = {
        "overall": report.scores["accuracy/overall"],
        "perAnswerType": accuracies("answer"),
        "perQuestionType": accuracies("question"),
        "per_question": {
            row["question_id"]: row["accuracy"] for row in (report.files or {})["scores_per_question.json"]
        },
    }
    return {**content, "units": units_of(content, "percent")}


def _score_summaries(options: argparse.Namespace) -> dict[str, Any]:
    from vlkd_pl.evaluation.summarization import SummarizationEvaluator, SummaryPrediction
    from vlkd_pl.metrics.summaries import SUMMARY_METRICS

    evaluator = SummarizationEvaluator()
    files = options.references, options.predictions
    references, predictions = as_value_error(lambda: [list(iter_lines(path)) for path in files])
    if len(references) != len(predictions):
        raise ValueError(
            f"{options.references} has {len(references)} lines and {options.predictions} has {len(predictions)}: "
            "give one prediction for each reference, each on a line"
        )
    if not references:
        raise ValueError(f"{options.references} is empty: give one summary a line")
    evaluator.update(map(SummaryPrediction, range(len(references)), predictions, references))
    report = _print_report(options, evaluator)
    scores = {name: report.scores[key.lower()] for name, key in SUMMARY_METRICS.items()}
    return {**scores, "units": units_of(scores, "percent")}


def _print_report(options: argparse.Namespace, evaluator: Evaluator[Any]) -> Report:
    """Compute a report, print its table, and print its notes on stderr."""
    report = evaluator.compute()
    print(report.table)
    for note in report.notes:
        print(f"vlkd-pl score {options.kind}: {note}", file=sys.stderr)
    return report


def _read_predictions(path: Path, key_field: str, text_field: str) -> dict[Any, str]:
    """Read a result file: a list with an id and a text for each prediction."""
    file_format = f'a list of {{"{key_field}": ..., "{text_field}": "..."}}'
    rows = Entries(read_json(path), f"{path} is not {file_format}")
    keys, texts = rows.ids(key_field), rows.texts(text_field)
    counts = Counter(keys)
    repeated = [key for key, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(f"{path} has several predictions for {len(repeated)} {key_field}s ({first_few(repeated)})")
    return dict(zip(keys, texts, strict=True))


def _select(
    truths: Mapping[Any, Truth], predictions: Mapping[Any, str], unit: str, subset: bool
) -> Mapping[Any, Truth]:
    """Return the ground truths to score: all, or with ``subset`` those that have a prediction.

    Raises:
        ValueError: A ground truth has no prediction, or a prediction no ground truth.
    """
    if subset:
        truths = {key: truth for key, truth in truths.items() if key in predictions}
    try:
        check_pairing(truths.keys(), predictions.keys(), unit)
    except ValueError as error:
        hint = f"; --subset scores only the {unit}s that have one" if truths.keys() - predictions.keys() else ""
        raise ValueError(f"{error}{hint}") from error
    return truths


def as_value_error(read_file: Callable[[], Content]) -> Content:
    """Read a file; the errors of data modules become those of a command.

    Args:
        read_file: A function that reads the file.

    Raises:
        ValueError: The file is invalid.
    """
    try:
        return read_file()
    except Exception as error:
        from pytorch_lightning.utilities.exceptions import MisconfigurationException  # takes seconds

        if isinstance(error, MisconfigurationException):
            raise ValueError(str(error)) from error
        raise
