"""What pre-training needs of an open_clip image tower: the image's embedding and its patches'."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def embeddings_and_values(visual: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """One pass of an open_clip ViT, with the last block's values brought to the space of the texts.

    The values take the path that a patch would take if it attended to itself alone: value and output projection
    of the last block, final layer norm, projection. Patches dropped in training are missing here too.

    Args:
        visual: ``open_clip.transformer.VisionTransformer`` with class-token pooling.
        images: ``(B, 3, H, W)``.

    Returns:
        Image embeddings ``(B, D)`` and patch embeddings ``(B, N, D)``, neither normalised.

    Reference:
        Zhou et al., Extract Free Dense Labels from CLIP, 2022, section 3.2 (MaskCLIP).
    """
    tokens = visual._embeds(images)  # (B, 1 + N, W)
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    last = visual.transformer.resblocks[-1]
    attention = last.attn
    width = attention.embed_dim
    bias = attention.in_proj_bias[2 * width :]
    values = F.linear(last.ln_1(tokens[:, 1:]), attention.in_proj_weight[2 * width :], bias)
    values = visual.ln_post(attention.out_proj(values)) @ visual.proj  # (B, N, D)
    pooled, _ = visual._pool(last(tokens))
    return pooled @ visual.proj, values
