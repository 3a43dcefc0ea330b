"""Which patches may look at each other, and how much: the two halves of CorrCLIP's correlation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Unsegmented = Literal["union", "outer"]


def interaction_matrix(similarity: Tensor, labels: Tensor, unsegmented: Unsegmented = "union") -> Tensor:
    """The scope of the correlation: patches of one region, and similar patches where no mask is.

    Args:
        similarity: ``(B, N, N)``.
        labels: Regions of the patches ``(B, N)``, from 0; the smallest one of an image is the part without masks.
        unsegmented: Which pairs that part may add where the similarity is above its mean over all pairs: ``union``,
            as the reference code has it, pairs with at least one patch of that part; ``outer``, as the paper has it,
            pairs with both.

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
    bare = labels == labels.amin(1, keepdim=True)
    rows, columns = bare[:, :, None], bare[:, None, :]
    allowed = similarity > similarity.mean((1, 2), keepdim=True)
    allowed.logical_and_(rows | columns if unsegmented == "union" else rows & columns)
    # two numbers for that part, so that its own pairs do not count as pairs of one region
    allowed.logical_or_(labels.masked_fill(bare, -1)[:, :, None] == labels.masked_fill(bare, -2)[:, None, :])
    allowed.diagonal(dim1=1, dim2=2).fill_(True)
    return allowed


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
