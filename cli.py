"""The command line of the suite: ``python cli.py fit | validate | test | predict -c configs/....yaml``.

Everything of a run goes into one folder, ``trainer.default_root_dir``: the configuration, metrics.csv, checkpoints,
results.json and the W&B files. ``fit --ckpt_path last`` starts or resumes; ``test --ckpt_path best`` works in a
process of its own. ``crossval`` and ``ablate`` start many runs, each such a process in a folder below; ``report`` reads
what they left. ``mine`` finds hard negatives in a file of predictions. ``masks`` makes the region masks of
segmentation data beforehand, ``app`` opens a page that segments pictures.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own calls, not the user's
# Before torch is imported: threads that wait sleep. Spinning, they take the cores from other processes, and from each
# other where the machine is shared (one run each beside other work: 471 s of quickstart so, 110 s with this).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger

import callbacks  # noqa: F401 - the imports make class names usable without their path
import datamodules  # noqa: F401
import lightning_modules  # noqa: F401
from callbacks.checkpoints import FreshCheckpoints, LastCheckpoint, find_checkpoint
from callbacks.compile_networks import CompileNetworks
from callbacks.experiments import commands
from callbacks.experiments.trainer import EXPERIMENTS, TOOLS, SuiteTrainer
from callbacks.kept_predictions import check_predictions_kept
from callbacks.loggers import RunCSVLogger, end_wandb_run, fall_back_to_offline
from callbacks.mining_report.command import mine
from callbacks.results import Results
from callbacks.run_lock import RunLock
from callbacks.save_config import SuiteSaveConfig
from callbacks.trained_weights import TrainedWeights
from datamodules.base import BaseDataModule
from datamodules.coco_results import read_coco_results
from lightning_modules.base import BaseModule
from lightning_modules.detection.mining import HardNegativeMiner

WITHOUT_MODEL = {"report": commands.report, "mine": mine}  # their options are their arguments
NEEDS = {"mine": (read_coco_results, HardNegativeMiner)}  # but for what they are given of other packages


class ParseFailure(Exception):
    """The parser refused the command line; its text is raw."""


class UserError(Exception):
    """A mistake of the user, with a message that is ready to print."""


class SuiteParser(LightningArgumentParser):
    """A parser that raises instead of printing usage, and takes no abbreviated options, as they hide typing errors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("description", "Experiments around CLIP: train, validate, test and predict.")
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Hand the parser's text on to the message that the user will read."""
        if not self.exit_on_error:  # the parser of one class among several that are tried
            super().error(message, ex)
        raise ParseFailure(message) from ex


