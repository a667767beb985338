"""``vlkd-pl search``: the images that match words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vlkd_pl.commands.loading import add_model_options, load_model, positive
from vlkd_pl.commands.output import print_json


def main(arguments: Sequence[str]) -> int:
    """Print the images that match the words best; unreadable files are reported and skipped, and the status is 1."""
    parser = argparse.ArgumentParser(
        prog="vlkd-pl search",
        description="Find the images that match words best, by the cosine of their embeddings in the joint space.",
    )
    parser.add_argument("words", metavar="WORDS", help="description of the images, in quotation marks")
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="images, or folders to search recursively")
    add_model_options(parser)
    parser.add_argument(
        "--top", type=positive, default=10, help="maximum number of images to print (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON line for each image")
    options = parser.parse_args(arguments[1:])

    model = load_model(options, "search")
    if model is None:
        return 1
    try:
        nearest, unreadable = model.search(options.words, options.images, options.top)
    except ValueError as error:
        print(f"vlkd-pl search: {error}", file=sys.stderr)
        return 1
    for result in unreadable:
        print(f"vlkd-pl search: skipped {result.error}", file=sys.stderr)
    for result in nearest:
        if options.json:
            print_json({"image": str(result.image), "score": round(result.score, 4)})
        else:
            print(f"{result.score:6.3f}  {result.image}")
    if not nearest and not unreadable:
        print("vlkd-pl search: no image found: give images, or folders that hold some", file=sys.stderr)
    return 0 if nearest and not unreadable else 1
