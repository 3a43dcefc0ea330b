"""Region masks on disk: made once for a picture, found again by its bytes."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.feature_store import content_hash
from datamodules.pictures import Picture, is_turned, read_bytes, read_picture
from datamodules.ranks import all_ranks, rank_and_world, share_of_rank, together

FORMAT = 2  # raise it when the meaning of a file changes: masks of another format are then made anew
LARGEST_ID = 65534  # of two bytes a pixel; 65535 is what pads a window


class MaskSource(Protocol):
    """What the cache needs of a mask source; see ``lightning_modules.backbones.masks``."""

    @property
    def name(self) -> str:
        """The source in a few words."""

    @property
    def in_processes(self) -> bool:
        """Whether several processes may make masks at once, as there is neither a model nor a GPU."""

    @property
    def by_name(self) -> bool:
        """Whether masks are files, found by the name of the picture's file."""

    def fingerprint(self) -> str | None:
        """Hash of all that masks depend on beside the picture; None where a cache saves nothing."""

    def masks(self, image: Tensor, stem: str | None = None) -> Tensor:
        """Id map ``(H, W)`` of a picture ``(3, H, W)`` uint8; ``stem`` is its file's name without ending."""


def write_masks(path: Path, ids: Tensor, where: str = "") -> None:
    """Write an id map so that its file is either absent or whole.

    Args:
        path: The ``.npz`` file.
        ids: ``(H, W)`` of any integer type.
        where: Name of the picture, for messages.

    Raises:
        ValueError: Negative ids, or ids above 65534.
    """
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high > LARGEST_ID:
        raise ValueError(
            f"The masks of {where or path} have ids from {low} to {high}; the cache holds 0 to {LARGEST_ID}. Take a "
            "source that makes fewer regions (felzenszwalb: a larger scale or min_size)."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            np.savez_compressed(file, instance_mask=ids.cpu().numpy().astype(np.uint16))  # the authors' own name
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_masks(path: Path, size: tuple[int, int] | None = None) -> Tensor | None:
    """An id map from the cache; None where there is none, or a broken one, which a printed line says.

    Args:
        path: The ``.npz`` file.
        size: H and W of its picture, where they are known; a map of another size is broken.

    Returns:
        ``(H, W)`` int64.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:  # compares the archive's checksum
            ids = arrays["instance_mask"]
        if ids.dtype != np.uint16 or ids.ndim != 2 or not ids.size or size not in (None, ids.shape):
            raise ValueError(f"it holds {ids.dtype} of the shape {ids.shape}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        print(f"Cached masks {path} are broken ({error}); they are made anew.")
        return None
    return torch.from_numpy(ids.astype(np.int64))


def check_stems(paths: Sequence[Path], source: str) -> None:
    """Refuse pictures that would share a file of masks, as it is found by their stem.

    Args:
        paths: The pictures of a set.
        source: Name of the mask source.

    Raises:
        ValueError: Two have one stem.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        if (first := seen.setdefault(path.stem, path)) != path:
            raise ValueError(
                f"{first} and {path} would share one file of masks, {path.stem} in '{source}'. Rename one of them and "
                "its masks, or take a source that makes masks."
            )


def cache_folder(source: MaskSource, cache_dir: str | Path) -> Path | None:
    """The folder of the masks of a source with its settings; None for a source that is not cached."""
    fingerprint = source.fingerprint()
    if fingerprint is None:
        return None
    slug = re.sub(r"[^\w.-]+", "-", source.name).strip("-")
    key = content_hash({"format": FORMAT, "source": fingerprint})
    return Path(cache_dir).expanduser() / f"{slug}-{key[:16]}"


class MaskCache:
    """A mask source that keeps what it makes; a picture is known by the bytes of its file.

    It goes to loader processes as it is: it holds no weights.

    Args:
        source: The source; one without a fingerprint (files, none) is asked every time.
        cache_dir: Folder of all caches; each source with its settings and weights gets its own folder there.
    """

    def __init__(self, source: MaskSource, cache_dir: str | Path) -> None:
        if Path(cache_dir).expanduser().is_file():
            raise ValueError(f"mask_cache {cache_dir} is a file. Name a folder.")
        self.source = source
        self.folder = cache_folder(source, cache_dir)

    def file(self, data: bytes, turned: bool) -> Path | None:
        """Where the masks of a picture lie, by the bytes of its file and whether its EXIF tag has turned it."""
        if self.folder is None:
            return None
        digest = hashlib.sha256(data).hexdigest()
        # a hundred thousand files in one folder are slow to list
        return self.folder / digest[:2] / f"{digest}{'-upright' if turned else ''}.npz"

    def __call__(self, picture: Picture) -> Tensor:
        """The regions of a picture, from the cache or made now.

        Returns:
            Id map ``(H, W)`` int64, in the picture's own size; 0 = in no region.

        Raises:
            ValueError: The source gives a map of another size, or ids that are negative or above 65534; or it reads
                files and the picture was turned to the same size, which leaves open whether its masks were.
        """
        if picture.turned and self.source.by_name and picture.stored_size == picture.image.size:
            raise ValueError(
                f"The EXIF orientation turns the picture {picture.stem}, and a file of '{self.source.name}' does not "
                "say whether its masks are turned too. Store the picture upright, without an orientation."
            )
        path, size = self.file(picture.data, picture.turned), (picture.image.height, picture.image.width)
        found = None if path is None else read_masks(path, size)
        if found is None:
            found = self.source.masks(picture.pixels, picture.stem)
            if tuple(found.shape) != size:
                raise ValueError(
                    f"The source '{self.source.name}' gave masks of the shape {tuple(found.shape)} for {picture.stem}, "
                    f"whose height and width are {size}. It must keep the size of the picture."
                )
            if path is not None:
                write_masks(path, found, str(picture.stem))
        return found

    def lacks(self, path: Path, upright: bool) -> bool:
        """Whether the masks of an image file have to be made; broken ones have, which a printed line says.

        Args:
            path: The image file.
            upright: Whether its EXIF tag turns it.
        """
        data = read_bytes(path)
        file = self.file(data, upright and is_turned(data, str(path)))
        if file is None or read_masks(file) is not None:
            return False
        file.unlink(missing_ok=True)  # if it was broken: said once
        return True

    def build(self, paths: Sequence[Path], upright: bool = False, workers: int = 0) -> int:
        """Make all masks that the cache lacks, in the main process of each rank; they share what there is to do.

        Loader processes could not: forked ones have no GPU, and others would load the model once each.

        Args:
            paths: The image files, the same list in every process.
            upright: Turn the pictures as their EXIF tags say.
            workers: Processes a rank that look for masks, and make them where the source allows it.

        Returns:
            Number of masks made, in all processes together.

        Raises:
            FileNotFoundError: There is no such picture.
            ValueError: A picture cannot be decoded, or has too many regions. Either in every process.
        """
        if self.folder is None:
            return 0
        rank, world = rank_and_world()
        lacking: list[int] = []

        def look() -> None:
            mine = share_of_rank(list(range(len(paths))), rank, world)
            found = _each(partial(self.lacks, upright=upright), [paths[number] for number in mine], workers)
            lacking.extend(number for number, lack in zip(mine, found, strict=True) if lack)

        def make() -> None:
            from rich.console import Console
            from rich.progress import Progress

            mine = [paths[number] for number in share_of_rank(missing, rank, world)]
            maker = copy.copy(self)
            maker.source = copy.copy(self.source)  # loads the model, which goes with it
            done = _each(partial(_make, maker, upright), mine, workers if self.source.in_processes else 0)
            title, quiet = f"Masks by {self.source.name}", rank > 0 or not mine
            with Progress(console=Console(stderr=True), disable=quiet) as bar:
                for _ in bar.track(done, len(mine), description=title):
                    pass

        together(look)
        missing = [number for part in all_ranks(lacking) for number in part]
        together(make)
        return len(missing)


def _make(cache: MaskCache, upright: bool, path: Path) -> None:
    cache(read_picture(path, upright))


class _Steps(Dataset[Any]):
    """What ``step`` gives for each of ``items``, or the error that it met."""

    def __init__(self, step: Callable[[Path], Any], items: Sequence[Path]) -> None:
        self.step, self.items = step, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.step(self.items[index])
        except (FileNotFoundError, ValueError) as error:
            return error


def _each(step: Callable[[Path], Any], items: Sequence[Path], workers: int) -> Iterator[Any]:
    """What ``step`` gives for each item, in order, by loader processes; its first error is raised here, as it was."""
    own = torch.Generator()  # the loader draws a seed; from the run's, it would make a run that fills the cache differ
    for result in DataLoader(_Steps(step, items), batch_size=None, num_workers=workers if items else 0, generator=own):
        if isinstance(result, Exception):
            raise result
        yield result
