"""Scores the folds' models and their ensembles on the hold-out part, from the folds' predictions.npz."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from callbacks.experiments.result_files import SCORINGS, how_to_test_again

if TYPE_CHECKING:
    from torch import Tensor

PART = "test"
MAJORITY = 0.5 + 1e-6  # an even vote assigns nothing
Arrays = Mapping[str, np.ndarray]


def ensemble_block(files: Mapping[int, Path]) -> dict[str, Any] | None:
    """Singles and ensembles on the hold-out part.

    Singles: the model of each fold, and their mean. Ensembles: the mean of the probabilities, the vote of the labels
    that each model assigns, and the vote of the hash bits. Each scoring (soft, binary) is compared within itself; an
    ensemble's difference is to the single model with the best selection score, which the hold-out part did not choose.

    Args:
        files: Fold to its ``predictions.npz``.

    Returns:
        ``part``, ``n``, ``rows``, ``notes``; None with fewer than two folds that hold predictions of the part.

    Raises:
        ValueError: A file is damaged, or the folds' hold-out parts or classes differ.
    """
    loaded = {fold: read_arrays(file) for fold, file in sorted(files.items())}
    folds = {fold: arrays for fold, arrays in loaded.items() if f"{PART}_ids" in arrays}
    if len(folds) < 2:
        return None
    folds = aligned(folds, files)
    first = next(iter(folds.values()))
    labels = tensor(first[f"{PART}_labels"])
    kinds = [kind for kind in SCORINGS if all(f"{PART}_{kind}" in arrays for arrays in folds.values())]
    if not kinds:
        return None
    print(f"Ensembles of {len(folds)} models on {len(labels)} hold-out items", flush=True)
    best = best_by_selection(folds)
    rows, references = [], {}
    for kind in kinds:
        rows += single_rows(folds, kind, labels, best)
        references[kind] = tensor(folds[best][f"{PART}_{kind}"]) if best is not None else None
    for kind in kinds:
        rows += ensemble_rows(folds, kind, labels, references[kind])
    rows += code_rows(folds, labels, references["binary"]) if kinds == list(SCORINGS) else []
    notes = [
        "interval: bootstrap over hold-out items (paired for differences); of the mean of the models a t-interval",
        "F1 at thresholds fitted on training rows; of a probability mean and a code vote at the mean of the thresholds",
    ]
    notes += selection_notes(folds, best)
    if kinds == ["binary"]:
        notes.append("no code vote: these models assign the labels of the nearest codes, the vote needs a classifier")
    return {"part": PART, "n": len(labels), "folds": list(folds), "best": best, "rows": rows, "notes": notes}


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """All arrays of a ``predictions.npz``.

    Raises:
        ValueError: It is damaged; the message names the cure.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # without what NumPy says, which is about pickles whatever the file holds
        raise ValueError(f"{file} is damaged. {how_to_test_again(file.parent)}") from error


def left_out(files: Mapping[int, Path]) -> list[str]:
    """Which folds the ensembles lack, as their predictions are missing; none when no fold wrote any.

    Args:
        files: Finished fold to its ``predictions.npz``, whether it is there or not.

    Returns:
        A line for each, with its cause and cure.
    """
    if not any(file.is_file() for file in files.values()):
        return []  # a model that writes no predictions has no ensembles
    return [
        f"fold {fold} is left out of the ensembles: {file} is not there. {how_to_test_again(file.parent)}"
        for fold, file in files.items()
        if not file.is_file()
    ]


def aligned(folds: Mapping[int, Arrays], files: Mapping[int, Path]) -> dict[int, dict[str, np.ndarray]]:
    """The folds' arrays with the items of the hold-out part in the first fold's order.

    Raises:
        ValueError: The parts hold different items, labels or classes.
    """
    first_fold, first = next(iter(folds.items()))
    ids, names = first[f"{PART}_ids"], first["class_names"].tolist()
    order = np.argsort(ids)
    found = {}
    for fold, arrays in folds.items():
        own = arrays[f"{PART}_ids"]
        sorting = np.argsort(own)
        what = ""
        if own.shape != ids.shape or (own[sorting] != ids[order]).any():
            what = f"hold-out items ({len(set(own.tolist()) ^ set(ids.tolist()))} are in one of them only)"
        elif arrays["class_names"].tolist() != names:
            what = "classes"
        else:
            rows = np.empty_like(order)
            rows[order] = sorting
            if (arrays[f"{PART}_labels"][rows] != first[f"{PART}_labels"]).any():
                what = "labels of the same hold-out items"
        if what:
            raise ValueError(
                f"folds {first_fold} and {fold} have different {what}: {files[first_fold]}, {files[fold]}. They were "
                "run on different data; delete the fold that is wrong and run crossval again."
            )
        here = {name: value[rows] for name, value in arrays.items() if name.startswith(f"{PART}_")}
        found[fold] = {**arrays, **here}
    return found


def best_by_selection(folds: Mapping[int, Arrays]) -> int | None:
    """The fold whose weights had the best selection score; None when none has a score."""
    known = known_scores(folds)
    return max(known, key=lambda fold: known[fold]) if known else None


def known_scores(folds: Mapping[int, Arrays]) -> dict[int, float]:
    """The selection scores, mAP, of the folds' weights; without those that are unknown (NaN)."""
    scores = {fold: float(arrays.get("score", math.nan)) for fold, arrays in folds.items()}
    return {fold: score for fold, score in scores.items() if math.isfinite(score)}


