"""The generated world in the segmentation layout of PASCAL VOC, with its true objects as region masks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.scenes.datamodule import make_scene
from datamodules.scenes.layouts import JPEG_QUALITY, in_processes

FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationObject", "RegionMasks")


def voc_palette() -> NDArray[np.uint8]:
    """VOC's 256 colours, ``(256, 3)``: the bits of an index in turn become red, green and blue, highest first.

    Example:
        >>> voc_palette()[[0, 1, 2, 8, 15, 255]].tolist()
        [[0, 0, 0], [128, 0, 0], [0, 128, 0], [64, 0, 0], [192, 128, 128], [224, 224, 192]]
    """
    index = np.arange(256)
    bits = [sum((index >> (3 * step + channel) & 1) << (7 - step) for step in range(3)) for channel in range(3)]
    return np.stack(bits, axis=1).astype(np.uint8)


def save_indices(path: Path, indices: NDArray[np.uint8]) -> None:
    """Write a label map ``(H, W)`` as a PNG with VOC's palette."""
    image = Image.fromarray(indices)
    image.putpalette(voc_palette().tobytes())
    image.save(path)


def _voc_image(number: int, root: Path, size: int, seed: int) -> None:
    scene, _ = make_scene(seed, "world", number, size)
    name = f"{number:06d}"
    Image.fromarray(scene.image).save(root / "JPEGImages" / f"{name}.jpg", quality=JPEG_QUALITY)
    save_indices(root / "SegmentationClass" / f"{name}.png", scene.semantic)
    save_indices(root / "SegmentationObject" / f"{name}.png", scene.instances)
    np.savez_compressed(root / "RegionMasks" / f"{name}.npz", instance_mask=scene.instances.astype(np.int32))


def write_voc(root: str, num_images: int, size: int = 96, seed: int = 0) -> None:
    """Write scenes as VOC's segmentation part: 80 % train and 20 % val.

    ``SegmentationClass`` holds 0 for the ground and 1 to 12 for the classes, ``SegmentationObject`` the objects, 0 for
    the ground; both are palette PNG. ``RegionMasks/<id>.npz`` holds the objects again as ``instance_mask``, the form in
    which CorrCLIP's authors publish masks. There is no ignored border around objects, other than in VOC.

    Args:
        root: Folder that receives the data set.
        num_images: Number of images, at least 2.
        size: Side of an image in pixels.
        seed: Seed of the world.

    Raises:
        ValueError: Fewer than 2 images.
    """
    if num_images < 2:
        raise ValueError(f"num_images is {num_images}; train and val need one each.")
    base = Path(root)
    lists = base / "ImageSets" / "Segmentation"
    for folder in (lists, *(base / name for name in FOLDERS)):
        folder.mkdir(parents=True, exist_ok=True)
    in_processes(partial(_voc_image, root=base, size=size, seed=seed), range(1, num_images + 1), "Rendering")
    names = [f"{number:06d}" for number in range(1, num_images + 1)]
    num_train = num_images - max(num_images // 5, 1)
    for part, members in {"train": names[:num_train], "val": names[num_train:], "trainval": names}.items():
        (lists / f"{part}.txt").write_text("\n".join(members) + "\n")
