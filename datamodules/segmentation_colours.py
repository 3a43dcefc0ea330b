"""Label maps that are pictures of colours, each colour a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.pictures import UNREADABLE

Colours = Sequence[Sequence[int]]


def check_colours(colours: Colours, num_classes: int) -> None:
    """Refuse colours that do not name the classes.

    Args:
        colours: Red, green and blue of each class, 0 to 255.
        num_classes: Number of classes C.

    Raises:
        ValueError: Another number of colours than of classes, no three bytes each, or one colour twice.
    """
    if len(colours) != num_classes:
        raise ValueError(
            f"label_colours has {len(colours)} colours, but there are {num_classes} classes. Name one colour a class, "
            "in the order of the class file."
        )
    for number, colour in enumerate(colours):
        if len(colour) != 3 or not all(0 <= level <= 255 for level in colour):
            raise ValueError(
                f"label_colours: {list(colour)} is no colour. Write red, green and blue from 0 to 255, as [255, 0, 0]."
            )
        if list(colour) in (earlier := [list(each) for each in colours[:number]]):
            raise ValueError(
                f"label_colours: {list(colour)} is of class {earlier.index(list(colour))} and of class {number}. Give "
                "each class a colour of its own."
            )


def read_label_picture(path: Path, mode: str) -> NDArray[np.uint8]:
    """The pixels of a label map that holds no class numbers.

    Args:
        path: The file.
        mode: Pillow's mode to convert it to: ``RGB``, or ``L`` for grey.

    Returns:
        ``(H, W, 3)`` or ``(H, W)``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Label map {path} does not exist. Unpack the label maps again.") from error
    except UNREADABLE as error:
        raise ValueError(f"Label map {path} cannot be decoded ({error}). Unpack it again.") from error


def load_colours(path: Path, colours: Colours) -> NDArray[np.uint16]:
    """The classes in a label map by their colours.

    Args:
        path: The file.
        colours: Red, green and blue of each class, 0 to 255.

    Returns:
        ``(H, W)`` class of each pixel.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be decoded, or has a colour of no class.
    """
    found = _packed(read_label_picture(path, "RGB"))
    known = _packed(np.array(colours))
    order = known.argsort()
    place = order[np.searchsorted(known, found, sorter=order).clip(max=len(known) - 1)]  # (H, W)
    if (strange := known[place] != found).any():
        values = np.unique(found[strange])
        first = [int(values[0] >> shift) & 255 for shift in (16, 8, 0)]
        raise ValueError(
            f"Label map {path} has the colour {first} in {int((found == values[0]).sum())} pixels"
            f"{f' and {len(values) - 1} other unknown colours' if len(values) > 1 else ''}, which is of no class. "
            "Check that label_colours and the label maps are of one set, and that none was stored with loss or resized."
        )
    return place.astype(np.uint16)


def _packed(colours: NDArray[np.integer]) -> NDArray[np.int64]:
    """Colours ``(..., 3)`` as one number each."""
    return colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
