"""``vlkd-pl prepare``: downloads and reshards CC3M, and checks datasets."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlkd_pl.commands.loading import positive
from vlkd_pl.commands.progress import shard_progress
from vlkd_pl.errors import MissingPackageError

_BENCHMARKS = {
    "coco": "COCO captions",
    "nocaps": "NoCaps",
    "vqav2": "VQA v2",
    "okvqa": "OK-VQA",
    "glue": "GLUE",
    "xsum": "XSum",
}

_TRAINING_REMEDIES = {"not_rgb": "image_limits.skip_non_rgb false", "too_large": "image_limits.max_image_pixels"}


def main(arguments: Sequence[str]) -> int:
    """Prepare or check a dataset.

    Returns:
        Exit status: 0, or 1 if something is missing or wrong, which is then printed.
    """
    options = _parser().parse_args(arguments[1:])
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    try:
        status: int = options.run(options)
    except (OSError, MisconfigurationException, MissingPackageError) as error:
        reason = str(error).splitlines()[-1]  # the last line, since a worker's error begins with its traceback
        print(f"vlkd-pl prepare {options.what}: {reason.removeprefix('data.shards: ')}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlkd-pl prepare", description="Download and reshard CC3M, and check the files of datasets."
    )
    kinds = parser.add_subparsers(
        dest="what", required=True, metavar="WHAT", help="cc3m, check, coco, nocaps, vqav2, okvqa, glue or xsum"
    )

    def add(what: str, run: Callable[[argparse.Namespace], int], purpose: str) -> argparse.ArgumentParser:
        added = kinds.add_parser(what, help=purpose, description=purpose)
        added.set_defaults(run=run)
        return added

    def add_workers(added: argparse.ArgumentParser) -> None:
        added.add_argument(
            "--num-workers",
            type=positive,
            default=os.cpu_count() or 1,
            help="number of processes (default: %(default)s)",
        )

    cc3m = add(
        "cc3m",
        _cc3m,
        "Download CC3M, or read shards of images with captions; check each sample, write the good ones into shards of "
        "equal size, and list them in DIR/manifest.json together with the skipped samples and the reasons. After an "
        "interruption, the same command resumes; after the end, it does nothing.",
    )
    cc3m.add_argument(
        "source",
        metavar="SOURCE",
        help="CC3M's .tsv of captions and addresses; or a folder, wildcard or braces of img2dataset's .tar files",
    )
    cc3m.add_argument(
        "folder", type=Path, metavar="DIR", help="folder to write to, which also holds the download of a .tsv"
    )
    for name, kind, default, purpose in (
        ("--samples-per-shard", positive, 10_000, "samples in each new shard"),
        ("--min-side", positive, 64, "minimum of an image's shorter side in pixels"),
        ("--max-pixels", positive, 50_000_000, "maximum of an image's pixels"),
        ("--max-aspect-ratio", float, 4.0, "maximum of longer side over shorter side"),
        ("--min-words", positive, 2, "minimum number of words in a caption"),
        ("--max-words", positive, 100, "maximum number of words in a caption"),
        ("--download-side", positive, 512, "shorter side in pixels that larger images are resized to"),
        ("--download-threads", positive, 64, "connections of each process"),
    ):
        cc3m.add_argument(name, type=kind, default=default, help=f"{purpose} (default: %(default)s)")
    add_workers(cc3m)
    check = add(
        "check",
        _check,
        "Verify the shards of a folder: with a manifest.json, their size, sha256 and number of samples; without one, "
        "that every shard can be read to its end and every sample decoded.",
    )
    check.add_argument("folder", type=Path, metavar="DIR", help="folder of .tar files")
    add_workers(check)
    for benchmark, name in _BENCHMARKS.items():
        command = add(
            benchmark,
            _benchmark_files,
            f"Check that the files of {name} that the configurations use are present and complete, and print "
            "where to get those that are not.",
        )
        command.add_argument("folder", type=Path, metavar="DIR", help=f"folder of the files: data/{benchmark}")
        if benchmark in ("vqav2", "okvqa"):
            command.add_argument(
                "--images", type=Path, help="folder of COCO's train2014 and val2014 (default: DIR/../coco)"
            )
        else:
            command.set_defaults(images=None)
    return parser


def _cc3m(options: argparse.Namespace) -> int:
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    from vlkd_pl.prepare.download import download, link_counts
    from vlkd_pl.prepare.limits import SampleLimits
    from vlkd_pl.prepare.reshard import begin, prepare_shards, shard_request
    from vlkd_pl.shards.addresses import is_address
    from vlkd_pl.shards.decoder import skip_summary
    from vlkd_pl.shards.reader import find_shards

    folder: Path = options.folder
    source = Path(options.source)
    if is_address(options.source):
        raise MisconfigurationException(
            f"{options.source} is a remote address: give the path of a local file or folder"
        )
    limits = SampleLimits(
        options.min_side, options.max_pixels, options.max_aspect_ratio, options.min_words, options.max_words
    )
    is_list = source.is_file() and source.suffix != ".tar"
    if is_list:
        sources, links = [], None
        request = shard_request([str(source)], limits, options.samples_per_shard)
        request["download_side"] = options.download_side
    else:
        sources = (
            sorted(str(path) for path in source.glob("*.tar") if path.is_file())
            if source.is_dir()
            else find_shards(options.source)
        )
        if not sources:
            raise FileNotFoundError(f"there are no shards in {source}: give a folder of .tar files")
        links = link_counts(sources)
        request = shard_request(sources, limits, options.samples_per_shard)
    manifest = begin(folder, request)
    if manifest is not None:
        print(f"already finished: {_summary(manifest, folder)}")
        return 0
    if is_list:
        sources, links = download(source, folder, options.download_side, options.num_workers, options.download_threads)
    with shard_progress() as progress:
        manifest = prepare_shards(
            sources, folder, limits, options.samples_per_shard, request, links, options.num_workers, progress
        )
    if links is not None:
        dead = links["failed_to_download"]
        print(f"{links['count']:,} links, {dead:,} of them dead ({dead / max(1, links['count']):.1%})")
        print(f"{links['failed_to_resize']:,} of the others were not images")
        if links.get("broken_lines"):
            print(f"{links['broken_lines']:,} lines of {source} hold no link")
    print(f"{manifest['read']:,} samples read, skipped: {skip_summary(manifest['lost'])}")
    print(_summary(manifest, folder))
    return 0


def _summary(manifest: dict[str, Any], folder: Path) -> str:
    num_shards, size = len(manifest["shards"]), manifest["bytes"] / 1e9
    summary = f"{manifest['samples']:,} samples in {num_shards} shards, {size:.2f} GB, in {folder}; see manifest.json"
    return summary + _skipped_in_training(manifest.get("skipped_in_training", {}))


def _skipped_in_training(skipped: Mapping[str, int]) -> str:
    """A line on samples that are stored but that training skips by default; empty if there are none."""
    from vlkd_pl.shards.decoder import skip_summary

    counts = skip_summary(skipped, "")
    remedies = [f"--data.{_TRAINING_REMEDIES[reason]}" for reason in skipped if reason in _TRAINING_REMEDIES]
    return f"\nstored, but skipped in training by default: {counts} (used with {', '.join(remedies)})" if counts else ""


def _check(options: argparse.Namespace) -> int:
    from vlkd_pl.prepare.verify import ShardVerification

    verification = ShardVerification(options.folder)
    num_samples = num_wrong = 0
    skipped: Counter[str] = Counter()
    with shard_progress() as progress:
        for report in verification.reports(options.num_workers, progress):
            num_samples += report.num_samples
            skipped.update(report.skipped_in_training)
            if report.problem:
                num_wrong += 1
                print(f"{report.name} {report.problem}", flush=True)
    by = "manifest.json" if verification.has_manifest else "decoding every sample"
    print(
        f"{len(verification)} shards, {num_samples:,} samples, by {by}: {num_wrong or 'no'} shards with problems"
        + _skipped_in_training(skipped or verification.skipped_in_training)
    )
    return 1 if num_wrong else 0


def _benchmark_files(options: argparse.Namespace) -> int:
    from vlkd_pl.prepare.benchmark_files import check_files

    folder: Path = options.folder
    images = options.images or (folder if options.what == "coco" else folder.parent / "coco")
    status = 0
    for report in check_files(options.what, folder, images):
        if not report.problem:
            print(f"complete {report.names}: {report.counts}", flush=True)
        elif report.exists:
            status = 1
            held = f"{report.counts}, but " if report.counts else ""
            print(f"WRONG    {report.names}: {held}{report.problem}; download: {report.source}", flush=True)
        else:
            status = 1 if report.needed else status
            word = "MISSING " if report.needed else "optional"
            print(f"{word} {report.problem}; download: {report.source}", flush=True)
    return status
