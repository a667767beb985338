"""The parser of the trainer's commands: errors in one line, and a help that fits a screen."""

from __future__ import annotations

import argparse
import codecs
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import yaml
from jsonargparse import ActionConfigFile, add_instantiator
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.utilities.exceptions import MisconfigurationException

import vlkd_pl
from vlkd_pl.commands.config_files import find_config
from vlkd_pl.commands.parse_errors import EXAMPLES, UNKNOWN_KEY, one_line, unknown_key
from vlkd_pl.errors import MissingPackageError, ModelFileError, missing_package
from vlkd_pl.shards.addresses import is_address

_OPTIONS = {
    "seed_everything": "seed of all random generators (default: 0)",
    "ckpt_path": "checkpoint to load; fit resumes from it, and from the newest of the run with last",
    "weights_only": "whether a checkpoint may hold nothing but tensors and plain values",
    "verbose": "whether to print the metrics (default: true)",
}
"""The help of each option."""


class ConfigFile(ActionConfigFile):
    """``--config FILE``, where the file must hold settings."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Check a file, and merge its settings over those of earlier files.

        Raises:
            FileNotFoundError: The file does not exist.
            MisconfigurationException: The file is not YAML in UTF-8, or holds no settings.
        """
        is_path = not (values.lstrip().startswith("{") or "\n" in values or is_address(values))
        if is_path:
            path = find_config(values)
            values = str(path)
        settings = parser.configs[values] = read_config(path) if is_path else None
        for key in ("model", "data", "trainer"):
            value = (settings or {}).get(key, {})
            if value is None or (key == "trainer" and not isinstance(value, dict | str)):
                raise TypeError(f'Parser key "{key}": expected keys and values, got {json.dumps(value)}')
        if settings and path.read_bytes().startswith(codecs.BOM_UTF8):
            values = json.dumps(settings)  # jsonargparse would take the mark for a letter
        super().__call__(parser, cfg, values, option_string)


class TrainerHelp(argparse._HelpAction):
    """``--trainer.help``: Lightning's help on the trainer's arguments."""

    def __call__(self, parser: Any, *_: Any) -> None:
        """Print the help, and exit."""
        trainer = Parser(prog=parser.prog, usage=argparse.SUPPRESS, add_help=False, description=None)
        trainer.add_lightning_class_args(pl.Trainer, "trainer")
        trainer.print_help()
        parser.exit()


class Parser(LightningArgumentParser):
    """Parser that explains an error in one line: the full key, what is wrong with its value, and the file it is from.

    jsonargparse makes a parser of the same class for the arguments of each configured class, and nests the error of
    that parser in the error of the parser around it.

    Attributes:
        configs: Settings of each configuration file that was read, by its path.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.configs: dict[str, Any] = {}
        super().__init__(*arguments, **{"prog": "vlkd-pl", **options})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with status 2; in the parser of a class, raise the error."""
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
        """Format the help; that of a command lists its options, the modules and the keys of the trainer."""
        if not any(isinstance(action, ConfigFile) for action in self._actions):
            text: str = super().format_help(*arguments)
            return text
        return _command_help(self)

    def instantiate_classes(self, cfg: Any, **options: Any) -> Any:
        """Build the configured objects; Lightning calls the method by this name, which jsonargparse has deprecated.

        Raises:
            Exception: Raised by a class for its arguments.
        """
        add_instantiator(build, object)  # global in jsonargparse, where it replaces itself
        try:
            return self.instantiate(cfg, **options)
        except _NotBuiltError as failure:
            raise failure.error from failure.error.__cause__
        except (TypeError, ValueError) as error:  # of jsonargparse, which parses some wrong values
            self.error(str(error), error)