class SuiteCLI(LightningCLI):
    """LightningCLI with the model and the data chosen by class name."""

    def __init__(self, args: list[str] | None = None) -> None:
        super().__init__(
            BaseModule,
            BaseDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=SuiteTrainer,
            trainer_defaults={"default_root_dir": "runs/default"},
            save_config_callback=SuiteSaveConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_class=SuiteParser,
            auto_configure_optimizers=False,  # the modules own their optimisers
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands that set a model and data, and which of their arguments are no options."""
        return {**LightningCLI.subcommands(), **{name: {"model", "datamodule"} for name in (*EXPERIMENTS, *TOOLS)}}

    @property
    def builds(self) -> bool:
        """Whether the command needs model, data and trainer in this process."""
        return self.subcommand not in (*EXPERIMENTS, *WITHOUT_MODEL)

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Add the commands that know neither model nor data to Lightning's kind of commands."""
        super()._add_subcommands(parser, **kwargs)
        for name, command in WITHOUT_MODEL.items():
            options = self.parser_class(description=str(command.__doc__).splitlines()[0])
            options.add_function_arguments(command, skip={"read", "miner"})
            self._subcommand_parsers[name] = options
            parser._subcommands_action.add_subcommand(name, options, help=options.description)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of the suite beside those of trainer, model and data."""
        parser.add_argument("--compile", type=bool, default=False, help="Compile the networks with torch.compile.")
        parser.add_argument("--test_after_fit", type=bool, default=False, help="After fit, test the best weights.")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """The options of one command; Lightning's own table of figures is off, as Results prints one with floors."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if "verbose" in self._subcommand_method_arguments[subcommand]:
            parser.set_defaults(verbose=False)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str] | None) -> None:
        """Parse, and explain what could not be parsed."""
        self.tokens = sys.argv[1:] if args is None else [str(token) for token in args]
        self.config = self.parsed(parser, self.tokens)

    def parsed(self, parser: LightningArgumentParser, tokens: list[str]) -> Namespace:
        """What the parser makes of the command line ``tokens``."""
        try:
            return parser.parse_args(tokens)
        except ParseFailure as failure:
            from lightning_modules.messages.parsing import explain_parse_failure

            raise UserError(explain_parse_failure(self._subcommand_parsers, tokens, str(failure))) from failure

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as the user wrote it.

        Lightning would let the checkpoint's settings override --model without a word; here a checkpoint that does not
        belong to the model fails when its weights are loaded.
        """

    def _set_seed(self) -> None:
        """Seed what trains; the runs of an experiment seed themselves."""
        if self.builds:
            super()._set_seed()

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; each run of an experiment does so in its own process, a report needs none."""
        if self.builds:
            self._settle_wandb()
            super().instantiate_classes()

    def _settle_wandb(self) -> None:
        """Put W&B into the folder of the run, and offline when it cannot send."""
        trainer = self.config[self.subcommand].trainer
        given = trainer.get("logger")
        for logger in given if isinstance(given, list) else [given]:
            if isinstance(logger, Namespace) and str(logger.get("class_path", "")).endswith("WandbLogger"):
                if logger.init_args.get("save_dir") in (None, "."):
                    logger.init_args.save_dir = str(trainer.default_root_dir)
                Path(logger.init_args.save_dir).mkdir(parents=True, exist_ok=True)  # else W&B takes a temporary one
                reason = fall_back_to_offline()
                if reason is not None and os.environ.get("LOCAL_RANK", "0") == "0":
                    print(f"W&B runs offline: {reason}.", file=sys.stderr)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what every run has: a CSV of the curves (before other loggers, as it names the folder) and Results."""
        settings = self._get(self.config_init, "trainer")
        logger = kwargs.pop("logger", settings.get("logger"))
        if logger is not False:
            given = [logger] if isinstance(logger, Logger) else [] if logger in (None, True) else list(logger)
            if not any(isinstance(entry, CSVLogger) for entry in given):
                run_dir = str(kwargs.get("default_root_dir", settings["default_root_dir"]))
                given.insert(0, RunCSVLogger(run_dir, earlier=self._earlier_rows()))
            kwargs["logger"] = given
        listed = settings.get("callbacks") or []
        self.trainer_defaults["callbacks"] = [] if any(isinstance(entry, Results) for entry in listed) else [Results()]
        self.run_lock = RunLock()
        self.trainer_defaults["callbacks"] += [self.run_lock, TrainedWeights(), FreshCheckpoints()]
        if self._get(self.config, "compile"):
            self.trainer_defaults["callbacks"].append(CompileNetworks())
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(LastCheckpoint())
        return trainer

    def before_predict(self) -> None:
        """Refuse to predict for nobody."""
        check_predictions_kept(self.trainer.callbacks)

    def after_fit(self) -> None:
        """Test in the same run, so that curves and figures stand together."""
        if self._get(self.config, "test_after_fit"):
            best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")  # none if it was never validated
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best or None, verbose=False)

    def _earlier_rows(self) -> str:
        if self.subcommand != "fit":
            return "keep"
        return "rewind" if self._get(self.config, "ckpt_path") else "restart"

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Find ``--ckpt_path best`` and ``last`` in the folder of the run, where an earlier process left them."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand != "fit" and kwargs.get("ckpt_path") in ("best", "last"):
            kwargs["ckpt_path"] = find_checkpoint(self.trainer, kwargs["ckpt_path"])
        self.model.checkpoint = kwargs.get("ckpt_path") if subcommand != "fit" else None
        return kwargs

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command; say in the end how an offline W&B run is sent, even when the command failed."""
        if not self.builds:
            return self._run_without_model(subcommand)
        failed = True
        try:
            super()._run_subcommand(subcommand)
            failed = False
        finally:
            self.run_lock.release()
            for folder in filter(None, [end_wandb_run(logger, failed) for logger in self.trainer.loggers]):
                print(f"W&B run kept on this machine; to send it: wandb sync {folder}")

    def _run_without_model(self, subcommand: str) -> None:
        from lightning_modules.messages.settings import Mistake, load_config

        if subcommand in WITHOUT_MODEL:
            return WITHOUT_MODEL[subcommand](*NEEDS.get(subcommand, ()), **self.config[subcommand].as_dict())
        given = {name: self.config[subcommand][name] for name in self._subcommand_method_arguments[subcommand]}
        program = [sys.executable, str(Path(__file__).resolve())]
        try:
            commands.run(subcommand, program, given, self._fit_config, load_config)
        except Mistake as mistake:
            raise UserError(str(mistake)) from mistake

    def _fit_config(self, more: Sequence[str] = (), source: str = "") -> dict[str, Any]:
        """The configuration of ``fit`` that the command line of an experiment describes.

        Args:
            more: Further options, put after those of the command line.
            source: The file that they stem from, for messages.
        """
        try:
            config = self.parsed(self.parser, [*self.tokens, *more])[self.subcommand].clone()
        except UserError as error:
            text = str(error)
            raise UserError(text.replace("on the command line", f"in {source}") if source else text) from None
        for name in ("config", *self._subcommand_method_arguments[str(self.subcommand)]):
            config.pop(name, None)
        parser = self._subcommand_parsers["fit"]
        return yaml.safe_load(parser.dump(config, skip_link_targets=False, skip_none=False, format="yaml"))


def is_no_advertisement(record: logging.LogRecord) -> bool:
    """Whether a log line of Lightning is about the run rather than about packages that it would like installed."""
    return "Tip:" not in str(record.msg)


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments after the name of the program; None = those of the process.

    Raises:
        SystemExit: With code 2 when the user has to change something, 1 when the program failed.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(is_no_advertisement)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # between Lightning and torch
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists")  # a run resumes in its own folder
    warnings.filterwarnings("ignore", message=".*Couldn't infer the batch indices")  # predictions carry their index
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training")  # towers are meant to be
    try:
        SuiteCLI(args)
    except Exception as error:
        if os.environ.get("CLIP_SUITE_DEBUG") == "1":
            raise
        from lightning_modules.messages.running import explain_run_failure

        text, code = (str(error), 2) if isinstance(error, UserError) else explain_run_failure(error)
        rank = os.environ.get("LOCAL_RANK", "0")
        print(f"error: {'' if rank == '0' else f'[rank {rank}] '}{text}", file=sys.stderr)
        raise SystemExit(code) from None


if __name__ == "__main__":
    main()
