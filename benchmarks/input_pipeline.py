"""Pictures per second of one core: the stream of training batches against the decoding of JPEG alone.

python benchmarks/input_pipeline.py

The stream reads tar files, draws from its buffer, decodes, resizes, crops and normalises the pictures, tokenizes and
corrupts the texts, and makes batches. The decoding opens the same bytes with Pillow, as RGB. Both run in one thread, in
turn. It needs no GPU and is the same beside one.
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
from PIL import Image, ImageDraw, ImageFilter  # noqa: E402
from real_size import SAMPLE_BART, Clock, machine, median  # noqa: E402

from vlkd_pl.data.cc3m import CC3MDataModule  # noqa: E402
from vlkd_pl.data.sample.language import vocabulary_words  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(400, 300), help="in pixels (default: %(default)s)")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEG files (default: %(default)s)")
    parser.add_argument("--num-pictures", type=int, default=400, help="in one shard (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-rounds", type=int, default=7, help="of both (default: %(default)s)")
    options = parser.parse_args()
    clock = Clock("cpu")
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "00000.tar"
        contents = write_shard(shard, options.num_pictures, tuple(options.size), options.quality)
        data = CC3MDataModule(
            str(shard), "ViT-B/16", str(SAMPLE_BART), options.batch_size, num_workers=0, shuffle_buffer=100
        )
        data.setup("fit")
        stream = iter(data.train_dataloader())
        num_batches = max(1, options.num_pictures // options.batch_size)

        def streamed() -> int:
            return sum(len(batch["image"]) for batch in islice(stream, num_batches))

        def decoded() -> int:
            return sum(1 for content in contents if Image.open(io.BytesIO(content)).convert("RGB"))

        streamed()
        rates = [(rate(streamed, clock), rate(decoded, clock)) for _ in range(options.num_rounds)]
    ours, alone = (median(each) for each in zip(*rates, strict=True))
    print(
        f"{machine('cpu')}, {time.strftime('%Y-%m-%d')}; {options.size[0]} × {options.size[1]}, "
        f"{np.mean([len(content) for content in contents]) / 1000:.0f} kB a picture"
    )
    print(f"ratio: the stream runs at {median([a / b for a, b in rates]):.0%} of the rate of decoding alone")
    print(f"pictures a second of one core: {ours:.0f}, decoding alone {alone:.0f}")


def write_shard(path: Path, num: int, size: tuple[int, int], quality: int) -> list[bytes]:
    """Writes pictures with captions as img2dataset does, and returns the pictures' files."""
    rng = np.random.default_rng(0)
    words = vocabulary_words()
    contents = []
    with tarfile.open(path, "w") as archive:
        for number in range(num):
            contents.append(picture(rng, size, quality))
            text = " ".join(rng.choice(words, size=rng.integers(6, 15))).encode()
            for extension, content in (("jpg", contents[-1]), ("txt", text), ("json", b'{"status": "success"}')):
                member = tarfile.TarInfo(f"{number:09}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return contents


def picture(rng: np.random.Generator, size: tuple[int, int], quality: int) -> bytes:
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
    """Pictures a second."""
    start = clock.now()
    num = run()
    return num / (clock.now() - start)


if __name__ == "__main__":
    main()
