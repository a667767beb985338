"""``vlkd-pl cache``: encode the samples of shards with CLIP once, for all training runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Make a feature cache, or resume making one.

    Returns:
        0, or 1 after an error, which is printed in one line.
    """
    parser = argparse.ArgumentParser(
        prog="vlkd-pl cache",
        description="Encodes every image and caption of the shards with the frozen CLIP, once, and keeps the "
        "features in files that vlkd-pl fit reads in place of the images: --data.features DIR. Takes the configuration "
        "of vlkd-pl fit and its options: --data.batch_size 256 --trainer.devices 8. Finished files are kept: after an "
        "interruption the same command resumes, and replaces damaged files.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", required=True, metavar="FILE", help="as for vlkd-pl fit")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the cache, on a local or shared disk")
    parser.add_argument(
        "--dtype",
        default="float16",
        metavar="TYPE",
        help="type of the image tokens: float16, or int8, which takes half the room, and a batch's ITCL and ICTI "
        "differ by up to 0.3%% (default: %(default)s)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="read all of the finished files, to find the damaged ones among them"
    )
    options, overrides = parser.parse_known_args(arguments[1:])

    from vlkd_pl.commands.caching import make_cache

    configs = [argument for path in options.config for argument in ("--config", path)]
    make_cache([*configs, *overrides], options.output, options.dtype, options.verify)
    return 0
