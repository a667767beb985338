"""VLKD: captions, answers and search for one's own images."""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlkd_pl.clip.transform import clip_transform
from vlkd_pl.data.image_files import iter_image_files
from vlkd_pl.images import ImageError, as_rgb, check_image_size, read_image
from vlkd_pl.models.decoding import ANSWER_DECODING, CAPTION_DECODING, Decoding, answer, caption
from vlkd_pl.models.prompts import caption_passage
from vlkd_pl.models.reconstruction import Reconstruction
from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.weights.model_files import first_line

ImageInput: TypeAlias = str | Path | Image.Image | NDArray[Any]
"""A file, a PIL image, or an array (H, W, 3) or (H, W): uint8, or floats in [0, 1]."""

_KINDS = (str, Path, Image.Image, np.ndarray)
_KIND_NAMES = "a path, a PIL image, or a NumPy array (H, W, 3)"


class CaptionResult(NamedTuple):
    """What became of an image.

    Attributes:
        image: The image as it was given; the file of one that was found in a folder.
        captions: The candidates, the best first; empty where the image could not be read.
        error: Why it could not be read; empty where it could.
    """

    image: ImageInput
    captions: list[Reconstruction]
    error: str = ""


class SearchResult(NamedTuple):
    """An image that was found.

    Attributes:
        image: The image as it was given; the file of one that was found in a folder.
        score: Its cosine to the words in the joint space, in [-1, 1]; NaN where it could not be read.
        error: Why it could not be read; empty where it could.
    """

    image: ImageInput
    score: float
    error: str = ""


