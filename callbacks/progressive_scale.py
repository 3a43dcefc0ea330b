"""Sharpens tanh(scale * x) of the hash heads while training."""

from __future__ import annotations

import math
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn


def linear_scale(epoch: int, max_epochs: int, start: float = 1.0, end: float = 10.0) -> float:
    """Scale that grows by the same amount each epoch, ``start`` in the first and ``end`` in the last.

    Example:
        >>> [linear_scale(epoch, 4) for epoch in range(4)]
        [1.0, 4.0, 7.0, 10.0]
    """
    return start + (end - start) * min(1.0, epoch / max(1, max_epochs - 1))


def sqrt_scale(step: int, start: float = 1.0, end: float = 10.0, gamma: float = 0.005, every: int = 200) -> float:
    """HashNet's continuation, ``start * sqrt(1 + gamma * step)``, held for ``every`` steps, at most ``end``.

    Reference:
        Cao et al., HashNet: Deep Learning to Hash by Continuation, ICCV 2017, section 3.3.

    Example:
        >>> sqrt_scale(199), round(sqrt_scale(200), 4), round(sqrt_scale(10_000), 2)
        (1.0, 1.4142, 7.14)
    """
    return min(end, start * math.sqrt(1 + gamma * (step // every * every)))


class ProgressiveScale(Callback):
    """Raises the scale of every hash head over the training, from a smooth tanh towards the sign function.

    It reaches the module through one method: each submodule with ``set_scale(value: float)`` is set, and the value is
    logged as ``scale``. The value follows from the epoch or step alone, so a resumed run continues the schedule. The
    scale never changes the sign of a code: it changes what is learnt, not how a trained head is evaluated.

    Args:
        schedule: ``linear`` over epochs, or ``sqrt`` over optimiser steps (HashNet's rule).
        start: First value, above 0.
        end: Last value of ``linear``, upper bound of ``sqrt``; not below ``start``.
        gamma: Growth by step inside the root, ``sqrt`` only.
        every: Steps between two changes, ``sqrt`` only.

    Raises:
        ValueError: Bad arguments, a module without hash heads, ``linear`` without ``max_epochs``.
    """

    def __init__(
        self,
        schedule: Literal["linear", "sqrt"] = "linear",
        start: float = 1.0,
        end: float = 10.0,
        gamma: float = 0.005,
        every: int = 200,
    ) -> None:
        if schedule not in ("linear", "sqrt"):
            raise ValueError(f"schedule is {schedule!r}; known are 'linear' and 'sqrt'.")
        if not 0 < start <= end:
            raise ValueError(f"start is {start} and end is {end}; 0 < start <= end is needed.")
        if every < 1 or gamma < 0:
            raise ValueError(f"every is {every} and gamma is {gamma}; every >= 1 and gamma >= 0 are needed.")
        self.schedule = schedule
        self.start = start
        self.end = end
        self.gamma = gamma
        self.every = every

    def scale(self, trainer: Trainer) -> float:
        """The value at the trainer's current epoch and step."""
        if self.schedule == "linear":
            return linear_scale(trainer.current_epoch, trainer.max_epochs or 1, self.start, self.end)
        return sqrt_scale(trainer.global_step, self.start, self.end, self.gamma, self.every)

    def _apply(self, trainer: Trainer, module: LightningModule) -> float:
        value = self.scale(trainer)
        for part in module.modules():
            if callable(getattr(part, "set_scale", None)):
                part.set_scale(value)
        return value

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is something to set and an end to reach."""
        if not any(callable(getattr(part, "set_scale", None)) for part in pl_module.modules()):
            raise ValueError(
                f"ProgressiveScale: {type(pl_module).__name__} has no hash head, that is no submodule with "
                "set_scale(value). Remove the callback or use a hashing module."
            )
        if self.schedule == "linear" and (trainer.max_epochs or 0) < 1:
            raise ValueError("ProgressiveScale: schedule 'linear' needs trainer.max_epochs; set it, or use 'sqrt'.")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set and log the value."""
        pl_module.log("scale", self._apply(trainer, pl_module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Follow the step-wise schedule within the epoch."""
        if self.schedule == "sqrt":
            self._apply(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The schedule, so that resuming with another one is noticed."""
        return {name: getattr(self, name) for name in ("schedule", "start", "end", "gamma", "every")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the schedule of the checkpoint; this run's arguments hold."""
        changed = [name for name, value in self.state_dict().items() if state_dict.get(name, value) != value]
        if changed:
            was = ", ".join(f"{name} {state_dict[name]} -> {getattr(self, name)}" for name in changed)
            rank_zero_warn(f"ProgressiveScale: the checkpoint was trained with another schedule ({was}).")
