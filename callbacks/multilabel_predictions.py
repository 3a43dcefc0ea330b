"""Keeps what a multi-label test predicted, for ensembles, error analysis and reports without the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageOps

from callbacks.run_files import replace_file, run_folder
from lightning_modules.metrics.multilabel_errors import worst_items
from lightning_modules.metrics.multilabel_ranks import item_ranks

PICTURE = 224  # longest side of a kept picture, in pixels


class MultilabelPredictions(Callback):
    """Writes ``predictions.npz`` and the worst items with their pictures to the folder of the run after ``test``.

    It reaches the module through ``predictions`` (part -> ``index``, ``labels``, ``soft``, ``binary``, ``codes``),
    ``fitted`` (``thresholds``, ``train_frequency``, ``class_names``), ``selection_score`` and ``model.classifier``; the
    datamodule through ``ids_of(part, index)``, ``object_areas(part, index)`` and ``examples(part, index)``.

    ``predictions.npz`` holds for each part, ``fold`` and ``test``: ``<part>_ids``, ``_labels`` (N, C), ``_soft`` and
    ``_binary`` probabilities (N, C), ``_codes`` packed eight bits a byte, ``_areas`` (N, C) of the largest object as a
    fraction of the image; and ``<scoring>_thresholds``, ``train_frequency``, ``class_names``, ``bits``, ``score`` (the
    selection's) and the linear classifier over the bits.

    Args:
        worst: Items with the lowest label-ranking average precision of which the picture is kept, in each part.

    Raises:
        ValueError: ``worst`` below 1.
    """

    def __init__(self, worst: int = 12) -> None:
        if worst < 1:
            raise ValueError(f"worst is {worst}; at least 1 item of each part is kept. Set it to 12, for example.")
        self.worst = worst

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both."""
        folder = run_folder(trainer)
        predictions: dict[str, dict[str, torch.Tensor]] = getattr(pl_module, "predictions", {})
        if not trainer.is_global_zero or trainer.fast_dev_run or not predictions:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        arrays = {**_fitted_arrays(pl_module), "score": np.float64(pl_module.selection_score)}
        for part, found in predictions.items():
            rows = found["index"].tolist()
            arrays[f"{part}_ids"] = np.array(data.ids_of(part, found["index"]))
            arrays[f"{part}_labels"] = found["labels"].to(torch.uint8).numpy()
            arrays |= {f"{part}_{kind}": found[kind].numpy() for kind in ("soft", "binary") if kind in found}
            if "codes" in found:
                arrays[f"{part}_codes"] = np.packbits(found["codes"].numpy() > 0, axis=1)
            areas = data.object_areas(part, rows)
            if areas is not None:
                arrays[f"{part}_areas"] = areas
        replace_file(folder / "predictions.npz", lambda file: np.savez_compressed(file, **arrays))
        self._keep_worst(folder / "worst", predictions, arrays, data)

    def _keep_worst(
        self, folder: Path, predictions: dict[str, dict[str, torch.Tensor]], arrays: dict[str, Any], data: Any
    ) -> None:
        names, entries = [str(name) for name in arrays["class_names"]], []
        folder.mkdir(parents=True, exist_ok=True)
        for part, found in predictions.items():
            probabilities = found["soft"] if "soft" in found else found["binary"]
            rows = worst_items(probabilities, found["labels"], self.worst).tolist()
            lrap = item_ranks(probabilities[rows], found["labels"][rows].bool()).lrap.tolist()
            pictures = data.examples(part, found["index"][rows].tolist())
            for rank, (row, (picture, text)) in enumerate(zip(rows, pictures, strict=True)):
                file = f"{part}_{rank:02d}.png"
                small = ImageOps.contain(picture, (PICTURE, PICTURE), Image.Resampling.LANCZOS)
                replace_file(folder / file, lambda target, image=small: image.save(target, "PNG"))
                first = probabilities[row].argsort(descending=True)[:5].tolist()
                entries.append(
                    {
                        "part": part,
                        "rank": rank,
                        "id": str(arrays[f"{part}_ids"][row]),
                        "text": text,
                        "lrap": lrap[rank],
                        "truth": [names[i] for i in found["labels"][row].nonzero().flatten().tolist()],
                        "predicted": [[names[i], float(probabilities[row, i])] for i in first],
                        "picture": file,
                    }
                )
        replace_file(folder / "worst.json", lambda file: file.write(json.dumps(entries, indent=1).encode()))


def _fitted_arrays(module: Any) -> dict[str, Any]:
    """Thresholds, frequencies, names and the classifier over the bits."""
    fitted, bits = module.fitted, module.hparams["bits"] or 0
    arrays = {f"{kind}_thresholds": values.cpu().numpy() for kind, values in fitted.thresholds.items()}
    arrays |= {"train_frequency": fitted.train_frequency.cpu().numpy(), "class_names": np.array(fitted.class_names)}
    arrays["bits"] = np.int64(bits)
    classifier = module.model.classifier
    if bits and isinstance(classifier, torch.nn.Linear):
        arrays["classifier_weight"] = classifier.weight.detach().float().cpu().numpy()
        arrays["classifier_bias"] = classifier.bias.detach().float().cpu().numpy()
    return arrays
