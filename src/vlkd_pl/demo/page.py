"""The page of ``vlkd-pl demo``: it captions an image and answers questions about it."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from vlkd_pl.data.image_files import iter_image_files
from vlkd_pl.demo.limits import RequestLimits
from vlkd_pl.errors import needs_extra
from vlkd_pl.images import ImageError, ImageSizeError, open_image
from vlkd_pl.models.decoding import Decoding
from vlkd_pl.pipeline import VLKD
from vlkd_pl.sample.language import questions
from vlkd_pl.sample.renderer import render
from vlkd_pl.sample.scenes import Item, Scene

with needs_extra("demo"):
    import gradio as gr
    from gradio.utils import get_upload_folder
    from starlette.middleware import Middleware

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Pillow's names of the accepted formats: those that every browser shows."""

_NO_CAPTION = "Captions appear here once you drop an image."
_NO_ANSWER = "Ask a question, and the answer appears here, with alternatives and their probabilities."
_CAPTION_NOTE = "mean probability of a token; the captions are sorted by it, as in vlkd-pl caption"
_ANSWER_NOTE = "probability of the whole answer; the answers are sorted by it, as in vlkd-pl ask --top"
_DAMAGED = "The image is damaged or no longer available. Please upload it again."
_MOST_EXAMPLES = 12
_NUM_CAPTIONS = 3
_NUM_ANSWERS = 5
_ANSWER_TOKENS = 10
_QUESTION_CHARACTERS = 1000
_CAPTION_TOKENS = 32
_SLIDER_END = 12
_SMALL_PIXELS = 256
_EXAMPLE_SCENES = (
    Scene("one", (Item("blue", "fish"),), "sand", size="big"),
    Scene("pair", (Item("yellow", "star"), Item("red", "house")), "night", relation="above"),
    Scene("count", (Item("orange", "cup"),), "snow", count=3),
    Scene("row", (Item("green", "book"), Item("pink", "ball"), Item("brown", "bell")), "grass"),
    Scene("pair", (Item("purple", "boat"), Item("green", "tree")), "snow", relation="left of"),
)
_CSS = """
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
#heading h1 { margin: 0.4em 0 0.1em; font-size: 2em; letter-spacing: -0.02em; }
#heading p { color: var(--body-text-color-subdued); margin: 0; }
#limits p { margin: 0; padding: 0.5em 0.9em; border-left: 4px solid var(--color-accent); border-radius: 4px;
  background: var(--background-fill-secondary); font-size: 0.9em; white-space: pre-line; overflow-wrap: anywhere; }
#image.small img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated; }
#examples .gallery { display: grid; grid-template-columns: repeat(6, 1fr); }
#examples .gallery * { display: block; width: 100%; height: auto; max-height: none; aspect-ratio: 1; }
#question button { padding: 0.3em 1.1em; background: var(--button-primary-background-fill);
  color: var(--button-primary-text-color); }
#question button:hover { background: var(--button-primary-background-fill-hover); }
.panel h3 { margin: 0 0 0.5em; font-size: 0.8em; font-weight: 600; letter-spacing: 0.06em; text-transform: uppercase;
  color: var(--body-text-color-subdued); }
.panel .note { margin: -0.3em 0 0.7em; font-size: 0.8em; color: var(--body-text-color-subdued); }
.panel .hint { color: var(--body-text-color-subdued); margin: 0; }
.panel ol { list-style: none; margin: 0; padding: 0; }
.panel li { display: grid; grid-template-columns: 1fr auto; gap: 0.1em 1em; align-items: baseline; margin: 0 0 0.55em; }
.panel li:first-child { font-size: 1.2em; font-weight: 600; }
.panel .text { overflow-wrap: anywhere; }
.panel .score { font-variant-numeric: tabular-nums; font-size: 0.85rem; font-weight: 400; }
.panel .bar { grid-column: 1 / -1; height: 4px; border-radius: 2px; background: var(--border-color-primary); }
.panel .bar span { display: block; height: 100%; border-radius: 2px; background: var(--color-accent); }
"""


class Example(NamedTuple):
    """Example image on the page.

    Attributes:
        file: File of the image.
        question: Question about the image; empty for none.
    """

    file: Path
    question: str = ""