class _NotBuiltError(BaseException):
    """Carries an error of a class past jsonargparse, which otherwise tries all other types of the argument.

    Args:
        error: The error.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def build(class_type: type, *arguments: Any, **options: Any) -> Any:
    """Build a configured object, as an instantiator of jsonargparse."""
    try:
        return class_type(*arguments, **options)
    except Exception as error:
        raise _NotBuiltError(_user_error(class_type, error)) from error


def _user_error(class_type: type, error: Exception) -> Exception:
    """The error for the user when a class refuses its arguments, or needs a package that is missing."""
    if isinstance(error, MissingPackageError | ModelFileError) or not isinstance(error, ValueError | ImportError):
        return error
    if isinstance(error, ImportError) and "wandb" in str(error):
        return missing_package("WandbLogger needs wandb", "wandb")
    refusal = MisconfigurationException(f"{class_type.__name__}: {error}")
    refusal.__cause__ = error
    return refusal


def read_config(path: Path) -> dict[str, Any] | None:
    """Read a configuration file.

    Args:
        path: Path of the file.

    Returns:
        Its settings; None for a pipe, which can be read only once.

    Raises:
        MisconfigurationException: The file is not YAML in UTF-8, or holds no settings.
    """
    if path.is_dir():
        raise MisconfigurationException(f"the configuration {path} is a folder: give a YAML file")
    if not path.is_file():
        return None
    try:
        settings = yaml.safe_load(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise MisconfigurationException(
            f"the configuration {path} is not a text file in UTF-8: {error.reason} at byte {error.start}"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or error
        raise MisconfigurationException(f"the configuration {path} is not YAML{line}: {reason}") from error
    if not isinstance(settings, dict):
        content = "is empty" if settings is None else f"holds a {type(settings).__name__} and no keys"
        raise MisconfigurationException(f"the configuration {path} {content}: give settings such as model and data")
    return settings


def import_public_classes() -> list[type]:
    """Import the package's public classes, so that their names are enough as a ``class_path``.

    Returns:
        The classes that can be imported with the installed packages.
    """
    classes = []
    for name in vlkd_pl.__all__:
        with suppress(ImportError):
            classes.append(getattr(vlkd_pl, name))
    return [public for public in classes if isinstance(public, type)]


def _command(parser: Parser) -> str:
    """The name of the command whose options a parser reads."""
    words: list[str] = [*parser.prog.replace(" [options]", "").split()[1:], *getattr(parser, "args", [])]
    return words[0] if words else ""


def _command_help(parser: Parser) -> str:
    """The help of a command."""
    command = _command(parser)
    classes = import_public_classes()
    keys = [action.dest for action in parser._actions if not action.dest.endswith(".help")]
    epilog = [
        *_listed("modules", "model", [module for module in classes if issubclass(module, pl.LightningModule)]),
        *_listed("data modules", "data", [data for data in classes if issubclass(data, pl.LightningDataModule)]),
    ]
    for group, note in (
        ("trainer", "--trainer.help explains them"),
        ("checkpoint", "fit: the arguments of Lightning's ModelCheckpoint"),
        ("export", "fit: the arguments of ExportModel"),
    ):
        names = sorted(key.removeprefix(f"{group}.") for key in keys if key.startswith(f"{group}."))
        epilog += [f"keys under {group} ({note}):"]
        epilog += [*textwrap.wrap(", ".join(names), 100, initial_indent="  ", subsequent_indent="  "), ""]
    epilog += [f"example: vlkd-pl {command} --config {EXAMPLES[command]} --trainer.devices 2"]
    plain = argparse.ArgumentParser(
        prog=f"vlkd-pl {command}",
        usage=f"vlkd-pl {command} --config FILE [--config FILE ...] [--KEY VALUE ...]",
        description=parser.description,
        epilog="\n".join(epilog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plain.add_argument("-c", "--config", metavar="FILE", help="settings in YAML, at a path or shipped; later files win")
    plain.add_argument(
        "--KEY", metavar="VALUE", help="a setting: --model.num_masks 3 --trainer.max_steps 9 --run_dir runs/mine"
    )
    plain.add_argument("--print_config", action="store_true", help="print all settings as YAML, and exit")
    for key in keys:
        if key in _OPTIONS:
            plain.add_argument(f"--{key}", metavar="VALUE", help=_OPTIONS[key])
    return plain.format_help()


def _listed(kind: str, key: str, classes: Sequence[type]) -> Iterator[str]:
    """List classes with the first sentence of their docstrings."""
    yield f"{kind}, the class_path of {key} (--{key}.help CLASS explains the arguments of one):"
    for listed in sorted(classes, key=lambda listed: listed.__name__):
        sentence = " ".join((listed.__doc__ or "").split("\n\n")[0].split())
        yield f"  {f'vlkd_pl.{listed.__name__}':<34}{sentence}"
    yield ""
