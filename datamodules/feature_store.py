"""The files of a feature cache: chunks while it is built, memory-mapped arrays and a manifest when it is whole.

A cache under construction lies in ``<name>.partial``: ``plan.json`` and one ``.npz`` file a finished chunk, each put
in place by a rename, so that whatever stands there is complete. The whole cache is put together beside the chunks,
its manifest last, and then renamed to ``<name>``: a reader sees no cache or a whole one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.splits import write_json

DTYPE = np.dtype(np.float16)
FORMAT = 1  # raise it when the meaning of a file changes: caches of another format are then made anew
MARGIN = 16 * 2**20  # bytes of disk to leave free
Chunk = dict[str, np.ndarray]  # image (n, D), text (sum of counts, D), counts (n,), labels (n, C)


class DamagedCache(Exception):
    """The cache is not what its manifest says."""


def content_hash(content: Any) -> str:
    """The sha256 of anything that JSON can hold.

    Example:
        >>> content_hash({"b": 1, "a": 2}) == content_hash({"a": 2, "b": 1})
        True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def pad_captions(text: np.ndarray, counts: np.ndarray, width: int) -> np.ndarray:
    """Give each item the same number of captions, by repeating its own in turn.

    Args:
        text: All captions' embeddings one below the other, ``(sum of counts, D)``.
        counts: Number of captions of each item, ``(N,)``, each at least 1.
        width: Captions K that each item gets; at least the largest count.

    Returns:
        ``(N, K, D)``; caption k of an item with c captions is its caption ``k % c``, so caption 0 is caption 0.

    Example:
        >>> pad_captions(np.array([[1.0], [2.0], [3.0]]), np.array([1, 2]), 3)[:, :, 0].tolist()
        [[1.0, 1.0, 1.0], [2.0, 3.0, 2.0]]
    """
    first = np.cumsum(counts) - counts  # (N,)
    return text[first[:, None] + np.arange(width)[None, :] % counts[:, None]]  # (N, K, D)


def require_space(folder: Path, needed: int) -> None:
    """Refuse to start writing what the disk cannot hold.

    Raises:
        OSError: ``ENOSPC``, with the folder and the bytes.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + MARGIN:
        raise OSError(errno.ENOSPC, _full(folder, needed, free))


@contextlib.contextmanager
def space_errors(folder: Path, needed: int) -> Iterator[None]:
    """Turn the disk's running full inside this context into an error that says where and how much was needed."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(errno.ENOSPC, _full(folder, needed, shutil.disk_usage(folder).free)) from error


def _full(folder: Path, needed: int, free: int) -> str:
    return (
        f"The disk of {folder} is full: {needed:,} bytes are needed for the features and {free:,} are free. Free some "
        "space or give the cache another root; finished parts and earlier caches stay, and the next run goes on there"
    )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other runs of this machine, and of those that share the disk, from making the same cache at the same time.

    The lock dies with its process. Where no lock file can be written, as beside a cache on a read-only disk, there is
    nobody to keep out.

    Args:
        path: Folder of the cache; the lock file stands beside it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Feature cache {path} is being made by another run; waiting for it.", file=sys.stderr)
        lock.acquire()
    except OSError:
        pass
    try:
        yield
    finally:
        lock.release()


def start_partial(partial: Path, plan: dict[str, Any]) -> None:
    """Make the folder of the chunks, or keep it if it was begun with the same plan."""
    file = partial / "plan.json"
    with contextlib.suppress(OSError, ValueError):
        if json.loads(file.read_text()) == plan:
            return
    shutil.rmtree(partial, ignore_errors=True)
    write_json(file, plan)


def chunk_file(partial: Path, number: int) -> Path:
    """The file of a chunk."""
    return partial / f"chunk-{number:06d}.npz"


