"""The documentation: its links, commands, paths and versions exist, and the code of "Extend it" runs."""

import configparser
import contextlib
import inspect
import io
import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, get_args, get_type_hints

import pytest
import yaml

import vlkd_pl
from vlkd_pl.cli import main
from vlkd_pl.models.vlkd import VLKDModel

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
WITHOUT_HISTORY = [page for page in PAGES if page.name not in ("CHANGELOG.md", "changelog.md")]


def page_name(page):
    return str(page.relative_to(ROOT))


# Code blocks


class Block(NamedTuple):
    language: str
    text: str


def blocks(text):
    """The fenced code blocks of a page."""
    return [Block(*match) for match in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def commands(text):
    """The command lines in indented and fenced blocks and between backticks, without comments."""
    lines = "\n".join(re.findall(r"^    +(\S.*)$", text.replace("\\\n", " "), re.MULTILINE)).splitlines()
    lines += [line for block in blocks(text.replace("\\\n", " ")) for line in block.text.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    return [re.sub(r"\s+#.*|\s+>\s.*", "", line).strip() for line in lines]


# "Extend it"

SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (ROOT / "docs/extend.md").read_text(), re.M | re.S))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with the configurations, the images of the pages, a small sample world, and a model of it."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "docs/images", folder / "docs/images")
    shutil.copytree(ROOT / "configs", folder / "configs")
    small = ["--num-pairs", "64", "--num-shards", "1", "--num-texts", "64", "--num-evaluation", "4"]
    world = folder / "runs/sample/world"
    main(["sample", str(world), *small, "--num-finetuning", "4"])
    parts = ["--model.clip", str(world / "clip"), "--model.bart", str(world / "bart")]
    shards = ["--data.shards", str(world / "shards" / "*.tar"), "--data.num_workers", "0"]
    main(
        ["cache", "--config", "sample/distill.yaml", "--output", str(folder / "runs/sample/features"), *parts, *shards]
    )
    model = VLKDModel.load(str(world / "clip"), str(world / "bart"), "all")
    model.save_pretrained(folder / "runs/sample/distill/model")
    return folder


