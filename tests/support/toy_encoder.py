"""An encoder of fixed random projections that counts its calls, for tests of the feature cache."""

from __future__ import annotations

import time

import numpy as np
import torch

from datamodules import feature_store


class ToyEncoder:
    """Two fixed projections; every call is counted."""

    def __init__(self, seed: int = 0, dim: int = 6, log: str | None = None, pause: float = 0.0) -> None:
        self.name = "Toy/Encoder"
        self.embed_dim = dim
        self.preprocessing = "16x12 floats"
        self.weights = torch.randn(3 * 12 * 16, dim, generator=torch.Generator().manual_seed(seed))
        self.images = 0
        self.log, self.pause = log, pause

    def fingerprint(self) -> str:
        return feature_store.content_hash(self.weights.tolist())

    def preprocess(self, image):
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255

    def encode_image(self, images):
        self.images += len(images)
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{len(images)}\n")
        time.sleep(self.pause)
        return images.flatten(1) @ self.weights

    def encode_text(self, texts):
        rows = [[(hash_text(t) >> shift) % 97 / 10 for shift in range(self.embed_dim)] for t in texts]
        return torch.tensor(rows).reshape(len(texts), self.embed_dim)


def hash_text(text: str) -> int:
    return int.from_bytes(text.encode()[-8:], "big")
