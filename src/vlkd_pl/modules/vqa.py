"""Open-ended visual question answering, zero-shot and fine-tuned: the paper's Tables 3 and 4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vlkd_pl.batch import ImageBatch, InfillingBatch, QuestionBatch
from vlkd_pl.evaluation.vqa import AnswerPrediction, VQAEvaluator
from vlkd_pl.models.decoding import ANSWER_DECODING, CAPTION_DECODING, Decoding, answer, caption
from vlkd_pl.models.prompts import caption_passage, question_prompt
from vlkd_pl.models.reconstruction import Reconstruction
from vlkd_pl.modules.vlkd import VLKDModule
from vlkd_pl.text_files import iter_lines


class VQAModule(VLKDModule):
    """Answers questions about images, and scores the answers as VQA's evaluator does.

    Straight to ``test`` it does so zero-shot (Section 4.3.2); ``fit`` trains it on the same prompt (Section 4.4), with
    the loss ``icti`` alone.

    Args:
        num_masks: m of the prompt "{question} Answer: <mask>×m." (Section 4.3.2); 2 in training (Table 11).
        decoding: How answers are decoded.
        caption_first: *Caption, then answer*: the model's own caption stands before the question. Not in the paper.
        caption_masks: m of the prompt of that caption.
        caption_decoding: How that caption is decoded.
        candidates: Text file with an answer a line: the likeliest of these is the answer. Not in the paper; by default
            any text is.
        lower_case: Whether answers are brought to lower case, as people's are in VQA; its evaluator does so only where
            these differ.
        shuffled_control: Whether each question is asked again of another image: what is right then owes nothing to
            the image.
        **options: See ``VLKDModule``.

    Raises:
        FileNotFoundError: There is no file of candidates.
    """

    def __init__(
        self,
        num_masks: int = 1,
        decoding: Decoding = ANSWER_DECODING,
        caption_first: bool = False,
        caption_masks: int = 6,
        caption_decoding: Decoding = CAPTION_DECODING,
        candidates: str | None = None,
        lower_case: bool = True,
        shuffled_control: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_masks=num_masks, decoding=decoding, **options)
        self.caption_first = caption_first
        self.caption_masks = caption_masks
        self.caption_decoding = caption_decoding
        self.candidates = read_candidates(candidates) if candidates is not None else None
        self.lower_case = lower_case
        self.shuffled_control = shuffled_control
        self.evaluator = VQAEvaluator(self.evaluator.panel_size)
        self.logit_scale.requires_grad_(False)  # no part of the loss: DistributedDataParallel would wait for it

    def compute_losses(self, batch: QuestionBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """The negative log-likelihood of "{question} Answer: {answer}.", given the image and the prompt (Eq. 2).

        Returns:
            ``icti``, since it is Image-Conditioned Text Infilling with the masks in place of the answer.
        """
        prompts = [question_prompt(question, self.num_masks) for question in batch["questions"]]
        told = [prompt.filled(answer) for prompt, answer in zip(prompts, batch["labels"], strict=True)]
        infilling = self._infilling([prompt.text(self.model.tokenizer.mask_token) for prompt in prompts], told)
        features = self.model.encode_text(infilling["corrupted_ids"], infilling["corrupted_mask"])
        image_tokens = self.model.clip.encode_image(batch["image"])[batch["image_index"]]
        return {"icti": self._infilling_loss(features, infilling, image_tokens)}

    def evaluate(self, batch: ImageBatch) -> list[AnswerPrediction]:
        """Answer all questions about the images; the samples are ``AskedImage``."""
        image_tokens = self.model.clip.encode_image(batch["image"])
        answers = self._answers(image_tokens, batch)
        controls = self._answers(image_tokens.roll(1, 0), batch) if self.shuffled_control else [None] * len(answers)
        questions = [(row, question) for row, sample in enumerate(batch["samples"]) for question in sample.questions]
        # the panel shows each image with one of its questions, of another kind from image to image
        panel = {sample.questions[i % len(sample.questions)].question_id for i, sample in enumerate(batch["samples"])}
        return [
            AnswerPrediction(
                question=question,
                answer=reply.text,
                off_prompt=reply.off_prompt,
                shuffled_image_answer=None if control is None else control.text,
                image=self.evaluator.panel_image(batch["image"][row], row) if question.question_id in panel else None,
            )
            for (row, question), reply, control in zip(questions, answers, controls, strict=True)
        ]

    def predict(self, batch: ImageBatch) -> list[dict[str, Any]]:
        """An answer to each question on the images."""
        answers = self._answers(self.model.clip.encode_image(batch["image"]), batch)
        questions = [question for sample in batch["samples"] for question in sample.questions]
        return [
            {
                "question_id": question.question_id,
                "image_id": question.image_id,
                "question": question.text,
                "answer": given.text,
            }
            for question, given in zip(questions, answers, strict=True)
        ]

    def _infilling(self, corrupted: Sequence[str], clean: Sequence[str]) -> InfillingBatch:
        """Prompts with the texts to be told from them, as token ids."""
        read, told = (
            self.model.tokenizer(list(texts), padding=True, return_tensors="pt").to(self.device)
            for texts in (corrupted, clean)
        )
        return {
            "corrupted_ids": read["input_ids"],
            "corrupted_mask": read["attention_mask"],
            "labels": told["input_ids"].masked_fill(told["attention_mask"] == 0, -100),
        }

    def _answers(self, image_tokens: Tensor, batch: ImageBatch) -> list[Reconstruction]:
        """The best answer to each question, in the order of the images and of each one's questions."""
        index = [row for row, sample in enumerate(batch["samples"]) for _ in sample.questions]
        passages = None
        if self.caption_first:
            captions = caption(self.model, image_tokens, self.caption_masks, self.caption_decoding)
            passages = [caption_passage(captions[row][0].text) for row in index]
        found = answer(
            self.model,
            image_tokens,
            [question.text for sample in batch["samples"] for question in sample.questions],
            self.decoding,
            num_masks=self.num_masks,
            image_index=index,
            passages=passages,
            candidates=self.candidates,
        )
        best = [candidates[0] for candidates in found]
        return [each._replace(text=each.text.lower()) for each in best] if self.lower_case else best


def read_candidates(path: str | Path) -> list[str]:
    """The answers of a text file, one a line, each once.

    Raises:
        FileNotFoundError: There is no such file, or nothing in it.
        MisconfigurationException: It is no text in UTF-8.
    """
    lines = iter_lines(path) if Path(path).is_file() else []
    candidates = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not candidates:
        raise FileNotFoundError(f"there are no candidate answers in {path}: give a text file with one a line")
    return candidates
