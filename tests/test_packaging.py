"""Packaging: requirements, extras, and the contents of the wheel and the source distribution."""

import ast
import configparser
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import vlkd_pl
from vlkd_pl.cli import main
from vlkd_pl.errors import MissingPackageError

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "vlkd_pl"


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def requirements():
    """Names of the packages that the base installation and each extra bring."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    direct = {extra: re.findall(r"^([\w.-]+)(?:\[([\w,]+)\])?", text, re.MULTILINE) for extra, text in listed.items()}

    def expanded(extra):
        names = set()
        for name, extras in direct[extra]:
            names |= set().union(*map(expanded, extras.split(","))) if name == "vlkd_pl" else {canonical(name)}
        return names

    return {extra: expanded(extra) for extra in direct}


def imports():
    """Each import of another package: the package, and the extra of its needs_extra block, or ""."""
    # on Python 3.10 a distribution without top_level.txt is not listed
    distributions = {"sklearn": ["scikit-learn"]} | packages_distributions()

    def results(node, extra):
        if isinstance(node, ast.With) and getattr(node.items[0].context_expr, "func", None) is not None:
            call = node.items[0].context_expr
            if getattr(call.func, "id", "") == "needs_extra":
                extra = call.args[0].value
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module]
        for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"vlkd_pl"}:
            yield canonical(distributions.get(name, [name])[0]), extra
        for child in ast.iter_child_nodes(node):
            yield from results(child, extra)

    for path in SOURCE.rglob("*.py"):
        yield from results(ast.parse(path.read_text(encoding="utf-8")), "")


def test_every_import_is_declared(requirements):
    imported = set(imports())
    assert {(name, extra) for name, extra in imported if name not in requirements[extra]} == set()
    assert requirements[""] - {name for name, extra in imported if not extra} == set()


def test_every_requirement_has_a_lower_bound_that_is_tested(requirements):
    lowest = runpy.run_path(str(ROOT / ".ci" / "lowest.py"))["lowest_releases"]()
    unbounded = {"ruff", "mypy", "types-pyyaml"}  # tools: their exact versions are given, and types need none
    assert {canonical(name) for name in lowest} == set().union(*requirements.values()) - unbounded


# Not scipy and scikit-learn: torchmetrics and transformers import them themselves where they are installed.
BASE = """
import sys
from importlib import import_module
sys.modules |= dict.fromkeys(["datasets", "gradio", "gcsfs", "img2dataset", "rouge_score", "s3fs", "timm"])
model, image, *names = sys.argv[1:]
for name in names:
    import_module(name)
from PIL import Image
Image.new("RGB", (9, 9)).save(image)
from vlkd_pl.cli import main
sys.exit(main(["caption", image, "--model", model]))
"""


def test_the_base_installation_imports_everything_and_captions(model_folder, tmp_path):
    names = {"vlkd_pl." + ".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in SOURCE.rglob("*.py")}
    names = {name for name in names if not name.startswith("vlkd_pl.demo.") and name != "vlkd_pl.__main__"}
    arguments = [str(model_folder), str(tmp_path / "image.png"), *sorted(names)]
    subprocess.run([sys.executable, "-c", BASE, *arguments], check=True)


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (
            ["fit", "--config", "configs/summarization_xsum.yaml", "--model.init_args.model", "{bart}"],
            "rouge_score.rouge_scorer",
            "summaries",
        ),
        (
            ["score", "summaries", "--references", "{text}", "--predictions", "{text}"],
            "rouge_score.rouge_scorer",
            "summaries",
        ),
        (["prepare", "cc3m", "{text}", "{output}"], "img2dataset", "prepare"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(arguments, package, extra, bart_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    text = tmp_path / "texts.tsv"
    text.write_text("a dog\thttp://127.0.0.1:9/dog.jpg\n")
    places = {"bart": bart_folder, "text": text, "output": tmp_path / "output"}
    assert main([argument.format(**places) for argument in arguments]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set to")]
    assert f"run pip install '.[{extra}]'" in line


def test_lamb_names_its_extra(monkeypatch):
    from vlkd_pl.training.optim import make_optimizer

    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(MissingPackageError, match=r"pip install '\.\[lamb\]'"):
        make_optimizer("lamb", [], 0.1, (0.9, 0.999), 1e-6)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a wheel and a source distribution, made from the latter."""
    folder = tmp_path_factory.mktemp("built")
    hidden = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "__pycache__", "*.egg-info", "runs", "build", "dist")
    shutil.copytree(ROOT, folder / "checkout", ignore=hidden)
    build = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"

    def run(kind, checkout):
        done = subprocess.run(
            [sys.executable, "-c", build, kind, str(folder)], cwd=checkout, check=True, capture_output=True, text=True
        )
        return folder / done.stdout.splitlines()[-1]

    archive = run("build_sdist", folder / "checkout")
    with tarfile.open(archive) as files:
        files.extractall(folder / "unpacked", filter="data")
    return archive, run("build_wheel", folder / "unpacked" / archive.name.removesuffix(".tar.gz"))


