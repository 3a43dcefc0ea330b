"""The learning rate over the optimiser steps: warm-up, then cosine, once or with restarts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

Schedule = Literal["cosine", "warm_restarts"]


def learning_rate_factor(
    step: int,
    total_steps: int,
    warmup_steps: int = 0,
    schedule: Schedule = "cosine",
    steps_per_epoch: int = 1,
    restart_epochs: int = 5,
    restart_factor: int = 2,
    floor: float = 0.005,
) -> float:
    """What the learning rate is multiplied with in an optimiser step.

    Steps 0 to ``warmup_steps - 1`` rise in equal parts from ``1 / warmup_steps`` to 1. From there ``cosine`` falls to
    the floor, reached in step ``total_steps - 1``, the last one. ``warm_restarts`` falls towards the floor over the
    ``restart_epochs`` epochs after the warm-up, of which the first step has the factor 1, jumps back to 1, and makes
    each next fall ``restart_factor`` times as long; a run whose length is not a sum of such falls (5, 15, 35, ...
    epochs after the warm-up by default) ends in mid-fall, at a high rate. A run shorter than the warm-up only warms up.
    Later steps than the last keep the floor of ``cosine``.

    Args:
        step: Optimiser step, from 0.
        total_steps: Optimiser steps of the run.
        warmup_steps: Length of the warm-up; 0 or 1 = none.
        schedule: ``cosine`` or ``warm_restarts``.
        steps_per_epoch: Optimiser steps an epoch, for ``warm_restarts``.
        restart_epochs: Epochs of the first fall.
        restart_factor: Whole number, at least 1.
        floor: Lowest learning rate, as a fraction of the highest.

    Returns:
        The factor, in (0, 1].

    Raises:
        ValueError: An argument out of its range.

    Reference:
        Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, ICLR 2017, eq. 5.

    Example:
        >>> [round(learning_rate_factor(step, 7, warmup_steps=3, floor=0.0), 3) for step in range(7)]
        [0.333, 0.667, 1.0, 0.854, 0.5, 0.146, 0.0]
        >>> [learning_rate_factor(s, 6, schedule="warm_restarts", restart_epochs=2, floor=0.0) for s in (0, 2, 4)]
        [1.0, 1.0, 0.5]
    """
    if schedule not in ("cosine", "warm_restarts"):
        raise ValueError(f"schedule is {schedule!r}; known are 'cosine' and 'warm_restarts'.")
    if step < 0 or total_steps < 1 or warmup_steps < 0:
        raise ValueError(
            f"step is {step}, total_steps {total_steps} and warmup_steps {warmup_steps}; the schedule needs the number "
            "of steps of the run, so set trainer.max_epochs or trainer.max_steps."
        )
    if not 0 <= floor <= 1:
        raise ValueError(f"floor is {floor}; the lowest learning rate is a fraction of the highest, 0 to 1.")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "cosine":
        peak = max(warmup_steps - 1, 0)  # the step that has the full rate
        progress = min((step - peak) / max(total_steps - 1 - peak, 1), 1.0)
    else:
        if min(steps_per_epoch, restart_epochs, restart_factor) < 1 or restart_factor != int(restart_factor):
            raise ValueError(
                f"steps_per_epoch is {steps_per_epoch}, restart_epochs {restart_epochs} and restart_factor "
                f"{restart_factor}; warm restarts need whole numbers of at least 1."
            )
        after, fall = step - warmup_steps, restart_epochs * steps_per_epoch
        while after >= fall and restart_factor > 1:
            after -= fall
            fall *= restart_factor
        progress = after % fall / fall
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def optimiser_steps(trainer: Any) -> tuple[int, int]:
    """Optimiser steps of the whole run and of an epoch.

    Counted without starting the loader: its processes would fetch the first epoch before a resumed run knows its own.

    Args:
        trainer: A Lightning Trainer with a datamodule.

    Raises:
        ValueError: The run has no end.
    """
    batches, limit = len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    epoch = max(1, math.ceil(batches / trainer.accumulate_grad_batches))
    ends = [trainer.max_steps] if trainer.max_steps > 0 else []
    ends += [epoch * trainer.max_epochs] if (trainer.max_epochs or -1) > 0 else []
    if not ends:
        raise ValueError(
            "The learning rate follows the length of the run: set trainer.max_epochs or trainer.max_steps."
        )
    return min(ends), epoch


def rate_schedule(total_steps: int, epoch_steps: int, warmup_epochs: float, **settings: Any) -> Callable[[int], float]:
    """The factor as a function of the step alone, for a warm-up that is given in epochs.

    Args:
        total_steps: Optimiser steps of the run.
        epoch_steps: Optimiser steps of an epoch.
        warmup_epochs: Epochs of the warm-up; a fraction is allowed. It ends before the run does.
        **settings: The other arguments of :func:`learning_rate_factor`.

    Example:
        >>> factor = rate_schedule(total_steps=8, epoch_steps=2, warmup_epochs=1.5, floor=0.0)
        >>> [round(factor(step), 2) for step in range(8)]
        [0.33, 0.67, 1.0, 0.9, 0.65, 0.35, 0.1, 0.0]
    """
    warmup = min(round(warmup_epochs * epoch_steps), total_steps - 1)
    return functools.partial(
        learning_rate_factor, total_steps=total_steps, warmup_steps=warmup, steps_per_epoch=epoch_steps, **settings
    )


def adamw_with_schedule(
    groups: list[dict[str, Any]], settings: Mapping[str, Any], total_steps: int, epoch_steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW whose rates warm up and fall with every optimiser step.

    Args:
        groups: Parameters with their peak rate ``lr``; the first group's is ``settings["lr"]``.
        settings: ``lr``, ``min_lr``, ``weight_decay``, ``schedule``, ``warmup_epochs``, ``restart_epochs`` and
            ``restart_factor``.
        total_steps: Optimiser steps of the run.
        epoch_steps: Optimiser steps of an epoch.
    """
    names = ("schedule", "warmup_epochs", "restart_epochs", "restart_factor")
    chosen = {name: settings[name] for name in names}
    factor = rate_schedule(total_steps, epoch_steps, floor=settings["min_lr"] / settings["lr"], **chosen)
    optimizer = torch.optim.AdamW(groups, weight_decay=settings["weight_decay"])
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
