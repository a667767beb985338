"""How the command line of the trainer's commands is read: errors in one line, and a help that fits a screen."""

from __future__ import annotations

import argparse
import codecs
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import yaml
from jsonargparse import ActionConfigFile
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.utilities.exceptions import MisconfigurationException

import vlkd_pl
from vlkd_pl.errors import MissingPackageError, ModelFileError, needs_extra

_EXAMPLES = {
    "fit": "configs/distill.yaml",
    "validate": "configs/zeroshot_coco.yaml",
    "test": "configs/zeroshot_coco.yaml",
    "predict": "configs/predict_captions.yaml",
    "cache": "configs/distill.yaml",
}
"""For each command a configuration to begin with."""

_OPTIONS = {
    "seed_everything": "seed of all random generators (default: 0)",
    "ckpt_path": "checkpoint to load; fit resumes from it, and from the newest of the run with last",
    "weights_only": "whether a checkpoint may hold nothing but tensors and plain values",
    "verbose": "whether to print the metrics (default: true)",
}
"""What the options of the commands are for."""

_SPECIFICATION = ("class_path", "init_args", "dict_kwargs")
"""The keys that name a class and its arguments."""

_UNKNOWN_KEY = re.compile(
    r"(?:Option|(?:Group '(?P<group>[^']+)'|Subcommand '[^']+') does not accept option) '(?P<key>[^']+)'"
    r"|unrecognized arguments: (?P<arguments>.+)",
    re.DOTALL,
)
"""What jsonargparse says of a key that it does not know."""

_NOISE = re.compile(
    r"Does not validate against|Subtypes: |Given value|Errors:$|Expected a <class 'NoneType'>"
    r"|Subclass types expect|a (class path \(str\)|dict with)|Expected a path but"
)
"""Lines of jsonargparse's errors that tell a user nothing."""


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
        unknown = _UNKNOWN_KEY.match(message)
        if unknown:
            message = _unknown_key(unknown, parser)
        if not self.exit_on_error:
            super().error(message, ex)
        command = _command(self)
        print(f"vlkd-pl {command}: {_one_line(message, command, self.args, parser.configs)}", file=sys.stderr)
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


def _unknown_key(unknown: re.Match[str], parser: Any) -> str:
    """What to say of a key that a parser does not know."""
    if unknown["arguments"] is None:
        key = ".".join(filter(None, (unknown["group"], unknown["key"])))
    else:
        key = unknown["arguments"].split()[0].split("=")[0]
        if not key.startswith("--"):
            return f"unknown argument {key}: settings are given as --KEY VALUE"
        key = key.removeprefix("--")
    known = [action.dest for action in parser._actions if action.dest != "help"]
    meant = _nearest(key, known)
    if not parser.exit_on_error:  # of a class, whose arguments are under init_args
        first = key.split(".")[0]
        near = get_close_matches(first, _SPECIFICATION, 1, 0.8)
        if first in _SPECIFICATION:
            return "a key stands beside class_path and init_args: the arguments of a class go under init_args"
        if not known:
            return f"unknown key init_args.{key}: no class_path is given before it"
        if near:
            meant = near[0]
        else:
            key = f"init_args.{key}"
    return f"unknown key {key}" + (f": did you mean {meant}?" if meant else "")


def _nearest(key: str, known: Iterable[str]) -> str | None:
    """The name nearest to the first part of a key that is unknown; else a full key whose last part is that of it."""
    parts = key.split(".")
    paths = [name.split(".") for name in known]
    for depth, part in enumerate(parts):
        names = {path[depth] for path in paths if path[:depth] == parts[:depth] and len(path) > depth}
        if part not in names:
            near = get_close_matches(part, sorted(names), 1)
            return near[0] if near else next((".".join(path) for path in paths if path[-1] == parts[-1]), None)
    return None


def _one_line(message: str, command: str, arguments: Sequence[str], configs: Mapping[str, Any]) -> str:
    """What a parser says in many lines, in one."""
    if re.fullmatch(r"the following arguments are required: .*\b(model|data)\b.*", message):
        return f"no model and no data: give a configuration, such as --config {_EXAMPLES[command]}"
    option = re.fullmatch(r"argument (?:-c/)?(--[\w.]+): expected one argument", message)
    if option:
        pairs = zip(arguments, [*arguments[1:], "--"], strict=True)
        bare = (name for name, value in pairs if name.startswith(option[1]) and "=" not in name and value[:1] == "-")
        return f"{next(bare, option[1])} needs a value"
    key, reason = _fault(message)
    unknown = re.match(r"unknown key ([^\s:]+)(.*)", reason)
    if unknown:
        key = ".".join(filter(None, (key, unknown[1])))
        reason = f"unknown key {key}{unknown[2]}"
        if not unknown[2]:
            reason += f": see vlkd-pl {command} {_help_option(key)}"
    elif key:
        reason = f"{key}: {reason}"
    source = _source(key, arguments, configs)
    return f"{source}: {reason}" if source else reason


