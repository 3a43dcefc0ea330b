"""Losses of image-text pre-training, as pure functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax_contrastive_loss(image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Tensor:
    """CLIP's loss: each image against all texts, and each text against all images.

    Args:
        image: Unit vectors ``(B, D)``.
        text: Unit vectors ``(B, D)``; row ``i`` belongs to image ``i``.
        logit_scale: Inverse temperature.

    Returns:
        The mean of both cross-entropies, a scalar.

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, figure 3.

    Example:
        >>> same = torch.eye(4)
        >>> round(softmax_contrastive_loss(same, same, 100.0).item(), 4)
        0.0
    """
    logits = logit_scale * image @ text.T  # (B, B)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sigmoid_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """SigLIP's loss with any number of positives in a row.

    Args:
        logits: ``(B, K)``, already scaled and with the bias added.
        positives: ``(B, K)``, 1 where text ``k`` is true of image ``b``, else 0.

    Returns:
        The mean binary cross-entropy, a scalar.

    Reference:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023, equation 1; it sums over the texts where
        this takes the mean, so that the number of texts does not change the step.

    Example:
        >>> round(sigmoid_loss(torch.zeros(2, 3), torch.eye(2, 3)).item(), 4)
        0.6931
    """
    return F.binary_cross_entropy_with_logits(logits, positives)


def patch_pooled_logits(values: Tensor, phrases: Tensor, share: float = 0.05) -> Tensor:
    """Evidence for each phrase in the patches that show it best (multiple-instance pooling).

    Args:
        values: Unit vectors of the patches ``(B, N, D)``.
        phrases: Unit vectors of the phrases ``(K, D)``.
        share: Share of the patches that is averaged, at least one patch.

    Returns:
        Mean similarity of the best patches ``(B, K)``.

    Example:
        >>> patch_pooled_logits(torch.eye(3)[None], torch.eye(3)).tolist()
        [[1.0, 1.0, 1.0]]
    """
    similarity = values @ phrases.T  # (B, N, K)
    best = max(1, round(share * similarity.shape[1]))
    return similarity.topk(best, dim=1).values.mean(1)
