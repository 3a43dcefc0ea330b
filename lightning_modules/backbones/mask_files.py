"""Regions read from files: the npz folders that CorrCLIP's authors made beforehand, and plain id maps."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_modules.backbones.masks import MaskSource, check_image

LARGEST_ID = 65534  # of two bytes a pixel; 65535 is what pads a window
SUFFIXES = (".npz", ".png")


def _read_npz(path: Path, key: str) -> np.ndarray:
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no npz archive")
        with np.load(path, allow_pickle=False) as arrays:
            if key not in arrays.files:
                raise ValueError(
                    f"Mask file {path} has no array '{key}'; it holds {', '.join(arrays.files) or 'none'}. Set key to "
                    "the one that is the id map."
                )
            return arrays[key]
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"Mask file {path} is damaged ({error}). Make or fetch it again.") from error


def _read_png(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "P", "I", "I;16"):
                raise ValueError(
                    f"Mask file {path} is a picture of the mode {image.mode}; an id map has one channel: 8 or 16 bits, "
                    "or a palette, whose indices are the ids."
                )
            return np.array(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"Mask file {path} is damaged ({error}). Make or fetch it again.") from error


def check_ids(ids: np.ndarray, size: tuple[int, int], where: str) -> Tensor:
    """An array as the id map of a picture.

    Args:
        ids: ``(H, W)``, whole numbers of any type.
        size: H and W of the picture.
        where: Name of its file, for messages.

    Returns:
        ``(H, W)`` int64.

    Raises:
        ValueError: Another size, or ids that are negative, above 65534 or no whole numbers.

    Example:
        >>> check_ids(np.array([[0, 3]], dtype=np.uint8), (1, 2), "a.png").tolist()
        [[0, 3]]
    """
    if ids.shape != size:
        turned = ids.shape == size[::-1] and size[0] != size[1]
        cure = (
            "Height and width are swapped: the picture's EXIF orientation turned one of them and not the other. Store "
            "the picture upright, without an orientation, and make its masks of that."
            if turned
            else "Make the masks of the picture at its own size, and check that the names belong together."
        )
        raise ValueError(f"Mask file {where} has the shape {ids.shape}, the picture {size}. {cure}")
    if ids.dtype.kind not in "biu" and not (ids.dtype.kind == "f" and (ids == np.floor(ids)).all()):
        raise ValueError(f"Mask file {where} holds {ids.dtype} values that are no whole numbers; ids are needed.")
    if ids.min() < 0:
        raise ValueError(f"Mask file {where} holds the id {ids.min()}; write 0 where there is no region, ids above it.")
    if ids.max() > LARGEST_ID:
        raise ValueError(f"Mask file {where} holds the id {ids.max()}; the largest is {LARGEST_ID}. Number them anew.")
    return torch.from_numpy(ids.astype(np.int64))


class PregeneratedMasks(MaskSource):
    """Regions from a folder with one file a picture: ``<stem>.npz`` or ``<stem>.png``, 0 = in no region.

    Files are found by the stem alone, so no two pictures of a set may have the same one. ``predict`` turns pictures as
    their EXIF orientation says, and refuses those of which the size does not tell whether their masks are turned too.

    Args:
        folder: Folder of the files.
        key: Name of the array in the npz files.

    Raises:
        FileNotFoundError: There is no such folder.
    """

    by_name = True

    def __init__(self, folder: str, key: str = "instance_mask") -> None:
        self.folder, self.key = Path(folder).expanduser(), key
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"Mask folder {self.folder} does not exist. CorrCLIP's authors publish theirs as the data set "
                "dk258/CorrCLIP at https://huggingface.co/datasets/dk258/CorrCLIP (for non-commercial use); unpack one "
                "of its folders and name it here."
            )

    @property
    def name(self) -> str:
        """Name of the folder."""
        return f"files {self.folder.name}"

    def settings(self) -> None:
        """Nothing to cache: the files are as quick to read."""
        return

    def masks(self, image: Tensor, stem: str | None = None) -> Tensor:
        """The id map of the file, see :class:`MaskSource`.

        Raises:
            FileNotFoundError: There is none for this picture.
            ValueError: No stem, or a file that is damaged or no id map of this picture.
        """
        check_image(image)
        if stem is None:
            raise ValueError(f"Masks in {self.folder} are found by the picture's file name; give the picture's path.")
        path = next((p for p in (self.folder / f"{stem}{end}" for end in SUFFIXES) if p.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"Mask folder {self.folder} has neither {stem}.npz nor {stem}.png. Add the file, or make the masks "
                "with another source."
            )
        ids = _read_npz(path, self.key) if path.suffix == ".npz" else _read_png(path)
        return check_ids(ids, (image.shape[1], image.shape[2]), str(path))
