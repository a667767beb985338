"""The frozen CLIP: its files, and its outputs at every position."""

from __future__ import annotations

import hashlib
import urllib.error
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from vlkd_pl.errors import ModelFileError
from vlkd_pl.files import file_sha256
from vlkd_pl.model_files import check_merges, check_model_file, first_line, read_merges
from vlkd_pl.openai_clip import CLIP, AttentionPool2d, ModifiedResNet, VisionTransformer
from vlkd_pl.openai_clip import CLIP_URLS as _URLS
from vlkd_pl.openai_clip import download as _download
from vlkd_pl.weights import read_weights

CLIP_NAMES = tuple(_URLS)
"""Names of OpenAI's CLIPs; each is downloaded on first use and checked against the checksum in its address."""

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the values of red, green and blue in [0, 1], by which CLIP normalises pictures."""

WEIGHTS_FILE = "clip.safetensors"
MERGES_FILE = "merges.txt.gz"

_OFFICIAL_CHECKSUMS = {url.rsplit("/", 1)[1]: url.split("/")[-2] for url in _URLS.values()}
_CLASS = {"activation": "quick_gelu", "head_width": "64"}
"""Metadata of a file that ``save`` wrote: what the weights do not tell."""
_MOST_LAYERS = 200
_MOST_POSITIONS = 4096
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


class FrozenCLIP(nn.Module):
    """A CLIP of OpenAI's class in float32, in evaluation mode and without gradients for ever.

    Args:
        clip: The model; its weights are converted to float32 in place.
        merges: A gzip file of the byte-pair merges that its text ids are made with; None for OpenAI's own vocabulary.
    """

    def __init__(self, clip: CLIP, merges: bytes | None = None) -> None:
        super().__init__()
        self.clip = clip.float().eval().requires_grad_(False)
        self.merges = merges

    @classmethod
    def load(cls, clip: str | Path, sha256: str | None = None, download_root: str | None = None) -> FrozenCLIP:
        """Loads a CLIP by name or from a file or folder.

        Args:
            clip: One of ``CLIP_NAMES``; or a TorchScript archive as OpenAI publishes them, a state dict (``.pt`` or
                ``.safetensors``), or a folder that ``save`` wrote.
            sha256: Checksum that the file must have. By default that of OpenAI, where the file's name is OpenAI's. It
                vouches for any other file: what a CLIP computes with its weights, QuickGELU and heads of width 64, the
                weights do not tell.
            download_root: Folder of downloaded files; ``~/.cache/clip`` by default.

        Raises:
            FileNotFoundError: There is no such file, or a name's file cannot be downloaded.
            ModelFileError: The checksum is another; the file is corrupt or holds no CLIP; it is neither OpenAI's, nor
                written by ``save``, nor vouched for; or the merges do not make the CLIP's vocabulary.
        """
        if str(clip) in CLIP_NAMES:
            path = _downloaded(str(clip), download_root)
        else:
            path = Path(clip)
            if path.is_dir():
                path = path / WEIGHTS_FILE
                if not path.exists():
                    raise ModelFileError(
                        f"the folder {clip} holds no {WEIGHTS_FILE}: give the folder or file of a CLIP"
                    )
            try:
                check_model_file(path)
            except FileNotFoundError as error:
                place = clip if "://" in str(clip) else path  # a path has one slash of an address alone
                raise FileNotFoundError(
                    f"there is no CLIP at {place}: give the path of a file, or one of the names {', '.join(CLIP_NAMES)}"
                ) from error
        expected = sha256.lower() if sha256 else _OFFICIAL_CHECKSUMS.get(path.name)
        if expected is not None and (digest := file_sha256(path)) != expected:
            raise ModelFileError(
                f"{path} has the sha256 {digest}, not {expected}: download it again, or pass the right clip_sha256"
            )
        model = build_clip(read_weights(path), str(path))
        if expected is None:
            _check_class(path)
        frozen = cls(model)
        if path.name == WEIGHTS_FILE:
            merges = path.with_name(MERGES_FILE)
            frozen.merges = read_merges(merges) if merges.is_file() else None
            check_merges(path, frozen.vocab_size, frozen.merges)
        return frozen

    def save(self, folder: str | Path) -> None:
        """Writes ``clip.safetensors``, in half precision where that loses nothing, and the merges if it has its own."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.clip.state_dict().items()}
        floating = [value for value in weights.values() if value.is_floating_point()]
        if all(torch.equal(value, value.half().float()) for value in floating):
            weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
        safetensors.torch.save_file(weights, folder / WEIGHTS_FILE, metadata=_CLASS)
        if self.merges is not None:
            (folder / MERGES_FILE).write_bytes(self.merges)

    def train(self, mode: bool = True) -> FrozenCLIP:
        """Stays in evaluation mode, so that no training moves the BatchNorm statistics."""
        return super().train(False)

    @property
    def embedding_dim(self) -> int:
        """Size of the joint space."""
        return int(self.clip.text_projection.shape[1])

    @property
    def image_size(self) -> int:
        """Width and height of a picture in pixels."""
        return int(self.clip.visual.input_resolution)

    @property
    def num_patches(self) -> int:
        """Patch tokens of a picture, without the pooled one."""
        visual = self.clip.visual
        positions = visual.attnpool if isinstance(visual, ModifiedResNet) else visual
        return len(positions.positional_embedding) - 1

    @property
    def context_length(self) -> int:
        """Most text ids of a text."""
        return len(self.clip.positional_embedding)

    @property
    def vocab_size(self) -> int:
        """Size of the text vocabulary."""
        return len(self.clip.token_embedding.weight)

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of a sha256 over the names and values of all weights."""
        digest = hashlib.sha256()
        for name, value in sorted(self.clip.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> Tensor:
        """The l2-normalised outputs at every position of the image encoder.

        Args:
            image: Pictures (B, 3, ``image_size``, ``image_size``) uint8; or floats, normalised as CLIP takes them.

        Returns:
            (B, 1 + ``num_patches``, D) float32: position 0 is CLIP's own pooled embedding, the rest are the patches
            (v_cls and v_1 … v_n1 of Section 3.2).

        Raises:
            TypeError: The pictures are of another type.
        """
        image = normalized(image).to(self.clip.dtype)
        visual = self.clip.visual
        tokens = _resnet_tokens(visual, image) if isinstance(visual, ModifiedResNet) else _vit_tokens(visual, image)
        return functional.normalize(tokens.float(), dim=-1)

    @torch.no_grad()
    def encode_text(self, clip_text_ids: Tensor) -> Tensor:
        """The l2-normalised embedding of each text, computed on as many positions as the ids have.

        The text encoder is causal and read at the end token, so that padding after it changes nothing.

        Args:
            clip_text_ids: (B, L) int64 with L up to ``context_length``; the end token has the highest id.

        Returns:
            (B, D) float32, t_eos of Section 3.2.
        """
        return functional.normalize(self.clip.encode_text(clip_text_ids).float(), dim=-1)


def normalized(image: Tensor) -> Tensor:
    """Pictures as CLIP takes them, computed on their device.

    Args:
        image: (…, 3, H, W) uint8; or floats, which are normalised already and come back as they are.

    Returns:
        (…, 3, H, W), float32 where they were uint8: to the last bit what the ``clip`` package gives on a CPU.

    Raises:
        TypeError: They are of another type.
    """
    if image.is_floating_point():
        return image
    if image.dtype != torch.uint8:
        raise TypeError(f"pictures of {image.dtype}: give uint8, or floats that are normalised as CLIP takes them")
    values = image.float().div_(255)
    for channel, (mean, std) in enumerate(zip(IMAGE_MEAN, IMAGE_STD, strict=True)):
        values[..., channel, :, :].sub_(mean).div_(std)  # numbers: to copy tensors to a GPU would wait for it
    return values


def build_clip(weights: dict[str, Tensor], source: str = "weights") -> CLIP:
    """Builds a CLIP of the sizes that its weights tell, in float32.

    As ``clip.model.build_model``, without its conversion to half precision. Nothing is built before the shapes are
    known to be those of a CLIP.

    Args:
        weights: The state dict.
        source: Where it came from, for errors.

    Raises:
        ModelFileError: The weights are not those of a CLIP.
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
    """The arguments of ``clip.model.CLIP`` that give weights of these shapes.

    Args:
        shapes: The shape of each weight by its name in a state dict.

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


def _check_class(path: Path) -> None:
    """Checks that a file is known to hold a CLIP of OpenAI's class, which equal shapes do not tell.

    Raises:
        ModelFileError: It may be another trainer's.
    """
    if path.name == WEIGHTS_FILE:  # written by ``save``, which marks files only since release 0.4.1
        return
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if metadata.items() >= _CLASS.items():
            return
    digest = file_sha256(path)
    if digest not in _OFFICIAL_CHECKSUMS.values():
        raise ModelFileError(
            f"{path} is not one of OpenAI's files, and its weights do not tell what they are computed with: OpenAI's "
            "class has QuickGELU and heads of width 64, other trainers often GELU or other heads, which are not "
            f"supported. If you know that it has QuickGELU and heads of width 64, pass --model.clip_sha256 {digest}"
        )


def _downloaded(name: str, download_root: str | None) -> Path:
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


def _resnet_tokens(visual: ModifiedResNet, image: Tensor) -> Tensor:
    """The attention pool's output at every position, where CLIP's own forward asks for the first alone."""
    maps = _resnet_maps(visual, image)
    pool: AttentionPool2d = visual.attnpool
    tokens = maps.flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + pool.positional_embedding
    query, key, value = (
        linear(tokens).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        for linear in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    mixed = functional.scaled_dot_product_attention(query, key, value)
    pooled: Tensor = pool.c_proj(mixed.transpose(1, 2).flatten(2))
    return pooled


def _resnet_maps(visual: ModifiedResNet, image: Tensor) -> Tensor:
    maps = visual.relu1(visual.bn1(visual.conv1(image)))
    maps = visual.relu2(visual.bn2(visual.conv2(maps)))
    maps = visual.relu3(visual.bn3(visual.conv3(maps)))
    maps = visual.avgpool(maps)
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        maps = stage(maps)
    return maps


def _vit_tokens(visual: VisionTransformer, image: Tensor) -> Tensor:
    """CLIP's own forward, with the last norm and the projection at every position."""
    patches = visual.conv1(image).flatten(2).transpose(1, 2)
    first = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
    tokens = visual.ln_pre(torch.cat([first, patches], 1) + visual.positional_embedding)
    tokens = visual.transformer(tokens.transpose(0, 1)).transpose(0, 1)
    projected: Tensor = visual.ln_post(tokens) @ visual.proj
    return projected
