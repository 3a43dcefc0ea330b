"""A small open_clip ViT with weights far from their initialisation."""

from __future__ import annotations

import torch
from torch import nn


def small_vit(size: int = 32, patch: int = 8, activation: type[nn.Module] = nn.GELU, **settings: object) -> nn.Module:
    from open_clip.transformer import VisionTransformer

    generator = torch.Generator().manual_seed(3)
    visual = VisionTransformer(size, patch, 16, 8, 2, 4.0, output_dim=12, act_layer=activation, **settings)
    for weights in visual.parameters():
        weights.data = 0.25 * torch.randn(weights.shape, generator=generator)
    return visual.eval()
