"""The feature cache: one pass of the frozen encoder over a dataset, then memory-mapped files."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules import feature_store as store
from datamodules.base import BaseDataModule
from datamodules.feature_files import FeatureSplit
from datamodules.ranks import all_ranks, rank_and_world, share_of_rank, together

CHUNK_ITEMS = 1024  # what a kill can cost at most, per process
# In this order each part of the retrieval protocol is one run of rows, and so are development and test; the parts of a
# fold come after them and add nothing, so the cache is the same for every fold.
SPLITS = ("query", "development", "test", "train", "val", "database")


class Encoder(Protocol):
    """What the cache needs of a frozen image-text encoder; embeddings are not L2-normalised."""

    name: str
    embed_dim: int
    preprocessing: str

    def fingerprint(self) -> str:
        """The sha256 of the weights."""

    def preprocess(self, image: Image.Image) -> Tensor:
        """RGB image to ``(3, H, W)`` pixels."""

    def encode_image(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` pixels to ``(B, D)`` embeddings."""

    def encode_text(self, texts: list[str]) -> Tensor:
        """B texts to ``(B, D)`` embeddings."""


class _Items(Dataset[dict[str, Any] | str]):
    """The items of several datasets, each preprocessed; an item that fails becomes its message.

    A message and not an exception, because a loader wraps a worker's exception in its whole traceback.
    """

    def __init__(self, items: list[tuple[Dataset[Any], int]], encoder: Encoder) -> None:
        self.items = items
        self.encoder = encoder

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any] | str:
        dataset, position = self.items[index]
        try:
            item = dataset[position]
        except (ValueError, OSError) as error:
            return str(error)
        if not item["captions"]:
            return f"Item {item['id']} has no caption; each item needs at least one."
        return {
            "image": self.encoder.preprocess(item["image"]),
            "captions": item["captions"],
            "labels": item["labels"].numpy().astype(np.uint8),
        }


def _as_list(batch: list[Any]) -> list[Any]:
    return batch


