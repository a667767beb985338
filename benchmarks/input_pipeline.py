"""Images per second of one core: the stream of training batches against the decoding of JPEG alone.

python benchmarks/input_pipeline.py

The stream reads tar files, draws from its buffer, decodes, resizes and crops the images, tokenizes and corrupts the
texts, and makes batches of uint8, which CLIP normalises. The decoding opens the same bytes with Pillow, as RGB. Both
run in one thread, in turn. The result is the same with and without a GPU. --stages also prints the time of each stage.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image, ImageDraw, ImageFilter  # noqa: E402
from real_size import SAMPLE_BART, Clock, machine, median  # noqa: E402

from vlkd_pl.clip.frozen import normalized  # noqa: E402
from vlkd_pl.data.shard_source import ImageLimits  # noqa: E402
from vlkd_pl.datamodules.cc3m import CC3MDataModule  # noqa: E402
from vlkd_pl.evaluation.table import format_table  # noqa: E402
from vlkd_pl.sample.language import vocabulary_words  # noqa: E402
from vlkd_pl.shards.reader import read_shard  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(400, 300), help="in pixels (default: %(default)s)")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEG files (default: %(default)s)")
    parser.add_argument("--num-images", type=int, default=400, help="in one shard (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-rounds", type=int, default=7, help="of both (default: %(default)s)")
    parser.add_argument("--draft-decoding", action="store_true", help="as the data module's argument")
    parser.add_argument("--stages", action="store_true", help="print a table of microseconds an image")
    options = parser.parse_args()
    clock = Clock("cpu")
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "00000.tar"
        contents = write_shard(shard, options.num_images, tuple(options.size), options.quality)
        data = CC3MDataModule(
            str(shard),
            "ViT-B/16",
            str(SAMPLE_BART),
            options.batch_size,
            num_workers=0,
            shuffle_buffer=100,
            image_limits=ImageLimits(draft_decoding=options.draft_decoding),
        )
        data.setup("fit")
        stream = iter(data.train_dataloader())
        num_batches = max(1, options.num_images // options.batch_size)

        def streamed() -> int:
            return sum(len(batch["image"]) for batch in islice(stream, num_batches))

        def decoded() -> int:
            return sum(1 for content in contents if Image.open(io.BytesIO(content)).convert("RGB"))

        streamed()
        rates = [(rate(streamed, clock), rate(decoded, clock)) for _ in range(options.num_rounds)]
        stages = stage_times(data, shard, 1e6 / median([rate for rate, _ in rates]), clock) if options.stages else {}
    ours, alone = (median(rate) for rate in zip(*rates, strict=True))
    print(
        f"{machine('cpu')}, {time.strftime('%Y-%m-%d')}; {options.size[0]} × {options.size[1]}, "
        f"{np.mean([len(content) for content in contents]) / 1000:.0f} kB an image"
    )
    print(f"ratio: the stream runs at {median([a / b for a, b in rates]):.0%} of the rate of decoding alone")
    print(f"images a second of one core: {ours:.0f}, decoding alone {alone:.0f}")
    if stages:
        print(format_table(["µs"], [stages], digits=0))


def stage_times(data: CC3MDataModule, shard: Path, whole: float, clock: Clock) -> dict[str, float]:
    """Microseconds an image of each stage alone, the median of five passes over a shard.

    Args:
        data: The data module.
        shard: The shard.
        whole: Microseconds an image of the stream.
        clock: Measures.
    """
    raws = list(read_shard(str(shard)))
    samples = [data.decoder.decode(raw) for raw in raws]
    images = [sample["image"] for sample in samples]
    batches = [images[start : start + data.batch_size] for start in range(0, len(images), data.batch_size)]
    texts, keys = ([sample[part] for sample in samples] for part in ("text", "key"))

    def taken(run: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            start = clock.now()
            run()
            times.append((clock.now() - start) / len(raws) * 1e6)
        return median(times)

    def decode() -> None:
        for raw in raws:
            data.decoder.decode(raw)

    transform = data.decoder.transform
    prepared = taken(decode)
    data.decoder.transform = lambda image: torch.empty(0)
    decoding = taken(decode)
    data.decoder.transform = transform
    stages = {
        "reading tar files": taken(lambda: [None for _ in read_shard(str(shard))]),
        "decoding": decoding,
        "resizing, cropping, to a tensor": prepared - decoding,
        "CLIP's tokenizer": taken(lambda: data.clip_tokenizer(texts)),
        "BART's tokenizer and corruption": taken(lambda: data.collator.texts(texts, keys)),
        "stacking": taken(lambda: [torch.stack(batch).shape for batch in batches]),
    }
    return {
        **stages,
        "everything else": whole - sum(stages.values()),
        "the stream": whole,
        "normalising, by CLIP": taken(lambda: [normalized(torch.stack(batch)).shape for batch in batches]),
    }


def write_shard(path: Path, num: int, size: tuple[int, int], quality: int) -> list[bytes]:
    """Write images with captions as img2dataset does, and return the images' files."""
    rng = np.random.default_rng(0)
    words = vocabulary_words()
    contents = []
    with tarfile.open(path, "w") as archive:
        for number in range(num):
            contents.append(image(rng, size, quality))
            text = " ".join(rng.choice(words, size=rng.integers(6, 15))).encode()
            for extension, content in (("jpg", contents[-1]), ("txt", text), ("json", b'{"status": "success"}')):
                member = tarfile.TarInfo(f"{number:09}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return contents


def image(rng: np.random.Generator, size: tuple[int, int], quality: int) -> bytes:
    """A JPEG file of shapes with some noise, of about as many bytes as a photograph of its size."""
    width, height = size
    image = Image.new("RGB", size, tuple(rng.integers(256, size=3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        (left, right), (top, bottom) = (np.sort(rng.integers(side, size=2)).tolist() for side in size)
        draw.ellipse((left, top, right, bottom), fill=tuple(rng.integers(256, size=3).tolist()))
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1))) + rng.normal(0, 6, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def rate(run: Callable[[], int], clock: Clock) -> float:
    """Images a second."""
    start = clock.now()
    num = run()
    return num / (clock.now() - start)


if __name__ == "__main__":
    main()
