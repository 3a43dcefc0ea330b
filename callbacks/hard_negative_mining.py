"""Mines the training set for hard negatives between epochs, so that hard images are drawn or weighted more."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from callbacks.mining_report import MiningRound, log_mining, write_mining_report
from callbacks.run_files import run_folder
from lightning_modules.detection.augment import cut_patches
from lightning_modules.detection.batches import truths_of
from lightning_modules.detection.mining import HardNegativeMiner, Strategy
from lightning_modules.detection.weights import ema, hardness_weights
from lightning_modules.metrics.detection import DetectionScores
from lightning_modules.metrics.detection_matching import DetectionSet
from lightning_modules.metrics.named_rows import NamedRows

SETTINGS = (
    "strategy",
    "ratio",
    "confidence_threshold",
    "iou_threshold",
    "act_on",
    "control",
    "beta",
    "cap",
)


class HardNegativeMining(Callback):
    """Mines in evaluation mode, by index and on all processes, and lets training see hard images more often.

    A round looks at every image of the **training** part once, with the weights of that moment and without
    augmentation. It runs after the last batch of an epoch, before validation and before checkpoints are written, so
    that these hold what was found. Hardness is smoothed over rounds (``ema``) and turned into weights
    (``hardness_weights``) that act from the next epoch on and are the same on all processes. Suspected label errors
    are listed and weigh nothing.

    The module must have ``names`` of its classes and ``find_boxes(batch)``, as ``BoxDetection`` describes them, for
    ``loss_based`` also ``image_losses(batch)``, for ``act_on: loss`` an ``image_weights``, and for ``patches`` the
    attribute of that name. The datamodule must have ``sampler``, ``mining_dataloader()``, ``records``, ``dataset`` and
    ``picture``, as ``DetectionData`` has.

    Args:
        every_n_epochs: Epochs between two rounds.
        start_epoch: First epoch that trains on what was mined, from 0; the first round is run before it.
        strategy: See ``HardNegativeMiner``.
        ratio: Share of hard images among those that are drawn, at least 0 and below 1.
        confidence_threshold: Confidence from which on a prediction counts; one, or one of each class.
        iou_threshold: IoU from which on it finds a truth.
        act_on: What the weights act on: the ``sampler``, the images' ``loss``, or ``nothing`` (reports alone).
        control: What mining must beat: ``placebo``, the same weights permuted over the images; ``fullest``, images
            weigh by their number of objects, since pictures with many objects have many errors. ``none`` mines.
        beta: Weight of earlier rounds, at least 0 and below 1.
        cap: How many times as much as an easy image a hard one weighs at most.
        patches: Background errors kept as pieces of pictures for copy-paste; 0 = none.
        save_hard_negatives: Write a report of each round to ``hard_negatives/epoch_<n>`` in the folder of the run.
        crops: Hardest errors that the report shows.

    Raises:
        ValueError: Arguments outside their range, or a module or datamodule that lacks what is needed.
    """

    def __init__(
        self,
        every_n_epochs: int = 10,
        start_epoch: int = 10,
        strategy: Strategy = "confidence_based",
        ratio: float = 0.3,
        confidence_threshold: float | list[float] = 0.5,
        iou_threshold: float = 0.5,
        act_on: Literal["sampler", "loss", "nothing"] = "sampler",
        control: Literal["none", "placebo", "fullest"] = "none",
        beta: float = 0.5,
        cap: float = 10.0,
        patches: int = 0,
        save_hard_negatives: bool = True,
        crops: int = 24,
    ) -> None:
        if every_n_epochs < 1 or start_epoch < 1 or patches < 0 or crops < 0:
            raise ValueError(
                f"every_n_epochs is {every_n_epochs}, start_epoch {start_epoch}, patches {patches} and crops {crops}; "
                "the first two must be at least 1, the others at least 0."
            )
        if act_on not in ("sampler", "loss", "nothing") or control not in ("none", "placebo", "fullest"):
            raise ValueError(
                f"act_on is {act_on!r} and control {control!r}; known: sampler, loss, nothing; none, placebo, fullest."
            )
        self.every_n_epochs, self.start_epoch, self.strategy = every_n_epochs, start_epoch, strategy
        self.ratio = ratio
        self.confidence_threshold, self.iou_threshold = confidence_threshold, iou_threshold
        self.act_on, self.control, self.beta, self.cap = act_on, control, beta, cap
        self.patches, self.save_hard_negatives, self.crops = patches, save_hard_negatives, crops
        self.miner()  # refuses what does not fit
        hardness_weights(ema(None, torch.zeros(1), beta), ratio, cap)
        self.rounds = 0
        self.hardness: Tensor | None = None
        self.cut: list[Tensor] = []

    def miner(self) -> HardNegativeMiner:
        """A miner without images."""
        return HardNegativeMiner(self.confidence_threshold, self.iou_threshold, self.ratio, strategy=self.strategy)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is something to mine, and let what a checkpoint held act again."""
        data = getattr(trainer, "datamodule", None)
        needed = [name for name in ("sampler", "mining_dataloader") if not hasattr(data, name)]
        if needed:
            raise ValueError(
                f"HardNegativeMining: {type(data).__name__} has no {needed[0]}. Use a detection datamodule, or remove "
                "the callback."
            )
        wanted = {"image_losses": self.strategy == "loss_based", "image_weights": self.act_on == "loss"}
        wanted |= {"find_boxes": True, "patches": self.patches > 0}
        for name, needs in wanted.items():
            if needs and not hasattr(pl_module, name):
                raise ValueError(
                    f"HardNegativeMining: {type(pl_module).__name__} has no {name}. Use a module of lightning_modules."
                    "detection, another strategy or act_on, or remove the callback."
                )
        number = len(self.confidence_threshold) if isinstance(self.confidence_threshold, list) else None
        if number not in (None, len(names := list(pl_module.names))):
            raise ValueError(
                f"HardNegativeMining: confidence_threshold lists {number} values and there are {len(names)} classes "
                f"({', '.join(names)}); give one, or one for each."
            )
        if self.hardness is not None:
            self.act(trainer, pl_module)
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= self.start_epoch:
            rank_zero_warn(
                f"HardNegativeMining: start_epoch is {self.start_epoch} and the training has {trainer.max_epochs} "
                "epochs, counted from 0: nothing will be mined. Lower start_epoch, or raise trainer.max_epochs."
            )

    def is_due(self, trainer: Trainer) -> bool:
        """Whether a round belongs between this epoch and the next."""
        coming = trainer.current_epoch + 1
        last = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= coming
        return coming >= self.start_epoch and (coming - self.start_epoch) % self.every_n_epochs == 0 and not last

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Mine after the last batch of an epoch, where a round is due."""
        if trainer.is_last_batch and self.is_due(trainer):
            self.mine(trainer, pl_module)

    def mine(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run a round; every process must call it."""
        data, index, losses = self.look(trainer, pl_module)
        source, names = trainer.datamodule, list(pl_module.names)
        ids = source.records("train").ids
        miner = self.miner()
        records = miner.mine(data, index, [ids[position] for position in index], losses)
        objects = torch.from_numpy(np.bincount(data.truth_image, ~data.truth_ignored, minlength=len(ids)))
        found = objects if self.control == "fullest" else miner.image_hardness(len(ids))
        self.hardness = ema(self.hardness, found, self.beta)
        self.rounds += 1
        if self.patches:
            self.cut = cut_patches(source.dataset("train"), records, data, self.patches)
        self.act(trainer, pl_module)
        report = miner.generate_report()
        types = {f"num_{name}": number for name, number in report["statistics"]["types"].items()}
        numbers = {**report["metrics"], **types, "hard_images": int(self.hard().sum())}
        logged = {f"mining/{name}": float(value) for name, value in numbers.items()}
        pl_module.log_dict(logged, on_step=False, on_epoch=True, batch_size=1)
        folder = run_folder(trainer) / "hard_negatives" / f"epoch_{trainer.current_epoch + 1:03d}"  # asks all processes
        if self.save_hard_negatives and trainer.is_global_zero and not trainer.fast_dev_run:
            title = f"Hard negatives of the training part after epoch {trainer.current_epoch + 1}"
            settings = {**{key: getattr(self, key) for key in SETTINGS}, "hard_negative_ratio": self.ratio}
            mined = MiningRound(report, records, data, names, ids, partial(source.picture, "train"), title, settings)
            write_mining_report(folder, mined, self.crops)
            log_mining(trainer.loggers, mined, folder, trainer.global_step)
            hard = int(self.hard().sum())
            print(f"{len(records)} hard negatives; {hard} of {len(ids)} images weigh more from here on; see {folder}")

    def look(self, trainer: Trainer, pl_module: LightningModule) -> tuple[DetectionSet, list[int], list[float] | None]:
        """What the detector finds in the training part, the index of each image and, for ``loss_based``, its loss."""
        modes = {module: module.training for module in pl_module.modules()}
        module: Any = pl_module
        boxes = DetectionScores(len(module.names), (0.5,)).to(module.device)
        losses = NamedRows(width=2, keys=1).to(module.device)
        module.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for batch in trainer.datamodule.mining_dataloader():
                moved = move_data_to_device(batch, module.device)
                boxes.update(module.find_boxes(moved), truths_of(batch), batch["index"])
                if self.strategy == "loss_based":
                    losses.update(torch.stack([moved["index"].double(), module.image_losses(moved).double()], dim=1))
        for part, mode in modes.items():
            part.training = mode
        data, index = boxes.collected()
        return data, index.tolist(), losses.compute()[:, 1].tolist() if self.strategy == "loss_based" else None

    def weights(self) -> Tensor:
        """The weights of all training images, (N,) with sum 1; those of the control permuted alike in all rounds."""
        assert self.hardness is not None
        weights = hardness_weights(self.hardness, self.ratio, self.cap)
        if self.control == "placebo":
            weights = weights[torch.randperm(len(weights), generator=torch.Generator().manual_seed(0))]
        return weights

    def hard(self) -> Tensor:
        """Which training images weigh more than others, (N,) bool."""
        weights = self.weights()
        return weights > weights.min()

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give sampler or losses the weights, and the module what was cut out."""
        weights, module, data = self.weights(), pl_module, trainer.datamodule
        if self.act_on == "sampler":
            data.sampler.set_weights(weights)
        elif self.act_on == "loss":
            module.image_weights = (weights * len(weights)).float().to(module.device)
        if hasattr(module, "hard_images"):
            module.hard_images = self.hard().to(module.device)
        if self.patches:
            module.patches = self.cut

    def state_dict(self) -> dict[str, Any]:
        """Hardness and pieces, so that a resumed training draws as the one that was stopped would have."""
        settings = {name: getattr(self, name) for name in SETTINGS}
        return {"rounds": self.rounds, "hardness": self.hardness, "cut": self.cut, "settings": settings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up; ``on_fit_start`` lets them act. This run's arguments hold."""
        self.rounds, self.hardness, self.cut = (state_dict[name] for name in ("rounds", "hardness", "cut"))
        changed = [name for name in SETTINGS if state_dict["settings"][name] != getattr(self, name)]
        if changed:
            was = ", ".join(f"{name} {state_dict['settings'][name]} -> {getattr(self, name)}" for name in changed)
            rank_zero_warn(f"HardNegativeMining: the checkpoint was trained with other settings ({was}).")
