"""Prompts with masks, and the text that a model wrote in place of the masks (Section 4.3)."""

from __future__ import annotations

from typing import NamedTuple


class Prompt(NamedTuple):
    """Prompt with masks, which the model writes out in full with words in place of the masks.

    Attributes:
        before: Words before the masks.
        num_masks: Number of masks, m in Section 4.3.
        after: Text after the masks.

    Example:
        >>> prompt = caption_prompt(num_masks=2)
        >>> prompt.text("<mask>")
        'A picture of <mask><mask>.'
        >>> prompt.read("A picture of a red fish.", is_continuation=False)
        ('a red fish', False)
    """

    before: str
    num_masks: int
    after: str = "."

    def text(self, mask_token: str) -> str:
        """The prompt with a mask token for each mask, as BART's encoder reads it."""
        return f"{self.before} {mask_token * self.num_masks}{self.after}"

    def filled(self, text: str) -> str:
        """The prompt with a text in place of the masks, as the decoder should write it."""
        return f"{self.before} {text}{self.after}"

    def read(self, reconstruction: str, is_continuation: bool) -> tuple[str, bool]:
        """Extract the text in place of the masks from a reconstruction.

        It inverts ``filled`` for any text of one line: ``after`` is removed once, at the end. White space of any
        length counts as one space.

        Args:
            reconstruction: Text that the model wrote, up to its end token.
            is_continuation: Whether the model wrote only what follows ``before``.

        Returns:
            The text; and whether the reconstruction is off-prompt: it begins in another way, has nothing in place of
            the masks, or repeats the prompt's label, the last word of ``before`` if that ends in a colon. A
            reconstruction that begins in another way is read from its last label on, or from its beginning.
        """
        expected, words, off_prompt = self.before.split(), reconstruction.split(), False
        label = expected[-1] if expected[-1].endswith(":") else None
        if not is_continuation:
            if words[: len(expected)] == expected:
                words = words[len(expected) :]
            else:
                off_prompt = True
                if label in words:
                    words = words[len(words) - words[::-1].index(label) :]
        filled = " ".join(words).removesuffix(self.after).rstrip()
        return filled, off_prompt or not filled or label in filled.split()


def caption_prompt(num_masks: int) -> Prompt:
    """The paper's caption prompt "A picture of <mask>×m." (Section 4.3.1).

    Args:
        num_masks: Number of masks m, from 1.

    Example:
        >>> caption_prompt(6).before
        'A picture of'
    """
    return Prompt("A picture of", num_masks)


def question_prompt(question: str, num_masks: int = 1, passage: str = "") -> Prompt:
    """The paper's question prompt "{question} Answer: <mask>." (Section 4.3.2).

    Args:
        question: Question, with its question mark.
        num_masks: Number of masks in place of the answer, from 1.
        passage: Text before the question; empty for none.

    Example:
        >>> question_prompt("what color is the fish?").text("<mask>")
        'what color is the fish? Answer: <mask>.'
    """
    return Prompt(f"{passage} {question.strip()} Answer:".lstrip(), num_masks)


def caption_passage(caption: str) -> str:
    """Turn a caption into the passage before a question, for caption-then-answer."""
    return f"{caption}."


def passage_caption(passage: str) -> str:
    """Extract the caption of a passage: its text without the words of the caption prompt and without its full stop.

    CLIP is trained on captions alone. A passage of another form stays, but for its full stop.

    Args:
        passage: Passage, such as that of ``caption_passage`` or a filled ``caption_prompt``.

    Example:
        >>> passage_caption("A picture of a red fish.")
        'a red fish'
    """
    prompt = caption_prompt(1)
    return passage.strip().removeprefix(f"{prompt.before} ").removesuffix(prompt.after)
