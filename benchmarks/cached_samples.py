"""Samples per second of the whole loader of cached features: reading, tokens, infilling and collation.

python benchmarks/cached_samples.py

The features are random, in the geometry of the two configurations of Table 10: ViT-B/16's pooled embedding, and the 145
tokens of RN50x16. The data module is that of training, with the sample world's captions of about ten words, and reads
from the page cache. Beside the loader stand its two parts in one process: the features alone, and the texts alone.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vlkd_pl.batch import ShardEnd
from vlkd_pl.datamodules.cc3m import CC3MDataModule
from vlkd_pl.features.cache import write_index
from vlkd_pl.features.format import FeatureSettings, FeatureType, FeatureWriter
from vlkd_pl.sample import BART_FOLDER, CLIP_FOLDER
from vlkd_pl.sample.language import random_caption
from vlkd_pl.sample.scenes import random_scene
from vlkd_pl.shards.decoder import SKIP_REASONS

GEOMETRIES = {"ViT-B/16, pooled": (1, 512, 60_000), "RN50x16, 145 tokens": (145, 768, 6_000)}
NUM_SHARDS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--num-workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, (num_tokens, dim, num_samples) in GEOMETRIES.items():
        types: tuple[FeatureType, ...] = ("float16", "int8") if num_tokens > 1 else ("float16",)
        for dtype in types:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                sample_bytes = write(Path(folder), num_tokens, dim, num_samples, dtype)
                print(f"{name}, {dtype}, {sample_bytes / 1e3:.1f} KB a sample, batches of {options.batch_size}")
                measure(folder, options.batch_size, options.num_workers, options.seconds)


def write(folder: Path, num_tokens: int, dim: int, num_samples: int, dtype: FeatureType) -> int:
    """A cache of random features; the bytes of a sample."""
    settings = FeatureSettings("0" * 16, 64, "all", dtype, None, 50_000_000, True)
    generator, rng = torch.Generator().manual_seed(0), random.Random(0)
    tokens = torch.randn(256, num_tokens, dim, generator=generator)
    embedding = torch.randn(256, dim, generator=generator)
    captions = [random_caption(rng, random_scene(rng, "train")) for _ in range(2048)]
    names = [f"{shard:05d}" for shard in range(NUM_SHARDS)]
    for shard, name in enumerate(names):
        writer = FeatureWriter(folder / f"{name}.safetensors", settings)
        for first in range(0, num_samples // NUM_SHARDS, 256):
            size = min(256, num_samples // NUM_SHARDS - first)
            keys = [f"{shard:05d}{first + i:05d}" for i in range(size)]
            writer.append(tokens[:size], embedding[:size], rng.choices(captions, k=size), keys)
        writer.finish(ShardEnd([], dict.fromkeys(SKIP_REASONS, 0)))
    write_index(folder, names, settings)
    return settings.num_bytes(num_tokens, dim)


def measure(folder: str, batch_size: int, num_workers: list[int], seconds: float) -> None:
    rates = {}
    for workers in num_workers:
        module = CC3MDataModule("", CLIP_FOLDER, BART_FOLDER, batch_size, workers, image_size=64, features=folder)
        module.setup("fit")
        batches = _endless(module)
        next(batches)
        rates[f"loader, {workers} workers"] = batch_size * rate(lambda stream=batches: next(stream), seconds)
        batches.close()
    assert module.cache is not None
    samples = np.random.default_rng(0).permutation(len(module.cache))[:batch_size]
    texts = module.cache.read(samples)
    rates["features alone"] = batch_size * rate(lambda: module.cache.read(samples), seconds / 3)
    rates["texts alone"] = batch_size * rate(lambda: module.collator.texts(texts.texts, texts.keys), seconds / 3)
    for name, value in rates.items():
        print(f"  {name:<20}{value:10,.0f} samples/s")


def _endless(module: CC3MDataModule):
    while True:
        yield from module.train_dataloader()


def rate(step: Callable[[], object], seconds: float) -> float:
    """Steps per second, over about as many seconds."""
    times = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        step()
        times.append(time.perf_counter() - start)
    return len(times) / sum(times)


if __name__ == "__main__":
    main()
