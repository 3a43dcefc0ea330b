"""Losses of multi-label hashing: the asymmetric loss, the three terms that shape codes, and the alignment term."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TINY = 1e-8


def _full_precision(tensor: Tensor) -> Tensor:
    """Half-precision and integer tensors as float32; sums over a batch lose too much in half precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_codes(codes: Tensor) -> None:
    if codes.ndim != 2 or not codes.numel():
        raise ValueError(f"codes have shape {tuple(codes.shape)}; (B, bits) with at least one row is needed.")


def asymmetric_loss(
    logits: Tensor, labels: Tensor, gamma_negative: float = 4.0, gamma_positive: float = 0.0, clip: float = 0.05
) -> Tensor:
    """Binary cross entropy that plays down easy negatives, for labels that are mostly 0.

    With ``p = sigmoid(logit)`` and ``q = max(p - clip, 0)`` an entry costs ``-(1 - p)^gamma_positive log(p)`` where
    the label is 1 and ``-q^gamma_negative log(1 - q)`` where it is 0. The loss is the mean over all B x C entries, as
    of binary cross entropy, so that the learning rate does not depend on batch size and number of classes; the
    authors' code sums. Both gammas and the clip 0: binary cross entropy.

    Args:
        logits: Shape ``(B, C)``.
        labels: 0 or 1, shape ``(B, C)``, any numeric or boolean type.
        gamma_negative: Focusing exponent of the negatives.
        gamma_positive: Focusing exponent of the positives.
        clip: Negatives with a probability up to this cost nothing.

    Returns:
        A scalar.

    Raises:
        ValueError: Shapes that differ, a negative gamma, a clip outside [0, 1).

    Reference:
        Ridnik et al., Asymmetric Loss for Multi-Label Classification, ICCV 2021, eq. 7.

    Example:
        >>> import torch
        >>> round(asymmetric_loss(torch.zeros(1, 1), torch.ones(1, 1)).item(), 4)  # log 2
        0.6931
        >>> round(asymmetric_loss(torch.zeros(1, 1), torch.zeros(1, 1)).item(), 4)  # -0.45^4 log 0.55
        0.0245
    """
    if logits.shape != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} must both be (B, C).")
    if gamma_negative < 0 or gamma_positive < 0:
        raise ValueError(f"gamma_negative is {gamma_negative} and gamma_positive {gamma_positive}; neither may be < 0.")
    if not 0 <= clip < 1:
        raise ValueError(f"clip is {clip}; it is a probability, 0 <= clip < 1.")
    with torch.autocast(logits.device.type, enabled=False):
        logits = _full_precision(logits)
        positive = F.logsigmoid(logits)  # log(p)
        if clip > 0:
            shifted = (torch.sigmoid(logits) - clip).clamp(min=0)  # q
            negative = torch.log1p(-shifted)  # at least log(clip)
        else:
            shifted = torch.sigmoid(logits)
            negative = F.logsigmoid(-logits)  # log(1 - p) without the rounding of 1 - p to 0
        # clamp: an exponent below 1 has an infinite slope at 0, which times the 0 behind it would be NaN
        if gamma_positive > 0:
            positive = positive * torch.sigmoid(-logits).clamp(min=TINY).pow(gamma_positive)
        if gamma_negative > 0:
            negative = negative * shifted.clamp(min=TINY).pow(gamma_negative)
        return -torch.where(labels > 0.5, positive, negative).mean()


def quantisation_loss(codes: Tensor) -> Tensor:
    """How far relaxed codes are from the binary ones: mean of ``(|h| - 1)^2``.

    Args:
        codes: Relaxed codes, shape ``(B, bits)``, values in (-1, 1).

    Returns:
        A scalar, 0 for codes of -1 and +1.

    Raises:
        ValueError: Not a matrix, or empty.

    Example:
        >>> import torch
        >>> quantisation_loss(torch.tensor([[0.5, -1.0]])).item()
        0.125
    """
    _check_codes(codes)
    with torch.autocast(codes.device.type, enabled=False):
        return (_full_precision(codes).abs() - 1).square().mean()


