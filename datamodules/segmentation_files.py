"""Label maps as files: decoding, and what their numbers stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.pictures import UNREADABLE

REFUSED = -1
LEVELS = 2**16  # a label map holds 8 or 16 bits a pixel

Ints = NDArray[np.int64]


def load_indices(path: Path) -> NDArray[np.integer]:
    """The numbers in a label map: indices of a palette PNG, levels of a grey one of 8 or 16 bits.

    Args:
        path: The file.

    Returns:
        (H, W) integers from 0 to 65535.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be decoded, is a picture of colours, or holds fractions or numbers beyond 16 bits.
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
    if mode == "F":
        raise ValueError(f"Label map {path} holds floating-point numbers. Store it with 8 or 16 bits a pixel.")
    if mode == "I" and (outside := pixels[(pixels < 0) | (pixels >= LEVELS)]).size:
        raise ValueError(
            f"Label map {path} holds {outside[0]}; labels are 0 to {LEVELS - 1}. Store it with 8 or 16 bits a pixel."
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
