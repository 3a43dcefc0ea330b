"""Regions of a picture: labels on a grid of patches, and the union of regions that look alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ID = 65535  # id maps are kept as uint16


def check_ids(instance_mask: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse an id map that is none, before it fails far away from its cause.

    On a GPU this waits for the map; a map that is still on the CPU, or one of uint8, costs no wait.

    Args:
        instance_mask: The id map.
        shape: What its shape has to be.

    Raises:
        ValueError: Another shape, a type that is no integer, or ids below 0 or above 65535.
    """
    if tuple(instance_mask.shape) != shape:
        raise ValueError(
            f"instance_mask has shape {tuple(instance_mask.shape)}, but what it belongs to has {shape}. "
            "Resize it by nearest neighbours, and crop and pad it like the picture."
        )
    if instance_mask.is_floating_point() or instance_mask.is_complex() or instance_mask.dtype == torch.bool:
        raise ValueError(f"instance_mask is {instance_mask.dtype}; it holds a region's id in each pixel: integers.")
    if instance_mask.dtype in (torch.uint8, torch.uint16) or not instance_mask.numel():
        return
    low, high = (int(value) for value in torch.stack(instance_mask.aminmax()).tolist())
    if low < 0 or high > MAX_ID:
        raise ValueError(
            f"instance_mask holds ids from {low} to {high}; they go from 0, not segmented, to {MAX_ID}. "
            "Is it a label map with an ignored value, or were several maps joined?"
        )


