"""From patch embeddings and class texts to similarity maps, less what all classes or all patches share."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Redundancy = Literal["none", "class_mean", "empty_prompt", "patch_mean", "patch_mean_unit", "class_token"]
REDUNDANCIES = ("none", "class_mean", "empty_prompt", "patch_mean", "patch_mean_unit", "class_token")
SHARPNESS = 2.0  # CLIP Surgery's factor in the softmax of its class weights


def class_weights(class_similarity: Tensor) -> Tensor:
    """How much each class counts in feature surgery: above 1 for classes that the whole image resembles.

    Args:
        class_similarity: Cosines of the image's embedding and the texts, ``(B, K)``.

    Returns:
        ``(B, K)``, mean 1 over the classes.

    Example:
        >>> class_weights(torch.zeros(1, 3)).tolist()
        [[1.0, 1.0, 1.0]]
    """
    return class_similarity.shape[-1] * (SHARPNESS * class_similarity).softmax(dim=-1)


def feature_surgery(image_features: Tensor, text_features: Tensor, alpha: float = 1.0, weighted: bool = True) -> Tensor:
    """Similarities less what all classes share, in closed form.

    ``S'_n = w_n S_n - alpha / K * sum_m w_m S_m`` equals the published products of features, without their memory.

    Args:
        image_features: Unit vectors ``(B, 1 + HW, D)``, the image's embedding first.
        text_features: Unit vectors ``(K, D)``.
        alpha: Share of the redundancy that is taken out: 1 = as published, 0 = none ("partial surgery").
        weighted: Use the class weights w of the image's embedding, as published; False = all 1.

    Returns:
        ``(B, 1 + HW, K)``.

    Reference:
        Li et al., CLIP Surgery, Pattern Recognition 162, 2025, equations 6 to 8.
    """
    similarity = image_features @ text_features.T
    if weighted:
        similarity = similarity * class_weights(similarity[:, :1])
    return similarity - alpha * similarity.mean(dim=-1, keepdim=True)


def centred_patches(tokens: Tensor, strength: float = 1.0, unit: bool = True) -> Tensor:
    """Tokens less the mean over the patches of their image.

    Without new unit length this changes no per-class map but by a constant, so no quantile, top-k or min-max mask.

    Args:
        tokens: ``(B, 1 + HW, D)``, the image's embedding first; it is shifted too.
        strength: Factor of the mean.
        unit: Bring the differences to unit length.
    """
    centred = tokens - strength * tokens[:, 1:].mean(dim=1, keepdim=True)
    return F.normalize(centred, dim=-1) if unit else centred


def class_similarity(
    tokens: Tensor,
    text: Tensor,
    redundancy: Redundancy = "none",
    strength: float = 1.0,
    empty: Tensor | None = None,
) -> Tensor:
    """Similarity of each patch to each class.

    Args:
        tokens: ``(B, 1 + HW, D)``, the image's embedding first; brought to unit length here.
        text: Unit vectors of the classes ``(K, D)``.
        redundancy: What is taken out: ``none``; ``class_mean``: what the classes share (:func:`feature_surgery`);
            ``empty_prompt``: the similarity to an empty prompt; ``patch_mean`` and ``patch_mean_unit``: the mean patch,
            without and with new unit length; ``class_token``: the image's own similarity to the class.
        strength: How much of it: ``alpha`` of partial surgery, 0.3 in SegEarth-OV's ``class_token``.
        empty: Unit vector of an empty prompt ``(D,)``, for ``empty_prompt``.

    Returns:
        Raw similarities ``(B, HW, K)``, the larger the more alike.

    Raises:
        ValueError: Unknown redundancy, ``empty_prompt`` without ``empty``, or ``class_mean`` of a single class.
    """
    if redundancy not in REDUNDANCIES:
        raise ValueError(f"There is no redundancy '{redundancy}'; known: {', '.join(REDUNDANCIES)}.")
    if redundancy == "class_mean" and len(text) == 1:
        raise ValueError(
            "redundancy class_mean takes the mean over the classes from each map, and with a single class that is the "
            "map itself. Name more classes, or set model.init_args.redundancy to none."
        )
    tokens = F.normalize(tokens, dim=-1)
    if redundancy == "class_mean":
        return feature_surgery(tokens, text, strength)[:, 1:]
    if redundancy == "empty_prompt":
        if empty is None:
            raise ValueError("redundancy empty_prompt needs the embedding of an empty prompt.")
        text = text - strength * empty
    if redundancy in ("patch_mean", "patch_mean_unit"):
        tokens = centred_patches(tokens, strength, unit=redundancy == "patch_mean_unit")
    similarity = tokens @ text.T  # (B, 1 + HW, K)
    if redundancy == "class_token":
        return similarity[:, 1:] - strength * similarity[:, :1]
    return similarity[:, 1:]


def on_grid(similarity: Tensor, grid: tuple[int, int]) -> Tensor:
    """Similarities of patches ``(B, HW, K)`` as maps ``(B, K, rows, columns)``."""
    return similarity.transpose(1, 2).unflatten(-1, grid)


def similarity_map(similarity: Tensor, size: tuple[int, int], grid: tuple[int, int] | None = None) -> Tensor:
    """Maps for people to look at: stretched to 0..1 for each image and class, then enlarged.

    Scores must not be read off these: after the stretch every image's best patch has the value 1.

    Args:
        similarity: ``(B, HW, K)``.
        size: Rows and columns of the result.
        grid: Rows and columns of patches; None = a square.

    Returns:
        ``(B, K, *size)`` in 0..1, bilinear; a constant map is 0.

    Reference:
        CLIP Surgery's ``get_similarity_map``.
    """
    side = round(similarity.shape[1] ** 0.5)
    low, high = similarity.amin(dim=1, keepdim=True), similarity.amax(dim=1, keepdim=True)
    spread = high - low
    stretched = torch.where(spread > 0, (similarity - low) / spread.where(spread > 0, torch.ones_like(spread)), 0.0)
    return F.interpolate(on_grid(stretched, grid or (side, side)), size=size, mode="bilinear", align_corners=False)
