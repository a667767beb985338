"""``vlkd-pl demo``: a web page to try a model."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

from vlkd_pl.commands.loading import add_model_options, load_model, positive
from vlkd_pl.errors import missing_package


def main(arguments: Sequence[str]) -> int:
    """Serve the page until it is interrupted."""
    parser = argparse.ArgumentParser(
        prog="vlkd-pl demo", description="Serve a web page that captions an image and answers questions about it."
    )
    add_model_options(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all networks (default: %(default)s)"
    )
    parser.add_argument("--port", type=positive, default=7860, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--num-masks", type=positive, default=6, help="initial masks in the caption prompt (default: %(default)s)"
    )
    parser.add_argument("--num-beams", type=positive, default=6, help="initial number of beams (default: %(default)s)")
    parser.add_argument(
        "--max-upload-mb", type=positive, default=10, help="maximum size of a file in megabytes (default: %(default)s)"
    )
    parser.add_argument(
        "--max-pixels", type=positive, default=50_000_000, help="maximum pixels of an image (default: %(default)s)"
    )
    parser.add_argument(
        "--examples",
        type=Path,
        metavar="FOLDER",
        help="example images (default: scenes of the sample world, and a photo)",
    )
    options = parser.parse_args(arguments[1:])
    if options.port > 65535:
        parser.error(f"there is no port {options.port}: give one up to 65535")

    if find_spec("gradio") is None:
        print(f"vlkd-pl demo: {missing_package('the page needs Gradio', 'demo')}", file=sys.stderr)
        return 1
    model = load_model(options, "demo")
    if model is None:
        return 1
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with TemporaryDirectory(prefix="vlkd-pl-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads are deleted when the page closes
        from vlkd_pl.demo.page import PHOTO, build_page, draw_examples, find_examples, launch

        if options.examples is None:
            examples = [*draw_examples(Path(folder) / "examples"), PHOTO]
        else:
            examples = find_examples(options.examples, options.max_upload_mb, options.max_pixels)
        if not examples:
            print(f"vlkd-pl demo: there are no images in {options.examples}: give another folder", file=sys.stderr)
            return 1
        page = build_page(
            model,
            examples,
            num_masks=options.num_masks,
            num_beams=options.num_beams,
            max_upload_mb=options.max_upload_mb,
            max_pixels=options.max_pixels,
        )
        try:
            address = launch(page, options.host, options.port, options.max_upload_mb)
        except OSError as error:
            print(
                f"vlkd-pl demo: nothing can listen on {options.host}:{options.port} ({error}): give another --port",
                file=sys.stderr,
            )
            return 1
        print(f"The page is at {address} until Ctrl+C.", flush=True)
        try:
            Event().wait()
        except KeyboardInterrupt:
            page.close(verbose=False)
    return 0
