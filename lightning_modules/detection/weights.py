"""How often images are to be drawn, by their hardness."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.boxes import Floats

FORGOTTEN = 0.05  # share of the greatest hardness below which an image is no longer hard


def hardest_losses(losses: Floats, share: float) -> Floats:
    """Losses, or another hardness, of the images with the highest ones, 0 for the others.

    Args:
        losses: (n,) not negative.
        share: Share of the images that are hard, rounded up; images tied with the last of them are hard too.

    Returns:
        (n,).

    Raises:
        ValueError: A loss that is negative or not finite.

    >>> hardest_losses(np.array([0.1, 3.0, 0.2, 0.4]), share=0.25)
    array([0., 3., 0., 0.])
    """
    wrong = np.flatnonzero(~(np.isfinite(losses) & (losses >= 0)))
    if len(wrong):
        raise ValueError(f"The loss of image {wrong[0]} is {losses[wrong[0]]}; losses must be finite and at least 0.")
    number = math.ceil(round(share * len(losses), 9))
    if number == 0:
        return np.zeros(len(losses))
    return np.where(losses >= np.sort(losses)[-number], losses, 0)


def highest(losses: Tensor, share: float) -> Tensor:
    """The highest losses of a batch, for mining within it.

    Args:
        losses: (B,), with their gradients.
        share: Share of them that count, above 0 and at most 1; rounded up.

    Returns:
        (ceil(share * B),), the highest first.

    Reference:
        Shrivastava et al., Training Region-based Object Detectors with Online Hard Example Mining, CVPR 2016; there it
        is the regions of an image, here the images of a batch.

    >>> highest(torch.tensor([0.5, 2.0, 1.0]), share=0.5)
    tensor([2., 1.])
    """
    return losses.topk(math.ceil(round(share * len(losses), 9))).values


def hardness_weights(hardness: Tensor, ratio: float = 0.3, cap: float = 10.0) -> Tensor:
    """Weights by which a sampler draws images, so that the hard ones make up a share of what is drawn.

    Hard are the images with a hardness above 0, but no more than the hardest ``ratio / 2`` of all (and those tied with
    the last of them): else, where nearly every image has some error, none could be drawn more often. H of N images are
    hard; together they get the share ``max(ratio, H / N)``, so never less than without weights. A hard image weighs as
    much as an easy one and, on top, in proportion to its hardness. Where no image is hard, or H / N is ``ratio`` or
    more by ties, all weigh the same.

    Args:
        hardness: (N,) at least 0.
        ratio: Share of hard images among the drawn, at least 0 and below 1.
        cap: How many times as much as an easy image a hard one weighs at most; where it cuts, the share is missed.

    Returns:
        (N,) float64, above 0, with sum 1.

    Raises:
        ValueError: No image, a hardness that is negative or not finite, or an unsuitable ``ratio`` or ``cap``.

    >>> weights = hardness_weights(torch.tensor([1.0] * 15 + [0.0] * 85), ratio=0.3)
    >>> round(float(weights[:15].sum()), 4), round(float(weights[0] / weights[-1]), 2)
    (0.3, 2.43)
    """
    check_ratio(ratio)
    if not 1 <= cap < math.inf:
        raise ValueError(f"cap is {cap}; a hard image must weigh at least as much as an easy one, as with 10.")
    hardness = hardness.double()
    if hardness.ndim != 1 or len(hardness) == 0 or not bool(((hardness >= 0) & hardness.isfinite()).all()):
        raise ValueError(f"hardness {tuple(hardness.shape)} must hold a finite number of at least 0 for each image.")
    hardness = torch.from_numpy(hardest_losses(hardness.cpu().numpy(), ratio / 2)).to(hardness.device)
    hard = hardness > 0
    images, number = len(hardness), int(hard.sum())
    if number in (0, images):
        return torch.full_like(hardness, 1 / images)
    share = max(ratio, number / images)
    boost = share * (images - number) / (number * (1 - share))  # mean weight of the hard, by that of an easy image
    weights = (1 + (boost - 1) * hardness / hardness[hard].mean()).clamp(1, cap)  # easy: 1
    return weights / weights.sum()


def ema(previous: Tensor | None, current: Tensor, beta: float = 0.5) -> Tensor:
    """Hardness smoothed over rounds of mining: ``beta * previous + (1 - beta) * current``.

    What has sunk below a twentieth of the highest becomes 0, or every image that ever was hard would stay so.

    Args:
        previous: (N,) of the rounds before; None in the first.
        current: (N,) of this round.
        beta: Weight of the rounds before, at least 0 and below 1.

    Returns:
        (N,).

    Raises:
        ValueError: ``beta`` outside its range, or another number of images than before.

    >>> ema(torch.tensor([1.0, 0.0, 0.04]), torch.tensor([1.0, 0.5, 0.0]))
    tensor([1.0000, 0.2500, 0.0000])
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}; it must be at least 0 and below 1, as 0.5.")
    if previous is None:
        return current
    if previous.shape != current.shape:
        raise ValueError(f"There was hardness of {len(previous)} images, now of {len(current)}; mine the same dataset.")
    smoothed = beta * previous + (1 - beta) * current
    return torch.where(smoothed < FORGOTTEN * smoothed.max(), 0, smoothed)


def check_ratio(ratio: float) -> None:
    """Refuse a share of hard images that is no share.

    Args:
        ratio: At least 0 and below 1.

    Raises:
        ValueError: It is not.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"The share of hard negatives is {ratio}; it must be at least 0 and below 1, as 0.3.")