class VLKD:
    """A distilled model, ready for images.

    Args:
        model: The distilled model.
        device: Where it runs; a GPU where there is one.
        batch_size: Images that are worked on together.
    """

    def __init__(self, model: VLKDModel, device: str | torch.device | None = None, batch_size: int = 16) -> None:
        self.device = usable_device(device)
        self.model = model.to(self.device).eval()
        self.batch_size = batch_size
        self._transform = clip_transform(model.clip.image_size)

    @classmethod
    def from_pretrained(cls, model: str | Path, device: str | torch.device | None = None, batch_size: int = 16) -> VLKD:
        """Load a model.

        Args:
            model: A folder that ``vlkd-pl fit`` wrote, or the name of one on the Hugging Face hub.
            device: See the class.
            batch_size: See the class.

        Raises:
            FileNotFoundError: There is no such folder or name.
            ModelFileError: A file is missing in the folder, corrupt, or of another model.
            ValueError: There is no such device on this machine.
        """
        device = usable_device(device)
        return cls(VLKDModel.from_pretrained(model), device, batch_size)

    # Captions

    def caption(
        self, images: ImageInput | Sequence[ImageInput], num_masks: int = 6, decoding: Decoding = CAPTION_DECODING
    ) -> str | list[str]:
        """Caption one image or several.

        Args:
            images: An image, a sequence of images, or the path of a folder of images.
            num_masks: m of the prompt "A picture of <mask>×m.".
            decoding: How.

        Returns:
            The caption; of a sequence or a folder a list of them, which may be empty.

        Raises:
            ImageError: An image cannot be read; ``iter_captions`` skips such a one.
            TypeError: ``images`` or an item of it is of another type: bytes, a tensor, a mapping, a set.
        """
        captions = []
        for result in self.iter_captions(images, num_masks, decoding):
            if result.error:
                raise ImageError(result.error)
            captions.append(result.captions[0].text)
        is_folder = isinstance(images, str | Path) and Path(images).is_dir()
        return captions[0] if isinstance(images, _KINDS) and not is_folder else captions

    def iter_captions(
        self,
        images: ImageInput | Iterable[ImageInput],
        num_masks: int = 6,
        decoding: Decoding = CAPTION_DECODING,
        scores: bool = False,
    ) -> Iterator[CaptionResult]:
        """Caption images one batch after the other, in constant memory.

        Args:
            images: An image or an iterable of images; a path of a folder stands for all images in it and below it.
            num_masks: m of the prompt "A picture of <mask>×m.".
            decoding: How.
            scores: Whether the scores of the captions are wanted.

        Returns:
            The captions of each image, in order, or the reason why it cannot be read.

        Raises:
            TypeError: ``images`` is of another type; so is an item of it, when it is reached.
        """
        return self._captions(self._batches(iter_images(images)), num_masks, decoding, scores)

    def _captions(
        self,
        batches: Iterator[tuple[list[ImageInput], Tensor, list[str]]],
        num_masks: int,
        decoding: Decoding,
        scores: bool,
    ) -> Iterator[CaptionResult]:
        for images, image_tokens, errors in batches:
            captions = iter(caption(self.model, image_tokens, num_masks, decoding, scores) if len(image_tokens) else [])
            for image, error in zip(images, errors, strict=True):
                yield CaptionResult(image, [] if error else next(captions), error)

    # Answers

    def answer(
        self, image: ImageInput, question: str | Sequence[str], caption_first: bool = False, **options: Any
    ) -> str | list[str]:
        """Answer one question or several about an image.

        Args:
            image: The image.
            question: A question, or a sequence of questions.
            caption_first: See ``answers``.
            **options: See ``answers``.

        Returns:
            The answer; to a sequence of questions a list of them.

        Raises:
            ImageError: The image cannot be read.
            TypeError: See ``answers``.
            ValueError: A question is empty, or too long for BART.
        """
        found = self.answers(image, question, caption_first, **options)
        texts = [candidates[0].text for candidates in found]
        return texts[0] if isinstance(question, str) else texts

    def answers(
        self,
        image: ImageInput,
        questions: str | Sequence[str],
        caption_first: bool = False,
        *,
        num_masks: int = 1,
        decoding: Decoding = ANSWER_DECODING,
        candidates: Sequence[str] | None = None,
        caption_masks: int = 6,
        scores: bool = False,
    ) -> list[list[Reconstruction]]:
        """Answer questions about an image, with alternatives.

        Args:
            image: The image.
            questions: The questions, or one; of an empty sequence the result is empty.
            caption_first: Whether the model's own caption stands before each question.
            num_masks: Masks in place of the answer.
            decoding: How; its ``num_candidates`` is the number of alternatives.
            candidates: Answers to choose from; by default any text is an answer.
            caption_masks: Masks in the prompt of the model's own caption.
            scores: Whether the scores of the answers are wanted.

        Returns:
            For each question the candidates, the best first.

        Raises:
            ImageError: The image cannot be read.
            TypeError: The image, a question or ``candidates`` is of another type.
            ValueError: A question is empty, or too long for BART; or there are no candidates.
        """
        if not isinstance(image, _KINDS):
            raise TypeError(f"image is of type {_name(image)}: give {_KIND_NAMES}")
        if isinstance(candidates, str):
            raise TypeError("candidates is of type str: give a list of answers")
        questions = [questions] if isinstance(questions, str) else list(questions)
        for number, question in enumerate(questions, start=1):
            _check_text(question, f"question {number}" if len(questions) > 1 else "the question")
        if not questions:
            return []
        (_, image_tokens, (error,)) = next(self._batches(iter([image])))
        if error:
            raise ImageError(error)
        passages = None
        if caption_first:
            own = caption(self.model, image_tokens, caption_masks)[0][0].text
            passages = [caption_passage(own)] * len(questions)
        return answer(
            self.model,
            image_tokens,
            questions,
            decoding,
            num_masks=num_masks,
            image_index=[0] * len(questions),
            passages=passages,
            candidates=candidates,
            scores=scores,
        )

    # Search

    def search(
        self, words: str, images: ImageInput | Iterable[ImageInput], top: int = 10
    ) -> tuple[list[SearchResult], list[SearchResult]]:
        """Find the images nearest to words in the joint space, by the distilled text encoder, in constant memory.

        Args:
            words: What the images show.
            images: An image or an iterable of images; a path of a folder stands for all images in it and below it.
            top: Images to find at most.

        Returns:
            The images found, the nearest first; and those that could not be read.

        Raises:
            TypeError: ``words``, ``images`` or an item of it is of another type.
            ValueError: ``words`` is empty.
        """
        _check_text(words, "the text to search for")
        images_to_read = iter_images(images)
        embedding = self.model.embed_texts([words])[0]
        nearest: list[tuple[float, int, ImageInput]] = []
        unread: list[SearchResult] = []
        number = 0
        for images, image_tokens, errors in self._batches(images_to_read):
            cosines = iter((image_tokens[:, 0] @ embedding).tolist() if len(image_tokens) else [])
            for image, error in zip(images, errors, strict=True):
                if error:
                    unread.append(SearchResult(image, float("nan"), error))
                    continue
                number += 1
                heapq.heappush(nearest, (next(cosines), -number, image))
                if len(nearest) > top:
                    heapq.heappop(nearest)
        return [SearchResult(image, score) for score, _, image in sorted(nearest, reverse=True)], unread

    def _batches(self, images: Iterator[ImageInput]) -> Iterator[tuple[list[ImageInput], Tensor, list[str]]]:
        """Batches of images, the image tokens of those that could be read, and for each why it could not be or ""."""
        while batch := list(islice(images, self.batch_size)):
            tensors, errors = [], []
            for image in batch:
                try:
                    tensors.append(self._transform(to_image(image)))
                    errors.append("")
                except ImageError as error:
                    errors.append(str(error))
            image_tokens = torch.empty(0)
            if tensors:
                image_tokens = self.model.clip.encode_image(torch.stack(tensors).to(self.device))
            yield batch, image_tokens, errors


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device that is named, if this machine has it.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, …; None for a GPU where there is one.

    Raises:
        ValueError: There is no such device on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        usable = torch.device(device)
        if usable.type == "meta":
            raise ValueError("it computes nothing")
        torch.zeros(1, device=usable).cpu()
    except (RuntimeError, AssertionError, ValueError, NotImplementedError, TypeError) as error:
        devices = ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
        raise ValueError(
            f"the device {str(device)!r} cannot be used ({first_line(error)}): this machine has {devices}"
        ) from error
    return usable


