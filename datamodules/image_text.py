"""What the image-text datasets share: items, decoding, the protocol's parts, the fingerprint."""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from datamodules.base import BaseDataModule
from datamodules.splits import Splits, draw_splits, hash_splits, read_splits, save_splits

SPLITS = ("train", "query", "database")


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


class ImageTextData(BaseDataModule):
    """An image-text dataset on disk, in a train / query / database protocol.

    The parts are drawn by a hash of the ids (the same on every machine), saved to ``split_dir`` as JSON with their
    sha256, and read from there afterwards. A subclass reads its layout in ``read``.

    Args:
        root: Folder of the dataset.
        num_query: Size of the query part.
        num_train: Size of the training part.
        split_seed: Seed of the parts.
        split_dir: Where the parts are saved.
        skip_corrupt: Leave out images that cannot be decoded (all are read once, the count is printed) instead of
            stopping at the first.
        **kwargs: ``batch_size``, ``num_workers`` and the other arguments of ``BaseDataModule``.
    """

    def __init__(
        self,
        root: str,
        num_query: int,
        num_train: int,
        split_seed: int = 0,
        split_dir: str = "cache/splits",
        skip_corrupt: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.num_query = num_query
        self.num_train = num_train
        self.split_seed = split_seed
        self.split_dir = Path(split_dir)
        self.skip_corrupt = skip_corrupt

    @abstractmethod
    def read(self) -> Records:
        """Read the layout: all items that the protocol counts, decoded or not."""

    def draw(self, records: Records) -> Splits:
        """Draw the parts."""
        return draw_splits(records.ids, self.num_query, self.num_train, self.split_seed)

    @property
    def splits_file(self) -> Path:
        """The file of the saved parts; its name changes with the items and the arguments."""
        kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(self).__name__).lower()
        corrupt = "-skipped" if self.skip_corrupt else ""
        numbers = f"query{self.num_query}-train{self.num_train}-seed{self.split_seed}{corrupt}"
        return self.split_dir / f"{kind}-{numbers}-{fingerprint_records(self._all)[:12]}.json"

    @cached_property
    def _all(self) -> Records:
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"Dataset folder {self.root} does not exist. Set root to the folder of the dataset."
            )
        return self.read()

    @cached_property
    def _saved(self) -> dict[str, Any]:
        """The parts and the skipped images: read, or drawn and saved."""
        path = self.splits_file
        if path.is_file():
            return read_splits(path)
        skipped = find_corrupt(self._all.paths) if self.skip_corrupt else []
        kept = self._all.take(sorted(set(range(len(self._all))) - set(skipped)))
        splits = self.draw(kept)
        save_splits(
            path, splits, seed=self.split_seed, root=str(self.root), skipped=[self._all.ids[i] for i in skipped]
        )
        return read_splits(path)

    @cached_property
    def records(self) -> Records:
        """All items of the protocol, less the skipped ones."""
        if not self.skip_corrupt:
            return self._all
        skipped = set(self._saved["skipped"])
        print(f"{self.root}: {len(skipped)} corrupt image(s) left out of {len(self._all)}.")
        return self._all.take([i for i, name in enumerate(self._all.ids) if name not in skipped])

    @property
    def class_names(self) -> list[str]:
        """Names of the labels, in their order."""
        return self._all.class_names

    @property
    def splits(self) -> Splits:
        """The ids of each part."""
        return self._saved["splits"]

    @property
    def splits_hash(self) -> str:
        """The sha256 of the parts."""
        return hash_splits(self.splits)

    def dataset(self, split: str) -> ImageTextDataset:
        """The items of ``train``, ``query`` or ``database``.

        Raises:
            ValueError: There is no such part.
        """
        if split not in self.splits:
            raise ValueError(f"There is no split '{split}'; known: {', '.join(self.splits)}.")
        rows = {name: row for row, name in enumerate(self.records.ids)}
        return ImageTextDataset(self.records.take([rows[name] for name in self.splits[split]]))

    def fingerprint(self) -> str:
        """The sha256 over ids, file sizes, captions and labels; another fingerprint means other features."""
        return fingerprint_records(self.records)


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


def read_text(path: Path) -> str:
    """The text of an annotation file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8 text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Annotation file {path} does not exist. Unpack the annotations there.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"Annotation file {path} is not text ({error.reason}). Unpack it again.") from error
