"""``vlkd-pl caption``: captions for image files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Prints each image file and its caption; a file that is no picture is named and skipped, and the status is 1."""
    parser = argparse.ArgumentParser(prog="vlkd-pl caption", description="Captions image files with a distilled model.")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    parser.add_argument("--model", required=True, help="folder of a model, as vlkd-pl fit writes it")
    parser.add_argument(
        "--num-masks", type=int, default=6, help='masks in the prompt "A picture of <mask>..." (default: %(default)s)'
    )
    parser.add_argument("--num-beams", type=int, default=6, help="beams of the search (default: %(default)s)")
    options = parser.parse_args(arguments[1:])

    import torch
    import transformers
    from PIL import Image, UnidentifiedImageError

    from vlkd_pl.data.transforms import clip_transform
    from vlkd_pl.models.vlkd import VLKDModel

    transformers.utils.logging.disable_progress_bar()
    if not (Path(options.model) / "config.json").is_file():
        print(
            f"vlkd-pl caption: there is no model in {options.model}: give the folder that vlkd-pl fit names",
            file=sys.stderr,
        )
        return 1
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = VLKDModel.from_pretrained(options.model).to(device).eval()
    transform = clip_transform(model.clip.image_size)
    status = 0
    for path in options.images:
        try:
            with Image.open(path) as image:
                pixels = transform(image.convert("RGB"))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            print(f"vlkd-pl caption: skipped {path}: {error}", file=sys.stderr)
            status = 1
            continue
        image_tokens = model.clip.encode_image(pixels.unsqueeze(0).to(device))
        print(f"{path}: {model.caption(image_tokens, options.num_masks, options.num_beams)[0]}")
    return status
