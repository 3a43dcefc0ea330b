"""What trivial and perfect methods score: the majority class, and the true majority class of each region."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.segmentation_counts import ClassPixels, SegmentationCounts, segmentation_scores

MAX_ID = 2**16 - 1


def majority_class(counts: SegmentationCounts) -> dict[str, float]:
    """Scores of the floor that labels each pixel with the class that has most pixels in the targets.

    Args:
        counts: Of the images, by any method.

    Returns:
        Of ``segmentation_scores``.

    >>> from lightning_modules.metrics.segmentation import SegmentationScores
    >>> metric = SegmentationScores(num_classes=3)
    >>> metric.update(torch.tensor([[[2, 2, 2, 0]]]), torch.tensor([[[1, 1, 1, 0]]]), torch.tensor([0]))
    >>> majority_class(metric.collected()[0])["miou"]
    0.375
    """
    true = counts.classes().true
    both, predicted = np.zeros_like(true), np.zeros_like(true)
    most = int(true.argmax())
    both[most], predicted[most] = true[most], true.sum()
    return segmentation_scores(ClassPixels(both, true, predicted))


def oracle_map(instance_mask: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Label each region with its true majority class: what a mask source allows at best.

    The regions are all numbers in the mask, so the pixels that a source leaves unsegmented, which share one number, are
    one region too. A method that labels those one by one can score above this. So can, a little, one that gives a
    region to a class that is rare elsewhere, because a majority is best for pixel accuracy and not for mean IoU.

    Args:
        instance_mask: (H, W) integers, the region of each pixel, 0 to 65535.
        target: (H, W) classes from 0 and ``ignore_index``.
        num_classes: C.
        ignore_index: Label of pixels that have no vote.

    Returns:
        (H, W) int64 classes; the smallest of tied ones, and 0 in a region without a vote.

    Raises:
        ValueError: The two differ in size, or a number is out of range.

    >>> oracle_map(torch.tensor([[0, 0, 0, 5]]), torch.tensor([[2, 2, 1, 1]]), num_classes=3).tolist()
    [[2, 2, 2, 1]]
    """
    if instance_mask.ndim != 2 or instance_mask.shape != target.shape:
        raise ValueError(
            f"The mask is {tuple(instance_mask.shape)} and the target {tuple(target.shape)}; both must be (H, W) of "
            "one image. Make the masks of the picture in its own size."
        )
    regions, labels = instance_mask.long().flatten(), target.to(instance_mask.device).long().flatten()
    votes = labels != ignore_index
    for name, values, highest in (("mask", regions, MAX_ID), ("target", labels[votes], num_classes - 1)):
        low, high = (int(end) for end in values.aminmax()) if len(values) else (0, 0)
        if low < 0 or high > highest:
            raise ValueError(f"The {name} holds {low if low < 0 else high}; it must lie between 0 and {highest}.")
    region = (torch.bincount(regions) > 0).cumsum(0)[regions] - 1  # numbered from 0 without gaps
    present = torch.bincount(labels[votes], minlength=1).nonzero().flatten()  # classes of this image, ascending
    if len(present) == 0:
        return torch.zeros_like(regions).view_as(target)
    column = torch.searchsorted(present, labels[votes])
    cells = region[votes] * len(present) + column
    won = torch.bincount(cells, minlength=(int(region.max()) + 1) * len(present)).view(-1, len(present))  # (R, K)
    first = torch.arange(len(present), device=won.device)
    best = present[(won * len(present) - first).argmax(dim=1)]  # the smallest class of tied ones
    best = torch.where(won.any(dim=1), best, 0)
    return best[region].view_as(target)
