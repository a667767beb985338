"""The evaluation of answers to questions about images (Tables 3 and 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from vlkd_pl.data.vqa_files import Question
from vlkd_pl.evaluation.evaluator import Evaluator, count_off_prompt
from vlkd_pl.evaluation.panel import panel_items
from vlkd_pl.evaluation.report import Report
from vlkd_pl.evaluation.table import Unit, score_table
from vlkd_pl.metrics.vqa import VQAScores, few_answers_note, vqa_scores


class AnswerPrediction(NamedTuple):
    """A generated answer with its question.

    Attributes:
        question: The question, with people's answers where they are public.
        answer: The generated answer.
        off_prompt: Whether the model left the prompt, see ``Reconstruction``; None where that is unknown.
        shuffled_image_answer: The answer to the same question about another image; None without this control.
        image: (3, H, W) uint8 or normalized floats for the panel, or None.
    """

    question: Question
    answer: str
    off_prompt: bool | None = None
    shuffled_image_answer: str | None = None
    image: Tensor | None = None

    @property
    def id(self) -> int:
        """The question's number."""
        return self.question.question_id


class VQAEvaluator(Evaluator[AnswerPrediction]):
    """Computes VQA accuracy in percent: overall, by domain of a split, by answer type and by question type.

    Args:
        panel_size: Most images that results keep for the panel; at least 0.

    Example:
        >>> evaluator = VQAEvaluator()
        >>> evaluator.update([AnswerPrediction(Question(7, 1, "what color is it?", ("red",) * 10, "other"), "red")])
        >>> evaluator.compute().scores["accuracy/overall"]
        100.0
    """

    def report(self, results: Sequence[AnswerPrediction]) -> Report:
        """Compute the accuracies; ``predictions.json`` is what the evaluation server takes.

        Without annotations ``predictions.json`` is all there is. With the shuffled-image control the accuracies of its
        answers are ``accuracy_shuffled_image``.
        """
        predictions = [{"question_id": result.id, "answer": result.answer} for result in results]
        num_off_prompt = count_off_prompt(results)
        files: dict[str, Any] = {"predictions.json": predictions}
        scores = {} if num_off_prompt is None else {"off_prompt": num_off_prompt / len(results)}
        lines = [f"{len(results)} questions"]
        questions = [result.question for result in results if result.question.answers]
        if questions:
            columns = {}
            answers = {result.id: result.answer for result in results if result.question.answers}
            shuffled = {
                result.id: result.shuffled_image_answer
                for result in results
                if result.question.answers and result.shuffled_image_answer is not None
            }
            accuracy = vqa_scores(questions, answers)
            columns["accuracy"] = accuracy_rows(accuracy, _by_domain(questions, answers))
            scores |= {f"accuracy/{name}": value for name, value in columns["accuracy"].items()}
            files["scores_per_question.json"] = [
                prediction | {"accuracy": accuracy.per_question[result.id]}
                for result, prediction in zip(results, predictions, strict=True)
                if result.id in accuracy.per_question
            ]
            if len(shuffled) == len(questions):
                rows = accuracy_rows(vqa_scores(questions, shuffled), _by_domain(questions, shuffled))
                columns["shuffled image"] = rows
                scores |= {f"accuracy_shuffled_image/{name}": value for name, value in rows.items()}
            lines.append(score_table(list(columns), list(columns.values()), "percent", digits=2))
        else:
            lines.append("the answers are secret: send predictions.json to the evaluation server")
        if num_off_prompt is not None:
            lines.append(f"off-prompt: {num_off_prompt}")
        items = panel_items(
            (result.image, f"{result.question.text} {result.answer}", "".join(result.question.answers[:1]))
            for result in results
        )
        units: dict[str, Unit] = {name: "fraction" if name == "off_prompt" else "percent" for name in scores}
        notes = [note for note in (few_answers_note(questions),) if note]
        return Report(scores, "\n".join(lines), files, items, units, notes)


def accuracy_rows(scores: VQAScores, domains: Mapping[str, VQAScores] | None = None) -> dict[str, float]:
    """Lay out accuracies as the rows of a table.

    Args:
        scores: Accuracies over all questions.
        domains: Accuracies in each domain of a split; none by default.

    Returns:
        ``overall``, the domains, ``answer: TYPE`` for each answer type and ``question: TYPE`` for each question type.
    """
    by_domain = {domain: part.overall for domain, part in (domains or {}).items()}
    by_answer = {f"answer: {name}": value for name, value in sorted(scores.per_answer_type.items())}
    by_question = {f"question: {name}": value for name, value in sorted(scores.per_question_type.items())}
    return {"overall": scores.overall, **by_domain, **by_answer, **by_question}


def _by_domain(questions: Sequence[Question], answers: Mapping[int, str]) -> dict[str, VQAScores]:
    scores = {}
    for domain in sorted({question.domain for question in questions} - {""}):
        part = [question for question in questions if question.domain == domain]
        scores[domain] = vqa_scores(part, {question.question_id: answers[question.question_id] for question in part})
    return scores
