"""The image and text towers inside the module: frozen ones for new images, partly trained ones for live training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.backbones.encoder import unfreeze_blocks


class LiveTowers(nn.Module):
    """Embeddings of pixels and texts.

    Trained towers are part of the module, so that they are moved, saved and optimised with it; frozen ones stay with
    the encoder, which loads them at first use.

    Args:
        encoder: A ``FrozenEncoder``.
        trained_blocks: Transformer blocks of each tower, from the last, that are trained; 0 = none.

    Raises:
        ValueError: More blocks than a tower has.
    """

    def __init__(self, encoder: Any, trained_blocks: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.trained: list[nn.Parameter] = []
        if trained_blocks:
            self.trained = unfreeze_blocks(encoder.towers, trained_blocks)
            self.model = encoder.towers.model

    def train(self, mode: bool = True) -> LiveTowers:
        """Always evaluation mode: the towers go on as they were when they were frozen."""
        return super().train(False)

    def forward(self, images: Tensor, texts: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Embeddings of pixels ``(B, 3, H, W)`` and of B texts, ``(B, D)`` each, on ``device``."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(self.trained)):
            image, text = self.encoder.embed_images(images), self.encoder.embed_texts(texts)
        return image.to(device), text.to(device)  # a frozen encoder chooses its device itself
