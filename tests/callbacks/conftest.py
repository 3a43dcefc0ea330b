"""Small hashing runs for the tests of the callbacks: over a feature file, and over pictures through the cache."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from datamodules import COCO, FeatureCache, PairedFeatures
from datamodules.scenes.layouts import write_coco
from lightning_modules.hashing import CrossModalHashing

BITS = 12  # not a multiple of eight, so that packing shows


class ToyEncoder:
    """Mean colours of an image, counts of hashed words of a text."""

    name, embed_dim, preprocessing = "toy", 27, "9 patches"

    def fingerprint(self) -> str:
        return "toy"

    def preprocess(self, image):
        return torch.from_numpy(np.array(image.resize((3, 3)))).permute(2, 0, 1).float() / 255

    def encode_image(self, images):
        return images.flatten(1)

    def encode_text(self, texts):
        rows = torch.zeros(len(texts), self.embed_dim)
        for row, text in zip(rows, texts, strict=True):
            for word in text.split():
                row[zlib.crc32(word.encode()) % self.embed_dim] += 1
        return rows


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_coco(str(folder), 30, 12, 32, 0)
    return folder


@pytest.fixture(scope="session")
def picture_data(world):
    """42 generated scenes as features, with the pictures behind them."""
    coco = COCO(str(world), num_query=9, num_train=20, split_dir=str(world / "splits"), batch_size=8)
    return PairedFeatures(FeatureCache(coco, ToyEncoder(), str(world / "cache")), batch_size=8, val_fraction=0.2)


@pytest.fixture
def feature_file(tmp_path) -> str:
    g = np.random.default_rng(0)
    arrays, means = {}, {name: g.standard_normal((3, 6)) for name in ("image", "text")}
    for split, n in (("train", 40), ("query", 11), ("database", 29)):
        label = np.arange(n) % 3
        for name, mean in means.items():
            arrays[f"{split}_{name}"] = mean[label] + g.standard_normal((n, 6))
        arrays[f"{split}_labels"] = np.eye(3)[label]
    np.savez(tmp_path / "features.npz", **arrays)
    return str(tmp_path / "features.npz")


@pytest.fixture
def feature_data(feature_file):
    return PairedFeatures(feature_file, batch_size=8)


@pytest.fixture(scope="session")
def make_module():
    def make(**arguments):
        return CrossModalHashing(**{"bits": BITS, "hidden": 16, **arguments})

    return make


@pytest.fixture(scope="session")
def make_trainer():
    def make(folder, *callbacks, epochs=2, **arguments):
        settings = {"logger": False, "default_root_dir": folder, **arguments}
        return Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=list(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            **settings,
        )

    return make
