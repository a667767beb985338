"""The frozen CLIP, with its image encoder's outputs at every position."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from vlkd_pl.clip.openai import CLIP, AttentionPool2d, ModifiedResNet, VisionTransformer
from vlkd_pl.clip.transform import IMAGE_MEAN, IMAGE_STD
from vlkd_pl.clip.weights import (
    CLIP_CLASS,
    CLIP_NAMES,
    LIMITS_FILE,
    MERGES_FILE,
    OPENAI_CHECKSUMS,
    WEIGHTS_FILE,
    build_clip,
    check_clip_class,
    download_clip,
)
from vlkd_pl.errors import ModelFileError
from vlkd_pl.files import file_sha256
from vlkd_pl.weights.model_files import check_merges, check_model_file, read_limits, read_merges
from vlkd_pl.weights.reader import read_weights


class FrozenCLIP(nn.Module):
    """Frozen CLIP of OpenAI's class, in float32 and evaluation mode.

    The weights of a ResNet are in memory in channels-last order, in which convolutions are faster; see
    ``benchmarks/channels_last.py``. Their values and their files stay the same.

    Args:
        clip: The CLIP; its weights are converted to float32 in place.
        merges: Content of a gzip file of byte-pair merges for its tokenizer; None for OpenAI's vocabulary.
        limits: Plain text that states what the CLIP does not know, for the card and the demo page of a model that is
            distilled from it; empty for none.

    Example:
        >>> from vlkd_pl.sample import CLIP_FOLDER
        >>> clip = FrozenCLIP.load(CLIP_FOLDER)
        >>> clip.encode_image(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape  # 1 pooled and 4 patch tokens
        torch.Size([2, 5, 256])
    """

    def __init__(self, clip: CLIP, merges: bytes | None = None, limits: str = "") -> None:
        super().__init__()
        self.clip = clip.float().eval().requires_grad_(False)
        if isinstance(self.clip.visual, ModifiedResNet):
            self.clip.visual.to(
                memory_format=torch.channels_last
            )  # a convolution's output has the order of its weights
        self.merges = merges
        self.limits = limits

    @classmethod
    def load(cls, clip: str | Path, sha256: str | None = None, download_root: str | None = None) -> FrozenCLIP:
        """Load a CLIP by name, or from a file or folder.

        Args:
            clip: One of ``CLIP_NAMES``, which is downloaded on first use; a TorchScript archive of OpenAI's; a state
                dict (``.pt`` or ``.safetensors``); or a folder that ``save`` wrote.
            sha256: Expected sha256 of the file, in hexadecimal. For a file with one of OpenAI's names it defaults to
                OpenAI's checksum. For any other file it confirms that the CLIP has QuickGELU and heads of width 64,
                which weights do not show.
            download_root: Folder of downloaded files; ``~/.cache/clip`` by default.

        Raises:
            FileNotFoundError: The file does not exist, or a named CLIP cannot be downloaded.
            ModelFileError: The checksum differs; the file is corrupt or holds no CLIP; its class is neither known nor
                confirmed by ``sha256``; the merges do not fit the CLIP's vocabulary; or the limits are not a text.
        """
        if str(clip) in CLIP_NAMES:
            path = download_clip(str(clip), download_root)
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
        expected = sha256.lower() if sha256 else OPENAI_CHECKSUMS.get(path.name)
        if expected is not None and (digest := file_sha256(path)) != expected:
            raise ModelFileError(
                f"{path} has the sha256 {digest}, not {expected}: download it again, or pass the right clip_sha256"
            )
        model = build_clip(read_weights(path), str(path))
        if expected is None:
            check_clip_class(path)
        frozen = cls(model)
        if path.name == WEIGHTS_FILE:
            merges = path.with_name(MERGES_FILE)
            frozen.merges = read_merges(merges) if merges.is_file() else None
            check_merges(path, frozen.vocab_size, frozen.merges)
            limits = path.with_name(LIMITS_FILE)
            frozen.limits = read_limits(limits) if limits.exists() else ""
        return frozen

    def save(self, folder: str | Path) -> None:
        """Write ``clip.safetensors``, in half precision if that loses nothing, and merges and limits if it has any."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.clip.state_dict().items()}
        floating = [value for value in weights.values() if value.is_floating_point()]
        if all(torch.equal(value, value.half().float()) for value in floating):
            weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
        safetensors.torch.save_file(weights, folder / WEIGHTS_FILE, metadata=CLIP_CLASS)
        if self.merges is not None:
            (folder / MERGES_FILE).write_bytes(self.merges)
        if self.limits:
            (folder / LIMITS_FILE).write_text(f"{self.limits}\n", encoding="utf-8")

    def train(self, mode: bool = True) -> FrozenCLIP:
        """Stay in evaluation mode, so that training does not move the BatchNorm statistics."""
        return super().train(False)

    @property
    def embedding_dim(self) -> int:
        """Size D of the joint image-text space."""
        return int(self.clip.text_projection.shape[1])

    @property
    def image_size(self) -> int:
        """Width and height of an image in pixels."""
        return int(self.clip.visual.input_resolution)

    @property
    def num_patches(self) -> int:
        """Number of patch tokens of an image, without the pooled token."""
        visual = self.clip.visual
        positions = visual.attnpool if isinstance(visual, ModifiedResNet) else visual
        return len(positions.positional_embedding) - 1

    @property
    def context_length(self) -> int:
        """Maximum length of a text in token ids."""
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
        """Encode images to l2-normalised tokens, one for each position of the image encoder.

        Args:
            image: Images (B, 3, ``image_size``, ``image_size``) uint8, or floats with CLIP's normalisation.

        Returns:
            Tokens (B, 1 + ``num_patches``, D) float32. Position 0 is CLIP's pooled embedding, the others are the
            patches (v_cls and v_1 … v_n1 of Section 3.2).

        Raises:
            TypeError: The images have another type.
        """
        image = normalized(image).to(self.clip.dtype)
        visual = self.clip.visual
        tokens = _resnet_tokens(visual, image) if isinstance(visual, ModifiedResNet) else _vit_tokens(visual, image)
        return functional.normalize(tokens.float(), dim=-1)

    @torch.no_grad()
    def encode_text(self, clip_text_ids: Tensor) -> Tensor:
        """Encode texts to l2-normalised embeddings.

        The text encoder is causal and its output is taken at the end token, so that padding changes nothing.

        Args:
            clip_text_ids: Token ids (B, L) int64, L up to ``context_length``; the end token has the highest id.

        Returns:
            Embeddings (B, D) float32, t_eos of Section 3.2.
        """
        return functional.normalize(self.clip.encode_text(clip_text_ids).float(), dim=-1)


def normalized(image: Tensor) -> Tensor:
    """Normalise images with CLIP's mean and standard deviation, on their device.

    Args:
        image: Images (…, 3, H, W) uint8; floats count as normalised and are returned unchanged.

    Returns:
        Images (…, 3, H, W) of floats; on a CPU bit for bit those of the ``clip`` package.

    Raises:
        TypeError: The images have another type.

    Example:
        >>> normalized(torch.zeros(3, 1, 1, dtype=torch.uint8)).flatten()
        tensor([-1.7923, -1.7521, -1.4802])
    """
    if image.is_floating_point():
        return image
    if image.dtype != torch.uint8:
        raise TypeError(f"images of type {image.dtype}: give uint8, or floats with CLIP's normalisation")
    values = image.float().div_(255)
    for channel, (mean, std) in enumerate(zip(IMAGE_MEAN, IMAGE_STD, strict=True)):
        values[..., channel, :, :].sub_(mean).div_(std)  # Python numbers, since copying a tensor would wait for the GPU
    return values


def _resnet_tokens(visual: ModifiedResNet, image: Tensor) -> Tensor:
    """Apply the attention pool at every position, where CLIP's forward computes the first alone."""
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
    """Apply CLIP's forward, with the last norm and the projection at every position."""
    patches = visual.conv1(image).flatten(2).transpose(1, 2)
    first = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
    tokens = visual.ln_pre(torch.cat([first, patches], 1) + visual.positional_embedding)
    tokens = visual.transformer(tokens.transpose(0, 1)).transpose(0, 1)
    projected: Tensor = visual.ln_post(tokens) @ visual.proj
    return projected
