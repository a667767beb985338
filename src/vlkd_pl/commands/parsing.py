"""How the command line of the trainer's commands is read: errors in one line, and a help that fits a screen."""

from __future__ import annotations

import argparse
import codecs
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import yaml
from jsonargparse import ActionConfigFile
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.utilities.exceptions import MisconfigurationException

import vlkd_pl
from vlkd_pl.commands.parse_errors import EXAMPLES, UNKNOWN_KEY, one_line, unknown_key
from vlkd_pl.errors import MissingPackageError, ModelFileError, needs_extra

_OPTIONS = {
    "seed_everything": "seed of all random generators (default: 0)",
    "ckpt_path": "checkpoint to load; fit resumes from it, and from the newest of the run with last",
    "weights_only": "whether a checkpoint may hold nothing but tensors and plain values",
    "verbose": "whether to print the metrics (default: true)",
}
"""What the options of the commands are for."""


class ConfigFile(ActionConfigFile):
    """``--config FILE``, where the file must hold settings."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Checks a file, and lays its settings over those before it.

        Raises:
            FileNotFoundError: It does not exist.
            MisconfigurationException: It is not YAML in UTF-8, or holds no settings.
        """
        settings = parser.configs[values] = read_config(values)
        for key in ("model", "data", "trainer"):
            held = (settings or {}).get(key, {})
            if held is None or (key == "trainer" and not isinstance(held, dict | str)):
                raise TypeError(f'Parser key "{key}": expected keys and values, got {json.dumps(held)}')
        if settings and Path(values).read_bytes().startswith(codecs.BOM_UTF8):
            values = json.dumps(settings)  # jsonargparse would take the mark for a letter
        super().__call__(parser, cfg, values, option_string)


class TrainerHelp(argparse._HelpAction):
    """``--trainer.help``: what Lightning says of the trainer's arguments."""

    def __call__(self, parser: Any, *_: Any) -> None:
        """Prints it and exits."""
        trainer = Parser(prog=parser.prog, usage=argparse.SUPPRESS, add_help=False, description=None)
        trainer.add_lightning_class_args(pl.Trainer, "trainer")
        trainer.print_help()
        parser.exit()


class Parser(LightningArgumentParser):
    """A parser that explains an error in one line: the full key, what is wrong with it, where it is from.

    jsonargparse makes a parser of the same class for the arguments of each class that a configuration names, and puts
    the error of that parser into the error of the one around it.

    Attributes:
        configs: The settings of each configuration file that was read, by its path.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.configs: dict[str, Any] = {}
        super().__init__(*arguments, **{"prog": "vlkd-pl", **options})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints one line and exits with status 2; in the parser of a class, raises what is wrong."""
        parser = getattr(ex, "subcommand_parser", self)
        unknown = UNKNOWN_KEY.match(message)
        if unknown:
            message = unknown_key(unknown, parser)
        if not self.exit_on_error:
            super().error(message, ex)
        command = _command(self)
        print(f"vlkd-pl {command}: {one_line(message, command, self.args, parser.configs)}", file=sys.stderr)
        raise SystemExit(2)

    def format_help(self, *arguments: Any) -> str:
        """Formats the help: for a command the options, the modules and the names of the trainer's arguments."""
        if not any(isinstance(action, ConfigFile) for action in self._actions):
            text: str = super().format_help(*arguments)
            return text
        return _command_help(self)

    def instantiate_classes(self, *arguments: Any, **options: Any) -> Any:
        """Builds what the configuration names.

        Raises:
            Exception: Of the class that could not be built.
        """
        try:
            return super().instantiate_classes(*arguments, **options)
        except _NotBuiltError as failure:
            if not self.exit_on_error:  # the parser of a class: jsonargparse would catch the error here
                raise
            raise failure.error from failure.error.__cause__
        except (TypeError, ValueError) as error:  # of jsonargparse itself, which parses some wrong values
            self.error(str(error), error)


