import subprocess
import sys
import urllib.error

import clip.clip
import pytest

from vlkd_pl.clip.openai import CLIP_URLS, download
from vlkd_pl.errors import ModelFileError
from vlkd_pl.files import file_sha256

WITHOUT = "import sys; sys.modules['pkg_resources'] = None\n"  # as in every setuptools from 82 on


def test_addresses_are_openais():
    assert CLIP_URLS == clip.clip._MODELS


def test_pkg_resources_is_not_needed():
    modules = ["clip.frozen", "pipeline", "sample.pretraining_data", "commands.train"]
    code = f"""{WITHOUT}import {", ".join(f"vlkd_pl.{module}" for module in modules)}
from vlkd_pl.clip.tokenizer import CLIPTokenizer
print(CLIPTokenizer()(["a dog"]).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[[49406, 320, 1929, 49407]]"


@pytest.mark.parametrize("first", ["import vlkd_pl.clip.openai", "import clip", "import clip.model"])
def test_the_whole_package_is_there_for_others(first):
    code = f"""
import sys, types
import packaging.version
sys.modules["pkg_resources"] = types.SimpleNamespace(packaging=packaging)
{first}
import clip
from vlkd_pl.clip.openai import CLIP, SimpleTokenizer
assert clip.model.CLIP is CLIP and clip.simple_tokenizer.SimpleTokenizer is SimpleTokenizer
assert not hasattr(clip, "__no_such_name__") and not hasattr(clip, "no_such_name")
from clip import tokenize
assert clip.tokenize(["a dog"]).shape == (1, 77)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_what_the_whole_package_misses_is_reported():
    code = f"{WITHOUT}import vlkd_pl.clip.openai, clip; clip.load"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pkg_resources" in done.stderr.splitlines()[-1]


def test_pickled_in_another_process():
    code = f"{WITHOUT}import vlkd_pl, pickle; print(pickle.loads(b'cvlkd_pl.clip.openai\\nCLIP\\n.'))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "<class 'clip.model.CLIP'>"


@pytest.fixture
def published(tmp_path):
    """A file at an address of the same form as OpenAI's."""
    file = tmp_path / "server" / "content"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    folder = file.parent / file_sha256(file)
    folder.mkdir()
    return file.rename(folder / "ViT.pt").as_uri()


def test_download(tmp_path, published):
    path = tmp_path / "new" / "folder" / "ViT.pt"
    assert download(published, str(path.parent)) == str(path)
    assert path.read_bytes() == b"weights"
    path.write_bytes(b"checked by who loads it")
    download(published, str(path.parent))
    assert path.read_bytes() == b"checked by who loads it"


def test_what_is_not_openais_is_not_kept(tmp_path, published):
    (tmp_path / "server").rename(tmp_path / "0123")
    url = published.replace("/server/", "/0123/")
    (tmp_path / "0123" / url.split("/")[-2] / "ViT.pt").write_bytes(b"a sign-in page")
    with pytest.raises(ModelFileError, match=r"ViT\.pt has another checksum .*: try again"):
        download(url, str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").iterdir())


def test_no_connection(tmp_path):
    with pytest.raises(urllib.error.URLError):
        download("file:///nowhere/0123/ViT.pt", str(tmp_path / "cache"))
