"""A tiny module and datamodule, importable by name, for the tests of the command line."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from datamodules.base import BaseDataModule
from lightning_modules.base import BaseModule


class ToyModule(BaseModule):
    """A linear layer that learns the sum of its inputs.

    Args:
        width: Inputs of the layer.
        lr: Learning rate.
        mode: A choice, for the tests of wrong values.
        fail: Exception to raise in the first training step, for the tests of messages.
    """

    def __init__(
        self,
        width: int = 4,
        lr: float = 0.1,
        mode: Literal["sum", "mean"] = "sum",
        fail: str | None = None,
    ) -> None:
        super().__init__()

    def configure_models(self) -> None:
        self.layer = nn.Linear(self.hparams["width"], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        errors: dict[str, type[Exception]] = {"RuntimeError": RuntimeError, "KeyError": KeyError}
        if self.hparams["fail"]:
            raise errors[self.hparams["fail"]]("the toy broke")
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", (self(batch[0]) - batch[1]).square().mean())

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test/error_map", (self(batch[0]) - batch[1]).square().mean())

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def result_notes(self) -> dict[str, Any]:
        return {"convention": "squared error", "n_items": 8.0, "random_map": 2.0}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


class OtherModule(ToyModule):
    """Another module with other weights."""

    def configure_models(self) -> None:
        self.other = nn.Linear(self.hparams["width"], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(x)


class Shout(Callback):
    """Prints what is predicted."""

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        print(f"batch {batch_idx}: {len(outputs)} predictions")


class ToyData(BaseDataModule):
    """Eight random rows.

    Args:
        width: Length of a row.
        missing: A file to look for, for the tests of messages.
        batch_size: Samples a step and process.
        num_workers: Loader processes.
        pin_memory: Copy batches to page-locked memory.
        persistent_workers: Keep the loader processes between epochs.
    """

    def __init__(
        self,
        width: int = 4,
        missing: str | None = None,
        batch_size: int = 4,
        num_workers: int = 0,
        pin_memory: bool = False,
        persistent_workers: bool = False,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory, persistent_workers)
        self.width, self.missing = width, missing

    def setup(self, stage: str) -> None:
        if self.missing:
            open(self.missing).close()
        x = torch.randn(8, self.width, generator=torch.Generator().manual_seed(0))
        self.rows = TensorDataset(x, x.sum(1, keepdim=True))

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.rows, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.rows)

    test_dataloader = predict_dataloader = val_dataloader


class NeedyData(ToyData):
    """Rows from a folder that must be named.

    Args:
        root: The folder.
    """

    def __init__(self, root: str) -> None:
        super().__init__()
