"""The parts of OpenAI's ``clip`` package that are used, and the addresses of its nine models."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

from vlkd_pl.errors import ModelFileError


def _without_init() -> Any:
    """The package ``clip`` with its ``__init__`` postponed until one of its names is used.

    ``__init__`` imports torchvision and ``pkg_resources``, which setuptools no longer has; the submodules do not.
    """
    spec: Any = find_spec("clip")
    package: Any = module_from_spec(spec)

    def run_init(name: str) -> Any:
        if not name.startswith("__"):
            spec.loader.exec_module(package)
            del package.__getattr__
            return getattr(package, name)
        raise AttributeError(f"module 'clip' has no attribute {name!r}")

    package.__getattr__ = run_init
    return package


if "clip" not in sys.modules and find_spec("clip") is not None:
    sys.modules["clip"] = _without_init()

from clip.model import CLIP, AttentionPool2d, ModifiedResNet, VisionTransformer  # noqa: E402
from clip.simple_tokenizer import SimpleTokenizer, basic_clean, get_pairs  # noqa: E402
from torch.hub import download_url_to_file  # noqa: E402

__all__ = [
    "CLIP",
    "CLIP_URLS",
    "AttentionPool2d",
    "ModifiedResNet",
    "SimpleTokenizer",
    "VisionTransformer",
    "basic_clean",
    "download",
    "get_pairs",
]

_PUBLISHED = "https://openaipublic.azureedge.net/clip/models"
_FILES = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599/RN101.pt",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd/RN50x4.pt",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa/RN50x16.pt",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c/RN50x64.pt",
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
}
CLIP_URLS = {name: f"{_PUBLISHED}/{file}" for name, file in _FILES.items()}
"""Address of each of OpenAI's CLIPs by its name; the last part but one is the file's sha256."""


def download(url: str, root: str) -> str:
    """Download one of OpenAI's files, unless it exists.

    Args:
        url: One of ``CLIP_URLS``.
        root: Folder of downloaded files; created if it is missing.

    Returns:
        Path of the file. The checksum of an existing file is not verified.

    Raises:
        urllib.error.URLError: The server cannot be reached.
        ModelFileError: The downloaded file has another checksum.
    """
    *_, sha256, name = url.split("/")
    path = Path(root) / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(url, str(path), hash_prefix=sha256)
        except RuntimeError as error:
            raise ModelFileError(f"the download of {url} has another checksum ({error}): try again") from error
    return str(path)
