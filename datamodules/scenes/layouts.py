"""The generated world on disk, in the layouts of real data sets, so that the ordinary readers read it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.scenes.captions import scene_tags
from datamodules.scenes.datamodule import make_scene
from datamodules.scenes.render import Scene
from datamodules.scenes.sprites import CLASS_NAMES

JPEG_QUALITY = 92


def run_length_encoding(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths of a mask ``(H, W)``: columns one after another, zeros first.

    Example:
        >>> run_length_encoding(np.array([[0, 1], [1, 1]], bool))
        {'counts': [1, 3], 'size': [2, 2]}
    """
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"counts": [0, *counts] if flat[0] else counts, "size": list(mask.shape)}


def _annotations(scene: Scene) -> list[dict[str, Any]]:
    """COCO's object annotations of a scene, without the ids."""
    found = []
    for number, item in enumerate(scene.objects, 1):
        mask = scene.instances == number
        x_min, y_min, x_max, y_max = item.box
        found.append(
            {
                "category_id": item.category + 1,
                "bbox": [x_min, y_min, x_max - x_min, y_max - y_min],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": run_length_encoding(mask),
            }
        )
    return found


def _coco_image(number: int, folder: Path, size: int, seed: int) -> tuple[int, list[dict[str, Any]], list[str]]:
    scene, captions = make_scene(seed, "world", number, size)
    Image.fromarray(scene.image).save(folder / f"{number:012d}.jpg", quality=JPEG_QUALITY)
    return number, _annotations(scene), captions


def _mirflickr_image(number: int, root: Path, size: int, seed: int) -> tuple[int, list[int]]:
    scene, _ = make_scene(seed, "world", number, size)
    tags = scene_tags(np.random.default_rng([seed, number]), scene)
    Image.fromarray(scene.image).save(root / f"im{number}.jpg", quality=JPEG_QUALITY)
    (root / "meta" / "tags" / f"tags{number}.txt").write_text("\n".join(tags) + "\n")
    return number, [item.category for item in scene.objects]


def in_processes(task: Callable[[int], Any], numbers: Iterable[int], title: str) -> list[Any]:
    """Results of ``task`` for all numbers, in order, on all cores with a progress bar."""
    from rich.progress import track

    numbers = list(numbers)
    processes = min(len(os.sched_getaffinity(0)), 8) if hasattr(os, "sched_getaffinity") else 1
    with ProcessPoolExecutor(processes) as pool:
        done = pool.map(task, numbers, chunksize=32)
        return list(track(done, total=len(numbers), description=title))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))


def write_coco(root: str, num_train: int, num_val: int, size: int = 96, seed: int = 0) -> None:
    """Write scenes as COCO 2017: ``images/``, ``annotations/instances_*.json`` and ``captions_*.json``.

    Args:
        root: Folder that receives the data set.
        num_train: Images of ``train2017``.
        num_val: Images of ``val2017``.
        size: Side of an image in pixels.
        seed: Seed of the world.
    """
    annotations = Path(root) / "annotations"
    annotations.mkdir(parents=True, exist_ok=True)
    parts = {"train2017": range(1, num_train + 1), "val2017": range(num_train + 1, num_train + num_val + 1)}
    categories = [{"id": c + 1, "name": name, "supercategory": "object"} for c, name in enumerate(CLASS_NAMES)]
    for part, numbers in parts.items():
        folder = Path(root) / "images" / part
        folder.mkdir(parents=True, exist_ok=True)
        task = partial(_coco_image, folder=folder, size=size, seed=seed)
        rows = in_processes(task, numbers, f"Rendering {part}")
        images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": size, "height": size} for n, _, _ in rows]
        objects = [{"image_id": n, **item} for n, items, _ in rows for item in items]
        captions = [{"image_id": n, "caption": text} for n, _, texts in rows for text in texts]
        for name, items in (("instances", objects), ("captions", captions)):
            numbered = [{"id": i, **item} for i, item in enumerate(items, 1)]
            content = {"info": {"description": f"generated scenes, seed {seed}"}, "images": images}
            extra = {"categories": categories} if name == "instances" else {}
            _write_json(annotations / f"{name}_{part}.json", {**content, "annotations": numbered, **extra})


def write_mirflickr(root: str, num_images: int, size: int = 96, seed: int = 0) -> None:
    """Write scenes as MIRFlickr-25K: ``im1.jpg``, ``meta/tags/tags1.txt`` and ``annotations/<label>.txt``.

    Args:
        root: Folder that receives the data set.
        num_images: Number of images.
        size: Side of an image in pixels.
        seed: Seed of the world.
    """
    base = Path(root)
    for folder in (base / "meta" / "tags", base / "annotations"):
        folder.mkdir(parents=True, exist_ok=True)
    task = partial(_mirflickr_image, root=base, size=size, seed=seed)
    rows = in_processes(task, range(1, num_images + 1), "Rendering")
    for category, name in enumerate(CLASS_NAMES):
        holding = [str(number) for number, categories in rows if category in categories]
        (base / "annotations" / f"{name}.txt").write_text("\n".join(holding) + "\n")
