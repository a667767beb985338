"""Open-ended visual question answering, zero-shot and fine-tuned: the paper's Tables 3 and 4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vlkd_pl.batch import ImageBatch, InfillingBatch, QuestionBatch
from vlkd_pl.evaluation.vqa import AnswerPrediction, VQAEvaluator
from vlkd_pl.models.decoding import ANSWER_DECODING, CAPTION_DECODING, Decoding, answer, caption
from vlkd_pl.models.prompts import caption_passage, question_prompt
from vlkd_pl.models.reconstruction import Reconstruction
from vlkd_pl.models.vlkd import ImageFeatures
from vlkd_pl.modules.vlkd import PLAIN, Execution, VLKDModule
from vlkd_pl.text_files import iter_lines
from vlkd_pl.training.optim import TABLE_10, Optimization


class VQAModule(VLKDModule):
    """Answers questions about images, and scores the answers as VQA's evaluator does.

    ``test`` of a distilled model is zero-shot (Section 4.3.2); ``fit`` trains on the same prompt (Section 4.4), with
    the loss ``icti`` alone.

    Args:
        clip: Name of an OpenAI CLIP, or path of a file or folder; None for that of the model folder ``init_from``.
        bart: Hugging Face name of a BART, or path of a folder; None for that of the model folder ``init_from``.
        image_features: ``pooled``, ``patches`` or ``all``; None for those of the model folder ``init_from``.
        clip_sha256: Checksum that the CLIP file must have; see ``FrozenCLIP.load``.
        init_from: Model folder or checkpoint of an earlier stage; see ``VLKDModule``.
        icti_reduction: ``sum`` or ``mean`` over the tokens of an answer's text; see ``icti_loss``.
        num_masks: Number m of masks in the prompt "{question} Answer: <mask>×m."; 2 in training (Table 11).
        decoding: Decoding of answers.
        caption_first: Whether the model captions the image first, and the caption stands before the question
            (*caption-then-answer*). Not in the paper.
        caption_masks: Number m of masks in the prompt of that caption.
        caption_decoding: Decoding of that caption.
        candidates: Text file with one answer per line, of which the likeliest is the answer; None for any text. Not in
            the paper.
        lower_case: Whether answers are lower-cased, as people's are in VQA; its evaluator does so only where people's
            answers differ.
        shuffled_control: Whether each question is also answered from another image: what is right then does not come
            from the image.
        panel_size: Most images in the panel of answers; at least 0.
        optimization: Settings of optimizer and schedule.
        execution: Settings that trade memory for time.

    Raises:
        FileNotFoundError: CLIP, BART, ``init_from`` or the file of candidates cannot be found.
        MisconfigurationException: CLIP or BART is missing or does not fit ``init_from``.

    Example:
        >>> from vlkd_pl.sample import BART_FOLDER, CLIP_FOLDER
        >>> module = VQAModule(CLIP_FOLDER, BART_FOLDER, num_masks=2)
        >>> module.num_masks
        2
    """

    def __init__(
        self,
        clip: str | None = None,
        bart: str | None = None,
        image_features: ImageFeatures | None = None,
        clip_sha256: str | None = None,
        init_from: str | None = None,
        icti_reduction: Literal["mean", "sum"] = "sum",
        num_masks: int = 1,
        decoding: Decoding = ANSWER_DECODING,
        caption_first: bool = False,
        caption_masks: int = 6,
        caption_decoding: Decoding = CAPTION_DECODING,
        candidates: str | None = None,
        lower_case: bool = True,
        shuffled_control: bool = False,
        panel_size: int = 16,
        optimization: Optimization = TABLE_10,
        execution: Execution = PLAIN,
    ) -> None:
        super().__init__(
            clip=clip,
            bart=bart,
            image_features=image_features,
            clip_sha256=clip_sha256,
            init_from=init_from,
            icti_reduction=icti_reduction,
            num_masks=num_masks,
            decoding=decoding,
            optimization=optimization,
            execution=execution,
        )
        self._evaluate_task(VQAEvaluator(panel_size), {})
        self.caption_first = caption_first
        self.caption_masks = caption_masks
        self.caption_decoding = caption_decoding
        self.candidates = read_candidates(candidates) if candidates is not None else None
        self.lower_case = lower_case
        self.shuffled_control = shuffled_control

    def compute_losses(self, batch: QuestionBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """Compute the negative log-likelihood of "{question} Answer: {answer}." given image and prompt (Eq. 2).

        Returns:
            ``icti``, since it is Image-Conditioned Text Infilling with the masks in place of the answer.
        """
        prompts = [question_prompt(question, self.num_masks) for question in batch["questions"]]
        filled = [prompt.filled(answer) for prompt, answer in zip(prompts, batch["labels"], strict=True)]
        infilling = self._infilling([prompt.text(self.model.tokenizer.mask_token) for prompt in prompts], filled)
        features = self.model.encode_text(infilling["corrupted_ids"], infilling["corrupted_mask"])
        image_tokens = self.model.clip.encode_image(batch["image"])[batch["image_index"]]
        condition, mask = self.model.condition(features, infilling["corrupted_mask"], image_tokens)
        return self._infilling_losses({"icti": (condition, mask, infilling["labels"])})

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
        """Answer each question about the images."""
        answers = self._answers(self.model.clip.encode_image(batch["image"]), batch)
        questions = [question for sample in batch["samples"] for question in sample.questions]
        return [
            {
                "question_id": question.question_id,
                "image_id": question.image_id,
                "question": question.text,
                "answer": reply.text,
            }
            for question, reply in zip(questions, answers, strict=True)
        ]

    def _infilling(self, corrupted: Sequence[str], clean: Sequence[str]) -> InfillingBatch:
        """Tokenize prompts and the texts that are reconstructed from them."""
        prompts, labels = (
            self.model.tokenizer(list(texts), padding=True, return_tensors="pt").to(self.device)
            for texts in (corrupted, clean)
        )
        return {
            "corrupted_ids": prompts["input_ids"],
            "corrupted_mask": prompts["attention_mask"],
            "labels": labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100),
        }

    def _answers(self, image_tokens: Tensor, batch: ImageBatch) -> list[Reconstruction]:
        """Compute the best answer to each question, in the order of the images and of their questions."""
        index = [row for row, sample in enumerate(batch["samples"]) for _ in sample.questions]
        passages = None
        if self.caption_first:
            captions = caption(self.model, image_tokens, self.caption_masks, self.caption_decoding)
            passages = [caption_passage(captions[row][0].text) for row in index]
        answers = answer(
            self.model,
            image_tokens,
            [question.text for sample in batch["samples"] for question in sample.questions],
            self.decoding,
            num_masks=self.num_masks,
            image_index=index,
            passages=passages,
            candidates=self.candidates,
        )
        best = [candidates[0] for candidates in answers]
        return [reply._replace(text=reply.text.lower()) for reply in best] if self.lower_case else best


def read_candidates(path: str | Path) -> list[str]:
    """Read the answers of a text file.

    Args:
        path: Text file with one answer per line.

    Returns:
        The answers in the order of the file, without repeats.

    Raises:
        FileNotFoundError: The file is missing or empty.
        MisconfigurationException: The file is not UTF-8.
    """
    lines = iter_lines(path) if Path(path).is_file() else []
    candidates = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not candidates:
        raise FileNotFoundError(f"there are no candidate answers in {path}: give a text file with one a line")
    return candidates