def region_labels(instance_mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Ids of the patches of a grid, by nearest neighbours.

    Args:
        instance_mask: Ids ``(B, H, W)`` in 0..65535.
        grid: Rows and columns of patches.

    Returns:
        ``(B, rows * columns)`` int64.

    Example:
        >>> region_labels(torch.arange(16).view(1, 4, 4), (2, 2)).tolist()
        [[0, 2, 8, 10]]
    """
    return F.interpolate(instance_mask[:, None].float(), size=grid, mode="nearest").long().flatten(1)


def region_ranks(ids: Tensor) -> Tensor:
    """Ids of each image as 0, 1, 2, ... in their order: 0 is the smallest id of the image, whatever it was.

    Args:
        ids: ``(B, N)`` in 0..65535.

    Returns:
        ``(B, N)`` int64.

    Example:
        >>> region_ranks(torch.tensor([[0, 7, 3, 7], [9, 9, 5, 9]])).tolist()
        [[0, 2, 1, 2], [1, 1, 0, 1]]
    """
    ids = ids.long()
    present = torch.zeros(len(ids), MAX_ID + 1, dtype=torch.int32, device=ids.device)
    present.scatter_(1, ids, 1)  # a table needs no sort, and no wait for the number of ids
    return present.cumsum_(1).gather(1, ids).long() - 1


def region_means(features: Tensor, labels: Tensor, num_regions: int) -> Tensor:
    """Mean feature of each region.

    Args:
        features: ``(B, N, C)``.
        labels: ``(B, N)`` in 0..num_regions - 1.
        num_regions: Number R of regions.

    Returns:
        ``(B, R, C)`` float32, float64 of float64; 0 for a region without patches.

    Example:
        >>> region_means(torch.tensor([[[1.0], [3.0], [5.0]]]), torch.tensor([[0, 0, 1]]), 3).tolist()
        [[[2.0], [5.0], [0.0]]]
    """
    features = features if features.dtype == torch.float64 else features.float()
    if features.device.type != "cpu":  # a sum in a fixed order, which index_add has not got there
        inside = labels[:, None] == torch.arange(num_regions, device=labels.device)[:, None]  # (B, R, N)
        return inside.to(features.dtype) @ features / inside.sum(-1, keepdim=True).clamp(min=1)
    cells = (labels + num_regions * torch.arange(len(labels))[:, None]).flatten()
    sums = features.new_zeros(len(labels) * num_regions, features.shape[-1])
    sums = sums.index_add(0, cells, features.flatten(0, 1))
    means = sums / torch.bincount(cells, minlength=len(sums)).clamp(min=1)[:, None]
    return means.unflatten(0, (len(labels), num_regions))


def cluster_roots(near: Tensor, min_samples: int = 1) -> Tensor:
    """DBSCAN of points whose neighbourhoods are known, all images at once and without leaving the device.

    A point with ``min_samples`` neighbours or more, itself included, is a core point; core points that are neighbours
    share a cluster, and other points join a neighbouring core point's, the first if there are several.

    Args:
        near: Which points are neighbours, ``(B, R, R)`` bool, symmetric.
        min_samples: With 1 every point is a core point: clusters are the connected components.

    Returns:
        ``(B, R)``: the first core point of each point's cluster; a point of no cluster is its own.

    Reference:
        Ester et al., A density-based algorithm for discovering clusters, KDD 1996.

    Example:
        >>> chain = torch.tensor([[[1, 0, 1], [0, 1, 0], [1, 0, 1]]]).bool()
        >>> cluster_roots(chain).tolist()
        [[0, 1, 0]]
    """
    size = near.shape[-1]
    reach = near
    if min_samples > 1:
        core = near.sum(-1) >= min_samples  # (B, R)
        reach = near & core[:, :, None] & core[:, None, :]
    steps = reach.float()
    steps.diagonal(dim1=1, dim2=2).fill_(1)
    for _ in range(max(size - 1, 1).bit_length()):  # paths twice as long each time, up to size - 1 steps
        steps = (steps @ steps).clamp_(max=1)
    roots = steps.argmax(-1)  # the first one that is reached
    if min_samples > 1:
        candidates = torch.where(near & core[:, None, :], roots[:, None, :], size).amin(-1)
        roots = torch.where(~core & (candidates < size), candidates, roots)
    return roots


def merge_regions(features: Tensor, labels: Tensor, eps: float | None = 0.2, min_samples: int = 1) -> Tensor:
    """Regions that look alike as one: DBSCAN of their mean features with the distance ``max(similarity) - similarity``.

    The smallest id of an image, the pixels that no mask covers, takes no part.

    Args:
        features: Unit vectors ``(B, N, C)``.
        labels: Region ids of the patches ``(B, N)`` in 0..65535.
        eps: Largest distance of neighbours; None = nothing is merged.
        min_samples: Neighbours that make a core point; 1, as published, joins whatever is connected.

    Returns:
        ``(B, N)`` int64: 0 for the smallest id, then 1, 2, ... in the order of the regions' smallest ids.

    Raises:
        ValueError: eps below 0, min_samples below 1, or labels that do not belong to the features.

    Reference:
        Zhang et al., CorrCLIP, ICCV 2025, equations 5 and 6; the distance is the reference code's.

    Example:
        >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
        >>> merge_regions(features, torch.tensor([[0, 4, 5, 9]])).tolist()
        [[0, 1, 2, 1]]
    """
    if labels.shape != features.shape[:2]:
        raise ValueError(f"labels have shape {tuple(labels.shape)}, features {tuple(features.shape)}: not one a patch.")
    if (eps is not None and eps < 0) or min_samples < 1:
        raise ValueError(f"eps is {eps} and min_samples {min_samples}; eps is at least 0, or null, min_samples 1.")
    ranks = region_ranks(labels)
    if eps is None:
        return ranks
    last = ranks.amax(1, keepdim=True)  # (B, 1)
    count = int(last.max()) + 1
    if count == 1:
        return ranks
    with torch.autocast(features.device.type, enabled=False):  # rounded cosines would merge other regions
        means = F.normalize(region_means(features, ranks, count), dim=-1)[:, 1:]
        similarity = means @ means.transpose(1, 2)  # (B, R, R)
    real = torch.arange(1, count, device=ranks.device) <= last  # other images have more regions
    pairs = real[:, :, None] & real[:, None, :]
    largest = similarity.masked_fill(~pairs, -torch.inf).amax((1, 2), keepdim=True)
    roots = cluster_roots((largest - similarity <= eps) & pairs, min_samples)
    numbers = (roots == torch.arange(count - 1, device=roots.device)).cumsum(1)  # 1 for the first cluster
    return F.pad(numbers.gather(1, roots), (1, 0)).gather(1, ranks)
