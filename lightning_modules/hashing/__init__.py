"""Cross-modal hashing: UCMFH, its balanced and progressive forms, and supervised HashNet."""

from lightning_modules.hashing.losses import balanced_contrastive_loss, hashnet_pairwise_loss, nt_xent_loss
from lightning_modules.hashing.module import CrossModalHashing
from lightning_modules.hashing.networks import FusionEncoder, HashHead

__all__ = [
    "CrossModalHashing",
    "FusionEncoder",
    "HashHead",
    "balanced_contrastive_loss",
    "hashnet_pairwise_loss",
    "nt_xent_loss",
]
