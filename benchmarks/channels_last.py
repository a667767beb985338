"""CLIP's image encoders with weights in channels-last order, which ``FrozenCLIP`` has for ResNets, or contiguous.

python benchmarks/channels_last.py
python benchmarks/channels_last.py --device cuda --dtype float16 --batch-size 64

Random weights in the sizes of RN50, RN50x16 and ViT-B/16; both sides run in turn.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from real_size import Clock, machine, median

from vlkd_pl.clip.frozen import FrozenCLIP
from vlkd_pl.clip.openai import CLIP

# embedding, image_size, layers, width and patch of the image encoder; width, heads and layers of the text encoder
SIZES = {
    "RN50": (1024, 224, (3, 4, 6, 3), 64, None, 512, 8, 12),
    "RN50x16": (768, 384, (6, 8, 18, 8), 96, None, 768, 12, 12),
    "ViT-B/16": (512, 224, 12, 768, 16, 512, 8, 12),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of autocast")
    parser.add_argument("--batch-size", type=int, default=4, help="images (default: %(default)s)")
    parser.add_argument("--num-rounds", type=int, default=5, help="of both sides (default: %(default)s)")
    parser.add_argument("--clips", nargs="+", default=list(SIZES), choices=list(SIZES), metavar="CLIP")
    options = parser.parse_args()
    clock = Clock(options.device)
    print(f"{machine(options.device)}, {options.dtype}, {options.batch_size} images, {time.strftime('%Y-%m-%d')}")
    for name in options.clips:
        embedding, image_size, layers, width, patch, text_width, heads, text_layers = SIZES[name]
        torch.manual_seed(0)
        clip = CLIP(embedding, image_size, layers, width, patch, 77, 49408, text_width, heads, text_layers)
        sides = {}
        for order in (torch.contiguous_format, torch.channels_last):
            sides[order] = FrozenCLIP(copy.deepcopy(clip)).to(options.device)
            sides[order].clip.visual.to(memory_format=order)
        image = torch.randn(options.batch_size, 3, image_size, image_size, device=options.device)
        seconds: dict[torch.memory_format, list[float]] = {order: [] for order in sides}
        for round_number in range(options.num_rounds + 1):
            for order, frozen in sides.items():
                start = clock.now()
                with torch.autocast(options.device, getattr(torch, options.dtype), options.dtype != "float32"):
                    frozen.encode_image(image)
                if round_number:  # behind a warm-up
                    seconds[order].append(clock.now() - start)
        contiguous, last = (median(seconds[order]) for order in sides)
        ratio = median([a / b for a, b in zip(*seconds.values(), strict=True)])
        print(f"{name}: channels-last {ratio:.2f} times as fast ({contiguous:.2f} s and {last:.2f} s a batch)")


if __name__ == "__main__":
    main()
