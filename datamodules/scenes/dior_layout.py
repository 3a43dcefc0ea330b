"""The generated world in the layout of DIOR, with horizontal and oriented boxes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.scenes.datamodule import make_scene
from datamodules.scenes.layouts import JPEG_QUALITY, in_processes
from datamodules.scenes.render import Scene

HORIZONTAL, ORIENTED = "Horizontal Bounding Boxes", "Oriented Bounding Boxes"


def extreme_corners(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The four corners of an object's mask: its own if it is a rectangle, turned or not, else its extreme points.

    Args:
        mask: ``(H, W)``, not empty.

    Returns:
        ``(4, 2)`` corners ``xy`` clockwise from the top; the box around them is the box of the mask.

    Example:
        >>> extreme_corners(np.array([[0, 1, 0], [1, 1, 1]], bool)).tolist()
        [[1, 0], [3, 1], [3, 2], [0, 2]]
    """
    ys, xs = np.nonzero(mask)
    left, top, right, bottom = xs.min(), ys.min(), xs.max(), ys.max()
    corners = [
        (xs[ys == top].min(), top),
        (right + 1, ys[xs == right].min()),
        (xs[ys == bottom].max() + 1, bottom + 1),
        (left, ys[xs == left].max() + 1),
    ]
    return np.array(corners, np.int64)


def _annotation(name: str, scene: Scene, oriented: bool) -> ElementTree.ElementTree:
    """The XML of one scene."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{name}.jpg"
    source = ElementTree.SubElement(root, "source")
    ElementTree.SubElement(source, "database").text = "generated scenes in DIOR's layout"
    size = ElementTree.SubElement(root, "size")
    for tag, value in zip(("height", "width", "depth"), scene.image.shape, strict=True):
        ElementTree.SubElement(size, tag).text = str(value)
    corner_names = ("left_top", "right_top", "right_bottom", "left_bottom")
    for number, item in enumerate(scene.objects, 1):
        entry = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(entry, "name").text = item.name
        if oriented:
            corners = extreme_corners(scene.instances == number)
            numbers = {
                f"{a}_{c}": v
                for c, xy in zip(corner_names, corners, strict=True)
                for a, v in zip("xy", xy, strict=True)
            }
        else:
            numbers = dict(zip(("xmin", "ymin", "xmax", "ymax"), item.box, strict=True))
        box = ElementTree.SubElement(entry, "robndbox" if oriented else "bndbox")
        for tag, value in numbers.items():
            ElementTree.SubElement(box, tag).text = str(value)
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def _dior_image(number: int, root: Path, num_trainval: int, size: int, seed: int) -> None:
    scene, _ = make_scene(seed, "world", number, size)
    name = f"{number:05d}"
    folder = root / ("JPEGImages-trainval" if number <= num_trainval else "JPEGImages-test")
    Image.fromarray(scene.image).save(folder / f"{name}.jpg", quality=JPEG_QUALITY)
    for kind in (HORIZONTAL, ORIENTED):
        _annotation(name, scene, kind == ORIENTED).write(root / "Annotations" / kind / f"{name}.xml", encoding="utf-8")


def write_dior(root: str, num_images: int, size: int = 96, seed: int = 0) -> None:
    """Write scenes as DIOR: 60 % train, 20 % val and 20 % test, with both kinds of annotations.

    Args:
        root: Folder that receives the data set.
        num_images: Number of images, at least 3.
        size: Side of an image in pixels.
        seed: Seed of the world.
    """
    base, num_test = Path(root), max(num_images // 5, 1)
    if num_images < 3:
        raise ValueError(f"num_images is {num_images}; train, val and test need one each.")
    folders = (
        "JPEGImages-trainval",
        "JPEGImages-test",
        "ImageSets/Main",
        *(f"Annotations/{k}" for k in (HORIZONTAL, ORIENTED)),
    )
    for folder in folders:
        (base / folder).mkdir(parents=True, exist_ok=True)
    num_trainval = num_images - num_test
    task = partial(_dior_image, root=base, num_trainval=num_trainval, size=size, seed=seed)
    in_processes(task, range(1, num_images + 1), "Rendering")
    names = [f"{number:05d}" for number in range(1, num_images + 1)]
    num_train = num_trainval - num_test
    lists = {
        "train": names[:num_train],
        "val": names[num_train:num_trainval],
        "trainval": names[:num_trainval],
        "test": names[num_trainval:],
    }
    for part, members in lists.items():
        (base / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(members) + "\n")
