"""Result folders as experiments leave them, made by hand from random numbers of realistic size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import t

from lightning_modules.metrics.multilabel import multilabel_scores, threshold_scores

NAMES = """
person chair car dining_table cup bottle bowl handbag truck backpack book bench cell_phone
sports_ball tie traffic_light knife couch tv potted_plant dog clock cat umbrella laptop skateboard
train bus tennis_racket bed fork spoon bird sink motorcycle vase cake surfboard remote pizza skis
refrigerator horse suitcase toilet bicycle wine_glass airplane banana boat sandwich keyboard mouse
oven kite teddy_bear fire_hydrant stop_sign elephant baseball_glove giraffe frisbee baseball_bat cow
zebra sheep donut broccoli orange apple carrot snowboard bear hot_dog scissors microwave toothbrush
parking_meter hair_drier toaster
""".split()  # noqa: SIM905
STATISTICS = ("mean", "sd", "low", "high", "n")


def class_names(count: int) -> list[str]:
    """Names with blanks, one of them with every sign that LaTeX and HTML read as a command."""
    names = [name.replace("_", " ") for name in NAMES[:count]]
    names[-1] = "50% <b>x_y</b> & {#1}|$~^\\"
    names[-2] = "a $\\wrong{ $ b"
    return names


def statistics(values: list[float]) -> dict[str, float | int | None]:
    """Mean, sample standard deviation and t-interval, as in the files."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return dict(zip(STATISTICS, (mean, None, None, None, 1), strict=True))
    sd = float(np.std(values, ddof=1))
    half = float(t.ppf(0.975, n - 1)) * sd / n**0.5
    return dict(zip(STATISTICS, (mean, sd, mean - half, mean + half, n), strict=True))


