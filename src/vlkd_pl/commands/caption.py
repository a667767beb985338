"""``vlkd-pl caption``: captions for images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vlkd_pl.commands.loading import add_model_options, load_model, positive
from vlkd_pl.commands.output import print_json


def main(arguments: Sequence[str]) -> int:
    """Print each image and its caption; a file that is no image is named and skipped, and the status is 1."""
    parser = argparse.ArgumentParser(
        prog="vlkd-pl caption", description="Captions images with a distilled model, one line each."
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="images, or folders searched recursively")
    add_model_options(parser)
    parser.add_argument(
        "--num-masks",
        type=positive,
        default=6,
        help='masks in the prompt "A picture of <mask>..." (default: %(default)s)',
    )
    parser.add_argument("--num-beams", type=positive, default=6, help="beams of the search (default: %(default)s)")
    parser.add_argument("--top", type=positive, default=1, help="captions of each image (default: %(default)s)")
    parser.add_argument(
        "--rerank", action="store_true", help="take the beam nearest the image in the joint space, not the likeliest"
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
    for told in model.iter_captions(options.images, options.num_masks, decoding, scores=with_scores):
        if told.error:
            print(f"vlkd-pl caption: skipped {told.error}", file=sys.stderr)
            status = 1
            continue
        num_read += 1
        best = told.captions[: options.top]
        if options.json:
            record: dict[str, object] = {"image": str(told.image), "caption": best[0].text}
            if with_scores:
                record["captions"] = [{"caption": each.text, "score": round(each.score, 4)} for each in best]
            print_json(record)
        elif options.top == 1:
            print(f"{told.image}: {best[0].text}", flush=True)
        else:
            print(f"{told.image}:", *(f"  {each.score:8.3f}  {each.text}" for each in best), sep="\n", flush=True)
    if num_read == 0 and status == 0:
        print("vlkd-pl caption: there are no images in what was given", file=sys.stderr)
        return 1
    return status
