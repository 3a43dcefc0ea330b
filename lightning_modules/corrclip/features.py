"""Patch embeddings of CorrCLIP: CLIP's last block with correlations of a guide, and two branches that refine it."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.backbones.vit import Block, VisionTransformer, vision_transformer
from lightning_modules.corrclip.correlation import Unsegmented, correlation, interaction_matrix
from lightning_modules.corrclip.regions import check_ids, merge_regions, region_labels

Similarity = Literal["guide", "uniform", "clip_qq", "clip_qk", "clip_vv", "vanilla"]
SIMILARITIES = get_args(Similarity)
SPATIAL_DEPTH = {12: 5, 24: 12, 32: 28}  # blocks that feed the spatial branch, by blocks of the ViT; else all but four


def spatial_blocks(num_blocks: int) -> range:
    """Which blocks, counted from 0, feed the spatial branch; empty for a ViT of fewer than five.

    Example:
        >>> [(each[0], each[-1]) for each in map(spatial_blocks, (12, 24, 32))]
        [(5, 9), (10, 21), (2, 29)]
    """
    depth = SPATIAL_DEPTH.get(num_blocks, num_blocks - 4)
    return range(num_blocks - 2 - depth, num_blocks - 2)


def corrclip_features(
    visual: Any,
    images: Tensor,
    guide: Tensor,
    grid: tuple[int, int],
    instance_mask: Tensor,
    alpha: float = 1.0,
    beta: float = 0.5,
    tau: float = 0.25,
    eps: float | None = 0.2,
    similarity: Similarity = "guide",
    scope: bool = True,
    unsegmented: Unsegmented = "union",
    min_samples: int = 1,
) -> Tensor:
    """Embeddings of the patches of a guide's grid in the space of the texts.

    The model is not changed; any batch and size will do. The published ablation by settings: the baseline is
    ``similarity="clip_qq", scope=False, alpha=0, beta=0``; the scope adds ``scope=True``, the value
    ``similarity="guide"``, the refinement ``alpha=1, beta=0.5``. The scope is always that of the guide.

    Args:
        visual: An open_clip ViT, or its functional view from ``backbones.vit.vision_transformer``, best with bicubic
            positions, which an open_clip ViT gets here.
        images: Normalised pixels ``(B, 3, H, W)``, images or windows. H and W are multiples of CLIP's patch, and of
            the guide's: the caller pads a window and its mask (the reference to multiples of 56, centred, the mask
            with the id 10000) and crops the result.
        guide: Features of the guide's patches ``(B, N, C)``; brought to unit length here. Their precision is that of
            the correlations: half precision can merge regions that lie at ``eps``.
        grid: Rows and columns of the guide's patches, of product N; finer than CLIP's or not.
        instance_mask: Region ids ``(B, H, W)`` in 0..65535. The smallest id of each image is the part without masks.
        alpha: Weight of the spatial branch, the values of the mean output of lower blocks; 0 = not computed.
        beta: Weight of the semantic branch, a class token for each region; 0 = not computed.
        tau: Temperature of the guide's similarities; CLIP's own have the temperature of the model.
        eps: Largest distance at which regions are merged; None = none are.
        similarity: Whose similarities weigh the patches: the ``guide``'s, none (``uniform``), or the last block's
            queries with themselves (``clip_qq``), queries with keys (``clip_qk``) or values with themselves
            (``clip_vv``), head by head. ``vanilla`` is CLIP's own last block, residual and feed-forward network
            included, for the floor: it knows no scope and no branches.
        scope: Let patches look at their region only.
        unsegmented: Rule of the part without masks; see :func:`interaction_matrix`.
        min_samples: Neighbours that make a core point of merging; see :func:`merge_regions`.

    Returns:
        ``(B, N, D)``, not normalised.

    Raises:
        ValueError: Sizes that do not fit together, ids below 0 or above 65535, an unknown setting, or a ViT without
            the class token or the blocks that a branch needs.

    Reference:
        Zhang et al., CorrCLIP: Reconstructing Patch Correlations in CLIP for Open-Vocabulary Semantic Segmentation,
        ICCV 2025, equations 5 to 11; with the reference code's rules where it differs.
    """
    vit = vision_transformer(visual, positions="bicubic")
    lower = spatial_blocks(len(vit.blocks)) if alpha else range(0)
    check_settings(similarity, scope, alpha, beta, eps)
    _check(vit, images, guide, grid)
    check_ids(instance_mask, (len(images), *images.shape[-2:]))
    if alpha and not lower:
        raise ValueError(f"The spatial branch needs a ViT of five blocks, this has {len(vit.blocks)}. Set alpha to 0.")
    if beta and vit.prefix != 1:
        raise ValueError("The semantic branch needs a ViT with a class token. Set beta to 0.")

    guide = F.normalize(guide, dim=-1)
    labels = merge_regions(guide, region_labels(instance_mask, grid).to(guide.device), eps, min_samples)
    own = vit.grid(images)
    coarse = region_labels(labels.unflatten(1, grid), own)  # the regions of CLIP's patches, (B, HW)
    num_regions = int(labels.max()) + 1
    sight = _sight(coarse, num_regions) if beta else None
    x, low, classes = _before_last_block(vit, images, lower, sight)

    block = vit.blocks[-1]
    q, k, v = block.qkv(block.norm(x))
    if similarity == "vanilla":
        x = x + block.out(F.scaled_dot_product_attention(q, k, v))
        tokens = vit.project(x + block.ffn(x))[:, None]  # (B, 1, prefix + HW, D), as one head
        return _resampled(tokens, vit.prefix, own, grid)[:, 0]
    on_grid = partial(_resampled, prefix=vit.prefix, source=own, target=grid)
    scores = guide @ guide.transpose(1, 2)  # (B, N, N)
    allowed = interaction_matrix(scores, labels, unsegmented, num_regions) if scope else None
    if similarity in ("guide", "uniform"):
        weights = correlation(scores if similarity == "guide" else torch.zeros_like(scores), allowed, tau)
        attend = partial(_weighted, weights.to(v.dtype))
    else:
        queries = on_grid(v if similarity == "clip_vv" else q)
        keys = on_grid(k) if similarity == "clip_qk" else queries
        mask = None if allowed is None else allowed[:, None]
        attend = partial(F.scaled_dot_product_attention, queries, keys, attn_mask=mask)

    features = vit.project(block.out(attend(on_grid(v))))
    if low is not None:
        values = block.qkv(block.norm(low))[2]
        features = features + alpha * vit.project(block.out(attend(on_grid(values))))
    if classes is not None and sight is not None:
        regions = vit.project(_asked(block, classes, k, v, sight))  # (B, R, D)
        fine = region_labels(coarse.unflatten(1, own), grid)[:, :, None]  # from CLIP's grid again, as the reference
        features = features + beta * regions.gather(1, fine.expand(-1, -1, regions.shape[-1]))
    return features


def check_settings(similarity: str, scope: bool, alpha: float, beta: float, eps: float | None) -> None:
    """Refuse settings of :func:`corrclip_features` that fit no picture.

    Raises:
        ValueError: Names the setting and the cure.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f"There is no similarity '{similarity}'; known: {', '.join(SIMILARITIES)}.")
    if similarity == "vanilla" and (scope or alpha or beta):
        raise ValueError("similarity is vanilla, CLIP as it is: set scope to false, alpha and beta to 0 with it.")
    if eps is not None and eps < 0:
        raise ValueError(f"eps is {eps}; it must be at least 0, or null, with which no regions are merged.")


