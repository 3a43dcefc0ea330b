"""The Trainer of the suite, whose methods are the commands of the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from callbacks.segmentation_app import serve

EXPERIMENTS = ("crossval", "ablate")  # run without building model or data
TOOLS = ("masks", "app")  # get model and data, as Lightning's own commands do
NOT_HERE = "An experiment starts fresh processes from a configuration: python cli.py {0} -c CONFIG"


class EachProcess(LightningModule):
    """A step of work as a module without weights: Lightning takes it once to every process and its device.

    Args:
        step: What to do where a module is set up.
    """

    def __init__(self, step: Callable[[], None]) -> None:
        super().__init__()
        self.step = step

    def setup(self, stage: str) -> None:
        """Do it."""
        self.step()

    def predict_dataloader(self) -> list[Any]:
        """There is nothing to predict; Lightning wants to see these two."""
        return []

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        """Never called."""


class SuiteTrainer(Trainer):
    """A Trainer with the experiments and tools among its commands.

    Their signatures and texts become options and help. The command line runs experiments without building model or
    data.
    """

    def crossval(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        num_folds: int | None = None,
        folds: list[int] | None = None,
        launcher: Literal["local", "ray"] = "local",
        workers: int = 1,
    ) -> None:
        """Train and test one fresh process a fold, then sum up; folds that are finished are not run again.

        Args:
            model: Not used.
            datamodule: Not used.
            num_folds: Number of folds; null takes data.init_args.num_folds, or 5 where that is null too.
            folds: Folds to run now, counted from 0, as [0, 3]; null runs all.
            launcher: ``local`` for this machine; ``ray`` for the cluster of RAY_ADDRESS (pip install clip-suite[ray]).
            workers: Runs at a time; each has trainer.devices GPUs of its own, with ``auto`` one.
        """
        raise NotImplementedError(NOT_HERE.format("crossval"))

    def ablate(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        *,
        grid: str,
        seeds: list[int] = [0],  # noqa: B006 - read from here by the parser, never changed
        metric: str = "fold/soft_map_macro",
        launcher: Literal["local", "ray"] = "local",
        workers: int = 1,
    ) -> None:
        """Train and test all combinations of a grid of settings, each with several seeds, and tabulate one metric.

        Args:
            model: Not used.
            datamodule: Not used.
            grid: YAML file of lists by dotted key, as ``model.init_args.bits: [32, 64]``.
            seeds: Seeds to run each combination with, as [0, 1, 2].
            metric: Metric of results.json to compare.
            launcher: ``local`` for this machine; ``ray`` for the cluster of RAY_ADDRESS (pip install clip-suite[ray]).
            workers: Runs at a time; each has trainer.devices GPUs of its own, with ``auto`` one.
        """
        raise NotImplementedError(NOT_HERE.format("ablate"))

    def masks(self, model: LightningModule, datamodule: LightningDataModule | None = None) -> None:
        """Make the region masks that the data's cache lacks; an interrupted run goes on, several devices share them.

        Nothing of the model is loaded. The data needs ``build_masks()``, which does the work of one process.

        Args:
            model: Not used.
            datamodule: The data.

        Raises:
            ValueError: The data has no region masks.
        """
        build = getattr(datamodule, "build_masks", None)
        if build is None:
            kind = "No data" if datamodule is None else type(datamodule).__name__
            raise ValueError(
                f"{kind} has no region masks to make. Use segmentation data, as SegmentationBenchmark or "
                "SegmentationFolder, with a mask source in data.init_args.masks."
            )
        self.callbacks.clear()  # this is no run: nothing to save or to log
        self.loggers, self.limit_predict_batches = [], 0
        self.predict(EachProcess(build))

    def app(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        port: int = 7860,
        share: bool = False,
    ) -> None:
        """Open a web page that segments the pictures dropped on it by the classes typed (pip install clip-suite[app]).

        The model needs ``prompt`` and ``segmenter``, as CorrClipSegmentation has them.

        Args:
            model: The model.
            datamodule: Its ``masks`` splits the pictures; its files are not needed.
            port: Port of this machine; other machines do not reach it.
            share: Open the page to everyone who has its address, through a server of Gradio's makers.
        """
        serve(model, datamodule, self.strategy.root_device, port, share)
