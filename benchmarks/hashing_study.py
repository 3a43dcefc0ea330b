"""Do the balanced loss and the progressive scale help cross-modal hashing? A grid over both, over seeds.

Each cell trains for the epochs of its config, without selection, and is scored once on the test part. Printed are the
mean over seeds with its 95 % t-interval, and the difference to the baseline paired by seed: the same seed has the same
weights at the start, the same order and the same dropout. Finished runs are kept in OUTPUT.json and not run again.

    python benchmarks/hashing_study.py --config configs/hashing/wikipedia.yaml \
        --supervised-config configs/hashing/wikipedia_supervised.yaml --seeds 5 --output runs/hashing_study
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer, seed_everything

import datamodules  # noqa: F401 - makes class names in configs usable without their path
from callbacks import ProgressiveScale
from datamodules.base import BaseDataModule
from lightning_modules.hashing import CrossModalHashing

SCHEDULES = {"tanh": None, "linear 1-10": "linear", "sqrt": "sqrt"}
COLUMNS = [
    f"{protocol}_{direction}_{name}"
    for protocol in ("unimodal", "fused")
    for name in ("map", "map_at_50")
    for direction in ("i2t", "t2i")
]
HEADER = [c.replace("_map_at_50", " mAP@50").replace("_map", " mAP").replace("_", " ") for c in COLUMNS]


def variants(supervised: bool) -> dict[str, tuple[dict[str, Any], str | None]]:
    """Name -> model arguments beside those of the config, schedule; the first is what the others are compared with."""
    if supervised:
        return {f"hashnet, {name}": ({"loss": "hashnet"}, s) for name, s in SCHEDULES.items()}
    grid = {
        f"{loss}, {name}": ({"loss": loss}, schedule)
        for loss in ("nt_xent", "balanced")
        for name, schedule in SCHEDULES.items()
    }
    return {**grid, "nt_xent, tanh, fused only (UCMFH)": ({"unimodal_weight": 0.0}, None)}


def read_data(config: dict[str, Any]) -> BaseDataModule:
    """The DataModule of a config, set up."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(BaseDataModule, "data")
    data = parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
    data.setup("fit")
    return data


def run(
    config: dict[str, Any], data: BaseDataModule, arguments: dict[str, Any], schedule: str | None, seed: int
) -> Any:
    """Train and test one cell with one seed; all logged test figures without their stage."""
    seed_everything(seed, verbose=False)
    model = CrossModalHashing(**{**config["model"]["init_args"], **arguments})
    trainer = Trainer(
        max_epochs=config["trainer"]["max_epochs"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[ProgressiveScale(schedule)] if schedule else [],
    )
    trainer.fit(model, datamodule=data)
    figures = trainer.test(model, datamodule=data, verbose=False)[0]
    return {name.removeprefix("test/"): value for name, value in figures.items()}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % t-interval.

    Args:
        values: One value a seed, at least two.

    Returns:
        Mean, half-width.
    """
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(half)


def row(name: str, bits: int, columns: list[list[float]], form: str) -> str:
    """One line of a table; a column without values (a model without fusion) stays empty."""
    cells = [form.format(*interval(values)) if values else "" for values in columns]
    return f"| {name} | {bits} | {' | '.join(cells)} |"


def tables(runs: list[dict[str, Any]], bits: list[int], seeds: int) -> str:
    """Markdown: figures with floors, then the paired differences."""
    lines: list[str] = []
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for entry in sorted(runs, key=lambda r: r["seed"]):
        if entry["bits"] in bits and entry["seed"] < seeds:
            cells.setdefault((entry["variant"], entry["bits"]), []).append(entry["figures"])
    order = [(name, b) for b in bits for group in (False, True) for name in variants(group) if (name, b) in cells]
    head = f"| {{}} | bits | {' | '.join(HEADER)} |\n|---|---|{'---|' * len(HEADER)}"
    lines += [head.format(f"mean +- 95 % t-interval over {seeds} seeds")]
    for key in order:
        lines.append(row(*key, [[f[c] for f in cells[key] if c in f] for c in COLUMNS], "{:.4f} +- {:.4f}"))
    floor = cells[order[0]][0]
    floors = [floor["random_map_at_50" if c.endswith("50") else "random_map"] for c in COLUMNS]
    lines.append(f"| random ranking | | {' | '.join(f'{value:.4f}' for value in floors)} |")
    lines += ["", head.format("difference to the first row of its group, paired by seed")]
    for name, b in order:
        first = next(n for group in (False, True) if name in variants(group) for n in variants(group))
        if name == first:
            continue
        both = list(zip(cells[name, b], cells[first, b], strict=True))
        values = [[x[c] - y[c] for x, y in both if c in x] for c in COLUMNS]
        lines.append(row(name, b, values, "{:+.4f} +- {:.4f}"))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", required=True, help="a hashing config: model, data and epochs of the contrastive rows"
    )
    parser.add_argument("--supervised-config", help="the same for the HashNet rows; without it there are none")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--bits", type=int, nargs="+", default=[64])
    parser.add_argument("--output", default="runs/hashing_study", help="OUTPUT.json and OUTPUT.md are written")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error("--seeds must be at least 2: one value has no interval.")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # the networks are too small for more

    store = Path(args.output).with_suffix(".json")
    runs: list[dict[str, Any]] = json.loads(store.read_text()) if store.is_file() else []
    store.parent.mkdir(parents=True, exist_ok=True)
    done = {(entry["variant"], entry["bits"], entry["seed"]) for entry in runs}
    groups = [(False, args.config), (True, args.supervised_config)]
    for supervised, path in groups:
        if path is None:
            continue
        config = yaml.safe_load(Path(path).read_text())
        data = read_data(config)
        for seed in range(args.seeds):
            for bits in args.bits:
                for name, (arguments, schedule) in variants(supervised).items():
                    if (name, bits, seed) in done:
                        continue
                    start = time.time()
                    figures = run(config, data, {**arguments, "bits": bits}, schedule, seed)
                    runs.append({"variant": name, "bits": bits, "seed": seed, "config": path, "figures": figures})
                    store.write_text(json.dumps(runs, indent=1))
                    print(f"{name}, {bits} bits, seed {seed}: {time.time() - start:.0f} s", flush=True)
    text = tables(runs, args.bits, args.seeds)
    store.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
