"""``vlkd-pl search``: the images that words tell of."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vlkd_pl.commands.loading import add_model_options, load_model, positive
from vlkd_pl.commands.output import print_json


def main(arguments: Sequence[str]) -> int:
    """Print the images nearest to the words; a file that is no image is named and skipped, and the status is 1."""
    parser = argparse.ArgumentParser(
        prog="vlkd-pl search",
        description="Finds the images that words tell of: the nearest in the joint space, as the distilled text "
        "encoder places the words there.",
    )
    parser.add_argument("words", metavar="WORDS", help="what the images show, in quotation marks")
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="images, or folders searched recursively")
    add_model_options(parser)
    parser.add_argument("--top", type=positive, default=10, help="most images to print (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a JSON line for each image")
    options = parser.parse_args(arguments[1:])

    model = load_model(options, "search")
    if model is None:
        return 1
    try:
        nearest, unread = model.search(options.words, options.images, options.top)
    except ValueError as error:
        print(f"vlkd-pl search: {error}", file=sys.stderr)
        return 1
    for found in unread:
        print(f"vlkd-pl search: skipped {found.error}", file=sys.stderr)
    for found in nearest:
        if options.json:
            print_json({"image": str(found.image), "score": round(found.score, 4)})
        else:
            print(f"{found.score:6.3f}  {found.image}")
    if not nearest and not unread:
        print("vlkd-pl search: there are no images in what was given", file=sys.stderr)
    return 0 if nearest and not unread else 1
