"""What mining adds to a training with rounds every ten epochs, both timed in the same run.

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


class Timed(HardNegativeMining):
    """A miner that knows how long its rounds took."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.wall = self.cpu = 0.0

    def mine(self, *arguments: Any) -> None:
        """Run a round."""
        start, start_cpu = time.perf_counter(), time.process_time()
        super().mine(*arguments)
        self.wall += time.perf_counter() - start
        self.cpu += time.process_time() - start_cpu


def train(root: Path, epochs: int, miner: Timed) -> tuple[float, float]:
    """Train the compact detector; wall and processor time of the training without its rounds of mining."""
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
        callbacks=[miner],
    )
    start, start_cpu = time.perf_counter(), time.process_time()
    trainer.fit(ConvDetection(), data)
    return time.perf_counter() - start - miner.wall, time.process_time() - start_cpu - miner.cpu


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
    images, epochs, every = (30, 3, 1) if options.small else (1000, 21, 10)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_dior(folder, images)
        for name, reports in (("mining", False), ("mining, with reports", True)):
            miner = Timed(
                every_n_epochs=every,
                start_epoch=every,
                act_on="nothing",
                confidence_threshold=0.3,
                save_hard_negatives=reports,
            )
            wall, cpu = train(Path(folder), epochs, miner)
            rows.append(
                {
                    "route": name,
                    "training (s)": wall,
                    "rounds (s)": miner.wall,
                    "overhead": f"{100 * miner.wall / wall:.1f} %",
                    "training, CPU (s)": cpu,
                    "rounds, CPU (s)": miner.cpu,
                    "overhead, CPU": f"{100 * miner.cpu / cpu:.1f} %",
                    "rounds": miner.rounds,
                }
            )
    trained = images * 3 // 5
    title = f"Overhead of mining: {epochs} epochs of {trained} images, a round every {every} (aim: at most 15 %)"
    if options.small:
        print_table(f"{title} (small)", rows)
    else:
        write_section(title, "python benchmarks/mining_overhead.py", rows)
    return rows


if __name__ == "__main__":
    main()
