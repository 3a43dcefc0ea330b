"""Image-text items: the columns of a dataset, decoded when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset


@dataclass(frozen=True)
class Records:
    """An image-text dataset as columns; nothing is decoded.

    Args:
        ids: N different names.
        paths: N image files.
        captions: For each image at least one text.
        labels: 0/1 matrix ``(N, C)``, uint8; C may be 0.
        class_names: C names.
        boxes: For each image ``(K, 4)`` float32 boxes ``xyxy`` in pixels, where the layout has boxes.
        box_labels: For each image ``(K,)`` int64 class indices.
    """

    ids: list[str]
    paths: list[Path]
    captions: list[list[str]]
    labels: np.ndarray
    class_names: list[str]
    boxes: list[np.ndarray] | None = None
    box_labels: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> Records:
        """The records of some rows, in that order."""
        lists = ("ids", "paths", "captions", "boxes", "box_labels")
        columns = {name: getattr(self, name) for name in lists}
        picked = {name: [c[i] for i in rows] for name, c in columns.items() if c is not None}
        return replace(self, labels=self.labels[np.asarray(rows, dtype=np.int64)], **picked)


def concatenate(parts: list[Records]) -> Records:
    """Several parts as one; all must have the same classes."""
    first = parts[0]
    if any(part.class_names != first.class_names for part in parts):
        raise ValueError("The annotation files of the parts list different categories.")
    lists = ("ids", "paths", "captions", "boxes", "box_labels")
    joined = {name: [value for part in parts for value in getattr(part, name)] for name in lists}
    return Records(labels=np.concatenate([p.labels for p in parts]), class_names=first.class_names, **joined)


def load_image(path: Path) -> Image.Image:
    """Decode an image as RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be decoded; the message names it and the cure.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Image {path} does not exist.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"Image {path} cannot be decoded ({error}). Replace the file, or set skip_corrupt: true to leave such "
            "images out."
        ) from error


def find_corrupt(paths: Sequence[Path], threads: int = 8) -> list[int]:
    """Rows of the images that cannot be decoded; every image is read once.

    Args:
        paths: Image files.
        threads: Decoders side by side.

    Returns:
        Row numbers in ascending order.
    """
    from rich.progress import track

    def broken(path: Path) -> bool:
        try:
            with Image.open(path) as image:
                image.draft("RGB", (8, 8))  # JPEG: reads the whole file but computes an eighth of the pixels
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return True
        return False

    with ThreadPoolExecutor(threads) as pool:
        found = track(pool.map(broken, paths), total=len(paths), description="Looking for corrupt images")
        return [row for row, bad in enumerate(found) if bad]


class ImageTextDataset(Dataset[dict[str, Any]]):
    """Image-text items, decoded when asked for.

    An item is a dict: ``image`` (RGB PIL image, or what ``transform`` makes of it), ``captions`` (list of str),
    ``labels`` (float32 ``(C,)``), ``index`` (position here), ``id``; ``boxes`` (float32 ``(K, 4)``, xyxy pixels) and
    ``box_labels`` (int64 ``(K,)``) where the layout has them.

    Args:
        records: The items.
        transform: PIL image to anything; runs in the loader's workers.
    """

    def __init__(self, records: Records, transform: Callable[[Image.Image], Any] | None = None) -> None:
        self.records = records
        self.transform = transform

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        r = self.records
        image = load_image(r.paths[index])
        item = {
            "image": image if self.transform is None else self.transform(image),
            "captions": r.captions[index],
            "labels": torch.from_numpy(r.labels[index].astype(np.float32)),
            "index": index,
            "id": r.ids[index],
        }
        if r.boxes is not None and r.box_labels is not None:
            item["boxes"] = torch.from_numpy(r.boxes[index])
            item["box_labels"] = torch.from_numpy(r.box_labels[index])
        return item


def collate_items(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items as a batch: ``labels`` ``(B, C)`` and ``index`` ``(B,)`` are stacked, all else is a list of B."""
    batch: dict[str, Any] = {name: [item[name] for item in items] for name in items[0]}
    return {**batch, "labels": torch.stack(batch["labels"]), "index": torch.tensor(batch["index"])}


def fingerprint_records(records: Records) -> str:
    """The sha256 over ids, sizes of the files, captions and labels; no image is decoded.

    Raises:
        FileNotFoundError: Some images are missing; names the first ones.
    """
    digest = hashlib.sha256(repr(records.class_names).encode())
    missing = []
    for row, path in enumerate(records.paths):
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            missing.append(str(path))
            continue
        digest.update(f"{records.ids[row]}\0{size}\0{records.captions[row]!r}".encode())
        digest.update(records.labels[row].tobytes())
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(records)} images that the annotations name are missing, first {missing[0]}. "
            "Unpack the images again, or take the missing ones out of the annotation files."
        )
    return digest.hexdigest()
