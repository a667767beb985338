"""Share of captions whose reward in Self-Critical Sequence Training rises when they are cut off: "… on a".

python benchmarks/reward_of_dangling_ends.py

People's captions of COCO val2014, each scored against the others of its image, as they are and with " on a" behind
them: without end tokens in the reward, and with end tokens as words of it. The captions are in pycocoevalcap's SPICE.
"""

from __future__ import annotations

import argparse
import json
import random
import warnings
import zipfile
from pathlib import Path

warnings.filterwarnings("ignore", message="pkg_resources is deprecated")

import pycocoevalcap  # noqa: E402

from vlkd_pl.metrics.cider import CIDErDReward  # noqa: E402
from vlkd_pl.metrics.ptb import tokenize  # noqa: E402

JAR = Path(pycocoevalcap.__path__[0]) / "spice" / "spice-1.0.jar"
END = " <eos>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-captions", type=int, default=8000, help="captions (default: %(default)s)")
    parser.add_argument("--ending", default=" on a", help="what is appended to them (default: %(default)r)")
    parser.add_argument("--seed", type=int, default=0, help="decides which captions (default: %(default)s)")
    options = parser.parse_args()
    with zipfile.ZipFile(JAR) as jar:
        annotations = json.loads(jar.read("coco/annotations/captions_val2014.json"))["annotations"]
    every: dict[int, list[str]] = {}
    for annotation in annotations:
        every.setdefault(annotation["image_id"], []).append(tokenize(annotation["caption"]))
    rng = random.Random(options.seed)
    images = rng.sample(sorted(every), options.num_captions)
    captions = {image: rng.choice(every[image]) for image in images}
    references = {
        image: [text for text in texts if text != captions.get(image)] or texts for image, texts in every.items()
    }
    for name, end in (("without", ""), ("with", END)):
        reward = CIDErDReward({image: [f"{text}{end}" for text in texts] for image, texts in references.items()})
        finished, dangling = (
            reward(images, [f"{captions[image]}{ending}{end}" for image in images]) for ending in ("", options.ending)
        )
        print(f"{name} end tokens: the reward of {100 * (dangling > finished).mean():.1f}% rises")


if __name__ == "__main__":
    main()
