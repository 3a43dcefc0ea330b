"""Training the multi-label head through the Trainer against a bare PyTorch loop.

The features have the shape of COCO's cache (118,287 items with five captions of 768 float16 numbers, memory-mapped);
the fold's training pool holds 94,630 of them. Both ways take the same steps on the same batches in turns, a segment of
the Trainer and then the same segment of the loop, in one process with the same threads, and must end in equal weights.

python benchmarks/multilabel_epoch.py [--small]
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does; before torch is imported

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from table import print_table, write_section
from torch import Tensor
from torch.nn import functional as F

from callbacks.loggers import RunCSVLogger
from datamodules import MultilabelData
from datamodules.feature_files import FeatureSplit
from lightning_modules import MultilabelHashing
from lightning_modules.multilabel.losses import CODE_LOSSES, code_losses
from lightning_modules.multilabel.model import HashClassifier
from lightning_modules.multilabel.schedule import adamw_with_schedule

TEXTS, CLASSES, SEED = 5, 80, 7
Times = np.ndarray


class Shape(NamedTuple):
    """A cache: development items, hold-out items, width."""

    development: int
    test: int
    width: int


def now() -> Times:
    """Seconds of the clock, and of processors at work for this process: the latter see less of a busy machine."""
    return np.array([time.perf_counter(), time.process_time()])


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, else fetching it anew slows down one of two equal processes by chance."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for setting, value in ((-3, 2**25), (-1, 2**30)):  # the size that is mapped apart; what is kept at the top
            library.mallopt(setting, value)


class RandomSource:
    """What MultilabelData needs of a FeatureCache: random features in memory-mapped files.

    Args:
        folder: Where the files are written.
        shape: Items and width; None = the files are there.
    """

    def __init__(self, folder: Path, shape: Shape | None = None) -> None:
        self.encoder, self.path = None, folder
        self.class_names = [f"class {i}" for i in range(CLASSES)]
        if shape is not None:
            self._write(folder, shape)
        self.parts: dict[str, FeatureSplit] = {}
        for part in ("development", "test"):
            image, text, labels = (
                np.load(folder / f"{part}_{name}.npy", mmap_mode="r") for name in ("image", "text", "labels")
            )
            ids = [f"{part}/{i}" for i in range(len(image))]
            self.parts[part] = FeatureSplit(image, text, np.array(labels, np.float32), ids)
        splits = {part: split.ids for part, split in self.parts.items()}
        self.data = SimpleNamespace(protocol="holdout", split_dir=folder, splits=splits, dataset=self._dataset)

    def _dataset(self, part: str) -> Any:
        split = self.parts[part]
        return SimpleNamespace(records=SimpleNamespace(ids=split.ids, labels=split.labels))

    def _write(self, folder: Path, shape: Shape) -> None:
        rng = np.random.default_rng(0)
        for part, count in (("development", shape.development), ("test", shape.test)):
            for name, size in (("image", (count, shape.width)), ("text", (count, TEXTS, shape.width))):
                array = np.lib.format.open_memmap(folder / f"{part}_{name}.npy", "w+", np.float16, size)
                for start in range(0, count, 4096):
                    array[start : start + 4096] = rng.standard_normal(array[start : start + 4096].shape, np.float32)
                array.flush()
            labels = rng.random((count, CLASSES)) < 2.9 / CLASSES  # as many labels an image as in COCO
            np.save(folder / f"{part}_labels.npy", labels.astype(np.uint8))

    def open(self, part: str) -> FeatureSplit:
        """A part of the data."""
        return self.parts[part]


class BareLoop:
    """The same training as a plain loop over tensors in memory: network, losses, optimiser, schedule, order, dropout.

    Args:
        start: What :meth:`Turns.on_train_start` saved.
        source: The features.
    """

    def __init__(self, start: dict[str, Any], source: RandomSource) -> None:
        p = start["hparams"]
        names = ("image_dim", "text_dim", "num_classes", "bits", "fusion", "head", "hidden", "width", "dropout")
        self.model = HashClassifier(**{name: p[name] for name in names})
        self.model.load_state_dict(start["weights"])
        self.weights = {name: p[f"{name}_weight"] for name in CODE_LOSSES}
        groups = [{"params": list(self.model.parameters()), "lr": p["lr"]}]
        steps = start["steps"]
        self.optimizer, self.scheduler = adamw_with_schedule(groups, p, steps, steps // start["epochs"])
        split = source.open("development")
        self.image, self.text, self.labels = (
            torch.from_numpy(np.array(array)) for array in (split.image, split.text, split.labels)
        )
        self.batches = self._batches(start["rows"], start["batch_size"])

    def _batches(self, rows: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        epoch = 0
        while True:
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(100_003 * SEED + epoch))
            drawn = torch.randint(TEXTS, order.shape, generator=torch.Generator().manual_seed(100_003 * SEED + epoch))
            torch.manual_seed(SEED + 100_003 * epoch)  # of the dropout, as the module sets it
            for positions in order.split(batch_size):
                picked = rows[positions]
                yield self.image[picked].float(), self.text[picked, drawn[positions]].float(), self.labels[picked]
            epoch += 1

    def run(self, steps: int) -> Times:
        """Time of some steps."""
        start = now()
        for _ in range(steps):
            image, text, labels = next(self.batches)
            logits, codes = self.model(image, text)
            terms = code_losses(codes, self.weights)
            loss = F.binary_cross_entropy_with_logits(logits, labels) + torch.stack(list(terms.values())).sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
        return now() - start


def serve(folder: Path, connection: Connection, threads: int) -> None:
    """Run segments of the loop when asked; 0 steps save the weights and end the process."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    loop = BareLoop(torch.load(folder / "start.pt", weights_only=False), RandomSource(folder))
    while steps := connection.recv():
        connection.send(loop.run(steps))
    torch.save(loop.model.state_dict(), folder / "loop.pt")


