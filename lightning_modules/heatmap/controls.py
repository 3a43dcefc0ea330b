"""Detections that know nothing of the image: the floor under every number of a table.

A map of noise thresholded low gives boxes that cover the image, and a box that covers the image is right at a low IoU
wherever objects are large. What a method brings is its distance to these.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def whole_image_boxes(classes: Tensor, size: tuple[int, int], scores: Tensor) -> dict[str, Tensor]:
    """One box a class that covers the image.

    Args:
        classes: (n,) int64 labels to detect.
        size: Height and width of the picture in pixels.
        scores: (n,) of those classes in the image.

    Returns:
        ``boxes`` (n, 4) float32 xyxy pixels, ``scores`` (n,) float32 from high to low, and ``labels`` (n,) int64.

    >>> whole_image_boxes(torch.tensor([3]), (10, 20), torch.tensor([0.5]))["boxes"].tolist()
    [[0.0, 0.0, 20.0, 10.0]]
    """
    height, width = size
    return _same_box((0, 0, width, height), classes, scores)


def centre_boxes(classes: Tensor, size: tuple[int, int], scores: Tensor) -> dict[str, Tensor]:
    """One box a class of half the width and height in the middle of the image.

    Args:
        classes: (n,) int64 labels to detect.
        size: Height and width of the picture in pixels.
        scores: (n,) of those classes in the image.

    Returns:
        ``boxes`` (n, 4) float32 xyxy pixels, ``scores`` (n,) float32 from high to low, and ``labels`` (n,) int64.

    >>> centre_boxes(torch.tensor([3]), (10, 20), torch.tensor([0.5]))["boxes"].tolist()
    [[5.0, 2.5, 15.0, 7.5]]
    """
    height, width = size
    return _same_box((width / 4, height / 4, 3 * width / 4, 3 * height / 4), classes, scores)


def random_maps(shape: tuple[int, int, int], seed: int, index: int) -> Tensor:
    """Uniform noise in place of the similarities of an image.

    Args:
        shape: Classes, height and width of the token grid.
        seed: Of the run.
        index: Of the image in its dataset. The noise depends on it alone: any batch size and any number of processes
            give the same.

    Returns:
        (K, h, w) float32 from 0 to 1.

    >>> bool((random_maps((2, 7, 7), 0, 5) == random_maps((2, 7, 7), 0, 5)).all())
    True
    """
    return torch.from_numpy(np.random.default_rng([seed, index]).random(shape, dtype=np.float32))


def permuted_classes(num_classes: int, seed: int) -> Tensor:
    """A class name for each class that is never its own, all such permutations equally probable.

    Args:
        num_classes: At least 2.
        seed: Of the run.

    Returns:
        (num_classes,) int64: class k is searched with the name of class ``result[k]``.

    Raises:
        ValueError: Fewer than 2 classes.

    >>> permuted_classes(2, seed=0)
    tensor([1, 0])
    """
    if num_classes < 2:
        raise ValueError(f"There are {num_classes} classes; names can be exchanged among 2 or more only.")
    generator = np.random.default_rng(seed)
    while True:  # one permutation in e = 2.7 moves everything
        order = generator.permutation(num_classes)
        if (order != np.arange(num_classes)).all():
            return torch.from_numpy(order)


def _same_box(box: tuple[float, float, float, float], classes: Tensor, scores: Tensor) -> dict[str, Tensor]:
    order = scores.argsort(descending=True, stable=True)
    boxes = torch.tensor(box, dtype=torch.float32, device=classes.device).expand(len(classes), 4).clone()
    return {"boxes": boxes, "scores": scores[order].float(), "labels": classes[order]}
