"""The reward of Self-Critical Sequence Training against pycocoevalcap's CIDEr, on the caption evaluation's own example.

python benchmarks/cider_reward.py captions_val2014_fakecap_results.json

The file is in https://github.com/tylin/coco-caption/tree/master/results; its references are in pycocoevalcap's SPICE.
"""

from __future__ import annotations

import argparse
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocoevalcap
from pycocoevalcap.cider.cider_scorer import CiderScorer

from vlkd_pl.metrics.cider import CIDErDReward
from vlkd_pl.metrics.ptb import tokenize

JAR = Path(pycocoevalcap.__path__[0]) / "spice" / "spice-1.0.jar"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="captions of COCO val2014 in the form that COCO's server takes")
    parser.add_argument(
        "--num-runs", type=int, default=15, help="of both in turn; medians are reported (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=200, help="captions of a small batch (default: %(default)s)")
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    with zipfile.ZipFile(JAR) as jar:
        annotations = json.loads(jar.read("coco/annotations/captions_val2014.json"))["annotations"]
    every: dict[int, list[str]] = {}
    for annotation in annotations:
        every.setdefault(annotation["image_id"], []).append(tokenize(annotation["caption"]))
    images = [result["image_id"] for result in results]
    captions = [tokenize(result["caption"]) for result in results]
    references = {image: every[image] for image in images}

    # document frequencies are counted once in both
    counted = CiderScorer()
    for texts in references.values():
        counted += ("", texts)
    counted.compute_doc_freq()

    def pycocoevalcap_rewards() -> np.ndarray:
        scorer = CiderScorer()
        for image, caption in zip(images, captions, strict=True):
            scorer += (caption, references[image])
        scorer.document_frequency = counted.document_frequency
        return np.array(scorer.compute_cider())

    reward = CIDErDReward(references)
    both = [(timed(pycocoevalcap_rewards), timed(lambda: reward(images, captions))) for _ in range(options.num_runs)]
    (expected, _), (scores, _) = both[0]
    their_time, our_time = (float(np.median([run[which][1] for run in both])) for which in (0, 1))
    print(f"{len(captions)} captions, {sum(map(len, references.values()))} references")
    print(f"CIDEr {scores.mean():.6f}, pycocoevalcap's {expected.mean():.6f}")
    print(f"largest difference of a caption: {np.abs(scores - expected).max():.1e}")
    print(f"captions per second: {len(captions) / our_time:,.0f}, pycocoevalcap {len(captions) / their_time:,.0f}")
    print(f"ratio: {np.median([theirs / ours for (_, theirs), (_, ours) in both]):.1f}")

    first = slice(options.batch_size)
    start = time.perf_counter()
    of_all = CIDErDReward(every)
    print(f"references of {len(every):,} images made ready in {time.perf_counter() - start:.1f} s; with them")
    times = [timed(lambda: of_all(images[first], captions[first]))[1] for _ in range(10 * options.num_runs)]
    print(f"captions per second in batches of {options.batch_size}: {len(captions[first]) / np.median(times):,.0f}")


def timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """The result, and the time in seconds."""
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()
