"""Scenes rendered on the fly, never the same twice: the data that the tiny CLIP is trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from datamodules.base import BaseDataModule
from datamodules.folds import check_fold, make_folds
from datamodules.scenes.captions import GROUNDS, NOUNS, scene_captions
from datamodules.scenes.render import Scene, render_scene
from datamodules.scenes.sprites import CLASS_NAMES
from datamodules.scenes.textures import BACKGROUNDS

CLOSE_UPS = 0.25  # share of the training scenes in which one object fills the frame
SPLITS = {"train": 0, "val": 1, "test": 2, "world": 3}  # streams that share no scene


def make_scene(seed: int, split: str, index: int, size: int, close_up_share: float = 0.0) -> tuple[Scene, list[str]]:
    """Scene ``index`` of a split and its captions; the same arguments give the same scene."""
    rng = np.random.default_rng([seed, SPLITS[split], index])
    scene = render_scene(rng, size, close_up=rng.random() < close_up_share)
    return scene, scene_captions(rng, scene)


class SceneDataset(Dataset[dict[str, Any]]):
    """``length`` scenes, each rendered when it is asked for.

    Args:
        length: Number of scenes.
        size: Side of a scene in pixels.
        seed: Seed of the world.
        split: ``train`` (with close-ups, a random caption), ``val`` or ``test`` (caption 0).

    Items are dicts: ``image`` (3, S, S) uint8, ``text`` one caption, ``labels`` (12,), ``concepts`` (18,) with the
    labels and then the one-hot background, ``semantic`` (S, S) uint8 and ``index``.
    """

    def __init__(self, length: int, size: int = 96, seed: int = 0, split: str = "train") -> None:
        self.length, self.size, self.seed, self.split = length, size, seed, split

    def __len__(self) -> int:
        """Number of scenes."""
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Render one scene."""
        training = self.split == "train"
        scene, captions = make_scene(self.seed, self.split, index, self.size, CLOSE_UPS if training else 0.0)
        labels = torch.from_numpy(scene.labels)
        ground = torch.zeros(len(BACKGROUNDS))
        ground[BACKGROUNDS.index(scene.background)] = 1
        return {
            "image": torch.from_numpy(scene.image).permute(2, 0, 1).contiguous(),
            "text": captions[index % len(captions) if training else 0],
            "labels": labels,
            "concepts": torch.cat([labels, ground]),
            "semantic": torch.from_numpy(scene.semantic),
            "index": index,
        }


class Scenes(BaseDataModule):
    """Generated scenes, a fixed number for each of training, validation and test.

    With ``num_folds`` the ``num_train`` training scenes are a pool that is cut into random folds: fold ``fold``
    validates, the others train. The test scenes stay apart.

    Args:
        num_train: Scenes of one epoch, or of the pool that is cut into folds.
        num_val: Scenes of the validation set; not used with folds.
        num_test: Scenes of the test set.
        size: Side of a scene in pixels.
        seed: Seed of the world and of the folds.
        num_folds: Number of folds; None = a validation set of its own.
        fold: The fold that validates, from 0.
        **loader: Arguments of :class:`~datamodules.base.BaseDataModule`.
    """

    def __init__(
        self,
        num_train: int = 8000,
        num_val: int = 500,
        num_test: int = 500,
        size: int = 96,
        seed: int = 0,
        num_folds: int | None = None,
        fold: int = 0,
        **loader: Any,
    ) -> None:
        super().__init__(**loader)
        check_fold(num_folds, fold)
        self.num_folds = num_folds
        self.fold = fold
        lengths = {"train": num_train, "val": num_val, "test": num_test}
        self.datasets: dict[str, Dataset[dict[str, Any]]] = {
            split: SceneDataset(length, size, seed, split) for split, length in lengths.items()
        }
        if num_folds is not None:
            # Random folds: labels to stratify by would mean to render every scene first.
            folds = make_folds(np.zeros((num_train, 0)), num_folds, seed, stratified=False)
            pool = self.datasets["train"]
            for split, rows in (("train", folds != fold), ("val", folds == fold)):
                self.datasets[split] = Subset(pool, np.flatnonzero(rows).tolist())

    @property
    def class_names(self) -> list[str]:
        """The twelve classes."""
        return list(CLASS_NAMES)

    @property
    def phrases(self) -> list[list[str]]:
        """For each concept, twelve classes and then six backgrounds, the ways to name it."""
        objects = [[form for pair in NOUNS[name] for form in pair] for name in CLASS_NAMES]
        return objects + [list(GROUNDS[name]) for name in BACKGROUNDS]

    def train_dataloader(self) -> DataLoader[Any]:
        """Training scenes in order: they are random already."""
        return self.loader(self.datasets["train"], drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation scenes."""
        return self.loader(self.datasets["val"])

    def test_dataloader(self) -> DataLoader[Any]:
        """Test scenes."""
        return self.loader(self.datasets["test"])
