"""What is decayed, which parts learn more slowly, and the learning rate over a training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


def warm_cosine_adamw(
    network: nn.Module, steps: int, lr: float, backbone_lr: float, weight_decay: float, warmup: float
) -> dict[str, Any]:
    """AdamW whose learning rate warms up and then falls to zero along a cosine.

    Args:
        network: The network.
        steps: Steps of the whole training, at least 1.
        lr: Highest learning rate.
        backbone_lr: See ``parameter_groups``.
        weight_decay: See ``parameter_groups``.
        warmup: Share of the steps in which the learning rate rises.

    Returns:
        What ``configure_optimizers`` returns.
    """
    optimizer = torch.optim.AdamW(parameter_groups(network, lr, backbone_lr, weight_decay))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps, warmup))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(network: nn.Module, lr: float, backbone_lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters for AdamW.

    Args:
        network: The network.
        lr: Learning rate.
        backbone_lr: That of parameters with ``backbone`` in their name, as a factor of ``lr``.
        weight_decay: Decay of parameters with more than one axis; biases and norms have none.

    Returns:
        At most four groups: ``params``, ``lr`` and ``weight_decay``.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(("backbone" in name, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": some, "lr": lr * (backbone_lr if backbone else 1), "weight_decay": weight_decay * decays}
        for (backbone, decays), some in groups.items()
    ]


def warm_cosine(step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rate: linear up to 1 during the warm-up, then along a cosine to 0.

    >>> [round(warm_cosine(step, 10, 0.2), 3) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rising = warmup * steps
    if step < rising:
        return min(1.0, (step + 1) / rising)
    return (1 + math.cos(math.pi * min(1.0, (step - rising) / (steps - rising)))) / 2
