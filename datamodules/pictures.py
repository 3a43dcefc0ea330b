"""Picture files of any kind as RGB of 8 bits, the same pixels for everyone who reads them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap height and width
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class Picture(NamedTuple):
    """A decoded picture, and what its regions are found again by."""

    image: Image.Image  # RGB of 8 bits
    data: bytes  # of its file
    turned: bool  # whether the EXIF tag of the file has turned it
    stem: str | None = None  # name of its file without the ending

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height in the file, before its EXIF tag turned it."""
        with Image.open(io.BytesIO(self.data)) as stored:
            return stored.size

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
        if shown.mode == "F":
            raise ValueError(f"Image {where} holds floating-point numbers. Store it with 8 or 16 bits a channel.")
        if shown.mode == "I" or shown.mode.startswith("I;16"):  # convert() would cut off at 255
            levels = np.asarray(shown).astype(np.int64).clip(0, 2**16 - 1)
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
        if str(error).startswith("Image "):  # says it already
            raise
        reason = "it is no picture" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(
            f"Image {where} cannot be decoded ({reason}). Replace the file, or take it out of the data."
        ) from error
