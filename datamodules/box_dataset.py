"""Pictures with boxes as a Dataset: sizes from the headers, decoding when asked for, batches."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from datamodules.box_records import BoxRecords
from datamodules.pictures import ORIENTATION, TURNED, UNREADABLE, read_picture


def _refusal(path: Path, error: Exception) -> ValueError:
    return ValueError(f"Image {path} cannot be decoded ({error}). Replace the file, or take it out of the lists.")


def read_size(path: Path, upright: bool = False) -> tuple[int, int]:
    """Height and width of a picture, from its header; ``(0, 0)`` if there is no such file.

    Raises:
        ValueError: The file is no picture.
    """
    try:
        with Image.open(path) as image:
            turned = upright and image.getexif().get(ORIENTATION) in TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except FileNotFoundError:
        return 0, 0
    except UNREADABLE as error:
        raise _refusal(path, error) from error


def read_sizes(paths: Sequence[Path], upright: bool = False) -> np.ndarray:
    """Height and width of pictures, ``(N, 2)`` int64; no picture is decoded.

    Raises:
        FileNotFoundError: Some are missing; counts them and names the first.
        ValueError: A file is no picture.
    """
    with ThreadPoolExecutor(8) as pool:
        sizes = np.array(list(pool.map(partial(read_size, upright=upright), paths)), np.int64).reshape(-1, 2)
    if len(missing := np.flatnonzero(sizes[:, 0] == 0)):
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} images that the lists name are missing, first {paths[missing[0]]}. "
            "Unpack the images again, or take the missing ones out of the lists."
        )
    return sizes


def check_size(stated: Sequence[int], found: Sequence[int], where: str) -> None:
    """Refuse boxes of a picture that has another size now; sizes are ``(height, width)``, ``where`` the file.

    Raises:
        ValueError: The sizes differ.
    """
    if tuple(stated) != tuple(found):
        raise ValueError(
            f"{where}: the boxes are of a picture of {stated[1]} x {stated[0]} pixels, but it has {found[1]} x "
            f"{found[0]}. Use the pictures that were annotated, or correct the file."
        )


class DetectionDataset(Dataset[dict[str, Any]]):
    """Pictures with boxes, decoded when asked for; items as :class:`DetectionData` describes them.

    Args:
        records: The items.
        image_size: Side to squash pictures to; None = as they are.
        labelled: Whether the items have boxes. Those without are turned upright by their EXIF tag.
    """

    def __init__(self, records: BoxRecords, image_size: int | None, labelled: bool = True) -> None:
        self.records = records
        self.image_size = image_size
        self.labelled = labelled
        self._last: tuple[Path, Image.Image] | None = None  # tiles of a picture follow each other

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, index: int) -> Image.Image:
        """The RGB picture or tile in its own size."""
        path, windows = self.records.paths[index], self.records.windows
        if windows is None:
            return read_picture(path, upright=not self.labelled).image
        if self._last is None or self._last[0] != path:
            self._last = (path, read_picture(path, upright=not self.labelled).image)
        return self._last[1].crop(windows[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        r, image = self.records, self.picture(index)
        if self.image_size is not None:
            image = image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        item: dict[str, Any] = {"image": torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()}
        if self.labelled:
            columns = {"boxes": r.boxes, "box_labels": r.box_labels, "ignore": r.ignore, "polygons": r.polygons}
            item |= {name: torch.from_numpy(c[index]) for name, c in columns.items() if c is not None}
        return {**item, "size": torch.from_numpy(r.sizes[index]), "index": index, "id": r.ids[index]}


def collate_boxes(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items as a batch: ``size``, ``index`` and pictures of one size are stacked, all else is a list of B."""
    batch: dict[str, Any] = {name: [item[name] for item in items] for name in items[0]}
    return {**batch, "size": torch.stack(batch["size"]), "index": torch.tensor(batch["index"])}


def collate_squashed(items: list[dict[str, Any]]) -> dict[str, Any]:
    """As :func:`collate_boxes`, with the pictures stacked too, ``(B, 3, S, S)``."""
    batch = collate_boxes(items)
    return {**batch, "image": torch.stack(batch["image"])}
