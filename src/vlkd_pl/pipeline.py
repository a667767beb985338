"""VLKD: captions, answers and search for one's own pictures."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlkd_pl.data.images import UNREADABLE, as_rgb, open_image
from vlkd_pl.data.pictures import iter_pictures
from vlkd_pl.data.transforms import clip_transform
from vlkd_pl.model_files import first_line
from vlkd_pl.models.decoding import (
    ANSWER_DECODING,
    CAPTION_DECODING,
    Decoding,
    Reconstruction,
    answer,
    caption,
)
from vlkd_pl.models.prompts import caption_passage
from vlkd_pl.models.vlkd import VLKDModel

Picture: TypeAlias = str | Path | Image.Image | NDArray[Any]
"""A file, a PIL image, or an array (H, W, 3) or (H, W): uint8, or floats in [0, 1]."""


class PictureError(ValueError):
    """A picture cannot be read."""


class Captioned(NamedTuple):
    """What became of a picture.

    Attributes:
        picture: The picture as it was given; the file of one that was found in a folder.
        captions: The candidates, the best first; empty where the picture could not be read.
        error: Why it could not be read; empty where it could.
    """

    picture: Picture
    captions: list[Reconstruction]
    error: str = ""


class Found(NamedTuple):
    """A picture that was found.

    Attributes:
        picture: The picture as it was given; the file of one that was found in a folder.
        score: Its cosine to the words in the joint space, in [-1, 1]; NaN where it could not be read.
        error: Why it could not be read; empty where it could.
    """

    picture: Picture
    score: float
    error: str = ""


class VLKD:
    """A distilled model, ready for pictures.

    Args:
        model: The distilled model.
        device: Where it runs; a GPU where there is one.
        batch_size: Pictures that are worked on together.
    """

    def __init__(self, model: VLKDModel, device: str | torch.device | None = None, batch_size: int = 16) -> None:
        self.device = usable_device(device)
        self.model = model.to(self.device).eval()
        self.batch_size = batch_size
        self._transform = clip_transform(model.clip.image_size)

    @classmethod
    def from_pretrained(cls, model: str | Path, device: str | torch.device | None = None, batch_size: int = 16) -> VLKD:
        """Loads a model.

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
        self, images: Picture | Sequence[Picture], num_masks: int = 6, decoding: Decoding = CAPTION_DECODING
    ) -> str | list[str]:
        """Captions one picture or several.

        Args:
            images: A picture, a sequence of pictures, or the path of a folder of pictures.
            num_masks: m of the prompt "A picture of <mask>×m.".
            decoding: How.

        Returns:
            The caption; of a sequence or a folder a list of them.

        Raises:
            PictureError: A picture cannot be read; ``iter_captions`` goes on after such a one.
        """
        given = [images] if isinstance(images, str | Path | Image.Image | np.ndarray) else images
        captions = []
        for told in self.iter_captions(given, num_masks, decoding):
            if told.error:
                raise PictureError(told.error)
            captions.append(told.captions[0].text)
        is_folder = isinstance(images, str | Path) and Path(images).is_dir()
        return captions if given is images or is_folder else captions[0]

    def iter_captions(
        self,
        images: Iterable[Picture],
        num_masks: int = 6,
        decoding: Decoding = CAPTION_DECODING,
        scores: bool = False,
    ) -> Iterator[Captioned]:
        """Captions pictures one batch after the other, in constant memory.

        Args:
            images: Pictures; a path of a folder stands for all pictures in it and below it.
            num_masks: m of the prompt "A picture of <mask>×m.".
            decoding: How.
            scores: Whether the scores of the captions are wanted.

        Yields:
            What became of each picture, in order.
        """
        for pictures, image_tokens, errors in self._batches(images):
            captions = iter(caption(self.model, image_tokens, num_masks, decoding, scores) if len(image_tokens) else [])
            for picture, error in zip(pictures, errors, strict=True):
                yield Captioned(picture, [] if error else next(captions), error)

    # Answers

    def answer(
        self, image: Picture, question: str | Sequence[str], caption_first: bool = False, **options: Any
    ) -> str | list[str]:
        """Answers one question or several about a picture.

        Args:
            image: The picture.
            question: A question, or a sequence of questions.
            caption_first: See ``answers``.
            **options: See ``answers``.

        Returns:
            The answer; to a sequence of questions a list of them.

        Raises:
            PictureError: The picture cannot be read.
            ValueError: A question is too long for BART.
        """
        one = isinstance(question, str)
        found = self.answers(image, [question] if isinstance(question, str) else question, caption_first, **options)
        texts = [candidates[0].text for candidates in found]
        return texts[0] if one else texts

    def answers(
        self,
        image: Picture,
        questions: Sequence[str],
        caption_first: bool = False,
        *,
        num_masks: int = 1,
        decoding: Decoding = ANSWER_DECODING,
        candidates: Sequence[str] | None = None,
        caption_masks: int = 6,
        scores: bool = False,
    ) -> list[list[Reconstruction]]:
        """Answers questions about a picture, with alternatives.

        Args:
            image: The picture.
            questions: The questions.
            caption_first: Whether the model's own caption stands before each question.
            num_masks: Masks in place of the answer.
            decoding: How; its ``num_candidates`` is the number of alternatives.
            candidates: Answers to choose from; by default any text is an answer.
            caption_masks: Masks in the prompt of the model's own caption.
            scores: Whether the scores of the answers are wanted.

        Returns:
            For each question the candidates, the best first.

        Raises:
            PictureError: The picture cannot be read.
            ValueError: A question is too long for BART.
        """
        (_, image_tokens, (error,)) = next(self._batches([image], search_folders=False))
        if error:
            raise PictureError(error)
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

    def search(self, words: str, images: Iterable[Picture], top: int = 10) -> tuple[list[Found], list[Found]]:
        """Finds the pictures nearest to words in the joint space, by the distilled text encoder, in constant memory.

        Args:
            words: What the pictures show.
            images: Pictures; a path of a folder stands for all pictures in it and below it.
            top: Most pictures to find.

        Returns:
            The pictures found, the nearest first; and those that could not be read.
        """
        embedding = self.model.embed_texts([words])[0]
        nearest: list[tuple[float, int, Picture]] = []
        unread: list[Found] = []
        number = 0
        for pictures, image_tokens, errors in self._batches(images):
            cosines = iter((image_tokens[:, 0] @ embedding).tolist() if len(image_tokens) else [])
            for picture, error in zip(pictures, errors, strict=True):
                if error:
                    unread.append(Found(picture, float("nan"), error))
                    continue
                number += 1
                heapq.heappush(nearest, (next(cosines), -number, picture))
                if len(nearest) > top:
                    heapq.heappop(nearest)
        return [Found(picture, score) for score, _, picture in sorted(nearest, reverse=True)], unread

    def _batches(
        self, images: Iterable[Picture], search_folders: bool = True
    ) -> Iterator[tuple[list[Picture], Tensor, list[str]]]:
        """Batches of pictures, the image tokens of those that could be read, and for each why it could not be or ""."""
        pictures = _expanded(images) if search_folders else iter(images)
        while batch := list(islice(pictures, self.batch_size)):
            tensors, errors = [], []
            for picture in batch:
                try:
                    tensors.append(self._transform(open_picture(picture)))
                    errors.append("")
                except UNREADABLE as error:
                    errors.append(f"{picture}: {error}" if isinstance(picture, str | Path) else str(error))
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


def open_picture(picture: Picture) -> Image.Image:
    """Reads a picture as RGB, turned as its camera says.

    Args:
        picture: A file, a PIL image or an array.

    Raises:
        OSError: A file is missing, is no picture, or is damaged.
        ValueError: An array is of another shape or type.
        PIL.Image.DecompressionBombError: A file is too large to be decoded safely.
    """
    if isinstance(picture, np.ndarray):
        picture = _from_array(picture)
    if isinstance(picture, Image.Image):
        return as_rgb(picture)
    with open_image(picture) as image:
        return as_rgb(image)


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise ValueError(f"an array of shape {array.shape} is no picture: give (H, W), (H, W, 3) or (H, W, 4)")
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError("an array of floats must lie in [0, 1] to be a picture: divide it, or give uint8")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"an array of {array.dtype} is no picture: give uint8, or floats in [0, 1]")
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)


def _expanded(images: Iterable[Picture]) -> Iterator[Picture]:
    """The pictures, with the pictures of a folder in its place."""
    for image in images:
        if isinstance(image, str | Path):
            yield from iter_pictures([image])
        else:
            yield image
