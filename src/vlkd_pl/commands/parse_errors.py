"""Rewrites the errors of jsonargparse as one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import pytorch_lightning as pl

import vlkd_pl

EXAMPLES = {
    "fit": "distill.yaml",
    "validate": "zeroshot_coco.yaml",
    "test": "zeroshot_coco.yaml",
    "predict": "predict_captions.yaml",
    "cache": "distill.yaml",
}
"""For each command a shipped configuration to start with."""

SPECIFICATION = ("class_path", "init_args", "dict_kwargs")
"""The keys that name a class and its arguments."""

UNKNOWN_KEY = re.compile(
    r"(?:Option|(?:Group '(?P<group>[^']+)'|Subcommand '[^']+') does not accept option) '(?P<key>[^']+)'"
    r"|unrecognized arguments: (?P<arguments>.+)",
    re.DOTALL,
)
"""The messages of jsonargparse on an unknown key."""

_NOISE = re.compile(
    r"Does not validate against|Subtypes: |Given value|Errors:$|Expected a <class 'NoneType'>"
    r"|Subclass types expect|a (class path \(str\)|dict with)|Expected a path but"
)
"""Lines of jsonargparse's errors without information for a user."""


def unknown_key(unknown: re.Match[str], parser: Any) -> str:
    """Explain an unknown key.

    Args:
        unknown: A match of ``UNKNOWN_KEY``.
        parser: The parser that refused the key.
    """
    if unknown["arguments"] is None:
        key = ".".join(filter(None, (unknown["group"], unknown["key"])))
    else:
        key = unknown["arguments"].split()[0].split("=")[0]
        if not key.startswith("--"):
            return f"unknown argument {key}: settings are given as --KEY VALUE"
        key = key.removeprefix("--")
    names = [action.dest for action in parser._actions if action.dest != "help"]
    suggestion = _nearest(key, names)
    if not parser.exit_on_error:  # of a class, whose arguments are under init_args
        first = key.split(".")[0]
        near = get_close_matches(first, SPECIFICATION, 1, 0.8)
        if first in SPECIFICATION:
            return "a key stands next to class_path and init_args: the arguments of a class go under init_args"
        if not names:
            return f"unknown key init_args.{key}: no class_path is given before it"
        if near:
            suggestion = near[0]
        else:
            key = f"init_args.{key}"
    return f"unknown key {key}" + (f": did you mean {suggestion}?" if suggestion else "")


def _nearest(key: str, names: Iterable[str]) -> str | None:
    """The name nearest to the first unknown part of a key; otherwise a full key that ends with the same part."""
    parts = key.split(".")
    paths = [name.split(".") for name in names]
    for depth, part in enumerate(parts):
        siblings = {path[depth] for path in paths if path[:depth] == parts[:depth] and len(path) > depth}
        if part not in siblings:
            near = get_close_matches(part, sorted(siblings), 1)
            return near[0] if near else next((".".join(path) for path in paths if path[-1] == parts[-1]), None)
    return None


def one_line(message: str, command: str, arguments: Sequence[str], configs: Mapping[str, Any]) -> str:
    """Rewrite an error of a parser as one line.

    Args:
        message: The error of jsonargparse.
        command: The command.
        arguments: Its options, to find the source of a key.
        configs: Settings of each configuration file, by its path.
    """
    if re.fullmatch(r"the following arguments are required: .*\b(model|data)\b.*", message):
        return f"no model and no data: give a configuration, such as --config {EXAMPLES[command]}"
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
    """The option whose help lists the keys next to an unknown one."""
    parts = key.split(".")
    if "init_args" in parts:
        return f"--{'.'.join(parts[: parts.index('init_args')])}.help CLASS"
    return "--trainer.help" if parts[0] == "trainer" else "--help"


def _fault(message: str) -> tuple[str, str]:
    """The key that a message is about, and the most deeply nested of its reasons."""
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
    """A reason of jsonargparse in plain words, with a suggestion for a misspelt name."""
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
    near = get_close_matches(name, names, 1) or [other for other in names if other.lower().startswith(name.lower())]
    return f"{reason}: did you mean {near[0]}?" if near else reason


def _source(key: str, arguments: Sequence[str], configs: Mapping[str, Any]) -> str | None:
    """The configuration file that sets a key; None for a key from the command line."""
    parts = key.split(".")
    short = [part for part in parts if part != "init_args"]
    for argument in arguments:
        name = argument.split("=")[0].removeprefix("--").removesuffix("+").split(".")
        if [part for part in name if part != "init_args"] == short:
            return None
    return next((path for path in reversed(list(configs)) if _holds(configs[path], parts)), None)


def _holds(settings: Any, parts: Sequence[str]) -> bool:
    """Whether settings have a key, or an item of a list of settings has it; ``init_args`` may be left out."""
    if not parts:
        return True
    if isinstance(settings, list):
        return any(_holds(item, parts) for item in settings)
    if not isinstance(settings, Mapping):
        return False
    if parts[0] == "init_args" and parts[0] not in settings:
        return _holds(settings, parts[1:])
    return parts[0] in settings and _holds(settings[parts[0]], parts[1:])
