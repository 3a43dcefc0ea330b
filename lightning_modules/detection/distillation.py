"""A frozen teacher whose class probabilities a compact detector learns, on the images that were found hard."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.detection.convnet import ConvDetector


def load_teacher(checkpoint: str, names: list[str]) -> ConvDetector:
    """The network in a checkpoint of ``ConvDetection``, frozen.

    Args:
        checkpoint: The file.
        names: Class names of the student, which must be the teacher's.

    Returns:
        The network in eval mode.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such checkpoint, or its classes are others.
    """
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"The teacher {checkpoint} does not exist. Give a checkpoint of ConvDetection.")
    stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
    try:
        network = ConvDetector(len(stored["class_names"]), stored["hyper_parameters"]["width"])
        weights = {key.removeprefix("network."): value for key, value in stored["state_dict"].items()}
        network.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"{checkpoint} is no checkpoint of ConvDetection ({error}). Give one as the teacher."
        ) from None
    if stored["class_names"] != names:
        raise ValueError(f"The teacher knows the classes {stored['class_names']}, the data has {names}.")
    return network.eval().requires_grad_(False)


def distillation_losses(logits: Tensor, teacher: Tensor) -> Tensor:
    """How far the class probabilities of all cells are from the teacher's, by image.

    Quality focal loss with the teacher's probabilities as targets: their squared distance times the cross-entropy. The
    sum over cells and classes is divided by the number of objects that the teacher sees, the sum of its highest
    probabilities, at least 1.

    Args:
        logits: (B, P, C) of the student.
        teacher: (B, P, C) logits of the teacher, of the same cells.

    Returns:
        (B,), 0 where both agree.

    Reference:
        Li et al., Generalized Focal Loss, NeurIPS 2020, equation 3; Hinton et al., Distilling the Knowledge in a Neural
        Network, 2015.

    >>> distillation_losses(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1))
    tensor([0.])
    """
    wanted = teacher.sigmoid()
    far = (logits.sigmoid() - wanted).square()
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    seen = wanted.amax(dim=2).sum(dim=1).clamp(min=1)  # (B,)
    return (far * entropy).sum(dim=(1, 2)) / seen
