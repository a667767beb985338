"""Write and random-read speed of file formats for cached features.

python benchmarks/feature_formats.py                      # ViT-B/16, pooled
python benchmarks/feature_formats.py --num-tokens 145 --dim 768 --num-samples 4000

Beside the files of ``vlkd_pl.features.cache``, mapped into memory: the same files by safetensors' lazy slices, numpy's
memory maps, and Arrow through ``datasets``. All hold image tokens, a text embedding and a caption; all are read from
the page cache, in batches of random samples, in one process.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open

from vlkd_pl.batch import ShardEnd
from vlkd_pl.features.cache import FeatureCache, write_index
from vlkd_pl.features.format import FeatureSettings, FeatureWriter
from vlkd_pl.shards.decoder import SKIP_REASONS

SETTINGS = FeatureSettings("0" * 16, 224, "all", "float16", None, 50_000_000, True)
WRITE_BATCH = 256
Read = Callable[[Sequence[int]], object]


class Data(NamedTuple):
    """Features and texts to write: a part of the shards, in order."""

    tokens: torch.Tensor
    embedding: torch.Tensor
    texts: list[str]
    num_shards: int

    def batches(self) -> list[tuple[int, slice]]:
        """The shard and the samples of each batch."""
        size = len(self.texts) // self.num_shards
        starts = [(shard, shard * size + first) for shard in range(self.num_shards) for first in range(0, size, 256)]
        return [(shard, slice(first, min(first + 256, (shard + 1) * size))) for shard, first in starts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=40_000)
    parser.add_argument("--num-shards", type=int, default=8)
    parser.add_argument("--num-tokens", type=int, default=1)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--num-batches", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    data = Data(
        torch.randn(options.num_samples, options.num_tokens, options.dim, generator=generator).half(),
        torch.randn(options.num_samples, options.dim, generator=generator).half(),
        [f"an image of the thing number {i} in a row of many things" for i in range(options.num_samples)],
        options.num_shards,
    )
    size = data.tokens.nbytes + data.embedding.nbytes
    rng = np.random.default_rng(0)
    batches = [rng.integers(options.num_samples, size=options.batch_size).tolist() for _ in range(options.num_batches)]
    rates: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name, (write, read) in FORMATS.items():
            path = Path(folder) / name
            path.mkdir()
            start = time.perf_counter()
            write(path, data)
            written = size / (time.perf_counter() - start)
            reader = read(path, data)
            reader(batches[0])
            seconds = []
            for batch in batches:
                start = time.perf_counter()
                reader(batch)
                seconds.append(time.perf_counter() - start)
            rates[name] = (written, options.batch_size / float(np.median(seconds)))
            if name != "ours":  # the lazy slices read the files of the first
                shutil.rmtree(path)
    best_written, best_read = rates["ours"]
    print(f"{options.num_samples} samples of {options.num_tokens} × {options.dim}, batches of {options.batch_size}")
    for name, (written, read_rate) in rates.items():
        line = f"written {written / 1e6:5.0f} MB/s ({written / best_written:4.2f} of ours)"
        print(
            f"{name:<12}{line if name != 'safetensors' else '':<34}"
            f"read {read_rate:9,.0f} samples/s ({read_rate / best_read:5.2f} of ours)"
        )


def write_ours(path: Path, data: Data) -> None:
    writers = [FeatureWriter(path / f"{shard}.safetensors", SETTINGS) for shard in range(data.num_shards)]
    for shard, part in data.batches():
        texts = data.texts[part]
        writers[shard].append(data.tokens[part], data.embedding[part], texts, texts)
    for writer in writers:
        writer.finish(ShardEnd([], dict.fromkeys(SKIP_REASONS, 0)))
    write_index(path, [str(shard) for shard in range(data.num_shards)], SETTINGS)


def read_ours(path: Path, data: Data) -> Read:
    return FeatureCache(path).read


def write_nothing(path: Path, data: Data) -> None:
    """The lazy slices read the files that the first format wrote."""


def read_slices(path: Path, data: Data) -> Read:
    files = [
        safe_open(path.parent / "ours" / f"{shard}.safetensors", framework="pt") for shard in range(data.num_shards)
    ]
    tokens, embedding, ends, captions = (
        [file.get_slice(name) for file in files]
        for name in ("image_tokens", "clip_text_embedding", "caption_ends", "captions")
    )
    size = len(data.texts) // data.num_shards

    def caption(shard: int, row: int) -> str:
        begin, end = ends[shard][max(0, row - 1) : row + 1].tolist() if row else (0, int(ends[shard][:1]))
        return captions[shard][begin:end].numpy().tobytes().decode()

    def read(samples: Sequence[int]) -> object:
        places = [divmod(sample, size) for sample in samples]
        return (
            torch.cat([tokens[shard][row : row + 1] for shard, row in places]),
            torch.cat([embedding[shard][row : row + 1] for shard, row in places]),
            [caption(shard, row) for shard, row in places],
        )

    return read


def write_numpy(path: Path, data: Data) -> None:
    for name, tensor in (("tokens", data.tokens), ("embedding", data.embedding)):
        array = np.lib.format.open_memmap(path / f"{name}.npy", "w+", np.float16, tuple(tensor.shape))
        for _, part in data.batches():
            array[part] = tensor[part].numpy()
        array.flush()
    (path / "texts.txt").write_text("\n".join(data.texts))


def read_numpy(path: Path, data: Data) -> Read:
    tokens, embedding = (np.load(path / f"{name}.npy", mmap_mode="r") for name in ("tokens", "embedding"))
    texts = (path / "texts.txt").read_text().splitlines()  # all in memory: an upper bound
    return lambda samples: (
        torch.from_numpy(tokens[samples]),
        torch.from_numpy(embedding[samples]),
        [texts[sample] for sample in samples],
    )


def write_arrow(path: Path, data: Data) -> None:
    from datasets import Array2D, Features, Sequence, Value
    from datasets.arrow_writer import ArrowWriter

    columns = Features(
        tokens=Array2D(tuple(data.tokens.shape[1:]), "float16"),
        embedding=Sequence(Value("float16"), length=data.embedding.shape[1]),
        text=Value("string"),
    )
    writers = [ArrowWriter(path=str(path / f"{shard}.arrow"), features=columns) for shard in range(data.num_shards)]
    for shard, part in data.batches():
        writers[shard].write_batch(
            {"tokens": data.tokens[part].numpy(), "embedding": data.embedding[part].numpy(), "text": data.texts[part]}
        )
    for writer in writers:
        writer.finalize()


def read_arrow(path: Path, data: Data) -> Read:
    from datasets import Dataset, concatenate_datasets

    parts = [Dataset.from_file(str(path / f"{shard}.arrow")) for shard in range(data.num_shards)]
    rows = concatenate_datasets(parts).with_format("numpy")
    return lambda samples: rows[list(samples)]


FORMATS: dict[str, tuple[Callable[[Path, Data], None], Callable[[Path, Data], Read]]] = {
    "ours": (write_ours, read_ours),
    "safetensors": (write_nothing, read_slices),
    "numpy": (write_numpy, read_numpy),
    "arrow": (write_arrow, read_arrow),
}


if __name__ == "__main__":
    main()
