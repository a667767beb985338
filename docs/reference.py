"""A Sphinx extension that writes the configuration and API references from the code.

A page asks for them in a comment: ``<!-- arguments: modules -->`` becomes the
arguments of each public Lightning module, ``<!-- api: vlkd_pl.losses -->`` the docstrings of a module's public names.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import docstring_parser
import pytorch_lightning as pl
from pytorch_lightning.strategies import Strategy

import vlkd_pl

KINDS: dict[str, tuple[type, ...]] = {
    "modules": (pl.LightningModule,),
    "data modules": (pl.LightningDataModule,),
    "callbacks": (pl.Callback, Strategy),
}
"""The base classes of each kind of public class that a configuration can name."""


def public_names(module: ModuleType) -> list[str]:
    """Return the names of the classes, functions and constants that a module publishes."""
    names = getattr(module, "__all__", ())
    if not names:
        names = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return [name for name in names if not name.startswith("_")]


def classes(kind: str) -> list[type]:
    """Return the public classes of a kind, or the dataclasses that group arguments of the others.

    Args:
        kind: A key of ``KINDS``, or ``groups``.
    """
    public = [getattr(vlkd_pl, name) for name in public_names(vlkd_pl)]
    if kind != "groups":
        return [cls for cls in public if isinstance(cls, type) and issubclass(cls, KINDS[kind])]
    groups: dict[str, type] = {}
    for cls in [cls for kind in KINDS for cls in classes(kind)]:
        for annotation in typing.get_type_hints(cls.__init__).values():
            for part in (annotation, *typing.get_args(annotation)):
                if dataclasses.is_dataclass(part) and part.__module__.startswith("vlkd_pl."):
                    groups.setdefault(part.__name__, part)
    return [groups[name] for name in sorted(groups)]


class Argument(typing.NamedTuple):
    """An argument of a class.

    Attributes:
        name: Its name.
        type: Its type, as the code writes it.
        default: Its default, as the code would write it; empty where it is required.
        description: Its line of the docstring.
    """

    name: str
    type: str
    default: str
    description: str


def arguments(cls: type) -> Iterator[Argument]:
    """Yield the arguments of a class with their descriptions from its docstring, or from below a dataclass's fields."""
    described: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        parsed = docstring_parser.parse_from_object(base)
        described |= {entry.arg_name: entry.description for entry in parsed.params if entry.description}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = "" if parameter.default is parameter.empty else _written(parameter.default)
        annotation = parameter.annotation
        type_name = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        yield Argument(name, type_name, default, " ".join(described.get(name, "").split()))


def _written(value: Any) -> str:
    """Write a default as code; of a dataclass only the fields that differ from its defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != field.default and field.default_factory is dataclasses.MISSING
        }
        return f"{type(value).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"
    return repr(value)


def argument_lists(kind: str) -> str:
    """Return Markdown with a section and a list of arguments for each class of a kind."""
    lines: list[str] = []
    for cls in classes(kind):
        summary = docstring_parser.parse(inspect.getdoc(cls) or "").short_description or ""
        lines += [f"### {cls.__name__}", "", _markdown(summary), ""]
        rows = list(arguments(cls))
        if not rows:
            lines += ["No arguments.", ""]
            continue
        for row in rows:
            default = f" = {row.default}" if row.default else ""
            required = "" if row.default else "*Required.* "
            lines += [f"`{row.name}: {row.type}{default}`", f": {required}{_markdown(row.description)}", ""]
        lines.append("")
    return "\n".join(lines)


def _markdown(text: str) -> str:
    """Escape what could be HTML or emphasis in a docstring's sentence."""
    parts = re.split(r"(``.+?``)", " ".join(text.split()))
    return "".join(
        f"`{part[2:-2]}`" if part.startswith("``") else re.sub(r"([<*_\[])", r"\\\1", part) for part in parts
    )


def api(module_name: str) -> str:
    """Return directives that show the docstrings of all public names of a module."""
    module = import_module(module_name)
    lines = ["```{eval-rst}"]
    for name in public_names(module):
        value = getattr(module, name)
        kind = "class" if isinstance(value, type) else "function" if callable(value) else "data"
        lines += [f".. auto{kind}:: {module_name}.{name}", *(["   :members:"] if kind == "class" else []), ""]
    return "\n".join([*lines, "```"])


def fill(app: Any, page: str, source: list[str]) -> None:
    """Replace the comments of a page by what they ask for."""
    source[0] = re.sub(r"<!-- arguments: ([a-z ]+) -->", lambda match: argument_lists(match[1]), source[0])
    source[0] = re.sub(r"<!-- api: ([\w.]+) -->", lambda match: api(match[1]), source[0])


def setup(app: Any) -> dict[str, bool]:
    """Connect the extension to Sphinx."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
