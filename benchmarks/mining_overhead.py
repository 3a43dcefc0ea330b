"""What mining adds to a training: rounds every ten epochs, without and with their reports.

python benchmarks/mining_overhead.py [--small]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from table import print_table, write_section

from callbacks import HardNegativeMining
from datamodules import DIOR
from datamodules.scenes.dior_layout import write_dior
from datamodules.scenes.sprites import CLASS_NAMES
from lightning_modules import ConvDetection

Rows = list[dict[str, Any]]


def seconds(root: Path, epochs: int, miner: HardNegativeMining | None) -> tuple[float, float]:
    """Wall and processor time of a training of the compact detector, which is the same with and without a miner."""
    seed_everything(0, verbose=False)
    data = DIOR(str(root), image_size=96, classes=list(CLASS_NAMES), split_dir=str(root / "splits"), batch_size=32)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        default_root_dir=root / "run",
        callbacks=[miner] if miner else [],
    )
    start, start_cpu = time.perf_counter(), time.process_time()
    trainer.fit(ConvDetection(), data)
    return time.perf_counter() - start, time.process_time() - start_cpu


def main(arguments: list[str] | None = None) -> Rows:
    """Measure, print, and keep the full measurement in RESULTS.md.

    Args:
        arguments: Of the command line.

    Returns:
        The rows of the table.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="30 images, 3 epochs, a round in each; prints only")
    options = parser.parse_args(arguments)
    images, epochs, every, turns = (30, 3, 1, 1) if options.small else (1000, 21, 10, 2)
    settings: dict[str, Any] = {"every_n_epochs": every, "start_epoch": every, "act_on": "nothing"}
    settings |= {"confidence_threshold": 0.3}
    routes = {
        "no mining": lambda: None,
        "mining": lambda: HardNegativeMining(save_hard_negatives=False, **settings),
        "mining, with reports": lambda: HardNegativeMining(**settings),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in routes}
    with tempfile.TemporaryDirectory() as folder:
        write_dior(folder, images)
        for _ in range(turns):  # in turns, so that a busy moment does not favour one of them
            for name, miner in routes.items():
                taken[name].append(seconds(Path(folder), epochs, miner()))
    wall, cpu = ({name: min(turn[i] for turn in turns) for name, turns in taken.items()} for i in range(2))
    rows = [
        {
            "route": name,
            "seconds (least)": wall[name],
            "more than without": f"{100 * (wall[name] / wall['no mining'] - 1):.1f} %",
            "CPU seconds": cpu[name],
            "more CPU": f"{100 * (cpu[name] / cpu['no mining'] - 1):.1f} %",
            "rounds": 0 if name == "no mining" else (epochs - 1) // every,
            "turns": turns,
        }
        for name in routes
    ]
    trained = images * 3 // 5
    title = f"Overhead of mining: {epochs} epochs of {trained} images, a round every {every} (aim: at most 15 %)"
    if options.small:
        print_table(f"{title} (small)", rows)
    else:
        write_section(title, "python benchmarks/mining_overhead.py", rows)
    return rows


if __name__ == "__main__":
    main()