class FeatureCache:
    """Image and text embeddings of a dataset, computed once and read from disk afterwards.

    The cache holds every item of all parts once, float16, not normalised, all captions (an item with fewer captions
    than another repeats its own in turn). Its folder is named after the dataset, the encoder and a hash of everything
    that the features depend on: ids, file sizes, captions, labels, weights, preprocessing. A cache of anything else is
    never used, and a warning says so; a damaged one (each open compares sizes and sha256) is made anew, with a warning.
    Other splits of the same items need no new cache.

    An interrupted build goes on where it stopped, on any number of processes. Runs side by side that need
    the same cache wait for the one that makes it. In a process group every process must call ``build`` or ``open``:
    each encodes its own part. All processes must see the same ``root``.

    Args:
        data: Where the items come from; its ``batch_size`` and ``num_workers`` are used for encoding.
        encoder: The frozen towers.
        root: Folder of the caches.
    """

    def __init__(self, data: BaseDataModule, encoder: Encoder, root: str = "cache") -> None:
        self.data = data
        self.encoder = encoder
        self.root = Path(root).expanduser()
        self._ready = False
        self._identity: dict[str, Any] | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the labels."""
        return list(self.data.class_names)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the features depend on."""
        if self._identity is None:
            with torch.random.fork_rng(devices=[]):  # a model draws its first weights before it loads the real ones
                self._identity = {
                    "format": store.FORMAT,
                    "backbone": self.encoder.name,
                    "weights": self.encoder.fingerprint(),
                    "preprocessing": self.encoder.preprocessing,
                    "dataset": self.data.fingerprint(),
                    "dtype": store.DTYPE.name,
                }
        return self._identity

    @property
    def path(self) -> Path:
        """The folder of this cache."""
        return self.root / f"{self._prefix}{store.content_hash(self.identity)[:12]}"

    @property
    def _prefix(self) -> str:
        words = f"{type(self.data).__name__}-{self.encoder.name}"
        return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") + "-"

    def build(self) -> None:
        """Make the cache unless a whole one is there; every process of a group must call this.

        Raises:
            ValueError: An image cannot be decoded (named), an item has no caption, or an embedding is not finite.
            OSError: The disk is full; finished parts and earlier caches stay.
        """
        if self._ready:
            return
        rank, _ = rank_and_world()
        with store.locked(self.path) if rank == 0 else contextlib.nullcontext():
            # Rank 0 judges for all: a file may change between two looks, and all must go the same way.
            if not all_ranks(rank == 0 and self._usable())[0]:
                with torch.random.fork_rng(devices=[]):  # else a run that fills the cache would differ from the next
                    self._encode_missing()
        self._ready = True

    def open(self, split: str) -> FeatureSplit:
        """The features of a part, memory-mapped where its rows stand together; builds the cache if need be.

        Args:
            split: A part of the dataset's protocol, as ``train``, ``query`` or ``database``.

        Returns:
            Image ``(N, D)`` and text ``(N, K, D)`` float16, labels ``(N, C)`` float32, ids.

        Raises:
            ValueError: There is no such part.
        """
        if split not in self.data.splits:
            raise ValueError(f"There is no split '{split}'; known: {', '.join(self.data.splits)}.")
        self.build()
        image, text, labels, names = store.open_arrays(self.path)
        row = {name: i for i, name in enumerate(names)}
        ids = list(self.data.splits[split])
        rows = np.array([row[name] for name in ids], dtype=np.int64)
        run = len(rows) > 0 and bool((np.diff(rows) == 1).all())
        where = slice(int(rows[0]), int(rows[-1]) + 1) if run else rows
        return FeatureSplit(image[where], text[where], labels[where].astype(np.float32), ids)

    def examples(self, split: str, rows: Sequence[int]) -> list[tuple[Image.Image, str]]:
        """Picture and first caption of some items of a part, for people to look at.

        Args:
            split: A part of the dataset's protocol.
            rows: Positions in the part.
        """
        dataset = self.data.dataset(split)
        items = [dataset[row] for row in rows]
        return [(item["image"], item["captions"][0]) for item in items]

    def _usable(self) -> bool:
        """Whether a whole cache is there; warns about a damaged one and about those of other things."""
        if self.path.exists():
            try:
                store.check_whole(self.path, self.identity)
                return True
            except store.DamagedCache as damage:
                warnings.warn(f"Feature cache {self.path} is damaged: {damage}. It is made anew.", stacklevel=4)
                return False
        others = [p.name for p in self.root.glob(f"{self._prefix}*") if (p / "manifest.json").is_file()]
        if others:
            warnings.warn(
                f"Feature cache {', '.join(sorted(others))} in {self.root} was made from other data, weights or "
                f"preprocessing and is not used; {self.path.name} is made now. Delete what is no longer needed.",
                stacklevel=4,
            )
        return False

    def _items(self) -> tuple[list[str], list[tuple[Dataset[Any], int]]]:
        """Every item of the parts once: ids, and where to find each."""
        found: dict[str, tuple[Dataset[Any], int]] = {}
        splits = self.data.splits
        for split in (name for name in SPLITS if name in splits):
            dataset = self.data.dataset(split)
            for position, name in enumerate(splits[split]):
                found.setdefault(name, (dataset, position))
        if not found:
            raise ValueError(f"{type(self.data).__name__} has no items to encode.")
        return list(found), list(found.values())

    def _encode_missing(self) -> None:
        """Encode what is not there yet, each process its part; then rank 0 puts the cache together."""
        rank, world = rank_and_world()
        partial = self.path.with_name(f"{self.path.name}.partial")
        ids, items = self._items()
        spans = [range(i, min(i + CHUNK_ITEMS, len(ids))) for i in range(0, len(ids), CHUNK_ITEMS)]
        sizes = [len(span) for span in spans]
        missing: list[int] = []

        def prepare() -> None:
            plan = {"identity": self.identity, "ids": store.content_hash(ids), "chunk": CHUNK_ITEMS}
            store.start_partial(partial, {**plan, "batch": self.data.batch_size})
            missing.extend(store.missing_chunks(partial, sizes))
            count = sum(sizes[n] for n in missing)
            store.require_space(partial, count * 2 * self.encoder.embed_dim * store.DTYPE.itemsize)

        def encode() -> None:
            mine = share_of_rank(missing, rank, world)
            for number, chunk in self._chunks([spans[n] for n in mine], mine, items):
                needed = sum(array.nbytes for array in chunk.values())
                with store.space_errors(partial, needed):
                    store.write_chunk(partial, number, chunk)

        together(prepare, only_first=True)
        missing[:] = all_ranks(missing)[0]
        together(encode)
        together(lambda: store.finish(partial, self.path, sizes, ids, self.identity), only_first=True)

    def _chunks(
        self, spans: list[range], numbers: list[int], items: list[tuple[Dataset[Any], int]]
    ) -> Iterator[tuple[int, store.Chunk]]:
        """Encode chunk after chunk; a batch never crosses chunks, so that any sharding gives the same numbers."""
        from rich.console import Console
        from rich.progress import Progress

        size = self.data.batch_size
        batches = [list(span[i : i + size]) for span in spans for i in range(0, len(span), size)]
        ends = {span[-1]: number for span, number in zip(spans, numbers, strict=True)}
        loader = DataLoader(
            _Items(items, self.encoder),
            batch_sampler=batches,
            num_workers=self.data.num_workers if batches else 0,
            collate_fn=_as_list,
        )
        bar = Progress(console=Console(stderr=True), disable=rank_and_world()[0] != 0)
        title = f"Encoding with {self.encoder.name}"
        parts: list[store.Chunk] = []
        with bar:  # ends with the error that ends the work; else it would go on drawing itself
            for batch, loaded in bar.track(zip(batches, loader, strict=True), len(batches), description=title):
                if message := next((item for item in loaded if isinstance(item, str)), None):
                    raise ValueError(message)
                parts.append(self._encode(loaded))
                if batch[-1] in ends:
                    yield ends[batch[-1]], {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
                    parts = []

    def _encode(self, loaded: list[dict[str, Any]]) -> store.Chunk:
        """The chunk of one batch."""
        captions = [caption for item in loaded for caption in item["captions"]]
        size = self.data.batch_size
        image = self.encoder.encode_image(torch.stack([item["image"] for item in loaded]))
        text = torch.cat([self.encoder.encode_text(captions[i : i + size]) for i in range(0, len(captions), size)])
        with np.errstate(over="ignore"):  # what does not fit becomes infinite and is refused below
            chunk = {"image": image.cpu().numpy().astype(store.DTYPE), "text": text.cpu().numpy().astype(store.DTYPE)}
        if not all(np.isfinite(array).all() for array in chunk.values()):
            raise ValueError(
                f"{self.encoder.name} gives embeddings that are not finite numbers in {store.DTYPE.name}. Check its "
                "weights, or use precision: 32-true."
            )
        counts = np.array([len(item["captions"]) for item in loaded], dtype=np.int64)
        return {**chunk, "counts": counts, "labels": np.stack([item["labels"] for item in loaded])}
