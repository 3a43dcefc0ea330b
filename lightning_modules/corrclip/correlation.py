"""Which patches may look at each other, and how much: the two halves of CorrCLIP's correlation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Unsegmented = Literal["union", "outer"]
STRIP = 2**17  # pairs that are compared at once: what a core's cache holds


def interaction_matrix(
    similarity: Tensor, labels: Tensor, unsegmented: Unsegmented = "union", num_regions: int | None = None
) -> Tensor:
    """The scope of the correlation: patches of one region, and similar patches where no mask is.

    Args:
        similarity: ``(B, N, N)``.
        labels: Regions of the patches ``(B, N)``, from 0; the smallest one of an image is the part without masks.
            Numbers without gaps, as :func:`merge_regions` gives them, keep a table of ``num_regions * N`` small.
        unsegmented: Which pairs that part may add where the similarity is above its mean over all pairs: ``union``,
            as the reference code has it, pairs with at least one patch of that part; ``outer``, as the paper has it,
            pairs with both.
        num_regions: A number above all labels; None = found here, for which a GPU waits.

    Returns:
        ``(B, N, N)`` bool: whether patch i looks at patch j. A patch always sees itself, or a picture of one colour
        would have patches that see nothing.

    Raises:
        ValueError: An unknown way, or labels that do not belong to the similarities.

    Reference:
        Zhang et al., CorrCLIP, ICCV 2025, equation 7.

    Example:
        >>> similarity = torch.tensor([[[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]])
        >>> interaction_matrix(similarity, torch.tensor([[0, 1, 1]])).int().tolist()
        [[[1, 1, 0], [1, 1, 1], [0, 1, 1]]]
    """
    if unsegmented not in ("union", "outer"):
        raise ValueError(f"There is no way '{unsegmented}' for the part without masks; known: union, outer.")
    if similarity.shape != (*labels.shape, labels.shape[-1]):
        raise ValueError(
            f"similarity has shape {tuple(similarity.shape)}, labels {tuple(labels.shape)}: not a row and a column "
            "for each label."
        )
    similarity = similarity.detach()
    regions = int(labels.max()) + 1 if num_regions is None else num_regions
    thresholds = _thresholds(similarity.mean((1, 2))[:, None, None], labels, unsegmented, regions).flatten(0, 1)
    region = (labels + regions * torch.arange(len(labels), device=labels.device)[:, None]).flatten()  # (BN,)
    scores = similarity.flatten(0, 1)  # (BN, N)
    allowed = torch.empty_like(scores, dtype=torch.bool)
    rows = len(scores) if scores.device.type != "cpu" else max(1, STRIP // scores.shape[1])
    buffer = scores.new_empty(min(rows, len(scores)), scores.shape[1])
    for part in (slice(start, start + rows) for start in range(0, len(scores), rows)):
        row = buffer[: len(region[part])]
        torch.index_select(thresholds, 0, region[part], out=row)
        allowed[part] = torch.gt(scores[part], row, out=row)  # compared as numbers: to bool it takes a CPU 3 x as long
    allowed = allowed.view_as(similarity)
    allowed.diagonal(dim1=1, dim2=2).fill_(True)
    return allowed


def _thresholds(mean: Tensor, labels: Tensor, unsegmented: str, regions: int) -> Tensor:
    """What the similarity of a patch of each region to each patch must exceed, ``(B, R, N)``; mean ``(B, 1, 1)``.

    All patches of a region have the same ones, so the scope is a single comparison.
    """
    cells = torch.arange(regions, device=labels.device)[:, None]
    bare = labels.amin(1)[:, None, None]
    row, column = cells == bare, labels[:, None] == bare
    infinity = mean.new_tensor(torch.inf)
    within = torch.where((cells == labels[:, None]) & ~row, -infinity, infinity)
    return torch.where(row | column if unsegmented == "union" else row & column, mean, within)


def correlation(similarity: Tensor, allowed: Tensor | None = None, tau: float = 0.25) -> Tensor:
    """Softmax of similarities over the patches that each patch may look at.

    Args:
        similarity: ``(B, N, N)``.
        allowed: ``(B, N, N)`` bool with at least one True a row; None = all.
        tau: Temperature.

    Returns:
        ``(B, N, N)``; each row sums to 1.

    Raises:
        ValueError: A temperature that is not above 0.

    Reference:
        Zhang et al., CorrCLIP, ICCV 2025, equation 10.

    Example:
        >>> correlation(torch.zeros(1, 2, 2), torch.tensor([[[True, True], [False, True]]])).tolist()
        [[[0.5, 0.5], [0.0, 1.0]]]
    """
    if tau <= 0:
        raise ValueError(f"tau is {tau}; a temperature is above 0.")
    scaled = similarity / tau
    if allowed is not None:
        scaled.masked_fill_(~allowed, -torch.inf)
    return scaled.softmax(dim=-1)
