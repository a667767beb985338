"""``vlkd-pl``: finds the command and imports only what it needs."""

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
from pathlib import Path

from vlkd_pl import __version__
from vlkd_pl.commands.failures import process_failure
from vlkd_pl.errors import MissingPackageError, ModelFileError

_COMMANDS = {
    "fit": ("train", "train a module: vlkd-pl fit --config configs/distill.yaml"),
    "validate": ("train", "run a module's validation once"),
    "test": ("train", "run a module's test and write its scores"),
    "predict": ("train", "write a module's predictions as JSON lines"),
    "cache": ("cache", "encode the shards with CLIP once, for training to read in place of the images"),
    "sample": ("sample", "draw the sample world and write it in the formats of the real data"),
    "prepare": ("prepare", "bring the data sets into place, and check that they are whole"),
    "caption": ("caption", "caption images with a distilled model"),
    "ask": ("ask", "answer questions about an image"),
    "search": ("search", "find the images that words tell of"),
    "demo": ("demo", "serve a page to try a model on"),
    "score": ("score", "score captions, answers or summaries in files of the official formats"),
    "grid": ("grid", "search over GLUE's hyper-parameters and print Table 5"),
    "scores": ("scores", "print the scores of finished tests side by side"),
}
"""For each command the file under ``vlkd_pl/commands`` that runs it, and what it does."""

_CHATTER = (
    "LightningCLI's args parameter",  # the arguments come from main()
    r"SearchResult \d+ module\(s\) in eval mode",  # the frozen CLIP is meant to be
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # by Lightning, of its own code
    "Checkpoint directory .* exists and is not empty",  # of a run that resumes
    "Experiment logs directory",  # the TensorBoard logger made it a moment before
    "The '[a-z_]+_dataloader' does not have many workers",  # so chosen where cores are few
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``vlkd-pl``.

    Args:
        arguments: The command line after ``vlkd-pl``; that of the process by default.

    Returns:
        The exit status: 0; 1 for an error that was explained in one line; 2 for a wrong command line; 130 after
        Ctrl-C; 141 where the reader of the output has gone, as ``head`` does.

    Raises:
        Exception: A defect of the program.
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
            sys.stdout.flush()  # here, where a failure can be explained
    except KeyboardInterrupt:
        return _interrupted(name)
    except SystemExit as ended:  # in which Lightning and Rich end what is raised
        if isinstance(ended.__context__, KeyboardInterrupt):
            return _interrupted(name)
        if isinstance(ended.__context__, BrokenPipeError):
            return _unread()
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            return _unread()
        reason = explanation(error)
        if reason is None:
            raise
        _say(f"{name}: {reason}")
        _discard_what_cannot_be_written()
        return 1


def explanation(error: BaseException) -> str | None:
    """The line that explains an error to the user.

    Args:
        error: The error, with what it was raised from.

    Returns:
        What is wrong with a file, model, setting or installation; None for a defect of the program.
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
    """Finds the command and runs it."""
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
    arguments = _with_shipped_configs(arguments)
    command = import_module(f"vlkd_pl.commands.{_COMMANDS[arguments[0]][0]}")
    status: int = command.main(arguments)
    return status


def _interrupted(name: str) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends what is left to do
    _say(f"{name}: interrupted")
    _discard_what_cannot_be_written()
    return 128 + signal.SIGINT


def _unread() -> int:
    _discard_what_cannot_be_written()
    return 128 + signal.SIGPIPE


def _say(line: str) -> None:
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _reader_has_gone() -> bool:
    """Whether it is the output that nobody reads, and not some other pipe or connection."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _discard_what_cannot_be_written() -> None:
    """Keeps Python from writing once more at its end, where it would fail with a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_shipped_configs(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the package's own file for each --config under ``configs/`` that is not there."""
    package = Path(__file__).parent
    configs = package / "configs"
    if not configs.is_dir():  # a checkout has them beside src
        configs = package.parents[1] / "configs"
    found = []
    for place, argument in enumerate(arguments):
        option, equals, path = argument.rpartition("=")
        named = option in ("--config", "-c") if equals else place > 0 and arguments[place - 1] in ("--config", "-c")
        shipped = configs.parent / path
        if named and Path(path).parts[:1] == ("configs",) and not Path(path).exists() and shipped.is_file():
            path = str(shipped)
        found.append(f"{option}{equals}{path}")
    return found


def _escape_unprintable() -> None:
    """Escapes what an output's encoding lacks, such as bytes of a file name that are not UTF-8, where it would fail."""
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        is_utf8 = stream.encoding.lower() in ("utf-8", "utf8")
        # with UTF-8, surrogateescape writes the bytes of a file name as they are, and everything else
        if stream.errors == "strict" or (stream.errors == "surrogateescape" and not is_utf8):
            stream.reconfigure(errors="backslashreplace")


def _quiet() -> None:
    """Keeps what other packages say of themselves off the screen, so that what a user must read stands out."""
    for message in _CHATTER:
        warnings.filterwarnings("ignore", message=f".*{message}")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: not any(part in record.getMessage() for part in ("Tip:", "Detected KeyboardInterrupt"))
    )


def _usage() -> str:
    lines = ["usage: vlkd-pl COMMAND ...", "", "Vision-language knowledge distillation of CLIP into BART.", ""]
    lines += [f"  {name:<10}{purpose}" for name, (_, purpose) in _COMMANDS.items()]
    return "\n".join([*lines, "", "vlkd-pl COMMAND --help tells the options of a command."])
