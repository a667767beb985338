"""The distilled model: a BART joined to a frozen CLIP by the projections W_e, W_i and W'_e (Section 3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor, nn
from torch.nn import functional
from transformers import BartForConditionalGeneration, GenerationConfig, PreTrainedTokenizerBase
from transformers.models.bart.modeling_bart import shift_tokens_right

from vlkd_pl.clip.frozen import FrozenCLIP
from vlkd_pl.errors import ModelFileError
from vlkd_pl.files import atomic_update, complete_update
from vlkd_pl.models.bart import clean_tokenizer, load_bart
from vlkd_pl.models.card import model_card
from vlkd_pl.weights.model_files import model_folder, read_config
from vlkd_pl.weights.reader import read_weights

ImageFeatures = Literal["pooled", "patches", "all"]

_POSITIONS = {"pooled": slice(0, 1), "patches": slice(1, None), "all": slice(None)}
MAX_PREFIX_LENGTH = 256
"""Most tokens that W_i may make of an image token; a corrupt file must not ask for more memory."""
_FORMAT_VERSION = 1
_PROJECTIONS_FILE = "model.safetensors"
_CONFIG = "config.json"
_PROJECTIONS = ("text_projection", "image_projection", "text_back_projection")


class VLKDModel(nn.Module, ModelHubMixin):
    """Frozen CLIP and BART, joined by three linear projections.

    Args:
        clip: Frozen CLIP with a joint space of size d_1.
        bart: BART with hidden size d_2; it is converted to float32 in place.
        tokenizer: Tokenizer of the BART.
        image_features: Image tokens V of Eq. (1): the ``pooled`` embedding, the ``patches`` without it, or ``all``.
        prefix_length: Number K of tokens that W_i makes of each of them, from 1. The paper's is 1; more, as in ClipCap
            (Mokady et al., 2021), give the decoder's attention something to choose from where V is one embedding.

    Attributes:
        text_projection: W_e, from d_2 to d_1.
        image_projection: W_i, from d_1 to K · d_2.
        text_back_projection: W'_e, from d_1 to d_2, initialised with the pseudo-inverse of W_e.

    Example:
        >>> from vlkd_pl.sample import BART_FOLDER, CLIP_FOLDER
        >>> model = VLKDModel.load(CLIP_FOLDER, BART_FOLDER, image_features="all")
        >>> model.embed_texts(["a red fish in the snow"]).shape
        torch.Size([1, 256])
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        bart: BartForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        image_features: ImageFeatures = "pooled",
        prefix_length: int = 1,
    ) -> None:
        super().__init__()
        self.clip = clip
        self.bart = bart.float()
        self.tokenizer = tokenizer
        self.image_features = image_features
        bart_dim, clip_dim = bart.config.d_model, clip.embedding_dim
        self.text_projection = nn.Linear(bart_dim, clip_dim, bias=False)
        self.image_projection = nn.Linear(clip_dim, prefix_length * bart_dim, bias=False)
        self.text_back_projection = nn.Linear(clip_dim, bart_dim, bias=False)
        self._invert_text_projection()
        # replaces the settings stored with a BART, such as bart-large's no_repeat_ngram_size, which generate would use
        self.bart.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=bart.config.decoder_start_token_id,
            forced_bos_token_id=tokenizer.bos_token_id,
            forced_eos_token_id=tokenizer.eos_token_id,
        )

    @classmethod
    def load(
        cls,
        clip: str,
        bart: str,
        image_features: ImageFeatures = "pooled",
        clip_sha256: str | None = None,
        prefix_length: int = 1,
    ) -> VLKDModel:
        """Join a CLIP and a BART that have not been distilled yet; W_e and W_i start at random.

        Args:
            clip: Name, file or folder of the CLIP, as for ``FrozenCLIP.load``.
            bart: Name on the Hugging Face hub, or a local folder with weights and tokenizer.
            image_features: Image tokens V of Eq. (1): ``pooled``, ``patches`` or ``all``.
            clip_sha256: Expected sha256 of the CLIP's file, as for ``FrozenCLIP.load``.
            prefix_length: Number of tokens that W_i makes of each image token, from 1.

        Raises:
            FileNotFoundError: The CLIP or the BART does not exist.
            ModelFileError: A file is missing in a folder, corrupt, or belongs to another model.
        """
        return cls(FrozenCLIP.load(clip, clip_sha256), *load_bart(bart), image_features, prefix_length)

    @property
    def prefix_length(self) -> int:
        """Number K of tokens that W_i makes of each image token."""
        return self.image_projection.out_features // self.text_back_projection.out_features

    # Training

    def checkpoint_activations(self) -> None:
        """Enable activation checkpointing: BART's layers are computed again in the backward pass to save memory."""
        # transformers 5 renamed the method
        enable = getattr(self.bart, "activation_checkpointing_enable", None) or self.bart.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def compile_training(self) -> None:
        """Compile the encoder and the teacher-forced decoder for texts of any length; generation stays as it is."""
        for name in ("encode_text", "decode_features"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=True))

    # Text and images into the joint space

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode texts with BART's encoder.

        Args:
            ids: BART's token ids (B, L) int64.
            mask: Mask (B, L), 1 at real tokens.

        Returns:
            Features E (B, L, d_2).
        """
        features: Tensor = self.bart.model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return features

    def embed_text(self, text_features: Tensor, text_mask: Tensor) -> Tensor:
        """Pool text features over the real tokens and project them into the joint space, ē_norm of Section 3.2.1.

        Args:
            text_features: Features E (B, L, d_2) of ``encode_text``.
            text_mask: Mask (B, L), 1 at real tokens.

        Returns:
            Embeddings (B, d_1) float32, l2-normalised.
        """
        with torch.autocast(text_features.device.type, enabled=False):
            projected = functional.linear(mean_pooled(text_features, text_mask), self.text_projection.weight.float())
            return functional.normalize(projected, dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Embed texts in the joint space, without gradients, in batches of similar length.

        Args:
            texts: B texts; texts longer than BART's positions are truncated.
            batch_size: Number of texts in a batch.

        Returns:
            Embeddings (B, d_1) float32, l2-normalised, in the order of ``texts``.
        """
        longest = self.bart.config.max_position_embeddings
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        embedding = torch.empty(len(texts), self.text_projection.out_features, device=self.bart.device)
        for first in range(0, len(texts), batch_size):
            rows = order[first : first + batch_size]
            encoded = self.tokenizer(
                [texts[row] for row in rows], padding=True, truncation=True, max_length=longest, return_tensors="pt"
            ).to(self.bart.device)
            ids, mask = encoded["input_ids"], encoded["attention_mask"]
            embedding[rows] = self.embed_text(self.encode_text(ids, mask), mask)
        return embedding

    # The decoder's condition

    def condition(
        self, text_features: Tensor, text_mask: Tensor, image_tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Build the decoder's condition C = concat(W_i V, W'_e W_e E) of Eq. (1).

        Args:
            text_features: Features E (B, L, d_2) of ``encode_text``.
            text_mask: Mask (B, L), 1 at real tokens.
            image_tokens: Tokens (B, 1 + N, d_1) of ``FrozenCLIP.encode_image``; None for text alone.

        Returns:
            Condition (B, K V + L, d_2) and its mask (B, K V + L), where V is 1 for ``pooled``, N for ``patches`` and
            1 + N for ``all``, and K is ``prefix_length``.
        """
        used = None if image_tokens is None else image_tokens[:, _POSITIONS[self.image_features]]
        return self.condition_on(text_features, text_mask, used)

    def condition_on(self, text_features: Tensor, text_mask: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Build the condition as ``condition`` does, with all tokens (B, V, d_1) of the joint space; None for none."""
        text = self.text_back_projection(self.text_projection(text_features))
        if tokens is None:
            return text, text_mask
        image = self.image_projection(tokens).reshape(len(tokens), -1, text.shape[-1])
        return torch.cat([image, text.to(image.dtype)], 1), functional.pad(text_mask, (image.shape[1], 0), value=1)

    def decode(self, condition: Tensor, condition_mask: Tensor, labels: Tensor) -> Tensor:
        """Compute the decoder's logits with teacher forcing.

        Args:
            condition: Condition C (B, S, d_2) of Eq. (1).
            condition_mask: Mask (B, S), 1 at real positions.
            labels: Token ids (B, M) int64 of the target texts, -100 at padding.

        Returns:
            Logits (B, M, V) over the vocabulary.
        """
        return self.vocabulary_logits(self.decode_features(condition, condition_mask, labels))

    def decode_features(self, condition: Tensor, condition_mask: Tensor, labels: Tensor) -> Tensor:
        """Compute the decoder's features (B, M, d_2) with teacher forcing; arguments as for ``decode``."""
        config = self.bart.config
        features: Tensor = self.bart.model.decoder(
            input_ids=shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id),
            encoder_hidden_states=condition,
            encoder_attention_mask=condition_mask,
            use_cache=False,
        ).last_hidden_state
        return features

    def vocabulary_logits(self, hidden: Tensor) -> Tensor:
        """Project the decoder's features (B, M, d_2) to logits (B, M, V) over the vocabulary."""
        logits: Tensor = self.bart.lm_head(hidden)
        return logits + self.bart.final_logits_bias.to(logits)

    # Initialisation in closed form

    @torch.no_grad()
    def initialize_from_text(
        self, bart_embedding: Tensor, clip_embedding: Tensor, mean_feature_norm: float, ridge: float = 1e-2
    ) -> None:
        """Initialise the projections by ridge regression between BART's and CLIP's embeddings of the same texts.

        This is an extension beyond the paper. W_e maps BART's embeddings to CLIP's. Its regression shrinks towards the
        best rotation instead of zero: texts vary little in some directions of BART's space, which W_e would otherwise
        nearly drop and its pseudo-inverse W'_e would amplify.

        W_i is the regression from CLIP's embeddings to BART's, scaled to the mean norm of the encoder's output. Images
        lie near their texts in the joint space, so that the decoder starts with about the features of the text. With a
        ``prefix_length`` above 1 its tokens start as this one plus half as much noise: equal ones would stay equal.

        Args:
            bart_embedding: Mean-pooled encoder outputs (N, d_2) of N texts.
            clip_embedding: CLIP's embeddings (N, d_1) of the same texts, l2-normalised.
            mean_feature_norm: Mean l2 norm of the encoder's output at a token.
            ridge: Penalty as a share of the mean squared singular value of the regressors, above 0.
        """
        source, target = bart_embedding.double(), clip_embedding.double()
        left, _, right = torch.linalg.svd(source.T @ target, full_matrices=False)
        rotation = left @ right
        size = _ridge_regression(source, target, ridge).norm() / rotation.norm()
        forth = _ridge_regression(source, target, ridge, towards=size * rotation)
        # the embedding is normalised, so W_e may have any scale: with that of its inverse, both learn equally fast
        balance = (torch.linalg.pinv(forth).norm() / forth.norm()).sqrt()
        self.text_projection.weight.copy_((balance * forth).T)
        self._invert_text_projection()
        back = _ridge_regression(target, source, ridge)
        image = (mean_feature_norm / (target @ back).norm(dim=-1).mean() * back).T.to(self.image_projection.weight)
        tokens = [image] * self.prefix_length
        if self.prefix_length > 1:
            tokens = [image + image.square().mean().sqrt() / 2 * torch.randn_like(image) for image in tokens]
        self.image_projection.weight.copy_(torch.cat(tokens))

    @torch.no_grad()
    def _invert_text_projection(self) -> None:
        inverse = torch.linalg.pinv(self.text_projection.weight.double())
        self.text_back_projection.weight.copy_(inverse)

    # Folders

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the model folder atomically: a kill at any moment leaves the old model or the new one.

        Args:
            save_directory: Folder of the model. Its other files stay, also a ``README.md``; without one, the card of
                the model is written there.
            **options: Options of ``huggingface_hub.ModelHubMixin.save_pretrained``, such as ``push_to_hub``.

        Returns:
            Address of the commit on the hub with ``push_to_hub``; otherwise None.

        Raises:
            OSError: The folder cannot be written; an earlier model stays.
        """
        folder = Path(save_directory)
        with atomic_update(folder, _CONFIG) as incomplete:
            address: str | None = super().save_pretrained(incomplete, **({"repo_id": folder.name} | options))
            if (folder / "README.md").exists():
                (incomplete / "README.md").unlink(missing_ok=True)
        return address

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Write the card of the model in place of the template of the Hugging Face hub, whose arguments are ignored."""
        return model_card(self)

    def _save_pretrained(self, save_directory: Path) -> None:
        config = {"format_version": _FORMAT_VERSION, "image_features": self.image_features}
        if self.prefix_length > 1:  # without it earlier releases load the folder
            config["prefix_length"] = self.prefix_length
        (save_directory / _CONFIG).write_text(json.dumps(config, indent=1))
        projections = {name: getattr(self, name).weight.detach().cpu().contiguous() for name in _PROJECTIONS}
        safetensors.torch.save_file(projections, save_directory / _PROJECTIONS_FILE)
        self.clip.save(save_directory / "clip")
        self.bart.save_pretrained(save_directory / "bart")
        clean_tokenizer(self.tokenizer).save_pretrained(save_directory / "bart")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> VLKDModel:
        """Load a model that ``save_pretrained`` wrote.

        Args:
            pretrained_model_name_or_path: Folder of the model, or its name on the Hugging Face hub.
            **options: For a name on the hub, ``revision``, ``cache_dir``, ``force_download``, ``local_files_only`` and
                ``token``, as for ``huggingface_hub.snapshot_download``.

        Raises:
            FileNotFoundError: Neither the folder nor the name exists.
            ModelFileError: A file is missing in the folder, corrupt, or belongs to another model.
        """
        folder = model_folder(str(pretrained_model_name_or_path), "a VLKD model", **options)
        complete_update(folder, _CONFIG)
        image_features, prefix_length = read_image_features(folder)
        for name in (_PROJECTIONS_FILE, "clip", "bart"):
            if not (folder / name).exists():
                raise ModelFileError(f"{folder / name} is missing: the folder was copied or written in part")
        projections = read_weights(folder / _PROJECTIONS_FILE)
        model = cls.load(str(folder / "clip"), str(folder / "bart"), image_features, None, prefix_length)
        for name in _PROJECTIONS:
            value, weight = projections.get(name), getattr(model, name).weight.data
            if value is None or value.shape != weight.shape or not value.is_floating_point():
                raise ModelFileError(
                    f"{folder / _PROJECTIONS_FILE} holds no {name} of shape {list(weight.shape)}, as its clip and bart "
                    "have it: its files are of different models"
                )
            weight.copy_(value)
        return model