def bit_balance_loss(codes: Tensor) -> Tensor:
    """How far bits are from being +1 as often as -1: mean over bits of the squared batch mean.

    Args:
        codes: Relaxed codes, shape ``(B, bits)``.

    Returns:
        A scalar, 1 for equal codes of -1 and +1.

    Raises:
        ValueError: Not a matrix, or empty.

    Example:
        >>> import torch
        >>> bit_balance_loss(torch.tensor([[1.0, 1.0], [-1.0, 1.0]])).item()
        0.5
    """
    _check_codes(codes)
    with torch.autocast(codes.device.type, enabled=False):
        return _full_precision(codes).mean(dim=0).square().mean()


def decorrelation_loss(codes: Tensor) -> Tensor:
    """How much bits repeat each other: sum of the squared covariances of different bits, divided by bits^2.

    The covariance divides by B, so that a batch of one item gives 0.

    Args:
        codes: Relaxed codes, shape ``(B, bits)``.

    Returns:
        A scalar, 0 for one bit.

    Raises:
        ValueError: Not a matrix, or empty.

    Example:
        >>> import torch
        >>> decorrelation_loss(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])).item()  # two covariances of 1, over 2^2
        0.5
    """
    _check_codes(codes)
    with torch.autocast(codes.device.type, enabled=False):
        codes = _full_precision(codes)
        centred = codes - codes.mean(dim=0)
        covariance = centred.T @ centred / len(codes)  # (bits, bits)
        different = covariance - torch.diag(covariance.diagonal())
        return different.square().sum() / codes.shape[1] ** 2


def alignment_loss(image_direction: Tensor, text_direction: Tensor) -> Tensor:
    """How far the image and the text of an item point apart: mean of ``1 - cosine``.

    Both towers frozen it is a constant: it has a gradient only where what makes the embeddings is trained.

    Args:
        image_direction: Shape ``(B, D)``; normalised here.
        text_direction: Shape ``(B, D)``.

    Returns:
        A scalar in [0, 2]; a zero vector counts 1.

    Raises:
        ValueError: Shapes that differ, or no row.

    Example:
        >>> import torch
        >>> alignment_loss(torch.eye(2), torch.tensor([[2.0, 0.0], [1.0, 0.0]])).item()
        0.5
    """
    if image_direction.shape != text_direction.shape or image_direction.ndim != 2 or not len(image_direction):
        shapes = f"{tuple(image_direction.shape)} and {tuple(text_direction.shape)}"
        raise ValueError(f"image and text directions have shapes {shapes}; both must be (B, D), B at least 1.")
    with torch.autocast(image_direction.device.type, enabled=False):
        image, text = _full_precision(image_direction), _full_precision(text_direction)
        return (1 - F.cosine_similarity(image, text, dim=1)).mean()


CODE_LOSSES = {
    "quantisation": quantisation_loss,
    "balance": bit_balance_loss,
    "decorrelation": decorrelation_loss,
}


def code_losses(codes: Tensor, weights: dict[str, float]) -> dict[str, Tensor]:
    """The weighted terms on codes; those of weight 0 are left out.

    Args:
        codes: Relaxed codes ``(B, bits)``.
        weights: Weight of each name in ``CODE_LOSSES``.

    Example:
        >>> import torch
        >>> code_losses(torch.full((2, 4), 0.5), {"quantisation": 2.0, "balance": 0.0, "decorrelation": 0.0})
        {'quantisation': tensor(0.5000)}
    """
    return {name: weights[name] * term(codes) for name, term in CODE_LOSSES.items() if weights[name]}


def loss_terms(logits: Tensor, codes: Tensor | None, labels: Tensor, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weighted loss terms of a batch: ``classification`` and, with a hash layer, those of ``CODE_LOSSES``.

    Args:
        logits: Shape ``(B, C)``.
        codes: Relaxed codes ``(B, bits)``; None without hash layer.
        labels: 0 or 1, float, shape ``(B, C)``.
        settings: ``loss`` (``bce`` or ``asymmetric``) and the weight ``{term}_weight`` of each term on codes.

    Example:
        >>> import torch
        >>> terms = loss_terms(torch.zeros(2, 3), None, torch.ones(2, 3), {"loss": "bce"})
        >>> {name: round(value.item(), 4) for name, value in terms.items()}  # log 2
        {'classification': 0.6931}
    """
    bce = F.binary_cross_entropy_with_logits
    terms = {"classification": (bce if settings["loss"] == "bce" else asymmetric_loss)(logits.float(), labels)}
    if codes is not None:
        terms |= code_losses(codes, {name: settings[f"{name}_weight"] for name in CODE_LOSSES})
    return terms
