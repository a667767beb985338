"""The CLIPs that OpenAI published, and the building of a CLIP from a weights file."""

from __future__ import annotations

import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from vlkd_pl.clip.openai import CLIP
from vlkd_pl.clip.openai import CLIP_URLS as _URLS
from vlkd_pl.clip.openai import download as _download
from vlkd_pl.errors import ModelFileError
from vlkd_pl.files import file_sha256
from vlkd_pl.weights.model_files import first_line
from vlkd_pl.weights.reader import weight_shapes

CLIP_NAMES = tuple(_URLS)
"""Names of OpenAI's CLIPs; each is downloaded on first use and verified by the checksum in its address."""

_DEFAULT_IMAGE_SIZE = 224
IMAGE_SIZES = dict.fromkeys(CLIP_NAMES, _DEFAULT_IMAGE_SIZE) | {
    "RN50x4": 288,
    "RN50x16": 384,
    "RN50x64": 448,
    "ViT-L/14@336px": 336,
}
"""Width and height in pixels of the images that each of OpenAI's CLIPs was trained on."""

WEIGHTS_FILE = "clip.safetensors"
MERGES_FILE = "merges.txt.gz"
LIMITS_FILE = "limits.txt"
"""Text in a CLIP's folder that states what the CLIP does not know; most CLIPs have none."""

OPENAI_CHECKSUMS = {url.rsplit("/", 1)[1]: url.split("/")[-2] for url in _URLS.values()}
CLIP_CLASS = {"activation": "quick_gelu", "head_width": "64"}
"""Metadata of a file that ``FrozenCLIP.save`` wrote: properties of the class that weights do not show."""
_MOST_LAYERS = 200
_MOST_POSITIONS = 4096
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


def build_clip(weights: dict[str, Tensor], source: str = "weights") -> CLIP:
    """Build a CLIP in float32 with the sizes that its weights' shapes imply.

    Like ``clip.model.build_model``, but without the conversion to half precision. The shapes are checked before any
    memory is allocated.

    Args:
        weights: State dict of the CLIP.
        source: Origin of the weights, for error messages.

    Raises:
        ModelFileError: The weights do not belong to a CLIP of OpenAI's class.
    """
    weights = {name: value for name, value in weights.items() if name not in _NOT_WEIGHTS}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    refusal = f"{source}: not a CLIP of OpenAI's class"
    try:
        sizes = clip_sizes(shapes)
        layers = sizes["vision_layers"] if isinstance(sizes["vision_layers"], tuple) else (sizes["vision_layers"],)
        if max(*layers, sizes["transformer_layers"]) > _MOST_LAYERS or sizes["context_length"] > _MOST_POSITIONS:
            raise ValueError(f"too many layers or positions: {sizes}")
        with torch.device("meta"):
            expected = CLIP(**sizes).state_dict()
    except (KeyError, IndexError, ValueError, TypeError, ArithmeticError, AssertionError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise ModelFileError(f"{refusal}: {reason}") from error
    wrong = [
        name
        for name in sorted(expected.keys() | weights.keys())
        if name not in expected
        or (name not in weights and not name.endswith("num_batches_tracked"))
        or (name in weights and shapes[name] != tuple(expected[name].shape))
        or (name in weights and weights[name].is_floating_point() != expected[name].is_floating_point())
    ]
    if wrong:
        others = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ModelFileError(
            f"{refusal}: missing, unexpected, or of another shape or type: {', '.join(wrong[:3])}{others}"
        )
    clip = CLIP(**sizes)
    clip.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    )
    return clip


