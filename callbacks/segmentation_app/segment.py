"""What the page computes: a picture file and typed classes to label map, regions and heatmaps; it knows no web page."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from callbacks.label_maps import Pixels, fitted
from callbacks.segmentation_writer import pixels_of

LONGEST = (
    1024  # pixels of a side; a larger photo is shrunk first, as CLIP and SAM would, and felzenszwalb is slow on it
)
MOST = 300  # names in all: each costs memory and time, and nobody tells more colours apart
HEAT = 256  # pixels, longest side of the heatmaps that are kept; they are smooth


class Classes(Protocol):
    """What is looked for: Q queries, each a way to name one of C classes."""

    @property
    def names(self) -> Sequence[str]:
        """C names."""

    @property
    def text(self) -> Tensor:
        """Unit embeddings of the queries (Q, D)."""

    @property
    def class_of(self) -> Tensor:
        """(Q,) class of each query."""


class Logits(Protocol):
    """Similarities of a picture to Q queries."""

    def resized(self, size: tuple[int, int]) -> Tensor:
        """(Q, *size)."""


class Segmenter(Protocol):
    """The two halves of a segmentation."""

    def logits(self, images: Sequence[Tensor], instance_masks: Sequence[Tensor], text: Tensor) -> list[Any]:
        """``Logits`` of each picture (3, H, W) uint8 with region ids (H, W)."""

    def decide(self, logits: Any, instance_mask: Tensor, classes: Any) -> Tensor:
        """The class of each pixel, (H, W)."""


class MaskSource(Protocol):
    """What splits a picture into regions; see ``lightning_modules.backbones.masks``."""

    @property
    def name(self) -> str:
        """The source in a few words."""

    @property
    def by_name(self) -> bool:
        """Whether masks are files, found by the name of the picture's file."""

    def masks(self, image: Tensor, stem: str | None = None) -> Tensor:
        """Region ids (H, W) of a picture (3, H, W) uint8; 0 = in no region."""


@dataclass(frozen=True)
class Segmentation:
    """What was found in a picture.

    Args:
        image: (H, W, 3) as it was segmented, shrunk where it was large.
        labels: (H, W), classes from 0.
        regions: (H, W), 0 = in no region, else numbered from 1 without gaps.
        heat: (C, h, w) cosine similarity to the likeliest name of each class, the whole picture on fewer pixels.
        names: C classes.
        source: Name of the mask source; None = there was none.
        stored: Width and height of the picture in its file.
    """

    image: Pixels
    labels: NDArray[np.int64]
    regions: NDArray[np.int64]
    heat: NDArray[np.float32]
    names: Sequence[str]
    source: str | None
    stored: tuple[int, int]


def class_lines(text: str, whole: Collection[str] = ()) -> list[str]:
    r"""The classes that a user typed.

    Args:
        text: One class a line, or several with commas between; ways to name one separated by ``;``.
        whole: Lines that are one class each, commas and all, as they are typed.

    Returns:
        One line a class, as ``prompt`` of a model takes them: ways to name it separated by ``"; "``.

    Raises:
        ValueError: No class, one without a name, one twice, or too many names.

    >>> class_lines("cat;kitten, dog\n\n grass ")
    ['cat; kitten', 'dog', 'grass']
    """
    rows = [row.strip() for row in text.split("\n")]
    parts = [part.strip() for row in rows for part in ([row] if row in whole else row.split(","))]
    lines = ["; ".join(way.strip() for way in part.split(";")) for part in parts if part]
    if not lines:
        raise ValueError("There is no class. Type what to look for, one class a line, as: cat")
    ways = [line.split("; ") for line in lines]
    if empty := [part for part, names in zip(filter(None, parts), ways, strict=True) if not all(names)]:
        raise ValueError(f"'{empty[0]}' has an empty name beside a semicolon. Type names only, as: cat; kitten")
    if (count := sum(map(len, ways))) > MOST:
        raise ValueError(f"There are {count} names; the page takes {MOST}. Use predict with class_lines for more.")
    firsts = [names[0].casefold() for names in ways]  # the text towers read lower case
    if double := [names[0] for k, names in enumerate(ways) if firsts[k] in firsts[:k]]:
        raise ValueError(f"The class '{double[0]}' is there twice. Type each class once.")
    return lines


