"""The options of the commands that use a model, and the loading of the model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlkd_pl.pipeline import VLKD


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, ``--device`` and ``--batch-size``."""
    parser.add_argument(
        "--model",
        required=True,
        help="folder of a model that vlkd-pl fit wrote, or its name on the Hugging Face hub",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")
    parser.add_argument("--batch-size", type=positive, default=16, help="images in a batch (default: %(default)s)")


def positive(text: str) -> int:
    """Parse an argument as a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def load_model(options: argparse.Namespace, command: str) -> VLKD | None:
    """Load the model that the options name; on failure, print one line to stderr and return None."""
    import transformers

    from vlkd_pl.pipeline import VLKD
    from vlkd_pl.weights.model_files import first_line

    transformers.utils.logging.disable_progress_bar()
    try:
        return VLKD.from_pretrained(options.model, options.device, options.batch_size)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"vlkd-pl {command}: {first_line(error)}", file=sys.stderr)
        return None
