"""The paper's zero-shot decoding compared with other strategies, on the sample world's held-out scenes.

python benchmarks/decoding_strategies.py --model runs/sample/distill/model
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from vlkd_pl.clip.transform import clip_transform
from vlkd_pl.data.coco_files import CaptionedImage, read_coco_captions
from vlkd_pl.data.vqa_files import Question, read_questions
from vlkd_pl.evaluation.table import format_table
from vlkd_pl.metrics.captions import caption_scores
from vlkd_pl.metrics.vqa import vqa_scores
from vlkd_pl.models.decoding import Decoding, answer, caption
from vlkd_pl.models.prompts import caption_passage
from vlkd_pl.models.vlkd import VLKDModel

BATCH_SIZE = 50

Ask = Callable[[torch.Tensor, Sequence[Question], Sequence[int]], list[str]]
"""Function from image tokens, questions, and the row of each question's image to answers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--world", type=Path, default=Path("runs/sample/world"), help="folder of vlkd-pl sample")
    parser.add_argument("--split", default="test", help="split of the sample world: test or unseen")
    parser.add_argument("--num-masks", type=int, default=3, help="masks in the prompt of captions")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the sampling")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(options.seed)
    model = VLKDModel.from_pretrained(options.model).eval()
    samples = read_coco_captions(options.world / f"captions_{options.split}.json")
    transform = clip_transform(model.clip.image_size)
    images = torch.stack([transform(Image.open(options.world / "images" / sample.file)) for sample in samples])
    tokens = torch.cat([model.clip.encode_image(part) for part in images.split(BATCH_SIZE)])
    print_captions(model, tokens, samples, options.num_masks)
    questions, val = (
        read_questions(*(options.world / f"vqa_{part}_{split}.json" for part in ("questions", "annotations")))
        for split in (options.split, "val")
    )
    candidates = sorted({text for question in val for text in question.answers})
    print_answers(model, tokens, samples, questions, candidates, options.num_masks)


def print_captions(model: VLKDModel, tokens: torch.Tensor, samples: Sequence[CaptionedImage], num_masks: int) -> None:
    strategies = {
        "beam 6 (paper)": Decoding(num_beams=6),
        "greedy": Decoding(),
        "free decoding": Decoding(num_beams=6, reading="free"),
        "rerank 6 beams": Decoding(num_beams=6, num_candidates=6, rerank=True),
        "rerank 16 samples": Decoding(num_candidates=16, sample=True, rerank=True),
    }
    references = {sample.image_id: sample.references for sample in samples}
    columns = []
    for decoding in strategies.values():
        start = time.perf_counter()
        results = [best[0] for part in tokens.split(BATCH_SIZE) for best in caption(model, part, num_masks, decoding)]
        seconds = time.perf_counter() - start
        texts = {sample.image_id: item.text for sample, item in zip(samples, results, strict=True)}
        scores = caption_scores(references, texts, ["BLEU", "CIDEr"]).scores
        written, half = list(texts.values()), len(samples) // 2
        moved = dict(zip(texts, written[half:] + written[:half], strict=True))
        columns.append(
            {
                "CIDEr": 100 * scores["CIDEr"],
                "CIDEr, another image": 100 * caption_scores(references, moved, ["CIDEr"]).scores["CIDEr"],
                "BLEU-4": 100 * scores["BLEU-4"],
                "as a person's, %": 100 * sum(text in references[key] for key, text in texts.items()) / len(texts),
                "off_prompt, %": 100 * sum(item.off_prompt for item in results) / len(results),
                "seconds": seconds,
            }
        )
    print(f"captions of {len(samples)} images\n{format_table(list(strategies), columns, digits=1)}\n")


def print_answers(
    model: VLKDModel,
    tokens: torch.Tensor,
    samples: Sequence[CaptionedImage],
    questions: Sequence[Question],
    candidates: Sequence[str],
    num_masks: int,
) -> None:
    rows = {sample.image_id: row for row, sample in enumerate(samples)}

    def strategy(caption_first: bool = False, **options: Any) -> Ask:
        def ask(seen: torch.Tensor, batch_questions: Sequence[Question], index: Sequence[int]) -> list[str]:
            passages = None
            if caption_first:
                image_captions = [caption_passage(best[0].text) for best in caption(model, seen, num_masks)]
                passages = [image_captions[row] for row in index]
            texts = [question.text for question in batch_questions]
            results = answer(model, seen, texts, image_index=index, passages=passages, **options)
            return [best[0].text for best in results]

        return ask

    def from_text(seen: torch.Tensor, batch_questions: Sequence[Question], index: Sequence[int]) -> list[str]:
        passages = [caption_passage(samples[rows[question.image_id]].references[0]) for question in batch_questions]
        return [
            best[0].text for best in answer(model, None, [item.text for item in batch_questions], passages=passages)
        ]

    nearest = Decoding(num_beams=6, max_new_tokens=10, num_candidates=6, rerank=True)
    strategies = {
        "paper": strategy(),
        "free decoding": strategy(decoding=Decoding(max_new_tokens=10, reading="free")),
        "caption first": strategy(caption_first=True),
        "candidates": strategy(candidates=candidates),
        "caption, candidates": strategy(caption_first=True, candidates=candidates),
        "rerank 6 beams": strategy(decoding=nearest),
        "text alone": from_text,
    }
    columns, moved = [], []
    for ask in strategies.values():
        start = time.perf_counter()
        columns.append(scored(ask, tokens, questions, rows))
        columns[-1]["seconds"] = time.perf_counter() - start
        moved.append({} if ask is from_text else scored(ask, tokens.roll(len(tokens) // 2, 0), questions, rows))
    print(f"{len(questions)} questions; text alone: no image, and a person's caption before the question")
    print(f"{format_table(list(strategies), columns, digits=1)}\n\nthe same questions asked of other images")
    print(format_table(list(strategies), moved, digits=1))


def scored(
    ask: Ask, tokens: torch.Tensor, questions: Sequence[Question], rows: dict[int | str, int]
) -> dict[str, float]:
    """Accuracies of a strategy; each image is encoded once, with all its questions."""
    predictions = {}
    for first in range(0, len(tokens), BATCH_SIZE):
        batch_questions = [question for question in questions if first <= rows[question.image_id] < first + BATCH_SIZE]
        index = [rows[question.image_id] - first for question in batch_questions]
        answers = ask(tokens[first : first + BATCH_SIZE], batch_questions, index)
        predictions |= {question.question_id: text for question, text in zip(batch_questions, answers, strict=True)}
    scores = vqa_scores(questions, predictions)
    return {"overall": scores.overall, **dict(sorted(scores.per_question_type.items()))}


if __name__ == "__main__":
    main()