class Turns(Callback):
    """Stops the Trainer after each segment to let the loop take the same steps, and keeps both times.

    The loop has a process of its own, so that the memory of one does not lie in the way of the other.

    Args:
        folder: Where the features are.
        segment: Steps of a segment.
    """

    def __init__(self, folder: Path, segment: int) -> None:
        self.folder = folder
        self.segment = segment
        self.steps = 0
        self.times: list[tuple[int, Times, Times]] = []  # steps, time of the Trainer, of the loop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the loop from the same weights."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        start = {
            "hparams": dict(pl_module.hparams),
            "weights": pl_module.model.state_dict(),  # type: ignore[union-attr]
            "steps": int(trainer.estimated_stepping_batches),
            "epochs": trainer.max_epochs,
            "rows": torch.from_numpy(data.rows["train"]),
            "batch_size": data.batch_size,
        }
        torch.save(start, self.folder / "start.pt")
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(self.folder, other, torch.get_num_threads()))
        self.process.start()
        self.start = now()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Change over when the segment is full."""
        if self.steps == self.segment:
            self._change()
        self.steps += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last segment."""
        self._change()
        self.connection.send(0)
        self.process.join()

    def _change(self) -> None:
        spent = now() - self.start
        self.connection.send(self.steps)
        self.times.append((self.steps, spent, self.connection.recv()))
        self.steps = 0
        self.start = now()


def fit(data: MultilabelData, folder: Path, epochs: int, *callbacks: Callback, **settings: Any) -> MultilabelHashing:
    """Train the head as the command line does, without validation and checkpoints."""
    seed_everything(SEED, verbose=False)
    module = MultilabelHashing(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # loader processes, logging interval, Lightning's own deprecations
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            logger=RunCSVLogger(str(folder)),
            callbacks=list(callbacks),
        )
        trainer.fit(module, datamodule=data)
    return module


def measure(source: RandomSource, folder: Path, batch_size: int, segment: int, epochs: int) -> dict[str, Any]:
    """A row of the table: some epochs at one batch size, without the first segment, which lays memory out."""
    one = 1.01 / (0.8 * len(source.parts["development"]))  # a single item is kept for selection
    data: Any = MultilabelData(source, fold=4, stratified=False, select_fraction=one, batch_size=batch_size)  # type: ignore[arg-type]
    turns = Turns(folder, segment)
    trained = fit(data, folder, epochs, turns).model.state_dict()
    loop = torch.load(folder / "loop.pt")
    kept = turns.times[1:]
    steps = np.array([steps for steps, _, _ in kept])
    ours, ours_cpu = np.array([spent for _, spent, _ in kept]).T
    bare, bare_cpu = np.array([spent for _, _, spent in kept]).T
    ratios = ours / bare
    return {
        "batch": batch_size,
        "items an epoch": len(data.rows["train"]),
        "steps each": int(steps.sum()),
        "Trainer, ms a step": float(1000 * ours.sum() / steps.sum()),
        "loop, ms a step": float(1000 * bare.sum() / steps.sum()),
        "ratio (median of segments)": round(float(np.median(ratios)), 3),
        "middle half": "{:.2f} to {:.2f}".format(*np.percentile(ratios, [25, 75])),
        "range": f"{ratios.min():.2f} to {ratios.max():.2f}",
        "ratio of sums": round(float(ours.sum() / bare.sum()), 3),
        "ratio of CPU time": round(float(np.median(ours_cpu / bare_cpu)), 3),
        "segments": len(ratios),
        "largest difference of weights": f"{max((trained[k] - loop[k]).abs().max().item() for k in trained):.0e}",
    }


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, and keep the full measurement in RESULTS.md.

    Args:
        arguments: Of the command line.

    Returns:
        The rows of the table.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="some seconds; prints only")
    small = parser.parse_args(arguments).small
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        source = RandomSource(Path(name), Shape(500, 100, 64) if small else Shape(118_287, 5000, 768))
        sizes = ((64, 2, 1),) if small else ((64, 30, 1), (1024, 5, 1))
        rows = [measure(source, Path(name), *size) for size in sizes]
    title = "Multi-label head: an epoch through the Trainer against a bare loop (aim: at most 1.25)"
    if small:
        print_table(f"{title} (small)", rows)
    else:
        write_section(title, "python benchmarks/multilabel_epoch.py", rows)
    return rows


if __name__ == "__main__":
    main()
