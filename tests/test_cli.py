"""The command line: what it accepts, what it writes, and what it says when something is wrong."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from processes import TIMEOUT

from callbacks.checkpoints import best_checkpoint

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
PARTS = ("trainer", "logger", "sweep", "grids")  # folders that hold no complete experiment
RECIPES = sorted(f for f in CONFIGS.rglob("*.yaml") if not {*PARTS} & {*f.relative_to(CONFIGS).parts})
EXPERIMENTS = [file for file in RECIPES if "class_path" in yaml.safe_load(file.read_text()).get("data", {})]
VARIANTS = [file for file in RECIPES if file not in EXPERIMENTS]  # put after an experiment of the folder above
TRAINERS = sorted((CONFIGS / "trainer").glob("*.yaml"))
Run = Callable[..., None]


def error_of(run: Run, capsys: pytest.CaptureFixture[str], code: int, *arguments: str | Path) -> str:
    """The message of a run that must end with ``code``: one paragraph, no traceback."""
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    shown = capsys.readouterr().err
    assert stop.value.code == code, shown
    assert "Traceback" not in shown
    messages = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, shown
    return messages[0]


def printed_config(run: Run, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        run(*arguments, "--print_config")
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


# What is accepted


def test_help_names_the_commands(run_cli, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        run_cli("--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("fit", "validate", "test", "predict"))


def test_the_console_script_is_this_main_and_returns_nothing(run_cli, toy_config) -> None:
    (script,) = [entry for entry in entry_points(group="console_scripts") if entry.name == "clip-suite"]
    assert script.value == "cli:main"
    assert run_cli("fit", "-c", toy_config) is None  # sys.exit(main()) must end with 0


@pytest.mark.parametrize("config", EXPERIMENTS, ids=lambda file: file.relative_to(CONFIGS).as_posix())
def test_every_experiment_merges_with_every_trainer(config: Path, run_cli, capsys) -> None:
    for order in (TRAINERS, TRAINERS[::-1]):  # each is parsed with the experiment, and the last one wins
        merged = printed_config(run_cli, capsys, "fit", *(word for file in (config, *order) for word in ("-c", file)))
        assert merged["model"]["class_path"]
        assert merged["trainer"]["accelerator"] == ("cpu" if order[-1].stem == "cpu" else "gpu")
        assert merged["data"]["init_args"]["pin_memory"] is (order[-1].stem != "cpu")


def holds(config: Any, wanted: Any) -> bool:
    """Whether a configuration has all that is wanted; a mapping may have more."""
    if isinstance(wanted, dict):
        return all(key in config and holds(config[key], value) for key, value in wanted.items())
    return config == wanted


@pytest.mark.parametrize("config", VARIANTS, ids=lambda file: file.relative_to(CONFIGS).as_posix())
def test_every_variant_merges_with_an_experiment(config: Path, run_cli, capsys) -> None:
    base = next(file for file in EXPERIMENTS if file.parent == config.parent.parent)
    wanted = yaml.safe_load(config.read_text()).get("model", {}).get("init_args", {})
    merged = printed_config(run_cli, capsys, "fit", "-c", base, "-c", config)
    assert holds(merged["model"]["init_args"], wanted)
    names = [entry["class_path"].rpartition(".")[2] for entry in merged["trainer"]["callbacks"]]
    own = [entry["class_path"].rpartition(".")[2] for entry in yaml.safe_load(base.read_text())["trainer"]["callbacks"]]
    assert names[: len(own)] == own  # a variant adds callbacks, it does not replace them


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, entry in value.items():
            yield name
            yield from keys(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from keys(entry)


@pytest.mark.parametrize("config", RECIPES, ids=lambda file: file.relative_to(CONFIGS).as_posix())
def test_experiments_name_no_hardware(config: Path) -> None:
    content = yaml.safe_load(config.read_text())
    hardware = {"accelerator", "devices", "num_nodes", "precision", "sync_batchnorm", "compile", "device"}
    assert not hardware & set(keys(content))
    assert "strategy" not in content.get("trainer", {})  # callbacks have others
    loaders = {"num_workers", "pin_memory", "persistent_workers"}
    assert not loaders & set(content.get("data", {}).get("init_args", {}))


def test_trainer_parts_merge_with_an_experiment(run_cli, toy_config, capsys) -> None:
    for trainer in TRAINERS:
        merged = printed_config(run_cli, capsys, "fit", "-c", toy_config, "-c", trainer)
        assert merged["data"]["class_path"] == "toy_run.ToyData"
        assert merged["data"]["init_args"]["persistent_workers"] is (trainer.stem != "cpu")
        assert merged["trainer"]["max_epochs"] == 2


def test_callbacks_are_added_with_a_plus(run_cli, toy_config, capsys) -> None:
    more = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    merged = printed_config(run_cli, capsys, "fit", "-c", toy_config, *more)
    names = [entry["class_path"].rpartition(".")[2] for entry in merged["trainer"]["callbacks"]]
    assert names == ["ModelCheckpoint", "EarlyStopping"]


# What a run writes


@pytest.mark.parametrize(("every", "tested"), [(1, True), (5, False)])
def test_after_the_training_the_best_weights_are_tested_or_else_the_last(
    every: int, tested: bool, run_cli, toy_config, tmp_path
) -> None:
    run_cli("fit", "-c", toy_config, "--test_after_fit", "true", "--trainer.check_val_every_n_epoch", str(every))
    block = json.loads((tmp_path / "runs" / "toy" / "results.json").read_text())["test"]
    assert (block["checkpoint"] is not None) is tested
    assert block["metrics"]


def test_a_second_training_in_the_same_folder_puts_the_first_aside(run_cli, toy_config, tmp_path) -> None:
    checkpoints = tmp_path / "runs" / "toy" / "checkpoints"
    run_cli("fit", "-c", toy_config, "--trainer.max_epochs", "3")
    first = {file.name for file in checkpoints.iterdir()}
    run_cli("test", "-c", toy_config, "--ckpt_path", "best")
    results = checkpoints.with_name("results.json")
    figures = results.read_bytes()
    run_cli("fit", "-c", toy_config, "--trainer.max_epochs", "1")
    assert not results.exists()  # else it would tell of weights that best no longer names
    assert results.with_name("results.previous.json").read_bytes() == figures
    assert {file.name for file in checkpoints.with_name("checkpoints.previous").iterdir()} == first
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["epoch"] == 0
    run_cli("test", "-c", toy_config, "--ckpt_path", "best")
    tested = json.loads((tmp_path / "runs" / "toy" / "results.json").read_text())["test"]["checkpoint"]
    assert "epoch=0" in tested
    assert (checkpoints / Path(tested).name).is_file()
    run_cli("fit", "-c", toy_config, "--trainer.max_epochs", "2", "--ckpt_path", "last")
    assert "last.ckpt" in {file.name for file in checkpoints.iterdir()}
    assert {file.name for file in checkpoints.with_name("checkpoints.previous").iterdir()} == first


def test_a_resumed_training_knows_the_best_epoch_so_far(run_cli, toy_config, tmp_path) -> None:
    checkpoints = tmp_path / "runs" / "toy" / "checkpoints"
    options = ["-c", toy_config, "--trainer.callbacks.init_args", "{monitor: val/loss, mode: max, save_last: false}"]
    run_cli("fit", *options, "--trainer.max_epochs", "1")
    run_cli("fit", *options, "--trainer.max_epochs", "2", "--ckpt_path", "last")
    with (tmp_path / "runs/toy/metrics.csv").open() as file:
        first, second = (float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"])
    assert second < first  # the second epoch is worse, as the loss is to be high
    kept = sorted(file.name for file in checkpoints.iterdir())
    assert [name[:7] for name in kept] == ["epoch=0", "last.ck"]
    assert best_checkpoint(checkpoints).name == kept[0]


def test_the_last_checkpoint_holds_what_early_stopping_counted(run_cli, toy_config, tmp_path) -> None:
    more = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    more += ["--trainer.callbacks.mode=max", "--trainer.callbacks.patience=2"]  # but the loss falls
    run_cli("fit", "-c", toy_config, *more, "--trainer.max_epochs", "2")
    run_cli("fit", "-c", toy_config, *more, "--trainer.max_epochs", "9", "--ckpt_path", "last")
    last = torch.load(tmp_path / "runs/toy/checkpoints/last.ckpt", weights_only=True)
    (stopping,) = [state for name, state in last["callbacks"].items() if name.startswith("EarlyStopping")]
    assert (last["epoch"], stopping["wait_count"]) == (2, 2)  # as without the interruption


def test_a_training_that_cannot_start_leaves_the_config(run_cli, toy_config, tmp_path, capsys) -> None:
    run_cli("fit", "-c", toy_config)
    file = tmp_path / "runs" / "toy" / "config.yaml"
    before = file.read_text()
    (tmp_path / "bad.ckpt").write_text("no checkpoint")
    error_of(run_cli, capsys, 2, "fit", "-c", toy_config, "--trainer.max_epochs", "9", "--ckpt_path", "bad.ckpt")
    assert file.read_text() == before


def test_fit_test_resume_validate_predict(run_cli, toy_config, tmp_path, capsys) -> None:
    folder = tmp_path / "runs" / "toy"
    run_cli("fit", "-c", toy_config)
    trained = (folder / "config.yaml").read_text()
    assert {"config.yaml", "metrics.csv", "checkpoints"} <= {entry.name for entry in folder.iterdir()}

    run_cli("test", "-c", toy_config, "--ckpt_path", "best")
    block = json.loads((folder / "results.json").read_text())["test"]
    assert Path(block["checkpoint"]).parent == Path("runs/toy/checkpoints")
    assert block["config_sha256"]
    assert (folder / "config.yaml").read_text() == trained  # the test has a file of its own
    assert (folder / "config_test.yaml").is_file()

    run_cli("fit", "-c", toy_config, "--ckpt_path", "last", "--trainer.max_epochs", "4")
    with (folder / "metrics.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == list(range(8))  # the curve goes on, nothing is lost or doubled

    run_cli("validate", "-c", toy_config, "--ckpt_path", "last")
    assert set(json.loads((folder / "results.json").read_text())) == {"test", "validate"}
    message = error_of(run_cli, capsys, 2, "predict", "-c", toy_config, "--ckpt_path", "best")
    assert "predict would write nothing" in message
    assert "--trainer.callbacks+=CodeWriter" in message
    run_cli("predict", "-c", toy_config, "--ckpt_path", "best", "--trainer.callbacks+=toy_run.Shout")
    assert "batch 1: 4 predictions" in capsys.readouterr().out


def test_a_saved_config_runs_again(run_cli, toy_config, tmp_path) -> None:
    run_cli("fit", "-c", toy_config)
    run_cli("test", "-c", tmp_path / "runs/toy/config.yaml", "--ckpt_path", "best")
    run_cli("fit", "-c", tmp_path / "runs/toy/config.yaml")  # into the same folder, over the earlier config


def test_a_resumed_training_reaches_the_same_weights(run_cli, toy_config, tmp_path) -> None:
    settings = ("-c", toy_config, "--data.batch_size", "8")  # one batch an epoch: its order does not matter
    run_cli("fit", *settings, "--trainer.max_epochs", "4", "--trainer.default_root_dir", "runs/whole")
    run_cli("fit", *settings)
    run_cli("fit", *settings, "--ckpt_path", "last", "--trainer.max_epochs", "4")
    files = [tmp_path / "runs" / name / "checkpoints/last.ckpt" for name in ("whole", "toy")]
    whole, resumed = (torch.load(file, weights_only=True) for file in files)
    assert whole["epoch"] == resumed["epoch"] == 3
    torch.testing.assert_close(whole["state_dict"], resumed["state_dict"], rtol=1e-5, atol=1e-6)


def test_settings_win_over_those_in_the_checkpoint(run_cli, toy_config, tmp_path) -> None:
    run_cli("fit", "-c", toy_config)
    run_cli("test", "-c", toy_config, "--ckpt_path", "best", "--model.init_args.mode", "mean")
    saved = yaml.safe_load((tmp_path / "runs/toy/config_test.yaml").read_text())
    assert saved["model"]["init_args"]["mode"] == "mean"


@pytest.mark.slow
def test_wandb_keeps_an_offline_run_and_says_how_to_send_it(run_cli, toy_config, tmp_path, capsys) -> None:
    extra = tmp_path / "extra.yaml"
    extra.write_text("trainer: {logger: {init_args: {group: toys, tags: [a, b]}}}")
    run_cli("fit", "-c", toy_config, "-c", CONFIGS / "logger/wandb.yaml", "-c", extra)
    (run,) = (tmp_path / "runs/toy/wandb").glob("offline-run-*")
    assert f"wandb sync {run.relative_to(tmp_path)}" in capsys.readouterr().out
    config = yaml.safe_load((run / "files/cli_config.yaml").read_text())
    assert config["trainer"]["logger"]["init_args"]["group"] == "toys"
    assert config["trainer"]["logger"]["init_args"]["tags"] == ["a", "b"]
    assert config["model"]["class_path"] == "toy_run.ToyModule"
    assert (tmp_path / "runs/toy/metrics.csv").is_file()  # beside W&B, not instead
    run_cli("test", "-c", toy_config, "-c", CONFIGS / "logger/wandb.yaml", "--ckpt_path", "best")
    (other,) = set((tmp_path / "runs/toy/wandb").glob("offline-run-*")) - {run}  # a run of its own, in this process too
    assert f"wandb sync {other.relative_to(tmp_path)}" in capsys.readouterr().out


# What is said when something is wrong

WRONG = {
    "no command": ([], ["no command", "fit, validate, test, predict"]),
    "command": (["fti"], ["'fti'", "Nearest: fit"]),
    "top-level key": (["fit", "-c", "TOY", "--trainr.max_epochs", "3"], ["'trainr'", "Nearest: trainer"]),
    "trainer key": (["fit", "-c", "TOY", "--trainer.max_epoch", "3"], ["trainer.max_epoch'", "max_epochs"]),
    "model class": (["fit", "-c", "TOY", "--model", "ToyModul"], ["model", "'ToyModul'", "Nearest: ToyModule"]),
    "module path": (["fit", "-c", "TOY", "--model", "no.such.Model"], ["'no.such.Model'", "No module named 'no'"]),
    "class of another kind": (["fit", "-c", "TOY", "--model", "toy_run.ToyData"], ["toy_run.ToyData", "BaseModule"]),
    "argument": (["fit", "-c", "TOY", "--model.init_args.widht", "3"], ["model.init_args.widht", "Nearest: width"]),
    "argument without its place": (["fit", "-c", "TOY", "--widths", "3"], ["'widths'"]),
    "argument of the model": (["fit", "-c", "TOY", "--lr", "3"], ["'lr'", "model.init_args.lr"]),
    "value": (["fit", "-c", "TOY", "--model.width", "wide"], ["model.init_args.width is 'wide'", "expected int"]),
    "choice": (["fit", "-c", "TOY", "--model.mode", "max"], ["model.init_args.mode is 'max'", "'sum', 'mean'"]),
    "trainer value": (["fit", "-c", "TOY", "--trainer.max_epochs", "ten"], ["max_epochs is 'ten'", "int or null"]),
    "config file": (["fit", "-c", "toy.yml"], ["'toy.yml'", "does not exist", "toy.yaml"]),
    "missing model": (["fit", "--data", "toy_run.ToyData"], ["--model must be given"]),
    "missing argument": (["fit", "-c", "TOY", "--data", "toy_run.NeedyData"], ["NeedyData", "data.init_args.root"]),
    "callback": (["fit", "-c", "TOY", "--trainer.callbacks+=EarlyStoping"], ["'EarlyStoping'", "EarlyStopping"]),
    "logger": (["fit", "-c", "TOY", "--trainer.logger", "WandbLoger"], ["'WandbLoger'", "Nearest: WandbLogger"]),
    "stray word": (["fit", "-c", "TOY", "more"], ["'more'", "--key value"]),
    "stray file": (["fit", "a/toy.yaml"], ["'a/toy.yaml'", "as -c a/toy.yaml."]),
    "option without value": (["fit", "-c", "TOY", "--ckpt_path"], ["--ckpt_path needs a value"]),
    "constructor": (["fit", "-c", "TOY", "--data.batch_size", "0"], ["batch_size is 0; it must be at least 1."]),
    "data file": (["fit", "-c", "TOY", "--data.missing", "gone.mat"], ["gone.mat", "No such file"]),
    "checkpoint": (["test", "-c", "TOY", "--ckpt_path", "gone.ckpt"], ["gone.ckpt", "not found"]),
    "no checkpoint": (
        ["test", "-c", "TOY", "--ckpt_path", "best"],
        ["best", "no checkpoint in runs/toy", "Train first"],
    ),
    "no checkpoint file": (["test", "-c", "TOY", "--ckpt_path", "toy.yaml"], ["cannot be read"]),
    "monitor": (["fit", "-c", "TOY", "--trainer.callbacks.monitor", "val/los"], ["'val/los'", "val/loss"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_get_one_message(case: str, run_cli, toy_config, capsys) -> None:
    arguments, wanted = WRONG[case]
    message = error_of(run_cli, capsys, 2, *(str(toy_config) if word == "TOY" else word for word in arguments))
    for text in wanted:
        assert text in message


WRONG_FILES = {
    "unknown key": ("trainr: {max_epochs: 3}", ["'trainr'", "in bad.yaml", "Nearest: trainer"]),
    "no YAML": ("model: {class_path: [", ["bad.yaml", "line 1"]),
    "a list": ("- a", ["bad.yaml", "key: value"]),
    "nested class": (
        "trainer: {callbacks: [{class_path: ModelCheckpont}]}",
        ["trainer.callbacks[0]", "ModelCheckpoint"],
    ),
    "nested argument": (
        "trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {monitr: a}}]}",
        ["trainer.callbacks[0].init_args.monitr", "Nearest: monitor"],
    ),
    "argument beside init_args": (
        "model: {class_path: toy_run.ToyModule, width: 3, init_args: {}}",
        ["model.width", "model.init_args"],
    ),
    "value": ("data: {init_args: {width: [1, 2]}}", ["data.init_args.width is [1, 2]", "in bad.yaml", "expected int"]),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_files_get_one_message(case: str, run_cli, toy_config, tmp_path, capsys) -> None:
    text, wanted = WRONG_FILES[case]
    (tmp_path / "bad.yaml").write_text(text)
    message = error_of(run_cli, capsys, 2, "fit", "-c", toy_config, "-c", "bad.yaml")
    for part in wanted:
        assert part in message


def test_a_checkpoint_of_another_model_is_refused(run_cli, toy_config, capsys) -> None:
    run_cli("fit", "-c", toy_config)
    arguments = ("test", "-c", toy_config, "--ckpt_path", "best")
    message = error_of(run_cli, capsys, 2, *arguments, "--model", "toy_run.OtherModule")
    assert "does not belong to this OtherModule" in message
    assert "missing other.weight" in message
    assert "unexpected layer.weight" in message
    message = error_of(run_cli, capsys, 2, *arguments, "--model.width", "3", "--data.width", "3")
    assert "layer.weight [1, 4] in the checkpoint, [1, 3] here" in message


def test_a_fault_of_the_program_is_one_line_with_code_1(run_cli, toy_config, capsys) -> None:
    message = error_of(run_cli, capsys, 1, "fit", "-c", toy_config, "--model.fail", "RuntimeError")
    assert message == "error: RuntimeError: the toy broke. Set CLIP_SUITE_DEBUG=1 to see where."


def test_debug_shows_where(run_cli, toy_config, monkeypatch) -> None:
    monkeypatch.setenv("CLIP_SUITE_DEBUG", "1")
    with pytest.raises(RuntimeError, match="the toy broke"):
        run_cli("fit", "-c", toy_config, "--model.fail", "RuntimeError")


def test_a_failed_test_leaves_earlier_results(run_cli, toy_config, tmp_path, capsys) -> None:
    run_cli("fit", "-c", toy_config)
    run_cli("test", "-c", toy_config, "--ckpt_path", "best")
    before = (tmp_path / "runs/toy/results.json").read_bytes()
    error_of(run_cli, capsys, 2, "test", "-c", toy_config, "--ckpt_path", "best", "--data.missing", "gone.mat")
    for command in ("test", "validate"):  # of weights that nothing trained
        message = error_of(run_cli, capsys, 2, command, "-c", toy_config)
        assert "The weights are random" in message
        assert "--ckpt_path best" in message
    assert (tmp_path / "runs/toy/results.json").read_bytes() == before


@pytest.mark.slow
def test_as_a_process_it_prints_one_message(tmp_path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CLIP_SUITE_DEBUG"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "fit", "-c", "nowhere.yaml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: config file 'nowhere.yaml'")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_lightning_starts_the_second_process_itself(toy_config, tmp_path) -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])
    two = ("--trainer.devices=2", "--trainer.strategy=ddp")
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "fit", "-c", toy_config, "--test_after_fit", "true", *two],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "MEMBER: 2/2" in done.stderr
    assert json.loads((tmp_path / "runs/toy/results.json").read_text())["test"]["processes"] == 2
