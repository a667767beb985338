"""``vlkd-pl sample``: the sample world, a small dataset in the real formats."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vlkd_pl.sample.writers import write_world


def main(arguments: Sequence[str]) -> int:
    """Write the sample world to a folder."""
    parser = argparse.ArgumentParser(
        prog="vlkd-pl sample",
        description="Draw a world of pictogram scenes and write it as webdataset shards and a text corpus, together "
        "with a small CLIP and a small BART, and evaluation files in the formats of COCO, Karpathy's splits, NoCaps, "
        "VQA v2, OK-VQA, GLUE, XSum and class folders.",
    )
    parser.add_argument("folder", type=Path, help="folder to write to")
    parser.add_argument(
        "--num-pairs", type=int, default=16_000, help="images with captions in the shards (default: %(default)s)"
    )
    parser.add_argument("--num-shards", type=int, default=8, help="number of shards (default: %(default)s)")
    parser.add_argument("--num-texts", type=int, default=60_000, help="lines of the text corpus (default: %(default)s)")
    parser.add_argument(
        "--num-evaluation",
        type=int,
        default=400,
        help="images of each evaluation split, and about as many for NoCaps and the class folders "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--num-finetuning", type=int, default=2000, help="images of the split train (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    options = parser.parse_args(arguments[1:])
    write_world(
        options.folder,
        options.num_pairs,
        options.num_shards,
        options.num_texts,
        options.num_evaluation,
        options.seed,
        options.num_finetuning,
    )
    print(f"sample world: {options.num_pairs} pairs and {options.num_texts} texts in {options.folder}")
    return 0
