"""``vlkd-pl caption``: captions for images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vlkd_pl.commands.loading import add_model_options, load_model, positive
from vlkd_pl.commands.output import print_json


def main(arguments: Sequence[str]) -> int:
    """Print the caption of each image; unreadable files are reported and skipped, and the status is then 1."""
    parser = argparse.ArgumentParser(
        prog="vlkd-pl caption", description="Caption images with a distilled model, one line for each."
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="images, or folders to search recursively")
    add_model_options(parser)
    parser.add_argument(
        "--num-masks",
        type=positive,
        default=6,
        help='number of masks in the prompt "A picture of <mask>..." (default: %(default)s)',
    )
    parser.add_argument(
        "--num-beams", type=positive, default=6, help="number of beams; 1 is greedy (default: %(default)s)"
    )
    parser.add_argument(
        "--top", type=positive, default=1, help="captions to print for each image (default: %(default)s)"
    )
    parser.add_argument(
        "--rerank",
        action="store_true",
        help="choose the beam nearest the image in the joint space instead of the likeliest",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON line for each image")
    options = parser.parse_args(arguments[1:])

    model = load_model(options, "caption")
    if model is None:
        return 1
    from vlkd_pl.models.decoding import Decoding

    num_beams = max(options.num_beams, options.top)
    decoding = Decoding(
        num_beams=num_beams, num_candidates=num_beams if options.rerank else options.top, rerank=options.rerank
    )
    num_read, status = 0, 0
    with_scores = options.top > 1 or options.rerank
    for result in model.iter_captions(options.images, options.num_masks, decoding, scores=with_scores):
        if result.error:
            print(f"vlkd-pl caption: skipped {result.error}", file=sys.stderr)
            status = 1
            continue
        num_read += 1
        best = result.captions[: options.top]
        if options.json:
            record: dict[str, object] = {"image": str(result.image), "caption": best[0].text}
            if with_scores:
                record["captions"] = [{"caption": text.text, "score": round(text.score, 4)} for text in best]
            print_json(record)
        elif options.top == 1:
            print(f"{result.image}: {best[0].text}", flush=True)
        else:
            print(f"{result.image}:", *(f"  {text.score:8.3f}  {text.text}" for text in best), sep="\n", flush=True)
    if num_read == 0 and status == 0:
        print("vlkd-pl caption: no image found: give images, or folders that hold some", file=sys.stderr)
        return 1
    return status