class _NotBuiltError(BaseException):
    """Carries an error of a class past jsonargparse, which else tries every other type that the argument may have.

    Args:
        error: The error.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def build(class_type: type, *arguments: Any, **options: Any) -> Any:
    """Builds an object that a configuration names, as an instantiator of jsonargparse."""
    try:
        return class_type(*arguments, **options)
    except Exception as error:
        raise _NotBuiltError(_to_tell(class_type, error)) from error


def _to_tell(class_type: type, error: Exception) -> Exception:
    """The error for the user where a class refuses its arguments, or needs a package that is missing."""
    if isinstance(error, MissingPackageError | ModelFileError) or not isinstance(error, ValueError | ImportError):
        return error
    if isinstance(error, ImportError) and "wandb" in str(error):
        try:
            with needs_extra("wandb"):
                import_module("wandb")
        except MissingPackageError as missing:
            return missing
    refused = MisconfigurationException(f"{class_type.__name__}: {error}")
    refused.__cause__ = error
    return refused


def read_config(source: str) -> dict[str, Any] | None:
    """Reads a configuration file.

    Args:
        source: Its path.

    Returns:
        Its settings; None where jsonargparse alone can read it: an address, a pipe, or the settings themselves.

    Raises:
        FileNotFoundError: It does not exist.
        MisconfigurationException: It is not YAML in UTF-8, or holds no settings.
    """
    if source.lstrip().startswith("{") or "\n" in source or "://" in source:
        return None
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"there is no configuration file {source}")
    if path.is_dir():
        raise MisconfigurationException(f"the configuration {source} is a folder: give a YAML file")
    if not path.is_file():
        return None
    try:
        settings = yaml.safe_load(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise MisconfigurationException(
            f"the configuration {source} is not a text file in UTF-8: {error.reason} at byte {error.start}"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or error
        raise MisconfigurationException(f"the configuration {source} is not YAML{line}: {reason}") from error
    if not isinstance(settings, dict):
        held = "is empty" if settings is None else f"holds a {type(settings).__name__} and no keys"
        raise MisconfigurationException(f"the configuration {source} {held}: give settings such as model and data")
    return settings


def import_public_classes() -> list[type]:
    """Imports the package's public classes, so that they are known by their names alone.

    Returns:
        Those that can be imported with the installed packages.
    """
    classes = []
    for name in vlkd_pl.__all__:
        with suppress(ImportError):
            classes.append(getattr(vlkd_pl, name))
    return [each for each in classes if isinstance(each, type)]


def _command(parser: Parser) -> str:
    """The command that a parser is of."""
    words: list[str] = [*parser.prog.replace(" [options]", "").split()[1:], *getattr(parser, "args", [])]
    return words[0] if words else ""


def _command_help(parser: Parser) -> str:
    """The help of a command."""
    command = _command(parser)
    classes = import_public_classes()
    keys = [action.dest for action in parser._actions]
    trainer = sorted(
        key.removeprefix("trainer.") for key in keys if key.startswith("trainer.") and not key.endswith(".help")
    )
    epilog = [
        *_listed("modules", "model", [each for each in classes if issubclass(each, pl.LightningModule)]),
        *_listed("data modules", "data", [each for each in classes if issubclass(each, pl.LightningDataModule)]),
        "keys under trainer (--trainer.help explains them):",
        *textwrap.wrap(", ".join(trainer), 100, initial_indent="  ", subsequent_indent="  "),
        "",
        f"example: vlkd-pl {command} --config {EXAMPLES[command]} --trainer.devices 2",
    ]
    plain = argparse.ArgumentParser(
        prog=f"vlkd-pl {command}",
        usage=f"vlkd-pl {command} --config FILE [--config FILE ...] [--KEY VALUE ...]",
        description=parser.description,
        epilog="\n".join(epilog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plain.add_argument(
        "-c", "--config", metavar="FILE", help="settings in YAML; where files differ, the last one counts"
    )
    plain.add_argument(
        "--KEY", metavar="VALUE", help="a setting, by its full key: --model.init_args.num_masks 3 --trainer.max_steps 9"
    )
    plain.add_argument("--print_config", action="store_true", help="print all settings as YAML, and exit")
    for key in keys:
        if key in _OPTIONS:
            plain.add_argument(f"--{key}", metavar="VALUE", help=_OPTIONS[key])
    return plain.format_help()


def _listed(kind: str, key: str, classes: Sequence[type]) -> Iterator[str]:
    """Lines that list classes, with the first sentence of what each is."""
    yield f"{kind}, the class_path of {key} (--{key}.help CLASS explains the arguments of one):"
    for each in sorted(classes, key=lambda each: each.__name__):
        sentence = " ".join((each.__doc__ or "").split("\n\n")[0].split())
        yield f"  {f'vlkd_pl.{each.__name__}':<34}{sentence}"
    yield ""
