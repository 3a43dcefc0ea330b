"""Pictures and label maps as files: decoding, and what the numbers in a label map stand for."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.box_dataset import ORIENTATION, UNREADABLE

REFUSED = -1
LEVELS = 2**16  # a label map holds 8 or 16 bits a pixel

Ints = NDArray[np.int64]


class Picture(NamedTuple):
    """A decoded picture, and what its regions are found again by."""

    image: Image.Image  # RGB of 8 bits
    data: bytes  # of its file
    turned: bool  # whether the EXIF tag of the file has turned it
    stem: str | None = None  # name of its file without the ending

    @property
    def pixels(self) -> Tensor:
        """``(3, H, W)`` uint8."""
        return torch.from_numpy(np.array(self.image)).permute(2, 0, 1).contiguous()


def decode_picture(data: bytes, where: str, upright: bool = False, stem: str | None = None) -> Picture:
    """Decode a picture of any depth and colour model as RGB of 8 bits; transparency is left out.

    Args:
        data: Bytes of the file; 16-bit grey is scaled to 8 bits.
        where: Its name, for messages.
        upright: Turn it as its EXIF tag says. Label maps belong to the pixels as stored, so theirs stay as they are.
        stem: Name of the file without its ending, for region masks that are found by it.

    Raises:
        ValueError: It cannot be decoded.
    """
    with _opened(data, where) as image:
        turned = upright and _turns(image)
        shown = ImageOps.exif_transpose(image) if turned else image
        if shown.mode == "I" or shown.mode.startswith("I;16"):  # convert() would cut off at 255
            levels = np.asarray(shown).astype(np.int64).clip(0, LEVELS - 1)
            shown = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
        return Picture(shown.convert("RGB"), data, turned, stem)


def read_picture(path: Path, upright: bool = False) -> Picture:
    """Read and decode a picture, see :func:`decode_picture`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be decoded.
    """
    return decode_picture(read_bytes(path), str(path), upright, path.stem)


def read_bytes(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        FileNotFoundError: There is no such file.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Image {path} does not exist. Check the path, or unpack the images again.") from error


def is_turned(data: bytes, where: str) -> bool:
    """Whether :func:`decode_picture` would turn a picture to have it upright.

    Args:
        data: Bytes of the file.
        where: Its name, for messages.

    Raises:
        ValueError: It is no picture.
    """
    with _opened(data, where) as image:
        return _turns(image)


def _turns(image: Image.Image) -> bool:
    return image.getexif().get(ORIENTATION, 1) in range(2, 9)


@contextmanager
def _opened(data: bytes, where: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image
    except UNREADABLE as error:
        raise ValueError(
            f"Image {where} cannot be decoded ({error}). Replace the file, or take it out of the folder."
        ) from error


def load_indices(path: Path) -> NDArray[np.integer]:
    """The numbers in a label map: indices of a palette PNG, levels of a grey one of 8 or 16 bits.

    Args:
        path: The file.

    Returns:
        (H, W) integers from 0 to 65535.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be decoded, or it is a picture of colours.
    """
    try:
        with Image.open(path) as image:
            pixels, mode = np.asarray(image), image.mode
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Label map {path} does not exist. Unpack the label maps again.") from error
    except UNREADABLE as error:
        raise ValueError(f"Label map {path} cannot be decoded ({error}). Unpack it again.") from error
    if pixels.ndim != 2:
        raise ValueError(
            f"Label map {path} is a picture of colours ({mode}), but its pixels must be class indices. Use the set's "
            "palette or grey PNG files, or name the colour of each class (label_colours of SegmentationFolder)."
        )
    return pixels.astype(np.uint16)


def label_table(num_classes: int, ignore_index: int = 255, reduce_zero_label: bool = False) -> Ints:
    """What each number in a label map stands for, where classes are numbered on end.

    Args:
        num_classes: Number of classes C.
        ignore_index: The number of pixels that do not count.
        reduce_zero_label: Classes are numbered from 1, and 0 does not count either. The same as taking 1 off in 8 bits
            after 0 was set to 255, where 255 stays.

    Returns:
        (65536,) class from 0, ``ignore_index``, or -1 = no such label.

    Raises:
        ValueError: No class, or ``ignore_index`` is one of the classes or no number of 16 bits.

    Example:
        >>> label_table(2, reduce_zero_label=True)[[0, 1, 2, 3, 255]].tolist()
        [255, 0, 1, -1, 255]
    """
    first = int(reduce_zero_label)
    if not 1 <= num_classes < LEVELS - first:
        raise ValueError(f"There are {num_classes} classes; a label map can hold 1 to {LEVELS - 1 - first}.")
    if ignore_index < first + num_classes or ignore_index >= LEVELS:
        raise ValueError(
            f"ignore_index is {ignore_index}, but labels {first} to {first + num_classes - 1} are classes and 65535 is "
            "the highest number of a label map. Set a number between, which no class has."
        )
    table = np.full(LEVELS, REFUSED, np.int64)
    table[first : first + num_classes] = np.arange(num_classes)
    table[[0] * first + [ignore_index]] = ignore_index
    return table


def mapped_table(mapping: Mapping[int, int], default: int = REFUSED, ignore_index: int = 255) -> Ints:
    """What each number in a label map stands for, from a mapping; 255 does not count unless it is mapped.

    Args:
        mapping: Number in the file -> class from 0.
        default: Of other numbers below 256.
        ignore_index: What stands for pixels that do not count.

    Returns:
        (65536,) class, ``ignore_index``, or -1 = no such label.

    Example:
        >>> mapped_table({7: 0, 8: 1}, default=255)[[0, 7, 8, 255, 256]].tolist()
        [255, 0, 1, 255, -1]
    """
    table = np.full(LEVELS, REFUSED, np.int64)
    table[:256] = default
    table[255] = ignore_index
    table[list(mapping)] = list(mapping.values())
    return table


def load_label_map(
    path: Path,
    table: Ints,
    size: Sequence[int],
    num_classes: int,
    decode: Callable[[Path], NDArray[np.integer]] = load_indices,
) -> Ints:
    """Read a label map as classes.

    Args:
        path: The file.
        table: Of ``label_table`` or ``mapped_table``.
        size: Height and width of its picture.
        num_classes: Number of classes, for the words of a refusal.
        decode: Reads the numbers of the file.

    Returns:
        (H, W) int64 classes and ``ignore_index``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has another size, holds colours or a label that is no class, or cannot be decoded.
    """
    indices = decode(path)
    if indices.shape != tuple(size):
        raise ValueError(
            f"Label map {path} has {indices.shape[1]} x {indices.shape[0]} pixels, but its picture has {size[1]} x "
            f"{size[0]}. Use the pictures that were labelled, neither resized nor turned."
        )
    labels = table[indices]
    if (refused := labels == REFUSED).any():
        found = np.unique(indices[refused])
        raise ValueError(
            f"Label map {path} holds {found[0]} in {int((indices == found[0]).sum())} pixels"
            f"{f' and {len(found) - 1} other unknown labels' if len(found) > 1 else ''}, which is none of the "
            f"{num_classes} classes and not ignored. Check that the class list and the label maps are of one set, and "
            "whether its classes count from 1 (reduce_zero_label) or pixels to ignore have another number."
        )
    return labels
