"""The hooks that every LightningModule of the suite shares."""

from __future__ import annotations

import os
from abc import ABC
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor


class BaseModule(LightningModule, ABC):
    """A method of the suite: networks, losses and metrics are built by three hooks, in this order.

    A subclass stores its plain arguments (numbers, strings) in ``self.hparams`` by calling ``super().__init__()``
    last, and reads them from there; objects are kept as attributes and named in ``ignored_hparams``.
    """

    ignored_hparams: ClassVar[Sequence[str]] = ()
    checkpoint: str | None = None  # what will be loaded into the networks once they are built
    trained = False  # whether a step was made, or weights were loaded

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

    @property
    def data(self) -> Any:
        """The DataModule of the run; None where there is none, as before a run."""
        return getattr(self._trainer, "datamodule", None)

    def take_from_data(self, *names: str) -> None:
        """Fill arguments that were left None with what the DataModule knows, else the checkpoint that is to be loaded.

        So a checkpoint holds them.

        Args:
            names: Arguments that are attributes of the DataModule too, such as ``image_dim``.

        Raises:
            ValueError: Neither side knows one, or they differ.
        """
        data, me = self.data, type(self).__name__
        known = {name: getattr(data, name, None) for name in names}
        if None in known.values() and self.checkpoint:  # data that is only predicted on
            stored = torch.load(self.checkpoint, map_location="cpu", weights_only=True, mmap=True)
            known |= {name: stored["hyper_parameters"].get(name) for name in names if known[name] is None}
        for name in names:
            given, found = self.hparams[name], known[name]
            if given is None and found is None:
                raise ValueError(
                    f"{me}: {name} is not set and the data has none. Use a datamodule with {name}, set "
                    f"model.init_args.{name}, or, to predict, name a checkpoint (--ckpt_path best)."
                )
            if None not in (given, found) and given != found:
                raise ValueError(f"{me}: {name} is {given}, but the data has {found}.")
            self.hparams[name] = found if given is None else given

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Draw an epoch's dropout from seed and epoch alone: a run that is resumed after an epoch repeats it."""
        self.trained = True
        seed = os.environ.get("PL_GLOBAL_SEED")
        if batch_idx == 0 and seed is not None:
            torch.manual_seed(int(seed) + 100_003 * self.current_epoch + self.global_rank)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights, as of a checkpoint."""
        self.trained = True
        return super().load_state_dict(*args, **kwargs)

    def random_weights(self) -> bool:
        """Whether some weights that training would change are as they were drawn."""
        return not self.trained and any(weights.requires_grad for weights in self.parameters())

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
