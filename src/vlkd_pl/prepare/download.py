"""CC3M's images: from its list of captions and addresses to shards, by img2dataset."""

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
    """Download images into shards of 10,000 links; goes on where it was cut.

    Args:
        tsv: CC3M's list, which has no header: caption, tab, address.
        folder: Gets ``links.tsv``, the list as img2dataset takes it, and ``download``, its output.
        image_size: Pixels of an image's shorter side at most; larger ones are made smaller.
        num_processes: Processes that download.
        num_threads: Connections of each.

    Returns:
        The shards, and what came of the links; see ``link_counts``.

    Raises:
        FileNotFoundError: There is no such file.
        MisconfigurationException: There is no link in the file, or img2dataset has left some of them.
        MissingPackageError: img2dataset is not installed.
    """
    output = folder / "download"
    num_links, num_broken = _write_links(tsv, folder / "links.tsv")
    num_shards = math.ceil(num_links / _LINKS_PER_SHARD)
    statistics = [output / f"{shard:05d}_stats.json" for shard in range(num_shards)]
    for path in statistics:
        if path.is_file() and _read(path) is None:  # cut while it was written: img2dataset would take it as done
            path.unlink()
    if not all(path.is_file() for path in statistics):
        _call_img2dataset(folder / "links.tsv", output, image_size, num_processes, num_threads)
    left = [path for path in statistics if not path.is_file() or _read(path) is None]
    if left:
        raise MisconfigurationException(
            f"img2dataset has left {len(left)} of {num_shards} shards in {output}, first {left[0].name[:5]}: give the "
            "same command again"
        )
    shards = [str(output / f"{shard:05d}.tar") for shard in range(num_shards)]
    counts = link_counts(shards)
    assert counts is not None  # all statistics are there
    return shards, counts | {"broken_lines": num_broken}


def link_counts(shards: Sequence[str]) -> dict[str, Any] | None:
    """What came of the links, as img2dataset's ``_stats.json`` beside each shard tells.

    Args:
        shards: Tar files.

    Returns:
        None where there is no such file; else ``count``, ``successes``, ``failed_to_download``, ``failed_to_resize``,
        ``why`` with the most common errors, and ``shards``, the number of those that have such a file.
    """
    read = [_read(Path(shard).with_name(f"{Path(shard).stem}_stats.json")) for shard in shards]
    known = [statistics for statistics in read if statistics is not None]
    if not known:
        return None
    errors: Counter[str] = Counter()
    for statistics in known:
        errors.update({error: count for error, count in statistics["status_dict"].items() if error != "success"})
    ordered = sorted(errors.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[_MOST_COMMON:])
    counts: dict[str, Any] = {name: sum(statistics[name] for statistics in known) for name in _COUNTS}
    return counts | {"why": dict(ordered[:_MOST_COMMON]) | ({"other": rest} if rest else {}), "shards": len(known)}


def _write_links(tsv: Path, path: Path) -> tuple[int, int]:
    """Write the list with a header and in quotation marks; returns the number of links and of broken lines."""
    num_links = num_broken = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(["caption", "url"])
        for caption, url in _links(tsv):
            # of all that urllib opens, just this: no file of this machine
            if caption and url.startswith(("http://", "https://")):
                writer.writerow([caption, url])
                num_links += 1
            else:
                num_broken += 1
    if num_links == 0:
        raise MisconfigurationException(f"{tsv} holds no line with a caption, a tab and an address: give CC3M's .tsv")
    return num_links, num_broken


def _links(tsv: Path) -> Iterator[tuple[str, str]]:
    """Caption and address of each line; empty where they are missing."""
    with tsv.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            caption, _, rest = line.rstrip("\r\n").partition("\t")
            yield caption.replace("\r", " ").strip(), rest.partition("\t")[0].strip()


def _call_img2dataset(links: Path, output: Path, image_size: int, num_processes: int, num_threads: int) -> None:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or each worker would ask the network for a newer version
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
    life, own_end = context.Pipe(duplex=False)
    process = context.Process(target=_end_together, args=(life, own_end, download))
    process.start()
    try:
        process.join()
    finally:
        own_end.close()
        process.join()


def _end_together(life: Connection, others_end: Connection, download: Callable[[], Any]) -> None:
    """End with all processes that it starts when the one that started it ends, however that is.

    Left alone, img2dataset's workers would write into the same shards as those of the next run.

    Args:
        life: A connection that is never written to.
        others_end: Its other end, which the process that started this one alone keeps open.
        download: What to do.
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
    """The content of a file of statistics; None where there is none, or it is of another format."""
    try:
        statistics = json.loads(path.read_bytes())
        if all(isinstance(statistics[name], int) for name in _COUNTS) and isinstance(statistics["status_dict"], dict):
            return statistics
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