def write_chunk(partial: Path, number: int, chunk: Chunk) -> None:
    """Write a chunk so that its file is either absent or whole."""
    final = chunk_file(partial, number)
    draft = final.with_suffix(f".{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            np.savez(file, **chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, final)
    finally:
        draft.unlink(missing_ok=True)


def read_chunk(partial: Path, number: int) -> Chunk:
    """Read a chunk; the archive's checksums are compared on the way."""
    with np.load(chunk_file(partial, number), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ("image", "text", "counts", "labels")}


def missing_chunks(partial: Path, sizes: list[int]) -> list[int]:
    """The chunks still to be made; a damaged one is deleted and counted as missing.

    Args:
        partial: Folder of the chunks.
        sizes: Number of items of each chunk.
    """
    missing = []
    for number, size in enumerate(sizes):
        try:
            if len(read_chunk(partial, number)["image"]) == size:
                continue
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            chunk_file(partial, number).unlink(missing_ok=True)
        missing.append(number)
    return missing


def write_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterable[np.ndarray]) -> None:
    """Write an array block by block; plain writes, because a full disk kills a process that writes to a memory map."""
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype=dtype).data)
        file.flush()
        os.fsync(file.fileno())


def finish(partial: Path, final: Path, sizes: list[int], ids: list[str], identity: dict[str, Any]) -> None:
    """Put the chunks together and move the whole cache into its place.

    Args:
        partial: Folder of the chunks, all there.
        final: Folder of the cache; a damaged one is replaced.
        sizes: Number of items of each chunk.
        ids: Names of the items, in order.
        identity: What the features were made from.
    """
    whole = partial / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    numbers = range(len(sizes))
    width = max(int(read_chunk(partial, n)["counts"].max()) for n in numbers)
    first = read_chunk(partial, 0)
    n, dim = sum(sizes), first["image"].shape[1]
    text_dim, classes = first["text"].shape[1], first["labels"].shape[1]
    needed = n * (dim + width * text_dim) * DTYPE.itemsize + n * classes
    arrays: dict[str, tuple[tuple[int, ...], np.dtype, Callable[[Chunk], np.ndarray]]] = {
        "image.npy": ((n, dim), DTYPE, lambda c: c["image"]),
        "text.npy": ((n, width, text_dim), DTYPE, lambda c: pad_captions(c["text"], c["counts"], width)),
        "labels.npy": ((n, classes), np.dtype(np.uint8), lambda c: c["labels"]),
    }
    require_space(partial, needed)
    with space_errors(partial, needed):
        for name, (shape, dtype, part) in arrays.items():
            write_npy(whole / name, shape, dtype, (part(read_chunk(partial, number)) for number in numbers))
        write_json(whole / "ids.json", ids)
        files = {name: _describe(whole / name) for name in (*arrays, "ids.json")}
        shapes = {name: list(shape) for name, (shape, _, _) in arrays.items()}
        manifest = {"identity": identity, "items": n, "captions": width, "files": files, "shapes": shapes}
        write_json(whole / "manifest.json", {**manifest, "sha256": content_hash(manifest)})
    old = final.with_name(f"{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(whole, final)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def check_whole(final: Path, identity: dict[str, Any]) -> None:
    """Compare every file with the manifest: size, sha256, shape. About a second a gigabyte.

    Raises:
        DamagedCache: Something differs; says what.
    """
    try:
        manifest = json.loads((final / "manifest.json").read_text())
        claimed = manifest.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedCache(f"manifest.json cannot be read ({error})") from error
    if content_hash(manifest) != claimed:
        raise DamagedCache("manifest.json was changed")
    if manifest["identity"] != identity:
        raise DamagedCache("manifest.json tells of other data, weights or preprocessing")
    for name, entry in manifest["files"].items():
        path = final / name
        if not path.is_file():
            raise DamagedCache(f"{name} is missing")
        if path.stat().st_size != entry["bytes"]:
            raise DamagedCache(f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}")
        if _describe(path) != entry:
            raise DamagedCache(f"the sha256 of {name} differs")
    for name, shape in manifest["shapes"].items():
        if list(np.load(final / name, mmap_mode="r").shape) != shape:
            raise DamagedCache(f"{name} has another shape")


def open_arrays(final: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Images ``(N, D)`` and texts ``(N, K, D)``, memory-mapped; labels ``(N, C)`` and ids."""
    image, text = (np.load(final / name, mmap_mode="r") for name in ("image.npy", "text.npy"))
    return image, text, np.load(final / "labels.npy"), json.loads((final / "ids.json").read_text())
