"""The ``vlkd-pl`` command: find the subcommand, and import only what it needs."""

from __future__ import annotations

import io
import logging
import os
import select
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module

from vlkd_pl import __version__
from vlkd_pl.commands.failures import process_failure
from vlkd_pl.errors import MissingPackageError, ModelFileError

_COMMANDS = {
    "fit": ("train", "train a module: vlkd-pl fit --config distill.yaml"),
    "validate": ("train", "run a module's validation once"),
    "test": ("train", "run a module's test and write its scores"),
    "predict": ("train", "write a module's predictions as JSON lines"),
    "cache": ("cache", "encode the shards with CLIP once, so that training reads features in place of images"),
    "sample": ("sample", "draw the sample world, and write it in the formats of the real data"),
    "prepare": ("prepare", "put the datasets in place, and verify them"),
    "caption": ("caption", "caption images with a distilled model"),
    "ask": ("ask", "answer questions about an image"),
    "search": ("search", "find the images that match a text"),
    "demo": ("demo", "serve a web page to try a model"),
    "score": ("score", "score captions, answers or summaries in files of the benchmark formats"),
    "grid": ("grid", "search GLUE's hyperparameters, and print Table 5"),
    "scores": ("scores", "print the scores of finished tests side by side"),
    "summary": ("summary", "print the model, the scores and the caption panel of make distill, and what to run next"),
}
"""For each command its file under ``vlkd_pl/commands``, and its line in the help."""

_CHATTER = (
    "LightningCLI's args parameter",  # the arguments come from main()
    r"Found \d+ module\(s\) in eval mode",  # the frozen CLIP is
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # raised by Lightning's code
    "Checkpoint directory .* exists and is not empty",  # of a run that resumes
    "Experiment logs directory",  # the TensorBoard logger has just made it
    "The '[a-z_]+_dataloader' does not have many workers",  # chosen where there are few cores
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``vlkd-pl``.

    Args:
        arguments: Command line after ``vlkd-pl``; that of the process by default.

    Returns:
        Exit status: 0; 1 after an error, which is explained in one line; 2 for a wrong command line; 130 after Ctrl-C;
        141 when the reader of the output, such as ``head``, has exited.

    Raises:
        Exception: A bug in the program.

    >>> main(["--version"])  # doctest: +ELLIPSIS
    vlkd-pl ...
    0
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  until the process ends
    name = " ".join(["vlkd-pl", *arguments[:1]])
    if sys.stdout is None:
        print(f"{name}: the standard output is closed: redirect it to a file, or to {os.devnull}", file=sys.stderr)
        return 1
    _escape_unprintable()
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # here, where an error can be explained
    except KeyboardInterrupt:
        return _interrupted(name)
    except SystemExit as ended:  # Lightning and Rich raise it in place of the error
        if isinstance(ended.__context__, KeyboardInterrupt):
            return _interrupted(name)
        if isinstance(ended.__context__, BrokenPipeError):
            return _broken_pipe()
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _has_no_reader():
            return _broken_pipe()
        reason = explanation(error)
        if reason is None:
            raise
        _say(f"{name}: {reason}")
        _discard_unwritten_output()
        return 1


def explanation(error: BaseException) -> str | None:
    """Explain an error to the user in one line.

    Args:
        error: The exception, with its causes.

    Returns:
        What is wrong with a file, model, setting or installation; None for a bug in the program.

    >>> explanation(FileNotFoundError("there is no image a.jpg"))
    'there is no image a.jpg'
    """
    if failure := process_failure(error):
        return failure
    lightning = sys.modules.get("lightning_fabric.utilities.exceptions")
    misconfiguration = () if lightning is None else (lightning.MisconfigurationException,)
    cause: BaseException | None = error
    while not isinstance(cause, (OSError, UnicodeError, ModelFileError, MissingPackageError, *misconfiguration)):
        if cause is None:
            return None
        cause = cause.__cause__
    if isinstance(cause, OSError) and cause.filename is not None and cause.strerror:
        return f"{os.fsdecode(cause.filename)}: {cause.strerror}"
    text = str(cause)
    if "Original Traceback" in text:  # of a worker of a data loader
        text = text.rstrip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def _run(arguments: Sequence[str]) -> int:
    """Find the command and run it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(f"vlkd-pl {__version__}")
        return 0
    if arguments[0] not in _COMMANDS:
        near = get_close_matches(arguments[0], _COMMANDS, 1)
        hint = f": did you mean {near[0]}?" if near else f"; the commands are {', '.join(_COMMANDS)}"
        print(f"vlkd-pl: no command {arguments[0]!r}{hint}", file=sys.stderr)
        return 2
    _quiet()
    command = import_module(f"vlkd_pl.commands.{_COMMANDS[arguments[0]][0]}")
    status: int = command.main(arguments)
    return status


def _interrupted(name: str) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the clean-up
    _say(f"{name}: interrupted")
    _discard_unwritten_output()
    return 128 + signal.SIGINT


def _broken_pipe() -> int:
    _discard_unwritten_output()
    return 128 + signal.SIGPIPE


def _say(line: str) -> None:
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _has_no_reader() -> bool:
    """Whether the reader of the output has exited, rather than that of another pipe or connection."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _discard_unwritten_output() -> None:
    """Keep Python from writing again at exit, where it would fail with a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _escape_unprintable() -> None:
    """Escape characters that an output cannot encode, such as bytes of a file name that are not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        is_utf8 = stream.encoding.lower() in ("utf-8", "utf8")
        # with UTF-8, surrogateescape writes the bytes of a file name unchanged, and all else
        if stream.errors == "strict" or (stream.errors == "surrogateescape" and not is_utf8):
            stream.reconfigure(errors="backslashreplace")


def _quiet() -> None:
    """Hide notices of other packages that need no action."""
    for message in _CHATTER:
        warnings.filterwarnings("ignore", message=f".*{message}")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: not any(part in record.getMessage() for part in ("Tip:", "Detected KeyboardInterrupt"))
    )


def _usage() -> str:
    lines = ["usage: vlkd-pl COMMAND ...", "", "Vision-language knowledge distillation of CLIP into BART.", ""]
    lines += [f"  {name:<10}{purpose}" for name, (_, purpose) in _COMMANDS.items()]
    return "\n".join([*lines, "", "vlkd-pl COMMAND --help lists the options of a command."])