@pytest.mark.parametrize("title", SECTIONS)
def test_extend(title, checkout, tmp_path, monkeypatch):
    folder = tmp_path / "checkout"
    shutil.copytree(checkout, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    code = blocks(SECTIONS[title])
    assert code
    changed = [block for block in code if block.language == "diff"]
    assert len({re.search(r"^\+\+\+ .*$", block.text, re.MULTILINE)[0] for block in changed}) <= 1  # one file
    if changed:
        shutil.copytree(ROOT / "src", folder / "src")
    for block in code:
        name = re.match(r"# ([\w.]+\.\w+)\n", block.text)
        if block.language == "diff":
            apply(block.text, folder)
        elif name:
            Path(name[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "python" and changed:
            environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
            subprocess.run([sys.executable, "-c", block.text], check=True, env=environment)
        elif block.language == "python":
            exec(compile(block.text, f"extend.md: {title}", "exec"), {})
        else:
            for line in block.text.replace("\\\n", " ").splitlines():
                program, *arguments = shlex.split(line)
                assert program == "vlkd-pl"
                if changed:
                    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
                    subprocess.run([sys.executable, "-m", "vlkd_pl", *arguments], check=True, env=environment)
                elif "--print_config" in arguments:
                    with pytest.raises(SystemExit, match="0"):
                        main(arguments)
                else:
                    assert main(arguments) == 0


def apply(diff, folder):
    """Applies a diff whose removed lines stand in its file once, next to each other."""
    (name,) = re.findall(r"^\+\+\+ b/(.*)$", diff, re.MULTILINE)
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in kinds) for kinds in (" -", " +"))
    text = (folder / name).read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{name} does not hold:\n{old}"
    (folder / name).write_text(text.replace(old, new), encoding="utf-8")


# Links, paths and commands


def anchors(page):
    """The anchors of a page's headings, as GitHub and MyST write them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page if not name else page.parent / name
        assert target.is_file(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", WITHOUT_HISTORY, ids=page_name)
def test_paths_exist(page):
    text = page.read_text(encoding="utf-8")
    roots = "configs|docs|tests|src|scripts|benchmarks"
    for name in set(re.findall(rf"(?<![\w./-])(?:{roots})/[\w./-]*\w", text)):
        assert (ROOT / name).exists() or "NAME" in name, f"{page.name} names {name}"
    assert not re.findall(r"(?<![\w.])/(?:work|tmp|home|root)/", text)


@pytest.mark.parametrize("page", WITHOUT_HISTORY, ids=page_name)
def test_make_targets_and_scripts_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    targets |= {f"finetune-{path.stem}" for path in (ROOT / "configs").glob("*.yaml")}
    for line in commands(page.read_text(encoding="utf-8")):
        words = line.split()
        if "make" in words[:2]:
            named = [word for word in words[words.index("make") + 1 :] if "=" not in word]
            assert set(named) <= targets, f"{page.name}: {line}"
        if words[:1] == ["python"] and words[1:2] != ["-m"]:
            assert (ROOT / words[1]).is_file(), f"{page.name}: {line}"


def vlkd_commands():
    for page in WITHOUT_HISTORY:
        for line in commands(page.read_text(encoding="utf-8")):
            match = re.fullmatch(r"(?:\S*/)?vlkd-pl (?!A|a\b)(.*)", line)
            if match and re.match(r"[a-z]+( |$)", match[1]):
                yield pytest.param(match[1], id=f"{page.name}: {match[1]}")


@pytest.mark.parametrize("line", list(vlkd_commands()))
def test_commands_parse(line):
    command, *arguments = shlex.split(line)
    options = [argument.partition("=")[0] for argument in arguments if re.match(r"--?[a-z]", argument)]
    if command in ("fit", "test", "validate", "predict"):
        check_training(arguments, options)
        return
    text = help_of(command, arguments)
    for option in options:
        if not option.startswith("--model."):
            assert re.search(rf"{re.escape(option)}\b", text), f"vlkd-pl {command} has no {option}"
    for option, value in itertools.pairwise(arguments):
        assert option != "--config" or (ROOT / "configs" / value).is_file()


def help_of(command, arguments):
    """The help of a command, and of its subcommand where it has them."""
    with contextlib.redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit, match="0"):
        main([command, *(arguments[:1] if command in ("prepare", "score") else []), "--help"])
    return output.getvalue()


TRAINING_OPTIONS = {"config", "run_dir", "ckpt_path", "print_config", "seed_everything", "help"}


def check_training(arguments, options):
    """Checks the configuration files, and that each option is an argument of the class that they name."""
    written = {f"{name}.yaml" for name in ("orthogonal", "distinct", "table_captions")}  # by extend.md itself
    config = {}
    for option, value in itertools.pairwise(arguments):
        if option == "--config" and re.fullmatch(r"[a-z][a-z0-9_/]*\.yaml", value) and value not in written:
            for key, part in yaml.safe_load((ROOT / "configs" / value).read_text(encoding="utf-8")).items():
                if isinstance(part, dict) and "class_path" in part:
                    config[key] = part["class_path"]
        elif option.endswith(".class_path"):
            config[option[2:].partition(".")[0]] = value
    for option in options:
        root, *path = option[2:].replace(".init_args", "").split(".")
        if root in TRAINING_OPTIONS or path in (["class_path"], ["help"]) or root == "trainer" or not config:
            continue
        module, _, name = config[root].rpartition(".")
        holder = getattr(import_module(module), name)
        for part in path:
            assert part in parameters(holder), f"{holder.__name__} has no argument {part}: {option}"
            holder = parameters(holder)[part]


def parameters(holder):
    """The arguments of a class, each with the dataclass that it holds or None."""
    hints = get_type_hints(holder) if is_dataclass(holder) else get_type_hints(holder.__init__)
    names = [field.name for field in fields(holder)] if is_dataclass(holder) else inspect.signature(holder).parameters
    groups = {name: [kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)] for name, hint in hints.items()}
    return {name: next(iter(groups.get(name, [])), None) for name in names}


# The references


def test_every_argument_is_described(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    reference = runpy.run_path(str(ROOT / "docs/reference.py"))
    kinds = [*reference["KINDS"], "groups"]
    classes = [cls for kind in kinds for cls in reference["classes"](kind)]
    assert vlkd_pl.VLKDModule in classes
    assert vlkd_pl.Decoding in classes
    lacking = [
        f"{cls.__name__}.{argument.name}"
        for cls in classes
        for argument in reference["arguments"](cls)
        if not argument.description
    ]
    assert lacking == []


# Lengths and versions


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_one_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    released = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d{2}-\d{2})$", changelog, re.MULTILINE)
    assert released[0] == (vlkd_pl.__version__, str(citation["date-released"]))
    assert citation["version"] == vlkd_pl.__version__
    assert citation["cff-version"] == "1.2.0"


def test_one_version_of_each_tool():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    (ruff,) = re.findall(r"^ruff==(.*)$", config["options.extras_require"]["dev"], re.MULTILINE)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (revision,) = [repo["rev"] for repo in hooks["repos"] if repo["repo"].endswith("/ruff-pre-commit")]
    assert revision == f"v{ruff}"


def test_continuous_integration_runs_the_same_targets():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    local = (ROOT / ".ci/run").read_text(encoding="utf-8")
    run = set(re.findall(r"^make (\w+)$", local, re.MULTILINE))
    assert run
    assert run <= set(re.findall(r"run: make (\w+)$", workflow, re.MULTILINE))