def clip_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Derive the arguments of ``clip.model.CLIP`` from the shapes of its weights.

    Args:
        shapes: Shape of each weight, by its name in the state dict.

    Raises:
        KeyError: A weight that every CLIP has is missing.
    """
    if "visual.proj" in shapes:
        vision_width, patch_size = shapes["visual.conv1.weight"][0], shapes["visual.conv1.weight"][-1]
        vision_layers: int | tuple[int, ...] = sum(
            name.startswith("visual.") and name.endswith(".attn.in_proj_weight") for name in shapes
        )
        grid = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
        image_size = grid * patch_size
    else:
        vision_width, patch_size = shapes["visual.layer1.0.conv1.weight"][0], None
        vision_layers = tuple(
            len({name.split(".")[2] for name in shapes if name.startswith(f"visual.layer{stage}.")})
            for stage in range(1, 5)
        )
        image_size = round((shapes["visual.attnpool.positional_embedding"][0] - 1) ** 0.5) * 32
    text_width = shapes["ln_final.weight"][0]
    return {
        "embed_dim": shapes["text_projection"][1],
        "image_resolution": image_size,
        "vision_layers": vision_layers,
        "vision_width": vision_width,
        "vision_patch_size": patch_size,
        "context_length": shapes["positional_embedding"][0],
        "vocab_size": shapes["token_embedding.weight"][0],
        "transformer_width": text_width,
        "transformer_heads": text_width // 64,
        "transformer_layers": len({name.split(".")[2] for name in shapes if name.startswith("transformer.resblocks.")}),
    }


def check_clip_class(path: Path) -> None:
    """Check that a file holds a CLIP of OpenAI's class, which shapes alone do not show.

    Args:
        path: Weights file without an expected checksum.

    Raises:
        ModelFileError: The file is neither OpenAI's nor written by ``FrozenCLIP.save``.
    """
    if path.name == WEIGHTS_FILE:  # written by ``save``, which marks files only since release 0.4.1
        return
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if metadata.items() >= CLIP_CLASS.items():
            return
    digest = file_sha256(path)
    if digest not in OPENAI_CHECKSUMS.values():
        raise ModelFileError(
            f"{path} is not one of OpenAI's files, and its weights do not show its activation and heads: OpenAI's "
            "class has QuickGELU and heads of width 64; the GELU or the other heads of many CLIPs are not supported. "
            f"If this CLIP has QuickGELU and heads of width 64, pass --model.clip_sha256 {digest}"
        )


def download_clip(name: str, download_root: str | None) -> Path:
    """Download one of OpenAI's CLIPs, unless the folder holds it already.

    Args:
        name: One of ``CLIP_NAMES``.
        download_root: Folder of the file; ``~/.cache/clip`` by default.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: The file is missing, and the server cannot be reached.
        ModelFileError: The download is corrupt or cannot be written.
    """
    root = download_root or str(Path.home() / ".cache" / "clip")
    try:
        return Path(_download(_URLS[name], root))
    except urllib.error.URLError as error:
        raise FileNotFoundError(
            f"CLIP {name} is not in {root} and cannot be downloaded ({error.reason}): fetch {_URLS[name]} where "
            "there is a network, and put it there or give its path"
        ) from error
    except (RuntimeError, OSError) as error:
        raise ModelFileError(f"CLIP {name} cannot be downloaded to {root}: {first_line(error)}") from error


def clip_image_size(clip: str) -> int:
    """The width and height of a CLIP's images in pixels.

    Args:
        clip: One of ``CLIP_NAMES``, a file with one of OpenAI's names, or a folder with ``clip.safetensors``.

    Raises:
        MisconfigurationException: The file has another name, which does not show the image size.

    Example:
        >>> clip_image_size("RN50x16")
        384
    """
    path = weights_path(clip)
    if path is not None and path.name == WEIGHTS_FILE:
        try:
            return clip_sizes(weight_shapes(path))["image_resolution"]
        except (KeyError, IndexError, TypeError) as error:
            raise ModelFileError(f"{path}: not a CLIP of OpenAI's class: {error} is missing or invalid") from error
    for name, size in IMAGE_SIZES.items():
        if clip == name or Path(clip).name == f"{name.replace('/', '-').replace('@', '-')}.pt":
            return size
    raise MisconfigurationException(f"the name of the CLIP {clip} does not show its image size: give --data.image_size")


def weights_path(clip: str) -> Path | None:
    """The weights file of a CLIP; None if ``clip`` is one of ``CLIP_NAMES`` or the file is missing."""
    path = Path(clip)
    if path.is_dir() or (path / WEIGHTS_FILE).exists():
        path = path / WEIGHTS_FILE
    return path if clip not in CLIP_NAMES and path.exists() else None