def selection_notes(folds: Mapping[int, Arrays], best: int | None) -> list[str]:
    """Which models could not be chosen as the best single, as their selection score is unknown."""
    if best is None:
        return ["no model has a selection score, so no best single was chosen"]
    unknown = [str(fold) for fold in folds if fold not in known_scores(folds)]
    said = f"no selection score is known of fold {', '.join(unknown)}, so the best single is one of the others"
    return [said] if unknown else []


def single_rows(folds: Mapping[int, Arrays], kind: str, labels: Tensor, best: int | None) -> list[dict[str, Any]]:
    """A row for each fold's model, and one for their mean."""
    from callbacks.experiments.summary import statistics

    rows = []
    for fold, arrays in folds.items():
        name = f"fold {fold}, {kind}" + (" (best by selection)" if fold == best else "")
        rows.append(scored_row(name, tensor(arrays[f"{PART}_{kind}"]), labels, thresholds_of(arrays, kind)))
    mean = statistics(row["map_macro"] for row in rows)
    f1 = statistics(row["f1_macro_fitted"] for row in rows)["mean"]
    part = {"map_macro": mean["mean"], "low": mean["low"], "high": mean["high"], "f1_macro_fitted": f1}
    return [*rows, {"name": f"mean of the {len(rows)} models, {kind}", **part, **difference_of(None, None, labels)}]


def ensemble_rows(
    folds: Mapping[int, Arrays], kind: str, labels: Tensor, reference: Tensor | None
) -> list[dict[str, Any]]:
    """The mean of the probabilities and the vote of the assigned labels."""
    from lightning_modules.metrics.ensembles import mean_probabilities, vote_labels
    from lightning_modules.metrics.multilabel_decisions import decide

    probabilities = [tensor(arrays[f"{PART}_{kind}"]) for arrays in folds.values()]
    thresholds = [thresholds_of(arrays, kind) for arrays in folds.values()]
    mean, middle = mean_probabilities(probabilities), mean_probabilities([part[None] for part in thresholds])[0]
    votes = vote_labels([decide(*pair) for pair in zip(probabilities, thresholds, strict=True)])
    return [
        scored_row(f"probability mean, {kind}", mean, labels, middle, reference),
        scored_row(f"label vote, {kind}", votes, labels, MAJORITY, reference),
    ]


def code_rows(folds: Mapping[int, Arrays], labels: Tensor, reference: Tensor | None) -> list[dict[str, Any]]:
    """The vote of the hash bits; nothing where a model has no codes, no linear classifier or other numbers of bits.

    Only for models that score the signs of their codes with that classifier, as its thresholds are taken: those of a
    KNN head are of the votes of the neighbours.
    """
    from lightning_modules.metrics.ensembles import mean_probabilities, vote_codes

    bits = {int(arrays.get("bits", 0)) for arrays in folds.values()}
    needed = {f"{PART}_codes", "classifier_weight", "classifier_bias"}
    if len(bits) > 1 or 0 in bits or not all(needed <= set(arrays) for arrays in folds.values()):
        return []
    (count,) = bits
    unpacked = [np.unpackbits(arrays[f"{PART}_codes"], axis=1, count=count) for arrays in folds.values()]
    codes = [tensor(part).mul(2).sub(1) for part in unpacked]
    weights = [tensor(arrays["classifier_weight"]) for arrays in folds.values()]
    _, probabilities = vote_codes(codes, weights, [tensor(arrays["classifier_bias"]) for arrays in folds.values()])
    middle = mean_probabilities([thresholds_of(arrays, "binary")[None] for arrays in folds.values()])[0]
    return [scored_row(f"code vote, {count} bits", probabilities, labels, middle, reference)]


def scored_row(
    name: str, probabilities: Tensor, labels: Tensor, thresholds: Tensor | float, reference: Tensor | None = None
) -> dict[str, Any]:
    """A row: macro mAP with its interval, macro F1, and the difference to the reference where there is one."""
    from lightning_modules.metrics.multilabel import threshold_scores
    from lightning_modules.metrics.multilabel_intervals import macro_interval

    value, low, high = macro_interval(probabilities, labels)
    f1 = threshold_scores(probabilities, labels, thresholds)["f1_macro"]
    row = {"name": name, "map_macro": value, "low": low, "high": high, "f1_macro_fitted": f1}
    return {**row, **difference_of(probabilities, reference, labels)}


def difference_of(probabilities: Tensor | None, reference: Tensor | None, labels: Tensor) -> dict[str, float | None]:
    """The paired difference to the reference; None for each part without one."""
    from lightning_modules.metrics.multilabel_intervals import paired_difference

    names = ("difference", "difference_low", "difference_high")
    if probabilities is None or reference is None:
        return dict.fromkeys(names)
    return dict(zip(names, paired_difference(probabilities, reference, labels), strict=True))


def thresholds_of(arrays: Arrays, kind: str) -> Tensor:
    """The thresholds that a fold fitted, or 0.5 for each class."""
    return tensor(arrays.get(f"{kind}_thresholds", np.full(len(arrays["class_names"]), 0.5)))


def tensor(array: np.ndarray) -> Tensor:
    """An array as float32."""
    import torch

    return torch.from_numpy(np.asarray(array, dtype=np.float32))
