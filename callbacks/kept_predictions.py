"""Whether anything is done with what ``predict`` predicts."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ProgressBar

HOOKS = ("on_predict_batch_end", "on_predict_epoch_end", "on_predict_end")


def check_predictions_kept(callbacks: Iterable[Callback]) -> None:
    """Refuse to predict for nobody: what no callback takes is lost when the command ends.

    Args:
        callbacks: Those of the trainer.

    Raises:
        ValueError: None of them has a hook that gets predictions.

    >>> from callbacks import CodeWriter
    >>> check_predictions_kept([CodeWriter()])
    """
    for callback in callbacks:
        overridden = any(getattr(type(callback), hook) is not getattr(Callback, hook) for hook in HOOKS)
        if overridden and not isinstance(callback, ProgressBar):
            return
    raise ValueError(
        "predict would write nothing: no callback takes what it predicts. Name one, as --trainer.callbacks+=CodeWriter "
        "(hashing), MultilabelWriter, BoxWriter (detection and heatmaps) or SegmentationWriter."
    )
