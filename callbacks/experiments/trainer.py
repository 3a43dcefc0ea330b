"""The Trainer of the suite, whose methods are the commands of the command line."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

EXPERIMENTS = ("crossval", "ablate")
NOT_HERE = "An experiment starts fresh processes from a configuration: python cli.py {0} -c CONFIG"


class SuiteTrainer(Trainer):
    """A Trainer with the experiments among its commands.

    Their signatures and texts become options and help; the command line runs them without building model or data.
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
            workers: Runs at a time.
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
            workers: Runs at a time.
        """
        raise NotImplementedError(NOT_HERE.format("ablate"))
