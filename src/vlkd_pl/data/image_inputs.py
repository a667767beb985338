"""Images as a user passes them: paths, folders, PIL images and NumPy arrays."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlkd_pl.data.image_files import iter_image_files
from vlkd_pl.images import ImageError, as_rgb, check_image_size, read_image

ImageInput: TypeAlias = str | Path | Image.Image | NDArray[Any]
"""Path of a file, PIL image, or array (H, W, 3) or (H, W) of uint8 or of floats in [0, 1]."""

IMAGE_TYPES = (str, Path, Image.Image, np.ndarray)
IMAGE_TYPE_NAMES = "a path, a PIL image, or a NumPy array (H, W, 3)"


def iter_images(images: ImageInput | Iterable[ImageInput]) -> Iterator[ImageInput]:
    """Iterate over images, replacing the path of a folder by the paths of all images below it.

    Args:
        images: Image, path of a folder, or iterable of both. Refused are encoded bytes, tensors, whose layout and scale
            are unknown, and mappings and sets, which have no order.

    Returns:
        Iterator over the images; those of a folder are paths.

    Raises:
        TypeError: ``images`` has another type; for one of its items, once the iterator reaches it.

    Example:
        >>> list(iter_images(["a.jpg", "b.jpg"]))
        [PosixPath('a.jpg'), PosixPath('b.jpg')]
    """
    if isinstance(images, IMAGE_TYPES):
        images = [images]
    # iterating would give a mapping's keys, the numbers of bytes, and a file's lines
    elif isinstance(images, Tensor | bytes | bytearray | memoryview | Mapping | Set | io.IOBase) or not isinstance(
        images, Iterable
    ):
        raise TypeError(f"images has the type {type(images).__name__}: give {IMAGE_TYPE_NAMES}, or a list of these")
    return _iter_images(images)


def _iter_images(images: Iterable[ImageInput]) -> Iterator[ImageInput]:
    for number, image in enumerate(images):
        if not isinstance(image, IMAGE_TYPES):
            raise TypeError(f"images[{number}] has the type {type(image).__name__}: give {IMAGE_TYPE_NAMES}")
        if isinstance(image, str | Path):
            yield from iter_image_files([image])
        else:
            yield image


def to_image(image: ImageInput) -> Image.Image:
    """Read an image as RGB, turned upright by its orientation tag.

    Args:
        image: Path of a file, PIL image or NumPy array.

    Raises:
        ImageError: The file is missing or not a readable image; the array has another shape or type; or the image is
            empty, too large or too thin.

    Example:
        >>> to_image(np.zeros((80, 100, 3), dtype=np.uint8)).size
        (100, 80)
    """
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    return as_rgb(image) if isinstance(image, Image.Image) else read_image(image)


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise ImageError(f"an array of shape {array.shape} is not an image: give (H, W), (H, W, 3) or (H, W, 4)")
    check_image_size(array.shape[1], array.shape[0])
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ImageError("an array of floats must lie in [0, 1] to be an image: divide it, or give uint8")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(f"an array of {array.dtype} is not an image: give uint8, or floats in [0, 1]")
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)
