"""Self-Critical Sequence Training: captioning trained for CIDEr-D, the rows "w/ SCST" of the paper's Tables 1 and 2."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from vlkd_pl.batch import CaptioningBatch
from vlkd_pl.losses import scst_loss, token_kl_loss
from vlkd_pl.metrics.cider import CIDErDReward
from vlkd_pl.metrics.ptb import tokenize
from vlkd_pl.models.prompts import caption_prompt
from vlkd_pl.modules.captioning import CaptioningModule, caption_condition

_END = "<eos>"
"""The end token as a word of the reward: no word of a caption, since the tokenizer splits it."""


class SCSTModule(CaptioningModule):
    """Raises the CIDEr-D of sampled captions (Rennie et al., 2017), from a model that captions already.

    In the reward the end token counts as a word, as in the reference implementation (Luo, 2020): references have it, in
    the document frequencies too, and samples that ended. Without it a caption that breaks off ("… on a") often has a
    higher reward than the finished one.

    Document frequencies are those of the training references. A training sample is an image with all its captions:
    ``train_by: image`` of ``COCODataModule``. The paper gives no settings of its SCST; these are ours.

    Args:
        num_samples: Captions that are drawn for each image, with dropout on.
        baseline: What a caption's reward is compared with: the mean of the ``others`` of the same image (Luo, 2020),
            or that of the ``greedy`` caption without dropout, as in the original.
        kl_weight: Weight of the divergence from the model that training starts from; see ``token_kl_loss``.
        cross_entropy_weight: Weight of the loss of ``CaptioningModule`` on the same images.
        end_token_in_reward: Whether the end token is a word of the reward.
        reward_cache: A folder to keep what the reward needs of the references in; see ``CIDErDReward``.
        **options: See ``CaptioningModule``.

    Raises:
        MisconfigurationException: One sample has no others to compare it with.
    """

    def __init__(
        self,
        num_samples: int = 5,
        baseline: Literal["others", "greedy"] = "others",
        kl_weight: float = 0.0,
        cross_entropy_weight: float = 0.0,
        end_token_in_reward: bool = True,
        reward_cache: str | None = None,
        **options: Any,
    ) -> None:
        if num_samples < (2 if baseline == "others" else 1):
            raise MisconfigurationException(
                f"model.num_samples is {num_samples}: the baseline {baseline!r} needs "
                f"{'two or more' if baseline == 'others' else 'one or more'}"
            )
        super().__init__(**options)
        self.num_samples = num_samples
        self.baseline = baseline
        self.loss_weights = {"scst": 1.0, "kl": kl_weight, "icti": cross_entropy_weight}
        self.end_token_in_reward = end_token_in_reward
        self.reward_cache = reward_cache
        self.reward: CIDErDReward[int | str] | None = None
        # in a tuple, so that it is no part of the module: it is neither trained nor kept in checkpoints
        self._start: tuple[Any, ...] = (self._copy_of_model(),) if kl_weight else ()

    def _copy_of_model(self) -> Any:
        clip = self.model.clip  # frozen, so that both may have the same
        return copy.deepcopy(self.model, {id(clip): clip}).eval().requires_grad_(False)

    def on_fit_start(self) -> None:
        """Gets the reward ready for the training references."""
        super().on_fit_start()
        references = {
            image_id: [self._rewarded(tokenize(text), has_ended=True) for text in texts]
            for image_id, texts in self.data.training_references().items()
        }
        self.reward = CIDErDReward(references, Path(self.reward_cache) if self.reward_cache is not None else None)
        for model in self._start:
            model.to(self.device)

    def compute_losses(self, batch: CaptioningBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """Draws captions and compares their rewards with the baseline.

        Returns:
            ``scst``; ``kl`` and ``icti`` where they have a weight.
        """
        image_tokens = self.model.clip.encode_image(batch["image"])
        condition, mask = caption_condition(self.model, image_tokens, self.num_masks)
        ids, num_given = self._sample(condition, mask)
        image_ids = [sample.image_id for sample in batch["samples"]]
        texts = self._read(ids[:, num_given:])
        reward = self._reward(image_ids, texts, ids[:, num_given:])
        baseline = self._baseline(image_ids, reward, image_tokens)
        self.log("train/reward", reward.mean(), prog_bar=True)
        self.log("train/baseline", baseline.mean())
        self.log("train/caption_length", sum(len(text.split()) for text in texts) / len(texts))

        # generate has no gradients: a second pass gives the logits of all samples
        told = ids[:, 1:].masked_fill(ids[:, 1:] == self.model.tokenizer.pad_token_id, -100)
        labels = told.clone()
        labels[:, : num_given - 1] = -100
        logits = self.model.decode(*self._repeated(condition, mask), told)
        losses = {"scst": scst_loss(logits, labels, reward.flatten(), baseline.flatten())}
        if self.loss_weights["kl"]:
            losses["kl"] = token_kl_loss(logits, self._start_logits(image_tokens, told), labels)
        if self.loss_weights["icti"]:
            losses["icti"] = self._caption_loss(condition, mask, batch)
        return losses

    @torch.no_grad()
    def _sample(self, condition: Tensor, mask: Tensor, greedy: bool = False) -> tuple[Tensor, int]:
        """Captions after "A picture of".

        Args:
            condition: C (B, S, d_2).
            mask: (B, S), 1 at real positions.
            greedy: Whether to take the likeliest tokens, of one caption each, in place of ``num_samples`` drawn ones.

        Returns:
            Token ids (B · n, M), padded behind their end tokens, with the decoder's start token, and how many of them
            were given. A caption that has no end after the most tokens gets none: it is not its own.
        """
        tokenizer, bart = self.model.tokenizer, self.model.bart
        words = tokenizer(caption_prompt(self.num_masks).before, add_special_tokens=False)["input_ids"]
        given = torch.tensor([bart.config.decoder_start_token_id, tokenizer.bos_token_id, *words], device=self.device)
        drawn = {"do_sample": True, "top_k": 0, "num_return_sequences": self.num_samples}
        likeliest = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}
        ids: Tensor = bart.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=condition.detach()),
            attention_mask=mask,
            decoder_input_ids=given.expand(len(condition), -1),
            max_new_tokens=self.decoding.max_new_tokens,
            forced_eos_token_id=None,
            **(likeliest if greedy else drawn),
        )
        return ids, len(given)

    def _read(self, ids: Tensor) -> list[str]:
        """The captions in what was written, as they are read in evaluation, in tokens of the reward."""
        prompt = caption_prompt(self.num_masks)
        texts = self.model.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [tokenize(prompt.read(text, is_continuation=True)[0]) for text in texts]

    def _rewarded(self, text: str, has_ended: bool) -> str:
        """A caption as the reward compares it."""
        return f"{text} {_END}" if has_ended and self.end_token_in_reward else text

    def _reward(self, image_ids: list[int | str], texts: list[str], ids: Tensor) -> Tensor:
        """CIDEr-D (B, n) of n captions of each image.

        Args:
            image_ids: B images.
            texts: B · n captions, see ``_read``.
            ids: What they were read from (B · n, M): captions that have ended hold an end token.
        """
        assert self.reward is not None
        num_each = len(texts) // len(image_ids)
        ended = (ids == self.model.tokenizer.eos_token_id).any(1).tolist()
        captions = [self._rewarded(text, has_ended) for text, has_ended in zip(texts, ended, strict=True)]
        scores = self.reward([image_id for image_id in image_ids for _ in range(num_each)], captions)
        return torch.tensor(scores, dtype=torch.float32, device=self.device).view(len(image_ids), num_each)

    @torch.no_grad()
    def _baseline(self, image_ids: list[int | str], reward: Tensor, image_tokens: Tensor) -> Tensor:
        """What each of the rewards (B, n) is compared with."""
        if self.baseline == "others":
            return (reward.sum(1, keepdim=True) - reward) / (self.num_samples - 1)
        self.model.eval()
        ids, num_given = self._sample(*caption_condition(self.model, image_tokens, self.num_masks), greedy=True)
        self.model.train()
        return self._reward(image_ids, self._read(ids[:, num_given:]), ids[:, num_given:]).expand_as(reward)

    @torch.no_grad()
    def _start_logits(self, image_tokens: Tensor, told: Tensor) -> Tensor:
        """The logits of the model that training started from, for the same samples."""
        (model,) = self._start
        logits: Tensor = model.decode(*self._repeated(*caption_condition(model, image_tokens, self.num_masks)), told)
        return logits

    def _repeated(self, condition: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Each row as often as captions are drawn for it."""
        return condition.repeat_interleave(self.num_samples, 0), mask.repeat_interleave(self.num_samples, 0)
