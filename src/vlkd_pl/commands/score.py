"""``vlkd-pl score``: scores of predictions in a file, as the official evaluations compute them."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vlkd_pl.errors import MissingPackageError
from vlkd_pl.evaluation.table import score_table, units_of
from vlkd_pl.metrics.captions import CAPTION_METRICS, CaptionScores, caption_scores, cider_note
from vlkd_pl.metrics.pairing import check_pairing, first_few
from vlkd_pl.text_files import Entries, iter_lines, read_json

Read = TypeVar("Read")
Truth = TypeVar("Truth")


def main(arguments: Sequence[str]) -> int:
    """Prints a table of scores in percent, and writes them to a JSON file, which names their units, where asked to.

    Returns:
        0, or 1 where a file is missing, of another format, or does not fit the other: one line then says which.
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
        prog="vlkd-pl score", description="Scores predictions as the official evaluations of the data sets do."
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
    vqa.add_argument("--questions", type=Path, required=True, metavar="Q.json", help="the official questions")
    vqa.add_argument("--annotations", type=Path, required=True, metavar="A.json", help="the official annotations")
    vqa.add_argument(
        "--predictions",
        type=Path,
        required=True,
        metavar="PRED.json",
        help='the official result format: [{"question_id": 42, "answer": "..."}, ...]',
    )
    for kind, unit in ((captions, "images"), (vqa, "questions")):
        kind.add_argument(
            "--subset", action="store_true", help=f"score only the {unit} that have a prediction, instead of all"
        )
    summaries = add("summaries", _score_summaries, "F1 of ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum in percent.")
    summaries.add_argument(
        "--references", type=Path, required=True, metavar="REF.txt", help="people's summaries, one a line"
    )
    summaries.add_argument(
        "--predictions", type=Path, required=True, metavar="PRED.txt", help="summaries of the same texts, one a line"
    )
    return parser


def _score_captions(options: argparse.Namespace) -> dict[str, Any]:
    from vlkd_pl.data.coco_files import read_coco_captions

    predictions = explained(lambda: _read_predictions(options.predictions, "image_id", "caption"))
    listed = explained(lambda: read_coco_captions(options.references, options.split))
    captioned = {image.image_id: image for image in listed if image.references or image.image_id in predictions}
    images = _to_score(captioned, predictions, "image", options.subset).values()
    domains = sorted({image.domain for image in images if image.domain is not None})
    scored: dict[str, CaptionScores[Any]] = {}
    for name in [*domains, "overall"]:
        references = {image.image_id: image.references for image in images if name in ("overall", image.domain)}
        guesses = {key: predictions[key] for key in references}
        scored[name] = caption_scores(references, guesses, options.metrics, progress=True)
        if "CIDEr" in options.metrics and (note := cider_note(references)):
            _warn(options, note if name == "overall" else f"{name}: {note}")
    print(score_table(list(scored) if domains else ["score"], [part.scores for part in scored.values()]))
    failed = {name: why for part in scored.values() for name, why in part.not_computed.items()}
    for name, why in failed.items():
        print(f"{name} not computed: {why}")
    names = [name for names in CAPTION_METRICS.values() for name in names]
    per_domain = {domain: {name: part.scores.get(name) for name in names} for domain, part in scored.items()}
    unasked = [name for metric in CAPTION_METRICS if metric not in options.metrics for name in CAPTION_METRICS[metric]]
    return {
        **per_domain["overall"],
        "not_computed": dict.fromkeys(unasked, f"not among --metrics {' '.join(options.metrics)}") | failed,
        **({"per_domain": per_domain} if domains else {}),
        "per_image": scored["overall"].per_image,
        "units": units_of(names, "fraction"),
    }


def _score_vqa(options: argparse.Namespace) -> dict[str, Any]:
    from vlkd_pl.data.vqa_files import read_questions
    from vlkd_pl.metrics.vqa import few_answers_note, vqa_scores

    predictions = explained(lambda: _read_predictions(options.predictions, "question_id", "answer"))
    questions = explained(lambda: read_questions(options.questions, options.annotations))
    read = {question.question_id: question for question in questions}
    answered = _to_score(read, predictions, "question", options.subset).values()
    scored = vqa_scores(answered, predictions)
    if note := few_answers_note(answered):
        _warn(options, note)
    rows = {"overall": scored.overall}
    rows |= {f"answer: {name}": score for name, score in sorted(scored.per_answer_type.items())}
    rows |= {f"question: {name}": score for name, score in sorted(scored.per_question_type.items())}
    print(score_table(["accuracy"], [rows], "percent", digits=2))
    written = {
        "overall": scored.overall,
        "perAnswerType": scored.per_answer_type,
        "perQuestionType": scored.per_question_type,
        "per_question": scored.per_question,
    }
    return {**written, "units": units_of(written, "percent")}


def _score_summaries(options: argparse.Namespace) -> dict[str, Any]:
    from vlkd_pl.metrics.summaries import summary_scores

    files = options.references, options.predictions
    references, predictions = explained(lambda: [list(iter_lines(path)) for path in files])
    if len(references) != len(predictions):
        raise ValueError(
            f"{options.references} has {len(references)} lines and {options.predictions} has {len(predictions)}: "
            "give one prediction for each reference, each on a line"
        )
    scores = summary_scores(references, predictions)
    print(score_table(["score"], [scores], "percent", digits=2))
    return {**scores, "units": units_of(scores, "percent")}


def _read_predictions(path: Path, key_field: str, text_field: str) -> dict[Any, str]:
    """Reads an official result file: a list with a key and a text for each prediction."""
    file_format = f'a list of {{"{key_field}": ..., "{text_field}": "..."}}'
    rows = Entries(read_json(path), f"{path} is not {file_format}")
    keys, texts = rows.ids(key_field), rows.texts(text_field)
    counts = Counter(keys)
    repeated = [key for key, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(f"{path} has several predictions for {len(repeated)} {key_field}s ({first_few(repeated)})")
    return dict(zip(keys, texts, strict=True))


def _to_score(
    truths: Mapping[Any, Truth], predictions: Mapping[Any, str], unit: str, subset: bool
) -> Mapping[Any, Truth]:
    """What is to be scored: everything, or with ``subset`` what has a prediction.

    Raises:
        ValueError: Something has no prediction, or a prediction is for nothing.
    """
    if subset:
        truths = {key: truth for key, truth in truths.items() if key in predictions}
    try:
        check_pairing(truths.keys(), predictions.keys(), unit)
    except ValueError as error:
        hint = f"; --subset scores only the {unit}s that have one" if truths.keys() - predictions.keys() else ""
        raise ValueError(f"{error}{hint}") from error
    return truths


def _warn(options: argparse.Namespace, note: str) -> None:
    print(f"vlkd-pl score {options.kind}: {note}", file=sys.stderr)


def explained(read: Callable[[], Read]) -> Read:
    """Reads a file of the data; what a data module would say of it becomes an error of a command.

    Raises:
        ValueError: It is not what it must be.
    """
    try:
        return read()
    except Exception as error:
        from pytorch_lightning.utilities.exceptions import MisconfigurationException  # takes seconds

        if isinstance(error, MisconfigurationException):
            raise ValueError(str(error)) from error
        raise