def _check(vit: VisionTransformer, images: Tensor, guide: Tensor, grid: tuple[int, int]) -> None:
    rows, columns = vit.patch_size
    if images.ndim != 4 or not images.numel() or images.shape[-2] % rows or images.shape[-1] % columns:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; pixels (B, 3, H, W) are needed, H a multiple of {rows}, W of "
            f"{columns}: pad the window, and its mask with an id of its own."
        )
    if guide.ndim != 3 or guide.shape[:2] != (len(images), grid[0] * grid[1]):
        raise ValueError(
            f"guide has shape {tuple(guide.shape)}; features ({len(images)}, {grid[0]} x {grid[1]}, C) are needed, one "
            "for each image and patch of the grid."
        )


def _sight(coarse: Tensor, num_regions: int) -> Tensor:
    """What the class tokens of regions see, ``(B, 1, R, 1 + HW)``: the image's class token and their own patches."""
    inside = coarse[:, None] == torch.arange(num_regions, device=coarse.device)[:, None]  # (B, R, HW)
    return F.pad(inside, (1, 0), value=True)[:, None]


def _asked(block: Block, classes: Tensor, k: Tensor, v: Tensor, sight: Tensor) -> Tensor:
    """Tokens ``(B, R, W)`` through a block: they attend to the image's keys and values, nothing attends to them."""
    q = block.qkv(block.norm(classes))[0]
    classes = classes + block.out(F.scaled_dot_product_attention(q, k, v, attn_mask=sight))
    return classes + block.ffn(classes)


def _before_last_block(
    vit: VisionTransformer, images: Tensor, lower: range, sight: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """All blocks but the last.

    Args:
        vit: The transformer.
        images: ``(B, 3, H, W)``.
        lower: Blocks whose outputs are averaged.
        sight: What the class tokens of regions see; None = there are none.

    Returns:
        The model's own tokens ``(B, prefix + HW, W)``; the mean of the lower blocks' outputs, None where there are
        none; a class token for each region ``(B, R, W)``, None without sight.
    """
    x = vit.embed(images)
    classes = None if sight is None else x[:, :1].expand(-1, sight.shape[2], -1)
    low = None
    for number, block in enumerate(vit.blocks[:-1]):
        q, k, v = block.qkv(block.norm(x))
        if classes is not None and sight is not None:
            classes = _asked(block, classes, k, v, sight)
        x = x + block.out(F.scaled_dot_product_attention(q, k, v))
        x = x + block.ffn(x)
        if number in lower:
            low = x if low is None else low + x
    return x, None if low is None else low / len(lower), classes


def _resampled(heads: Tensor, prefix: int, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """The patches of heads ``(B, heads, prefix + HW, d)`` on another grid, bilinear: ``(B, heads, N, d)``."""
    patches = heads[:, :, prefix:]
    if source == target:
        return patches
    planes = patches.transpose(2, 3).flatten(1, 2).unflatten(-1, source)  # (B, heads * d, rows, columns)
    planes = F.interpolate(planes, size=target, mode="bilinear", align_corners=False)
    return planes.flatten(2).unflatten(1, (heads.shape[1], -1)).transpose(2, 3)


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """Values ``(B, heads, N, d)`` averaged with weights ``(B, N, N)`` that all heads share."""
    mixed = weights @ values.transpose(1, 2).flatten(2)  # (B, N, W)
    return mixed.unflatten(-1, (values.shape[1], -1)).transpose(1, 2)