PHOTO = Example(Path(__file__).with_name("photo.jpg"), "what is this?")
"""A photograph of a cat by Stéfan van der Walt, CC0; ``photo.txt`` next to it has the source."""


def draw_examples(folder: Path, seed: int = 0) -> list[Example]:
    """Draw example scenes of the sample world, with a question about each.

    Args:
        folder: Folder for the images; created if it is missing.
        seed: Seed of the drawings and the questions.

    Returns:
        The examples, in the order of their files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    examples = []
    for number, scene in enumerate(_EXAMPLE_SCENES):
        file = folder / f"{number}.png"
        render(scene, rng).save(file)
        texts = [question.text for question in questions(scene, rng) if question.kind not in ("fact", "yes/no")]
        examples.append(Example(file, rng.choice(texts)))
    return examples


def image_problem(file: str | Path, max_upload_mb: int, max_pixels: int) -> str:
    """Check an uploaded file by its size and header, before anything is decoded.

    Args:
        file: Uploaded file.
        max_upload_mb: Maximum size of the file in megabytes (2^20 bytes).
        max_pixels: Maximum of the image's pixels, width times height.

    Returns:
        Reason for refusing the file, as a sentence for the visitor; empty for an accepted image.
    """
    unreadable = f"This file is not a readable image. Please choose one of {', '.join(IMAGE_FORMATS)}."
    try:
        if os.stat(file).st_size > max_upload_mb * 2**20:
            return f"This file is too large. The maximum is {max_upload_mb} MB."
        with open_image(file, max_pixels) as image:
            return "" if image.format in IMAGE_FORMATS else unreadable
    except ImageSizeError as error:
        return f"This image cannot be used: {str(error).removeprefix(f'{file}: ')}."
    except (OSError, ValueError):
        return unreadable


def find_examples(folder: Path, max_upload_mb: int = 10, max_pixels: int = 50_000_000) -> list[Example]:
    """Find the first twelve accepted images in a folder and its subfolders, as examples without questions.

    Args:
        folder: Folder of images.
        max_upload_mb: Maximum size of a file in megabytes (2^20 bytes).
        max_pixels: Maximum of an image's pixels, width times height.
    """
    accepted = (file for file in iter_image_files([folder]) if not image_problem(file, max_upload_mb, max_pixels))
    return [Example(file) for file in islice(accepted, _MOST_EXAMPLES)]


def build_page(
    model: VLKD,
    examples: Sequence[Example] = (),
    *,
    num_masks: int = 6,
    num_beams: int = 6,
    max_upload_mb: int = 10,
    max_pixels: int = 50_000_000,
) -> gr.Blocks:
    """Build the page, whose model serves one visitor at a time; it shows the limits that the model's CLIP states.

    Args:
        model: Model that captions and answers.
        examples: Example images to choose from.
        num_masks: Initial number of masks in the caption prompt, from 1.
        num_beams: Initial number of beams, from 1.
        max_upload_mb: Maximum size of an upload in megabytes (2^20 bytes).
        max_pixels: Maximum of an image's pixels, width times height.
    """

    def take(upload: dict[str, Any] | None) -> tuple[Any, ...]:
        """Check an image that was uploaded or removed; returns its path, and updates image, captions and answers."""
        if upload is None:
            return None, gr.skip(), _panel("Captions", _NO_CAPTION), _panel("Answer", _NO_ANSWER)
        file = upload["path"]
        if problem := image_problem(file, max_upload_mb, max_pixels):
            gr.Warning(problem)
            return None, None, _panel("Captions", _NO_CAPTION), _panel("Answer", _NO_ANSWER)
        with open_image(file) as image:
            is_small = max(image.size) <= _SMALL_PIXELS
        look = gr.update(elem_classes=["small"] if is_small else [])
        return file, look, gr.skip(), _panel("Answer", _NO_ANSWER)

    def show_captions(file: str | None, masks: int, beams: int) -> str:
        """Caption the image."""
        if file is None:
            return _panel("Captions", _NO_CAPTION)
        decoding = Decoding(int(beams), _CAPTION_TOKENS, num_candidates=int(beams))
        (result,) = model.iter_captions([Path(file)], int(masks), decoding, scores=True)
        if result.error:
            gr.Warning(_DAMAGED)
            return _panel("Captions", _NO_CAPTION)
        rows = [(text.text, math.exp(text.score / max(1, text.num_tokens))) for text in result.captions]
        return _panel("Captions", rows[:_NUM_CAPTIONS], _CAPTION_NOTE)

    def answer(file: str | None, question: str, caption_first: bool, masks: int, beams: int) -> str:
        """Answer the question, with alternatives."""
        if file is None:
            gr.Warning("Please drop an image first, or choose an example.")
            return _panel("Answer", _NO_ANSWER)
        if not question or not question.strip():
            gr.Warning("Please type a question first.")
            return _panel("Answer", _NO_ANSWER)
        if len(question) > _QUESTION_CHARACTERS:
            gr.Warning(f"The question is too long. The maximum is {_QUESTION_CHARACTERS:,} characters.")
            return _panel("Answer", _NO_ANSWER)
        # without length normalisation, which would rank a rambling text above a likelier short answer
        decoding = Decoding(int(beams), _ANSWER_TOKENS, length_penalty=0.0, num_candidates=int(beams))
        try:
            (answers,) = model.answers(
                Path(file), [question], caption_first, decoding=decoding, caption_masks=int(masks), scores=True
            )
        except ImageError:
            gr.Warning(_DAMAGED)
            return _panel("Answer", _NO_ANSWER)
        except ValueError as error:
            gr.Warning(f"The question cannot be answered: {error}")
            return _panel("Answer", _NO_ANSWER)
        rows = [(text.text, math.exp(text.score)) for text in answers]
        return _panel("Answer", rows[:_NUM_ANSWERS], _ANSWER_NOTE)

    files = [example.file for example in examples]
    with _Page(files, title="VLKD", analytics_enabled=False) as page:
        gr.Markdown(
            "# VLKD\nCLIP sees, BART writes: drop an image, read its captions, and ask about it.", elem_id="heading"
        )
        if limits := model.model.clip.limits:
            gr.HTML(f"<p>{escape(limits)}</p>", elem_id="limits", padding=False)
        file = gr.State(None)
        with gr.Row():
            with gr.Column(scale=5):
                image = gr.Image(
                    label="Image",
                    sources=["upload", "clipboard"],
                    buttons=[],
                    height=400,
                    elem_id="image",
                    placeholder=f"Drop an image here\nor click to choose one (up to {max_upload_mb} MB)",
                )
                if examples:
                    chosen = gr.Dataset(
                        components=[gr.Image(render=False)],
                        samples=[[str(example.file)] for example in examples],
                        type="index",
                        label="Examples",
                        samples_per_page=_MOST_EXAMPLES,
                        elem_id="examples",
                    )
            with gr.Column(scale=6):
                captions = gr.HTML(
                    _panel("Captions", _NO_CAPTION), container=True, padding=True, min_height=150, elem_id="captions"
                )
                question = gr.Textbox(
                    label="Question", placeholder="what is this?", max_lines=1, submit_btn="Ask", elem_id="question"
                )
                answers = gr.HTML(
                    _panel("Answer", _NO_ANSWER), container=True, padding=True, min_height=190, elem_id="answers"
                )
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    caption_first = gr.Checkbox(
                        label="Caption first", info="Put the model's caption before the question."
                    )
                    with gr.Row():
                        masks = gr.Slider(
                            1,
                            max(_SLIDER_END, num_masks),
                            num_masks,
                            step=1,
                            label="Masks",
                            info="in the caption prompt",
                        )
                        beams = gr.Slider(
                            1, max(_SLIDER_END, num_beams), num_beams, step=1, label="Beams", info="of the search"
                        )
        one_at_a_time: dict[str, Any] = {
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "api_visibility": "private",
            "show_progress": "minimal",
        }
        # without preprocessing, Gradio opens no file before it is checked here
        image.change(take, image, [file, image, captions, answers], preprocess=False, **one_at_a_time)
        gr.on([file.change, masks.change, beams.change], show_captions, [file, masks, beams], captions, **one_at_a_time)
        question.submit(answer, [file, question, caption_first, masks, beams], answers, **one_at_a_time)
        if examples:
            chosen.click(
                # the path of Gradio's copy, since it serves no file of other folders
                lambda number: (chosen.samples[number][0]["path"], examples[number].question),
                chosen,
                [image, question],
                api_visibility="private",
                show_progress="hidden",
            )
    return page


def launch(page: gr.Blocks, host: str = "127.0.0.1", port: int = 7860, max_upload_mb: int = 10) -> str:
    """Serve a page from background threads, without requests to other machines.

    The environment variable ``GRADIO_TEMP_DIR`` names the upload folder. Nothing else may use that folder, since the
    oldest files beyond ``MAX_UPLOADS`` are deleted.

    Args:
        page: Page to serve.
        host: Address to listen on.
        port: Port to listen on.
        max_upload_mb: Maximum size of an upload in megabytes (2^20 bytes); a larger one is refused.

    Returns:
        Address of the page.

    Raises:
        OSError: The port is in use.
        ValueError: ``GRADIO_TEMP_DIR`` is not set.
    """
    if not os.environ.get("GRADIO_TEMP_DIR"):
        raise ValueError("GRADIO_TEMP_DIR is not set: before building the page, set it to a folder for its uploads")
    font = ["system-ui", "sans-serif"]
    limits = Middleware(RequestLimits, folder=Path(get_upload_folder()), max_upload_bytes=max_upload_mb * 2**20)
    _, address, _ = page.queue(max_size=64, api_open=False).launch(
        server_name=host,
        server_port=port,
        max_file_size=max_upload_mb * 2**20,
        share=False,
        ssr_mode=False,
        run_history=False,
        app_kwargs={"middleware": [limits]},
        footer_links=[],
        theme=gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=font, font_mono=["monospace"]),
        css=_CSS,
        quiet=True,
        prevent_thread_lock=True,
    )
    return address


class _Page(gr.Blocks):
    """Blocks that accept only plain values, uploaded files and examples from a client.

    Gradio alone would open any path and fetch any address in a client's request.

    Args:
        examples: Files that a client may name.
        **options: Options of ``gr.Blocks``.
    """

    def __init__(self, examples: Iterable[Path], **options: Any) -> None:
        super().__init__(**options)
        self.example_files = {file.resolve() for file in examples}

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *arguments: Any, **options: Any) -> Any:
        """Check a client's inputs before Gradio processes them."""
        return await super().preprocess_data(block_fn, list(map(self._checked, inputs)), *arguments, **options)

    def _checked(self, value: Any) -> Any:
        if value is None or isinstance(value, str | int | float):
            return value
        path = value.get("path") if isinstance(value, dict) else None
        if not isinstance(path, str) or not self._may_read(path):
            raise gr.Error("Upload an image, or choose an example.", print_exception=False)
        return {"path": path}  # without the client's other fields, such as an address

    def _may_read(self, path: str) -> bool:
        try:
            file = Path(path).resolve()
            is_allowed = file.is_relative_to(Path(get_upload_folder()).resolve()) or file in self.example_files
            return is_allowed and file.is_file()  # no FIFO or device
        except (OSError, ValueError, RuntimeError):  # a path that no file can have, or links in a circle
            return False


def _panel(title: str, content: str | Sequence[tuple[str, float]], note: str = "") -> str:
    """HTML of a panel with texts and their probabilities, the best first, or with a hint.

    Args:
        title: Heading of the panel.
        content: Texts with their probabilities in [0, 1]; or a hint.
        note: Explanation of the probabilities.
    """
    if isinstance(content, str):
        return f'<div class="panel"><h3>{title}</h3><p class="hint">{content}</p></div>'
    rows = []
    for text, probability in content:
        percent = f"{probability:.1%}" if probability >= 0.001 else "&lt; 0.1%"
        rows.append(
            f'<li><span class="text">{escape(text) or "(nothing)"}</span><span class="score">{percent}</span>'
            f'<span class="bar"><span style="width: {probability:.1%}"></span></span></li>'
        )
    return f'<div class="panel"><h3>{title}</h3><p class="note">{note}</p><ol>{"".join(rows)}</ol></div>'
