"""Prompts with masks, and what a model put in their place (Section 4.3)."""

from __future__ import annotations

from typing import NamedTuple


class Prompt(NamedTuple):
    """A text with masks, which the model writes out in full with words in their place.

    Attributes:
        before: The words before the masks.
        num_masks: m, the masks.
        after: What follows them.
    """

    before: str
    num_masks: int
    after: str = "."

    def text(self, mask_token: str) -> str:
        """The prompt as BART's encoder reads it."""
        return f"{self.before} {mask_token * self.num_masks}{self.after}"

    def filled(self, text: str) -> str:
        """The prompt with words in place of the masks, as the decoder is to write it out."""
        return f"{self.before} {text}{self.after}"

    def read(self, reconstruction: str, is_continuation: bool) -> tuple[str, bool]:
        """Extract the text in place of the masks.

        It undoes ``filled`` for any text of one line: whatever full stops a text holds, ``after`` is removed once, and
        only where the reconstruction ends in it. White space of any length is read as one space.

        Args:
            reconstruction: What the model wrote, up to its end token.
            is_continuation: Whether it wrote only what follows ``before``.

        Returns:
            The text; and whether the model off_prompt from the prompt: it began in another way, put nothing in place of
            the masks, or wrote the prompt's label again, the last word of ``before`` where that ends in a colon. A
            reconstruction that began in another way is read from its last label, or else from its beginning.
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
    """The paper's "A picture of <mask>×m." (Section 4.3.1)."""
    return Prompt("A picture of", num_masks)


def question_prompt(question: str, num_masks: int = 1, passage: str = "") -> Prompt:
    """The paper's "{question} Answer: <mask>." (Section 4.3.2), after a passage where there is one."""
    return Prompt(f"{passage} {question.strip()} Answer:".lstrip(), num_masks)


def caption_passage(caption: str) -> str:
    """A caption as the passage before a question: *caption, then answer*."""
    return f"{caption}."