def read_image_features(folder: Path) -> tuple[ImageFeatures, int]:
    """Read from a model folder's ``config.json`` which image features its decoder attends to, and by how many tokens.

    Args:
        folder: Folder that ``VLKDModel.save_pretrained`` wrote.

    Returns:
        The image features, and the ``prefix_length``.

    Raises:
        ModelFileError: The file is missing or corrupt, or belongs to another kind of model or format.
    """
    path = folder / _CONFIG
    config = read_config(path)
    if config.get("format_version") != _FORMAT_VERSION:
        raise ModelFileError(f"{path} does not belong to a model of vlkd-pl fit in format {_FORMAT_VERSION}")
    image_features: ImageFeatures = config.get("image_features")  # type: ignore[assignment]
    if not isinstance(image_features, str) or image_features not in _POSITIONS:
        raise ModelFileError(f"{path}: image_features is {image_features!r}, not one of {', '.join(_POSITIONS)}")
    prefix_length = config.get("prefix_length", 1)
    if type(prefix_length) is not int or not 1 <= prefix_length <= MAX_PREFIX_LENGTH:
        raise ModelFileError(f"{path}: prefix_length is {prefix_length!r}, not a number from 1 to {MAX_PREFIX_LENGTH}")
    return image_features, prefix_length


def _ridge_regression(source: Tensor, target: Tensor, ridge: float, towards: Tensor | None = None) -> Tensor:
    """Solve min_X ‖source X - target‖² + penalty · ‖X - towards‖², with ``towards`` 0 by default; X is (d_s, d_t)."""
    gram, cross = source.T @ source, source.T @ target
    penalty = ridge * gram.diagonal().mean()
    if towards is not None:
        cross = cross + penalty * towards
    return torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), cross)


def mean_pooled(features: Tensor, mask: Tensor) -> Tensor:
    """Average features over the real tokens, ē of Section 3.2.1.

    Args:
        features: Features (B, L, D).
        mask: Mask (B, L), 1 at real tokens.

    Returns:
        Means (B, D) float32.

    Example:
        >>> mean_pooled(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
        tensor([[2.]])
    """
    weight = mask.unsqueeze(-1).float()
    return (features.float() * weight).sum(1) / weight.sum(1)