def _help_option(key: str) -> str:
    """The option that explains what is known in the place of a key."""
    parts = key.split(".")
    if "init_args" in parts:
        return f"--{'.'.join(parts[: parts.index('init_args')])}.help CLASS"
    return "--trainer.help" if parts[0] == "trainer" else "--help"


def _fault(message: str) -> tuple[str, str]:
    """The key that a message is about, and the reason: the one under most keys and classes of all that it gives."""
    faults: dict[int, list[tuple[str, str]]] = {}
    around: list[tuple[int, str, bool]] = []  # indentation, full key, and whether it is a class
    value = None
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        indentation = len(line) - len(line.lstrip(" -"))
        if line.strip().startswith("Given value: ") and "NestedArg(" not in text and "Namespace(" not in text:
            value = value or text.removeprefix("Given value: ")
        if not text or _NOISE.match(text):
            continue
        while around and around[-1][0] >= indentation:
            around.pop()
        key, is_class = around[-1][1:] if around else ("", False)
        named = re.match(r'Parser key "([^"]+)"[^:]*:\s*(.*)', text)
        if named:
            key = ".".join(filter(None, (key, "init_args" if is_class else "", named[1])))
            around.append((indentation, key, False))
            text = named[2]
        elif re.match(r"Problem with given class_path '[^']*':$", text):
            around.append((indentation, key, True))
            continue
        if text:
            faults.setdefault(len(around), []).append((key, text))
    if not faults:
        return "", " ".join(message.split())
    deepest = faults[max(faults)]
    reason = " or ".join(dict.fromkeys(text for _, text in deepest))
    lacks_value = reason.startswith(("Expected", "Not a valid", "Import path does")) and "Got value" not in reason
    if value and lacks_value and not re.search(rf"\b{re.escape(value)}\b", reason):
        reason += f". Got value: {value}"
    return deepest[0][0], _plain(reason)


def _plain(reason: str) -> str:
    """A reason of jsonargparse in plain words, with the name that was meant."""
    named = re.search(r"Expected a dot import path string: (\w+)", reason)
    if named:
        names = [*vlkd_pl.__all__, *pl.callbacks.__all__, *pl.loggers.__all__, *pl.strategies.__all__]
        return _with_nearest(f"there is no class {named[1]}", named[1], names)
    attribute = re.match(r"module '([\w.]+)' has no attribute '(\w+)'", reason)
    if attribute:
        module = sys.modules.get(attribute[1])
        return _with_nearest(attribute[0], attribute[2], getattr(module, "__all__", dir(module)))
    for pattern, plain in (
        (r"'NoneType' object has no attribute 'keys'", "init_args holds nothing"),
        (r".* argument after \*\* must be a mapping, not (\w+)", r"an argument needs keys and values, and got a \1"),
        (r"Not a valid subclass of (\w+)", r"Expected the class_path and init_args of a \1"),
        (r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1"),
        (r" or Expected an? typing\.Literal\[([^\]]*)\]", r", \1"),
        (r"Expected an? typing\.Literal\[([^\]]*)\]", r"expected one of \1"),
        (r" or Expected (an? )?", " or "),
        (r"Expected (an? )?", "expected "),
        (r"\. Got value: (.*)$", r", got \1"),
    ):
        reason = re.sub(pattern, plain, reason)
    return reason


def _with_nearest(reason: str, name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, 1) or [each for each in names if each.lower().startswith(name.lower())]
    return f"{reason}: did you mean {near[0]}?" if near else reason


def _source(key: str, arguments: Sequence[str], configs: Mapping[str, Any]) -> str | None:
    """The configuration file that a key is from; None where it is from the command line."""
    parts = key.split(".")
    short = [part for part in parts if part != "init_args"]
    for argument in arguments:
        name = argument.split("=")[0].removeprefix("--").removesuffix("+").split(".")
        if [part for part in name if part != "init_args"] == short:
            return None
    return next((path for path in reversed(list(configs)) if _holds(configs[path], parts)), None)


def _holds(settings: Any, parts: Sequence[str]) -> bool:
    """Whether settings have a key; in a list, whether one of them has it."""
    if not parts:
        return True
    if isinstance(settings, list):
        return any(_holds(each, parts) for each in settings)
    return isinstance(settings, Mapping) and parts[0] in settings and _holds(settings[parts[0]], parts[1:])


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
        f"example: vlkd-pl {command} --config {_EXAMPLES[command]} --trainer.devices 2",
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