def iter_images(images: ImageInput | Iterable[ImageInput]) -> Iterator[ImageInput]:
    """Go through images, with the images of a folder in its place; a string is one path, never an iterable.

    Args:
        images: An image, the path of a folder, or an iterable of both.

    Returns:
        The images, those of a folder as paths.

    Raises:
        TypeError: ``images`` is of another type; so is an item of it, when it is reached. Encoded bytes, tensors, whose
            layout and scale are not known, mappings and sets, which have no order, are refused.
    """
    if isinstance(images, _KINDS):
        images = [images]
    # a mapping gives its keys, bytes their numbers, a file its lines
    elif isinstance(images, Tensor | bytes | bytearray | memoryview | Mapping | Set | io.IOBase) or not isinstance(
        images, Iterable
    ):
        raise TypeError(f"images is of type {_name(images)}: give {_KIND_NAMES}, or a list of these")
    return _iter_images(images)


def _iter_images(images: Iterable[ImageInput]) -> Iterator[ImageInput]:
    for number, image in enumerate(images):
        if not isinstance(image, _KINDS):
            raise TypeError(f"images[{number}] is of type {_name(image)}: give {_KIND_NAMES}")
        if isinstance(image, str | Path):
            yield from iter_image_files([image])
        else:
            yield image


def to_image(image: ImageInput) -> Image.Image:
    """Read an image as RGB, turned as its orientation tag says.

    Args:
        image: A file, a PIL image or an array.

    Raises:
        ImageError: A file is missing, is not a readable image, or is damaged; an array is of another shape or type; or
            the image is empty, too large or too thin.
    """
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    return as_rgb(image) if isinstance(image, Image.Image) else read_image(image)


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise ImageError(f"an array of shape {array.shape} is no image: give (H, W), (H, W, 3) or (H, W, 4)")
    check_image_size(array.shape[1], array.shape[0])
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ImageError("an array of floats must lie in [0, 1] to be an image: divide it, or give uint8")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(f"an array of {array.dtype} is no image: give uint8, or floats in [0, 1]")
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)


def _check_text(text: str, name: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name} is of type {_name(text)}: give a string")
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise ValueError(f"{name} is empty: give one word at least")


def _name(value: object) -> str:
    return type(value).__name__
