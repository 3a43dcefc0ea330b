"""Losses of cross-modal hashing: NT-Xent, its class-balanced form, and HashNet's pairwise likelihood."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def _full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Half-precision tensors as float32; exponentials of similarities lose too much in half precision."""
    return tuple(t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


def _check_pairs(image: Tensor, text: Tensor, temperature: float) -> None:
    if image.shape != text.shape or image.ndim != 2:
        raise ValueError(f"image {tuple(image.shape)} and text {tuple(text.shape)} must both be (B, D).")
    if len(image) < 2:
        raise ValueError("A contrastive loss needs at least 2 pairs: with one there is no negative.")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be positive.")


def nt_xent_loss(image: Tensor, text: Tensor, temperature: float = 0.5) -> Tensor:
    """Normalised-temperature cross entropy over the 2B rows of both modalities.

    Each row's positive is its pair in the other modality; the other 2B - 2 rows, of both modalities, are negatives.

    Args:
        image: Image embeddings, shape ``(B, D)``, B >= 2; L2-normalised here.
        text: Text embeddings, shape ``(B, D)``.
        temperature: Divides the cosine similarities.

    Returns:
        Mean over the 2B rows, a scalar.

    Raises:
        ValueError: Unequal shapes, fewer than two pairs, temperature not above 0.

    Reference:
        Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020, eq. 1.

    Example:
        >>> import torch
        >>> x = torch.eye(2)
        >>> round(nt_xent_loss(x, x).item(), 4)  # log(1 + 2 exp(-1 / 0.5))
        0.2395
    """
    _check_pairs(image, text, temperature)
    with torch.autocast(image.device.type, enabled=False):
        image, text = _full_precision(image, text)
        both = F.normalize(torch.cat([image, text]), dim=1)  # (2B, D)
        logits = both @ both.T / temperature  # (2B, 2B)
        logits = logits.masked_fill(torch.eye(len(both), dtype=torch.bool, device=both.device), -math.inf)
        pair = torch.arange(len(both), device=both.device).roll(len(image))
        return F.cross_entropy(logits, pair)


def balanced_contrastive_loss(
    image: Tensor, text: Tensor, temperature: float = 0.5, positive_weight: float | None = None
) -> Tensor:
    """Image-to-text contrastive loss with HashNet's class weights put on positives and negatives.

    With ``n = B / (B - 1)`` the loss is the mean over i of
    ``-positive_weight * log(e_ii / (e_ii + n * sum over j != i of e_ij))``, ``e = exp(cosine / temperature)``.
    The outer weight scales loss and gradient alike, so Adam takes the same steps for any value of it.

    Args:
        image: Image embeddings, shape ``(B, D)``, B >= 2; L2-normalised here.
        text: Text embeddings, shape ``(B, D)``.
        temperature: Divides the cosine similarities.
        positive_weight: Weight of the positives; None = B, the ratio of all pairs to positive pairs.

    Returns:
        A scalar.

    Raises:
        ValueError: Unequal shapes, fewer than two pairs, temperature not above 0.

    Reference:
        Class weights: Cao et al., HashNet: Deep Learning to Hash by Continuation, ICCV 2017, eq. 4.

    Example:
        >>> import torch
        >>> x = torch.eye(2)
        >>> round(balanced_contrastive_loss(x, x).item(), 4)  # 2 log(1 + 2 exp(-1 / 0.5))
        0.4791
    """
    _check_pairs(image, text, temperature)
    count = len(image)
    with torch.autocast(image.device.type, enabled=False):
        image, text = _full_precision(image, text)
        logits = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T / temperature  # (B, B)
        off_diagonal = 1 - torch.eye(count, dtype=logits.dtype, device=logits.device)
        logits = logits + math.log(count / (count - 1)) * off_diagonal
        loss = F.cross_entropy(logits, torch.arange(count, device=logits.device))
        return loss * (count if positive_weight is None else positive_weight)


def hashnet_pairwise_loss(
    codes_a: Tensor, codes_b: Tensor, similarity: Tensor, scale: float = 1.0, weighted: bool = True
) -> Tensor:
    """Negative log likelihood of which pairs are similar, given the inner products of their codes.

    Args:
        codes_a: Relaxed codes, shape ``(Na, bits)``, values in (-1, 1).
        codes_b: Relaxed codes, shape ``(Nb, bits)``.
        similarity: 1 where a pair is similar, else 0; shape ``(Na, Nb)``, any numeric or boolean type.
        scale: Multiplies the inner products; HashNet uses 10 / bits.
        weighted: True = mean over similar pairs + mean over dissimilar pairs, so that the rare similar pairs count
            as much; a batch that lacks one kind gives the other term. False = mean over all pairs.

    Returns:
        A scalar.

    Raises:
        ValueError: Shapes that do not fit.

    Reference:
        Cao et al., HashNet: Deep Learning to Hash by Continuation, ICCV 2017, eq. 4.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> round(hashnet_pairwise_loss(codes, codes, torch.eye(2)).item(), 4)  # 2 log(1 + exp(-2))
        0.2539
    """
    if similarity.shape != (len(codes_a), len(codes_b)) or codes_a.shape[1:] != codes_b.shape[1:]:
        raise ValueError(
            f"codes {tuple(codes_a.shape)} and {tuple(codes_b.shape)} do not fit similarity {tuple(similarity.shape)}."
        )
    with torch.autocast(codes_a.device.type, enabled=False):
        codes_a, codes_b = _full_precision(codes_a, codes_b)
        target = similarity.to(codes_a.dtype)
        logits = scale * codes_a @ codes_b.T  # (Na, Nb)
        pair_loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if not weighted:
            return pair_loss.mean()
        similar = target.sum()
        dissimilar = target.numel() - similar
        # clamp: a batch without one kind of pair has a zero numerator there, so its term is 0 and not NaN
        return (pair_loss * target).sum() / similar.clamp(min=1) + (pair_loss * (1 - target)).sum() / dissimilar.clamp(
            min=1
        )
