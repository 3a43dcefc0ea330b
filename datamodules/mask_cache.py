"""Region masks on disk: made once for a picture, found again by its bytes."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.feature_store import content_hash
from datamodules.ranks import all_ranks, rank_and_world, share_of_rank, together

FORMAT = 1  # raise it when the meaning of a file changes: masks of another format are then made anew
LARGEST_ID = 65535

Picture = str | Path | bytes
CachedMasks = Callable[..., Tensor]


class MaskSource(Protocol):
    """What the cache needs of a mask source; see ``lightning_modules.backbones.masks``."""

    @property
    def name(self) -> str:
        """The source in a few words."""

    def fingerprint(self) -> str | None:
        """Hash of all that masks depend on beside the picture; None where a cache saves nothing."""

    def masks(self, image: Tensor, stem: str | None = None) -> Tensor:
        """Id map ``(H, W)`` of a picture ``(3, H, W)`` uint8; ``stem`` is its file's name without ending."""


def decode_picture(data: bytes, where: str) -> Tensor:
    """The pixels of an image file, upright as its EXIF orientation says.

    Args:
        data: Bytes of the file.
        where: Its name, for messages.

    Returns:
        ``(3, H, W)`` uint8, RGB; 16 bits a channel are scaled to 8, transparency is left out.

    Raises:
        ValueError: It cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(data)) as stored:
            image = ImageOps.exif_transpose(stored)
            if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would cut them at 255
                image = Image.fromarray((np.asarray(image).astype(np.int64) // 257).clip(0, 255).astype(np.uint8))
            pixels = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"Image {where} cannot be decoded ({error}). Give another file.") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _read(picture: Picture) -> tuple[bytes, str, str | None]:
    """Bytes of a picture, its name for messages, and its stem."""
    if isinstance(picture, bytes):
        return picture, "in memory", None
    path = Path(picture)
    try:
        return path.read_bytes(), str(path), path.stem
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Image {path} does not exist. Check the path.") from error


def write_masks(path: Path, ids: Tensor, where: str = "") -> None:
    """Write an id map so that its file is either absent or whole.

    Args:
        path: The ``.npz`` file.
        ids: ``(H, W)`` of any integer type.
        where: Name of the picture, for messages.

    Raises:
        ValueError: Negative ids, or ids above 65535.
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


def read_masks(path: Path) -> Tensor | None:
    """An id map from the cache; None where there is none, or a broken one, which a printed line says.

    Returns:
        ``(H, W)`` int64.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:  # compares the archive's checksum
            ids = arrays["instance_mask"]
        if ids.dtype != np.uint16 or ids.ndim != 2 or not ids.size:
            raise ValueError(f"it holds {ids.dtype} of the shape {ids.shape}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        print(f"Cached masks {path} are broken ({error}); they are made anew.")
        return None
    return torch.from_numpy(ids.astype(np.int64))


def cache_folder(source: MaskSource, cache_dir: str | Path) -> Path | None:
    """The folder of the masks of a source with its settings; None for a source that is not cached."""
    fingerprint = source.fingerprint()
    if fingerprint is None:
        return None
    slug = re.sub(r"[^\w.-]+", "-", source.name).strip("-")
    key = content_hash({"format": FORMAT, "source": fingerprint})
    return Path(cache_dir).expanduser() / f"{slug}-{key[:16]}"


def _file(folder: Path, data: bytes) -> Path:
    digest = hashlib.sha256(data).hexdigest()
    return folder / digest[:2] / f"{digest}.npz"  # a hundred thousand files in one folder are slow to list


def cached_masks(source: MaskSource, cache_dir: str | Path) -> CachedMasks:
    """A mask source that keeps what it makes.

    Args:
        source: The source; one without a fingerprint (files, none) is asked every time.
        cache_dir: Folder of all caches; each source with its settings and weights gets its own folder there.

    Returns:
        ``masks(picture)``: the id map ``(H, W)`` int64 of a path or of an image file's bytes, upright as its EXIF
        orientation says. It raises FileNotFoundError and ValueError for a picture that is not there or cannot be
        decoded, and ValueError for ids above 65535.
    """
    folder = cache_folder(source, cache_dir)

    def masks(picture: Picture) -> Tensor:
        data, where, stem = _read(picture)
        path = None if folder is None else _file(folder, data)
        found = None if path is None else read_masks(path)
        if found is None:
            found = source.masks(decode_picture(data, where), stem)
            if path is not None:
                write_masks(path, found, where)
        return found

    return masks


def build_masks(
    paths: Sequence[str | Path], source: MaskSource, cache_dir: str | Path, progress: bool = True
) -> Path | None:
    """Make all masks that the cache lacks; several processes share the pictures.

    Args:
        paths: The image files, the same list in every process.
        source: The mask source.
        cache_dir: Folder of all caches, see ``cached_masks``.
        progress: Show a bar, on the first process.

    Returns:
        Folder of this source's masks; None for a source that is not cached: there is nothing to make.

    Raises:
        ValueError: A picture cannot be decoded, or has too many regions; in every process.
    """
    folder = cache_folder(source, cache_dir)
    if folder is None:
        print(f"The source '{source.name}' needs no cache: its masks are read where they lie.")
        return None
    from rich.progress import track

    rank, world = rank_and_world()
    mine = share_of_rank(list(range(len(paths))), rank, world)
    made = 0

    def work() -> None:
        nonlocal made
        for number in track(mine, description=f"Masks by {source.name}", disable=not progress or rank > 0):
            data, where, stem = _read(paths[number])
            path = _file(folder, data)
            if read_masks(path) is None:
                write_masks(path, source.masks(decode_picture(data, where), stem), where)
                made += 1

    together(work)
    counts = all_ranks(made)
    if rank == 0:
        print(f"{folder}: masks of {len(paths)} images, {sum(counts)} of them made now.")
    return folder
