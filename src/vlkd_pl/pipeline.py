"""VLKD: captions, answers and search for your own images."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vlkd_pl.clip.transform import clip_transform
from vlkd_pl.data.image_inputs import IMAGE_TYPE_NAMES, IMAGE_TYPES, ImageInput, iter_images, to_image
from vlkd_pl.images import ImageError
from vlkd_pl.models.decoding import ANSWER_DECODING, CAPTION_DECODING, Decoding, answer, caption
from vlkd_pl.models.prompts import caption_passage
from vlkd_pl.models.reconstruction import Reconstruction
from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.weights.model_files import first_line


class CaptionResult(NamedTuple):
    """Captions of an image, or the reason why it cannot be read.

    Attributes:
        image: The image as passed by the caller; the path of an image in a folder.
        captions: Candidate captions, the best first; empty if the image cannot be read.
        error: Reason why the image cannot be read; empty if it can.
    """

    image: ImageInput
    captions: list[Reconstruction]
    error: str = ""


class SearchResult(NamedTuple):
    """Image of a search, with its similarity to the words.

    Attributes:
        image: The image as passed by the caller; the path of an image in a folder.
        score: Cosine of image and words in the joint space, in [-1, 1]; NaN if the image cannot be read.
        error: Reason why the image cannot be read; empty if it can.
    """

    image: ImageInput
    score: float
    error: str = ""


class VLKD:
    """Captions, answers and image search with a distilled model.

    Images may be paths, PIL images or NumPy arrays; a path of a folder stands for all images below it.

    Args:
        model: Distilled model.
        device: Device that the model runs on, such as ``cpu`` or ``cuda:1``; by default a GPU if there is one.
        batch_size: Number of images in a batch, from 1.

    Example:
        The sample world's small model writes captions at once, though they make no sense before distillation:

        >>> from PIL import Image
        >>> from vlkd_pl.sample import sample_model
        >>> vlkd = VLKD(sample_model(), device="cpu")
        >>> image = Image.new("RGB", (64, 64), "red")
        >>> caption = vlkd.caption(image)
        >>> answers = vlkd.answer(image, ["what is this?", "where is it?"])
        >>> len(answers)
        2

        A model that ``vlkd-pl fit`` wrote is loaded by the path of its folder::

            vlkd = VLKD.from_pretrained("runs/distill/model")
            vlkd.caption("photo.jpg")
            vlkd.answer("photo.jpg", "what is on the table?")
            nearest, unreadable = vlkd.search("a dog on a beach", "photos/")
    """

    def __init__(self, model: VLKDModel, device: str | torch.device | None = None, batch_size: int = 16) -> None:
        self.device = usable_device(device)
        self.model = model.to(self.device).eval()
        self.batch_size = batch_size
        self._transform = clip_transform(model.clip.image_size)

    @classmethod
    def from_pretrained(cls, model: str | Path, device: str | torch.device | None = None, batch_size: int = 16) -> VLKD:
        """Load a distilled model from a folder or from the Hugging Face hub.

        Args:
            model: Folder that ``vlkd-pl fit`` wrote, or its name on the Hugging Face hub.
            device: Device that the model runs on; by default a GPU if there is one.
            batch_size: Number of images in a batch, from 1.

        Raises:
            FileNotFoundError: Neither the folder nor the name exists.
            ModelFileError: A file is missing in the folder, corrupt, or belongs to another model.
            ValueError: This machine does not have the device.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> from vlkd_pl.sample import sample_model
            >>> with TemporaryDirectory() as folder:
            ...     _ = sample_model().save_pretrained(folder)
            ...     vlkd = VLKD.from_pretrained(folder, device="cpu")
            >>> vlkd.model.image_features
            'pooled'
        """
        device = usable_device(device)
        return cls(VLKDModel.from_pretrained(model), device, batch_size)

    # Captions

    def caption(
        self, images: ImageInput | Sequence[ImageInput], num_masks: int = 6, decoding: Decoding = CAPTION_DECODING
    ) -> str | list[str]:
        """Caption one image or several.

        Args:
            images: Image, sequence of images, or path of a folder of images.
            num_masks: Number of masks m in the prompt "A picture of <mask>×m.", from 1.
            decoding: Decoding strategy.

        Returns:
            Caption of one image; for a sequence or a folder, a list of captions, which may be empty.

        Raises:
            ImageError: An image cannot be read; ``iter_captions`` reports such an image and continues.
            TypeError: ``images`` or one of its items is not an image, but for instance bytes, a tensor or a set.

        Example:
            >>> from PIL import Image
            >>> from vlkd_pl.sample import sample_model
            >>> image = Image.new("RGB", (64, 64), "red")
            >>> captions = VLKD(sample_model(), "cpu").caption([image, image])
            >>> len(captions)
            2
        """
        captions = []
        for result in self.iter_captions(images, num_masks, decoding):
            if result.error:
                raise ImageError(result.error)
            captions.append(result.captions[0].text)
        is_folder = isinstance(images, str | Path) and Path(images).is_dir()
        return captions[0] if isinstance(images, IMAGE_TYPES) and not is_folder else captions

    def iter_captions(
        self,
        images: ImageInput | Iterable[ImageInput],
        num_masks: int = 6,
        decoding: Decoding = CAPTION_DECODING,
        scores: bool = False,
    ) -> Iterator[CaptionResult]:
        """Caption images batch by batch, in constant memory.

        Args:
            images: Image or iterable of images; the path of a folder stands for all images below it.
            num_masks: Number of masks m in the prompt "A picture of <mask>×m.", from 1.
            decoding: Decoding strategy.
            scores: Whether to compute the scores of the captions, by one more pass over the decoder.

        Returns:
            Iterator over a result for each image, in order: its captions, or the reason why it cannot be read.

        Raises:
            TypeError: ``images`` is not an image or iterable; for one of its items, once the iterator reaches it.

        Example:
            >>> from PIL import Image
            >>> from vlkd_pl.sample import sample_model
            >>> vlkd = VLKD(sample_model(), "cpu")
            >>> [result.error for result in vlkd.iter_captions([Image.new("RGB", (64, 64)), "missing.jpg"])]
            ['', 'missing.jpg: No such file or directory']
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
        self,
        image: ImageInput,
        question: str | Sequence[str],
        caption_first: bool = False,
        *,
        num_masks: int = 1,
        decoding: Decoding = ANSWER_DECODING,
        candidates: Sequence[str] | None = None,
        caption_masks: int = 6,
    ) -> str | list[str]:
        """Answer one question or several about an image.

        Args:
            image: Image that the questions are about.
            question: Question, or sequence of questions.
            caption_first: Whether to put the model's caption of the image before each question (caption-then-answer).
            num_masks: Number of masks in place of the answer, from 1.
            decoding: Decoding strategy.
            candidates: Answers to choose from; by default any text may be the answer.
            caption_masks: Number of masks in the prompt of the caption, from 1.

        Returns:
            Answer to one question; for a sequence, a list of answers.

        Raises:
            ImageError: The image cannot be read.
            TypeError: The image, a question or ``candidates`` has another type.
            ValueError: A question is empty, or too long for BART; or ``candidates`` is empty.

        Example:
            >>> from PIL import Image
            >>> from vlkd_pl.sample import sample_model
            >>> image = Image.new("RGB", (64, 64), "red")
            >>> VLKD(sample_model(), "cpu").answer(image, "what color is this?", candidates=["red"])
            'red'
        """
        answers = self.answers(
            image,
            question,
            caption_first,
            num_masks=num_masks,
            decoding=decoding,
            candidates=candidates,
            caption_masks=caption_masks,
        )
        texts = [alternatives[0].text for alternatives in answers]
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
        """Answer questions about an image, with alternatives and scores.

        Args:
            image: Image that the questions are about.
            questions: Question, or sequence of questions; for an empty sequence the result is empty.
            caption_first: Whether to put the model's caption of the image before each question (caption-then-answer).
            num_masks: Number of masks in place of the answer, from 1.
            decoding: Decoding strategy; its ``num_candidates`` is the number of alternatives.
            candidates: Answers to choose from; by default any text may be the answer.
            caption_masks: Number of masks in the prompt of the caption, from 1.
            scores: Whether to compute the scores of the answers, by one more pass over the decoder.

        Returns:
            For each question its alternative answers, the best first.

        Raises:
            ImageError: The image cannot be read.
            TypeError: The image, a question or ``candidates`` has another type.
            ValueError: A question is empty, or too long for BART; or ``candidates`` is empty.
        """
        if not isinstance(image, IMAGE_TYPES):
            raise TypeError(f"image has the type {type(image).__name__}: give {IMAGE_TYPE_NAMES}")
        if isinstance(candidates, str):
            raise TypeError("candidates has the type str: give a list of answers")
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
            image_caption = caption(self.model, image_tokens, caption_masks)[0][0].text
            passages = [caption_passage(image_caption)] * len(questions)
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
        """Find the images that match words best, in constant memory.

        The score of an image is its cosine to the words in the joint space, where the distilled text encoder embeds
        them.

        Args:
            words: Description of the images to find.
            images: Image or iterable of images; the path of a folder stands for all images below it.
            top: Maximum number of images to find, from 1.

        Returns:
            The images with the highest scores, the best first; and the images that cannot be read.

        Raises:
            TypeError: ``words``, ``images`` or one of its items has another type.
            ValueError: ``words`` is empty.

        Example:
            >>> from PIL import Image
            >>> from vlkd_pl.sample import sample_model
            >>> images = [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue")]
            >>> nearest, unreadable = VLKD(sample_model(), "cpu").search("a red fish", images, top=2)
            >>> len(nearest), nearest[0].score >= nearest[1].score, unreadable
            (2, True, [])
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
        """Iterate over batches: images, the tokens of the readable ones, and for each image its error or ""."""
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
    """Check that this machine has a device, and choose one by default.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, …; None for a GPU if there is one, and the CPU otherwise.

    Raises:
        ValueError: This machine does not have the device.

    Example:
        >>> usable_device("cpu")
        device(type='cpu')
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


def _check_text(text: str, name: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name} has the type {type(text).__name__}: give a string")
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise ValueError(f"{name} is empty: give one word at least")
