"""The hooks that every LightningModule of the suite shares."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import ClassVar

from lightning.pytorch import LightningModule
from torch import Tensor


class BaseModule(LightningModule, ABC):
    """A method of the suite: networks, losses and metrics are built by three hooks, in this order.

    A subclass stores its plain arguments (numbers, strings) in ``self.hparams`` by calling ``super().__init__()``
    last, and reads them from there; objects are kept as attributes and named in ``ignored_hparams``.
    """

    ignored_hparams: ClassVar[Sequence[str]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=list(self.ignored_hparams))
        self.configure_models()
        self.configure_losses()
        self.configure_metrics()

    def configure_models(self) -> None:
        """Build the networks."""

    def configure_losses(self) -> None:
        """Build the losses."""

    def configure_metrics(self) -> None:
        """Build the metrics."""

    def gathered(self, x: Tensor) -> Tensor:
        """Rows of all processes with their gradients, so that several processes see one large batch.

        Args:
            x: Shape ``(B, ...)``, the same on every process.

        Returns:
            Shape ``(processes * B, ...)``.
        """
        if self.trainer.world_size == 1:
            return x
        return self.all_gather(x, sync_grads=True).flatten(0, 1)
