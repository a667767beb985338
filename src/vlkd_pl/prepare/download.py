"""Download of CC3M's images into shards, with img2dataset."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.errors import needs_extra

_LINKS_PER_SHARD = 10_000
_COUNTS = ("count", "successes", "failed_to_download", "failed_to_resize")
_MOST_COMMON = 20


def download(
    tsv: Path, folder: Path, image_size: int, num_processes: int, num_threads: int
) -> tuple[list[str], dict[str, Any]]:
    """Download images into shards of 10,000 links; an interrupted download resumes.

    Args:
        tsv: CC3M's list without a header; each line is a caption, a tab and an address.
        folder: Folder for ``links.tsv``, img2dataset's input, and ``download``, its output.
        image_size: Maximum of an image's shorter side in pixels; larger images are resized.
        num_processes: Number of processes that download.
        num_threads: Number of connections of each process.

    Returns:
        Paths of the shards, and the results of the links as in ``link_counts``.

    Raises:
        FileNotFoundError: The list does not exist.
        MisconfigurationException: The list holds no link, or img2dataset left some shards out.
        MissingPackageError: img2dataset is not installed.
    """
    output = folder / "download"
    num_links, num_invalid = _write_links(tsv, folder / "links.tsv")
    num_shards = math.ceil(num_links / _LINKS_PER_SHARD)
    statistics = [output / f"{shard:05d}_stats.json" for shard in range(num_shards)]
    for path in statistics:
        if path.is_file() and _read(path) is None:  # interrupted: img2dataset would treat the shard as complete
            path.unlink()
    if not all(path.is_file() for path in statistics):
        _call_img2dataset(folder / "links.tsv", output, image_size, num_processes, num_threads)
    left = [path for path in statistics if not path.is_file() or _read(path) is None]
    if left:
        raise MisconfigurationException(
            f"img2dataset did not finish {len(left)} of {num_shards} shards in {output}, first {left[0].name[:5]}: "
            "repeat the command"
        )
    shards = [str(output / f"{shard:05d}.tar") for shard in range(num_shards)]
    counts = link_counts(shards)
    assert counts is not None  # all statistics exist
    return shards, counts | {"broken_lines": num_invalid}


def link_counts(shards: Sequence[str]) -> dict[str, Any] | None:
    """Sum up the results of the links in img2dataset's ``_stats.json`` next to each shard.

    Args:
        shards: Paths of tar files.

    Returns:
        ``count``, ``successes``, ``failed_to_download``, ``failed_to_resize``, the most common errors as ``why``, and
        ``shards``, the number of shards with statistics; None if no shard has any.
    """
    paths = [Path(shard).with_name(f"{Path(shard).stem}_stats.json") for shard in shards]
    valid = [statistics for path in paths if (statistics := _read(path)) is not None]
    if not valid:
        return None
    errors: Counter[str] = Counter()
    for statistics in valid:
        errors.update({error: count for error, count in statistics["status_dict"].items() if error != "success"})
    ordered = sorted(errors.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[_MOST_COMMON:])
    counts: dict[str, Any] = {name: sum(statistics[name] for statistics in valid) for name in _COUNTS}
    return counts | {"why": dict(ordered[:_MOST_COMMON]) | ({"other": rest} if rest else {}), "shards": len(valid)}


def _write_links(tsv: Path, path: Path) -> tuple[int, int]:
    """Write the list with a header and in quotation marks; returns the numbers of links and of lines without one."""
    num_links = num_invalid = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(["caption", "url"])
        for caption, url in _links(tsv):
            # urllib would also open local files
            if caption and url.startswith(("http://", "https://")):
                writer.writerow([caption, url])
                num_links += 1
            else:
                num_invalid += 1
    if num_links == 0:
        raise MisconfigurationException(f"{tsv} holds no line with a caption, a tab and an address: give CC3M's .tsv")
    return num_links, num_invalid


def _links(tsv: Path) -> Iterator[tuple[str, str]]:
    """Iterate over the captions and addresses of the lines; a missing one is empty."""
    with tsv.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            caption, _, rest = line.rstrip("\r\n").partition("\t")
            yield caption.replace("\r", " ").strip(), rest.partition("\t")[0].strip()


def _call_img2dataset(links: Path, output: Path, image_size: int, num_processes: int, num_threads: int) -> None:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # without it each worker would look for a newer version
    with needs_extra("prepare"):
        import img2dataset
    download = partial(
        img2dataset.download,
        url_list=str(links),
        input_format="tsv",
        url_col="url",
        caption_col="caption",
        output_format="webdataset",
        output_folder=str(output),
        image_size=image_size,
        resize_mode="keep_ratio",  # the shorter side
        resize_only_if_bigger=True,
        number_sample_per_shard=_LINKS_PER_SHARD,
        processes_count=num_processes,
        thread_count=num_threads,
        retries=1,
        enable_wandb=False,
        incremental_mode="incremental",
    )
    context = multiprocessing.get_context("fork")
    life, main_end = context.Pipe(duplex=False)
    process = context.Process(target=_end_together, args=(life, main_end, download))
    process.start()
    try:
        process.join()
    finally:
        main_end.close()
        process.join()


def _end_together(life: Connection, others_end: Connection, download: Callable[[], Any]) -> None:
    """Run a download whose processes end together with the main process, even if that is killed.

    Otherwise img2dataset's workers would write into the same shards as those of the next run.

    Args:
        life: Connection that is never written to.
        others_end: Other end of the connection, which only the main process keeps open.
        download: Function that downloads.
    """
    os.setpgid(0, 0)
    others_end.close()

    def watch() -> None:
        with suppress(EOFError):
            life.recv_bytes()
        os.killpg(0, signal.SIGKILL)

    Thread(target=watch, daemon=True).start()
    download()


def _read(path: Path) -> dict[str, Any] | None:
    """Read a file of statistics; None if it is missing or has another format."""
    try:
        statistics = json.loads(path.read_bytes())
        if all(isinstance(statistics[name], int) for name in _COUNTS) and isinstance(statistics["status_dict"], dict):
            return statistics
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