def test_the_source_distribution_holds_what_the_readme_names(built):
    with tarfile.open(built[0]) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    expected = ["configs/sample/distill.yaml", "scripts/torchrun_two_nodes.sh", "docs/captions.png", "CHANGELOG.md"]
    expected += ["tests/conftest.py", "benchmarks/README.md", "Makefile", ".ci/run", ".ci/lowest.py", "LICENSE"]
    expected += ["CITATION.cff", "CONTRIBUTING.md", ".github/workflows/ci.yml", ".pre-commit-config.yaml"]
    expected += ["docs/conf.py", "docs/tutorial.md", "docs/images/scene.jpg"]
    assert set(expected) <= names


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A folder with the wheel's content, away from the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(folder)
    return folder


def test_the_wheel_holds_the_package_and_the_configurations(installed):
    def files(folder):
        return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    shipped = files(installed / "vlkd_pl")
    assert shipped == files(SOURCE) | {"configs" / path for path in files(ROOT / "configs")}


def test_metadata_for_a_package_index(installed):
    (folder,) = installed.glob("*.dist-info")
    head, _, description = (folder / "METADATA").read_text(encoding="utf-8").partition("\n\n")
    assert f"Version: {vlkd_pl.__version__}" in head
    assert "Author: The vlkd_pl developers" in head
    assert "Project-URL: Paper, https://" in head
    assert "Classifier: Programming Language :: Python :: 3.13" in head
    assert "Description-Content-Type: text/markdown" in head
    addresses = re.findall(r"\]\(([^)]*)\)", description)
    assert addresses
    assert all(address.startswith(("https://", "#")) for address in addresses)
    assert "`docs/captions.png` in the source distribution" in description


def elsewhere(installed, folder, *arguments):
    """Run ``vlkd-pl`` of the wheel in a folder."""
    done = subprocess.run(
        [sys.executable, "-m", "vlkd_pl", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_runs_the_sample_world_elsewhere(installed, tmp_path):
    small = ["--num-pairs", "64", "--num-shards", "2", "--num-texts", "64", "--num-evaluation", "4"]
    elsewhere(installed, tmp_path, "sample", "runs/sample/world", *small, "--num-finetuning", "4")
    config = ("--config", "configs/sample/distill.yaml")
    elsewhere(installed, tmp_path, "cache", *config, "--output", "runs/sample/features")
    elsewhere(
        installed,
        tmp_path,
        *("fit", *config, "--trainer.max_steps", "1"),
        *("--trainer.val_check_interval", "1", "--model.init_args.start", "random"),
    )
    assert (tmp_path / "runs/sample/distill/model/config.json").is_file()
    assert "twelve kinds of pictograms" in (tmp_path / "runs/sample/distill/model/README.md").read_text()


def test_configurations_of_the_wheel_are_found_by_their_names(installed, tmp_path):
    printed = elsewhere(installed, tmp_path, "fit", "--config", "configs/distill.yaml", "--print_config")
    assert yaml.safe_load(printed)["model"]["init_args"]["clip"] == "ViT-B/16"