def read_picture(path: str) -> Image.Image:
    """A picture file as RGB, upright as its EXIF orientation says.

    Args:
        path: Of the file.

    Returns:
        16 bits a channel are scaled to 8, transparency is left out.

    Raises:
        ValueError: It cannot be decoded, or holds floating-point numbers.
    """
    try:
        with Image.open(path) as stored:
            image = ImageOps.exif_transpose(stored)
            if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would cut them at 255
                image = Image.fromarray((np.asarray(image).astype(np.int64) // 257).clip(0, 255).astype(np.uint8))
            mode, image = image.mode, image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError("The file is no picture that can be read, or it is damaged. Use a JPEG or PNG.") from error
    if mode == "F":  # fractions and all above 255 are cut off by now
        raise ValueError("The picture holds floating-point numbers. Store it with 8 or 16 bits a channel.")
    return image


def shrunk(image: Image.Image) -> Image.Image:
    """A picture with at most ``LONGEST`` pixels on its longest side."""
    if max(image.size) <= LONGEST:
        return image
    return image.resize(fitted(image.size, LONGEST), Image.Resampling.LANCZOS)


def find_regions(source: MaskSource | None, image: Tensor) -> Tensor:
    """Region ids (H, W) of a picture (3, H, W); zeros without a source.

    Raises:
        ValueError: The source serves known files only.
    """
    if source is None:
        return torch.zeros(image.shape[1:], dtype=torch.long)
    if source.by_name:
        raise ValueError(
            f"The mask source '{source.name}' has no regions of a new picture, as it finds them by the names of files. "
            "Choose one that makes them, as --data.masks lightning_modules.backbones.masks.Felzenszwalb"
        )
    return source.masks(image)


@torch.inference_mode()
def segment(
    segmenter: Segmenter,
    prompt: Callable[[Sequence[str]], Classes],
    source: MaskSource | None,
    picture: str | None,
    typed: str,
    whole: Collection[str] = (),
) -> Segmentation:
    """Segment a picture by typed classes.

    Args:
        segmenter: Of a model.
        prompt: From class lines to classes.
        source: What splits the picture into regions; None = it is one part without regions.
        picture: Path of the picture; None = none was given.
        typed: Classes as in :func:`class_lines`.
        whole: Likewise.

    Returns:
        Arrays on the CPU.

    Raises:
        ValueError: No picture, one that cannot be read, or classes that are none; each with what to do.
    """
    if not picture:
        raise ValueError("There is no picture. Drop one into the field above, or choose a file.")
    lines = class_lines(typed, whole)
    stored = read_picture(picture)
    image = torch.from_numpy(np.array(shrunk(stored))).permute(2, 0, 1)
    ids = find_regions(source, image)
    classes = prompt(lines)
    (logits,) = segmenter.logits([image], [ids], classes.text)
    height, width = ids.shape
    wide, high = fitted((width, height), min(HEAT, max(height, width)))
    similarity = logits.resized((high, wide)).float()  # (Q, h, w)
    heat = [similarity[classes.class_of == k].amax(0) for k in range(len(classes.names))]
    return Segmentation(
        image=pixels_of(image),
        labels=segmenter.decide(logits, ids, classes).cpu().numpy(),
        regions=_renumbered(ids).numpy(),
        heat=torch.stack(heat).cpu().numpy(),
        names=list(classes.names),
        source=None if source is None else source.name,
        stored=stored.size,
    )


def _renumbered(ids: Tensor) -> Tensor:
    """Ids without gaps; 0 stays."""
    values, ranks = ids.cpu().unique(return_inverse=True)
    return ranks + int(values[0] != 0)
