"""``vlkd-pl ask``: answers to questions about an image."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vlkd_pl.commands.loading import add_model_options, load_model, positive
from vlkd_pl.commands.output import print_json


def main(arguments: Sequence[str]) -> int:
    """Print the answer to each question; the status is 1 if the model or the image cannot be read."""
    parser = argparse.ArgumentParser(
        prog="vlkd-pl ask", description="Answer questions about an image with a distilled model."
    )
    parser.add_argument("image", metavar="IMAGE", help="path of the image")
    parser.add_argument(
        "questions", nargs="+", metavar="QUESTION", help="one or more questions, each in quotation marks"
    )
    add_model_options(parser)
    parser.add_argument(
        "--num-masks", type=positive, default=1, help="number of masks in place of the answer (default: %(default)s)"
    )
    parser.add_argument(
        "--num-beams", type=positive, default=1, help="number of beams; 1 is greedy (default: %(default)s)"
    )
    parser.add_argument("--top", type=positive, default=1, help="answers to print for each question, with scores")
    parser.add_argument(
        "--caption-first", action="store_true", help="put the model's caption of the image before the question"
    )
    parser.add_argument("--candidates", help="answers to choose from, separated by commas")
    parser.add_argument("--json", action="store_true", help="print a JSON line for each question")
    options = parser.parse_args(arguments[1:])

    model = load_model(options, "ask")
    if model is None:
        return 1
    from vlkd_pl.models.decoding import Decoding

    candidates = None
    if options.candidates is not None:
        candidates = [text.strip() for text in options.candidates.split(",") if text.strip()]
        if not candidates:
            print("vlkd-pl ask: --candidates is empty: give answers separated by commas", file=sys.stderr)
            return 2
    decoding = Decoding(options.num_beams, max_new_tokens=10)
    if options.top > 1:
        # More beams than answers, since beams with the same text are merged; and no length normalisation, which would
        # rank a rambling text above a likelier short answer.
        num_beams = max(options.num_beams, 4 * options.top)
        decoding = Decoding(num_beams, max_new_tokens=10, length_penalty=0.0, num_candidates=num_beams)
    try:
        answers = model.answers(
            options.image,
            options.questions,
            options.caption_first,
            num_masks=options.num_masks,
            decoding=decoding,
            candidates=candidates,
            scores=options.top > 1 or options.json,
        )
    except ValueError as error:
        print(f"vlkd-pl ask: {error}", file=sys.stderr)
        return 1
    for question, alternatives in zip(options.questions, answers, strict=True):
        best = alternatives[: options.top]
        if options.json:
            scored = [{"answer": text.text, "score": round(text.score, 4)} for text in best]
            record = {"image": options.image, "question": question, "answer": best[0].text, "answers": scored}
            print_json(record)
            continue
        label = f"{question} " if len(options.questions) > 1 else ""
        if options.top == 1:
            print(f"{label}{best[0].text}")
        else:
            print(*([label] if label else []), *(f"  {text.score:8.3f}  {text.text}" for text in best), sep="\n")
    return 0
