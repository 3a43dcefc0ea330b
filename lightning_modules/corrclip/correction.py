"""One class a region: the last step of CorrCLIP."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.corrclip.regions import check_ids, region_ranks

LARGE = 2**24  # votes, beyond which only the classes that occur get some


def correct_map(prediction: Tensor, instance_mask: Tensor) -> Tensor:
    """The commonest class of each region in all of its pixels.

    Pixels of the smallest id of an image keep their class. It is that of the pixels that no mask covers, or of the
    first mask where masks cover all, as in the reference code. Of equally common classes the smallest is taken.

    Args:
        prediction: Classes ``(H, W)`` or ``(B, H, W)``, integers from 0.
        instance_mask: Region ids of the same shape, in 0..65535.

    Returns:
        The shape and type of the prediction.

    Raises:
        ValueError: A mask of another shape, ids below 0 or above 65535, or classes below 0.

    Reference:
        Zhang et al., CorrCLIP, ICCV 2025, equation 12.

    Example:
        >>> correct_map(torch.tensor([[4, 1, 2, 2]]), torch.tensor([[0, 5, 5, 5]])).tolist()
        [[4, 2, 2, 2]]
    """
    check_ids(instance_mask, tuple(prediction.shape))
    if not prediction.numel():
        return prediction.clone()
    lowest, highest = torch.stack(prediction.aminmax()).tolist()
    if lowest < 0:
        raise ValueError(f"prediction holds the class {lowest}; classes are counted from 0.")
    images = prediction.reshape(1, -1) if prediction.ndim == 2 else prediction.flatten(1)  # (B, HW)
    ranks = region_ranks(instance_mask.reshape(images.shape))
    regions, classes, numbers = int(ranks.max()) + 1, int(highest) + 1, images
    if large := len(images) * regions * classes > LARGE:
        present, numbers = images.unique(return_inverse=True)
        classes = len(present)
    cells = ranks + regions * torch.arange(len(images), device=ranks.device)[:, None]
    votes = torch.bincount((cells * classes + numbers).flatten(), minlength=len(images) * regions * classes)
    winners = votes.view(-1, classes).argmax(1)  # the first of several maxima
    winners = (present[winners] if large else winners).to(prediction.dtype)
    return torch.where(ranks == 0, images, winners[cells]).view(prediction.shape)
