"""Image-text pre-training of the tiny CLIP."""

from lightning_modules.contrastive.module import ContrastivePretraining

__all__ = ["ContrastivePretraining"]