def draw_items(rng: np.random.Generator, items: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N, C) with a long tail and company, and the areas of their objects."""
    frequency = np.clip(0.5 / np.arange(1, classes + 1) ** 0.9, 0.008, 1)
    scene = rng.normal(size=(items, 4)) @ rng.normal(size=(4, classes)) * 0.5
    chance = 1 / (1 + np.exp(-(np.log(frequency / (1 - frequency)) + scene)))
    labels = rng.random((items, classes)) < chance
    areas = np.where(labels, np.clip(rng.lognormal(-4, 1.5, labels.shape), 1e-5, 1), np.nan)
    return labels, areas.astype(np.float32)


def draw_scores(rng: np.random.Generator, labels: np.ndarray, strength: float) -> np.ndarray:
    """Probabilities (N, C) of a model that sees the rarer classes less clearly."""
    classes = labels.shape[1]
    clear = strength * np.linspace(1.3, 0.7, classes)
    logits = labels * clear - 2 + rng.normal(size=labels.shape) + 0.3 * np.roll(labels, 1, axis=1)
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def write_run(folder: Path, rng: np.random.Generator, parts: dict[str, tuple], names: list[str]) -> dict[str, float]:
    """The files of one run.

    Args:
        folder: Where to.
        rng: Source of the scores.
        parts: Part to (ids, labels, areas).
        names: Names of the classes.

    Returns:
        Its metrics.
    """
    arrays, metrics, floors = {}, {}, {}
    thresholds = np.full(len(names), 0.45, dtype=np.float32)
    for part, (ids, labels, areas) in parts.items():
        arrays |= {f"{part}_ids": np.array(ids), f"{part}_labels": labels.astype(np.uint8), f"{part}_areas": areas}
        for scoring, strength in (("soft", 3.2), ("binary", 2.7)):
            scores = arrays[f"{part}_{scoring}"] = draw_scores(rng, labels, strength + 0.15 * rng.normal())
            pair = torch.from_numpy(scores), torch.from_numpy(labels)
            fitted = threshold_scores(*pair, torch.from_numpy(thresholds))
            found = multilabel_scores(*pair) | {f"{name}_fitted": value for name, value in fitted.items()}
            metrics |= {f"{part}/{scoring}_{name}": float(value) for name, value in found.items()}
            floors[f"{part}/{scoring}_map_macro"] = float(labels.mean(axis=0).mean())
            floors[f"{part}/{scoring}_hamming_loss"] = 0.01  # which no model here reaches
            arrays[f"{scoring}_thresholds"] = thresholds
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "predictions.npz", class_names=np.array(names), bits=64, score=0.6, **arrays)
    notes = {
        "convention": "AP over all items, ties in one group; macro over classes with a positive",
        **{f"n_{part}": len(ids) for part, (ids, _, _) in parts.items()},
        "n_train": 400,
        "folds_sha256": "ab" * 32,
        "random_codes_map_macro_fold": 0.0712,
        "random_codes_map_macro_test": 0.0834,
        "unlabelled_train": 3,
        **{f"unlabelled_{part}": int((~labels.any(axis=1)).sum()) for part, (_, labels, _) in parts.items()},
        "bits": 64,
    }
    block = {"metrics": metrics, "floors": floors, "notes": notes, "model": "MultilabelHashing"}
    block["data"] = "MultilabelData"
    block |= {"versions": {"python": "3.11.2", "torch": "2.9"}, "git_commit": "0123456789abcdef+changes"}
    block |= {"finished": "2026-01-02T03:04:05+00:00", "n": {"fold": 1}}
    (folder / "results.json").write_text(json.dumps({"test": block}))
    write_worst(folder / "worst", rng, parts, names)
    return metrics


def write_worst(folder: Path, rng: np.random.Generator, parts: dict[str, tuple], names: list[str]) -> None:
    """Three pictures of noise with truth and prediction."""
    folder.mkdir()
    ids, entries = next(iter(parts.values()))[0], []
    part = next(iter(parts))
    for rank in range(3):
        picture = f"{part}_{rank:02d}.png"
        pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((640, 480)).save(folder / picture)
        entry = {"part": part, "rank": rank, "id": str(ids[rank]), "lrap": 0.1 + 0.05 * rank, "picture": picture}
        predicted = [[names[place], round(0.9 - 0.2 * place, 2)] for place in range(3)]
        entries.append(entry | {"truth": [names[1], names[-1]], "predicted": predicted})
    (folder / "worst.json").write_text(json.dumps(entries))


def write_crossval(folder: Path, classes: int = 12, folds: int = 5, items: int = 600, seed: int = 0) -> dict:
    """A finished cross-validation; returns what stands in crossval.json."""
    rng = np.random.default_rng(seed)
    names = class_names(classes)
    labels, areas = draw_items(rng, items, classes)
    test_labels, test_areas = draw_items(rng, items // 4, classes)
    test = ([f"test_{n}" for n in range(items // 4)], test_labels, test_areas)
    parts = np.array_split(rng.permutation(items), folds)
    found = []
    for fold, rows in enumerate(parts):
        own = ([f"item_{n}" for n in rows], labels[rows], areas[rows])
        found.append(write_run(folder / f"fold_{fold}", rng, {"fold": own, "test": test}, names))
    metrics = {}
    for name in found[0]:
        values = [run[name] for run in found]
        floor = 0.0671 if name.endswith("_map_macro") else 0.01 if name.endswith("_hamming_loss") else None
        metrics[name] = {"values": dict(zip(map(str, range(folds)), values, strict=True)), **statistics(values)}
        metrics[name]["floor"] = floor
    record = {
        "kind": "crossval",
        "name": "coco_64",
        "num_folds": folds,
        "folds": {str(k): {"status": "done", "folder": f"fold_{k}", "seconds": 90.0} for k in range(folds)},
        "metrics": metrics,
        "confidence": 0.95,
        "convention": "AP over all items, ties in one group; macro over classes with a positive",
        "notes": {"folds_sha256": "ab" * 32, "bits": 64, "head": "linear"},
        "ensemble": {"part": "test", "n": items // 4, "rows": ensemble_rows()},
    }
    save(folder / "crossval.json", record)
    return record


def ensemble_rows() -> list[dict]:
    """A single model, the mean of the singles, and two ensembles."""
    rows = []
    for name, value, gain in (
        ("fold 3 (best by selection)", 0.71, None),
        ("mean of the single models", 0.705, -0.005),
        ("mean of probabilities", 0.74, 0.03),
        ("majority of bits", 0.69, -0.02),
    ):
        ends = (None, None) if gain is None else (gain - 0.01, gain + 0.01)
        row = {"name": name, "map_macro": value, "low": value - 0.02, "high": value + 0.02}
        row["f1_macro_fitted"] = value - 0.1
        rows.append(row | {"difference": gain, "difference_low": ends[0], "difference_high": ends[1]})
    return rows


def write_ablation(folder: Path) -> dict:
    """An ablation of two factors and three seeds, of which one run failed; returns what stands in ablation.json."""
    rng = np.random.default_rng(0)
    metric, bits, fusions = "fold/soft_map_macro", [32, 64, 128], ["hadamard", "concat"]
    cells, values = [], {}
    for bit in bits:
        for fusion in fusions:
            settings = {"model.init_args.bits": bit, "model.init_args.fusion": fusion}
            seeds = {}
            for seed in range(3):
                value = values[bit, fusion, seed] = 0.6 + 0.001 * bit + 0.01 * float(rng.normal())
                seeds[str(seed)] = {"status": "done", "metrics": {metric: value}}
            if (bit, fusion) == (128, "concat"):
                seeds["2"] = {"status": "failed", "metrics": {}, "error": "CUDA out of memory"}
                del values[bit, fusion, 2]
            scores = [entry["metrics"][metric] for entry in seeds.values() if entry["metrics"]]
            cells.append({"settings": settings, "seeds": seeds, "floor": 0.0671, **statistics(scores)})
    marginals = {
        "model.init_args.bits": [
            {"value": b, **statistics([np.mean([values[b, f, s] for f in fusions]) for s in range(2)])} for b in bits
        ],
        "model.init_args.fusion": [
            {"value": f, **statistics([np.mean([values[b, f, s] for b in bits]) for s in range(2)])} for f in fusions
        ],
    }
    record = {
        "kind": "ablation",
        "name": "bits and fusion",
        "metric": metric,
        "factors": {"model.init_args.bits": bits, "model.init_args.fusion": fusions},
        "seeds": [0, 1, 2],
        "cells": cells,
        "marginals": marginals,
        "convention": "AP over all items, ties in one group",
        "notes": {"n_fold": 120},
        "missing": ["bits = 128, fusion = concat, seed 2 failed: CUDA out of memory"],
    }
    save(folder / "ablation.json", record)
    return record


def save(file: Path, record: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record))
