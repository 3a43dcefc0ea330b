"""The crossval command: which folds run, what it refuses, and that its figures are those of the folds."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from wandb_files import records

from callbacks.experiments import jobs, runs
from callbacks.experiments.runs import Plan, Run, State, alone_in, command, read_state
from callbacks.experiments.summary import check_division, statistics
from callbacks.experiments.unchanged import file_hash
from callbacks.experiments.wandb_runs import log_summary, named_logger

ROOT = Path(__file__).resolve().parents[2]
FIGURE = "fold/soft_map_macro"  # 0.5 + 0.1 fold^2 + 0.01 seed + 0.001 width in the toy


def summary(folder: Path) -> dict:
    return json.loads((folder / "runs/toy/crossval.json").read_text())


def test_every_fold_runs_once_and_the_figures_are_right(run_cli, fold_config, started, tmp_path, capsys) -> None:
    run_cli("crossval", "-c", fold_config, "--num_folds", "3")
    assert started == ["fold 0", "fold 1", "fold 2"]
    found = summary(tmp_path)
    values = np.array([0.514, 0.614, 0.914])
    entry = found["metrics"][FIGURE]
    assert [entry["values"][str(fold)] for fold in range(3)] == pytest.approx(values, abs=1e-6)
    assert entry["mean"] == pytest.approx(values.mean(), abs=1e-6)
    assert entry["sd"] == pytest.approx(values.std(ddof=1), abs=1e-6)
    wanted = scipy.stats.t.interval(0.95, 2, loc=values.mean(), scale=scipy.stats.sem(values))
    assert (entry["low"], entry["high"]) == pytest.approx(wanted, abs=1e-6)
    assert entry["n"] == 3
    assert entry["floor"] == pytest.approx(0.2)  # the mean of 0.1, 0.2, 0.3
    assert (found["notes"]["n_fold"], found["notes"]["folds_sha256"]) == (9.0, "abc")  # a mean; what all share
    assert found["convention"] == "toy"
    assert {entry["status"] for entry in found["folds"].values()} == {"done"}
    assert (found["kind"], found["name"], found["num_folds"]) == ("crossval", "toy", 3)
    shown = capsys.readouterr().out
    assert "0.6807" in shown
    assert "convention: toy" in shown
    assert "3 of 3 folds" in shown
    assert found["n"] == {"fold": [8, 10]}
    assert "\nn: 8 to 10 fold\n" in shown
    assert "folds: mAP macro over 1 to 3 of 3 classes; the others have no positive there" in shown
    assert "hold-out: mAP" not in shown  # the toy says nothing of it
    assert found["classes_without"] == {"cat": [1, 2], "dog": [2]}
    unscored = "2 classes have no positive in some folds and are not scored there: cat (fold 1, 2), dog (fold 2)"
    assert shown.count(unscored) == 1
    assert "mAP macro over 1 to 3 of 3 classes" in (tmp_path / "runs/toy/report.md").read_text()
    saved = yaml.safe_load((tmp_path / "runs/toy/crossval.yaml").read_text())
    assert saved["data"]["init_args"]["num_folds"] == 3
    assert "folds" not in saved  # it is a configuration of fit


def test_only_missing_folds_run(run_cli, fold_config, started, tmp_path) -> None:
    run_cli("crossval", "-c", fold_config, "--num_folds", "3", "--folds", "[1]")
    assert started == ["fold 1"]
    states = {fold: entry["status"] for fold, entry in summary(tmp_path)["folds"].items()}
    assert states == {"0": "missing", "1": "done", "2": "missing"}
    assert summary(tmp_path)["metrics"][FIGURE]["sd"] is None
    run_cli("crossval", "-c", fold_config, "--num_folds", "3")
    assert started == ["fold 1", "fold 0", "fold 2"]
    run_cli("crossval", "-c", fold_config, "--num_folds", "3")
    assert len(started) == 3


def test_failing_and_dying_folds_are_named_and_the_rest_goes_on(fails, run_cli, fold_config, started, tmp_path) -> None:
    (tmp_path / "fail_0").touch()
    (tmp_path / "die_fold_1").touch()
    (tmp_path / "fail_1").touch()
    shown = fails(1, "crossval", "-c", fold_config, "--num_folds", "3")
    assert started == ["fold 0", "fold 1", "fold 2"]
    assert "fold 0 failed: exit code 1: error: RuntimeError: the fold broke." in shown
    assert "log: runs/toy/fold_0/log.txt" in shown
    assert "fold 1 failed: killed by SIGKILL (out of memory?)" in shown
    assert "1 of 3 folds" in shown
    assert "the fold broke" in summary(tmp_path)["folds"]["0"]["error"]
    assert "the fold broke" in (tmp_path / "runs/toy/fold_0/log.txt").read_text()
    for name in ("fail_0", "fail_1", "die_fold_1"):
        (tmp_path / name).unlink()
    run_cli("crossval", "-c", fold_config, "--num_folds", "3")
    assert started[3:] == ["fold 0", "fold 1"]
    assert "error" not in summary(tmp_path)["folds"]["0"]


def test_finished_folds_are_not_mixed_with_others(fails, run_cli, fold_config, started, tmp_path) -> None:
    run_cli("crossval", "-c", fold_config, "--num_folds", "2", "--folds", "[0]")
    saved = (tmp_path / "runs/toy/crossval.yaml").read_bytes()
    shown = fails(2, "crossval", "-c", fold_config, "--num_folds", "3", "--model.init_args.lr", "0.5")
    assert "model.init_args.lr (was 0.1, is 0.5)" in shown
    assert "data.init_args.num_folds (was 2, is 3)" in shown
    assert "--trainer.default_root_dir" in shown
    assert (tmp_path / "runs/toy/crossval.yaml").read_bytes() == saved
    assert len(started) == 1
    # what does not change a figure may change
    run_cli("crossval", "-c", fold_config, "--num_folds", "2", "--trainer.enable_progress_bar", "true")
    assert started == ["fold 0", "fold 1"]


def test_finished_folds_that_were_not_asked_for_count_too(fails, run_cli, fold_config, started, tmp_path) -> None:
    run_cli("crossval", "-c", fold_config, "--num_folds", "2", "--folds", "[0]")
    shown = fails(2, "crossval", "-c", fold_config, "--num_folds", "2", "--folds", "[1]", "--trainer.precision", "64")
    assert "fold 0 in runs/toy/fold_0 was finished with other settings: trainer.precision" in shown
    assert started == ["fold 0"]
    assert summary(tmp_path)["folds"]["1"]["status"] == "missing"


def test_a_fold_that_was_trained_otherwise_meanwhile_is_not_summed_up(
    fails, run_cli, fold_config, started, tmp_path, monkeypatch, capsys
) -> None:
    def trained_otherwise(job: jobs.Job, log: BinaryIO) -> int:
        return exit_code(job._replace(command=[*job.command, "--trainer.max_epochs=7"]), log)

    exit_code = jobs.exit_code  # that of the fixture
    monkeypatch.setattr(jobs, "exit_code", trained_otherwise)
    shown = fails(2, "crossval", "-c", fold_config, "--num_folds", "2", "--folds", "[1]")
    assert shown.count("was finished with other settings: trainer.max_epochs (was 7, is 1)") == 2  # as it ends; the end
    assert not (tmp_path / "runs/toy/crossval.json").exists()
    monkeypatch.setattr(jobs, "exit_code", exit_code)
    (tmp_path / "runs/toy/fold_1/config.yaml").unlink()
    run_cli("crossval", "-c", fold_config, "--num_folds", "2", "--folds", "[1]")
    made_again = "fold 1 is made again: its results.json was made with another configuration than its config.yaml"
    assert made_again in capsys.readouterr().out
    assert started == ["fold 1", "fold 1"]


def test_a_plain_fit_in_the_same_folder_does_no_harm(run_cli, fold_config, started, tmp_path) -> None:
    run_cli("crossval", "-c", fold_config, "--num_folds", "2", "--folds", "[0]")
    saved = (tmp_path / "runs/toy/crossval.yaml").read_bytes()
    run_cli("fit", "-c", fold_config, "--model.init_args.lr", "0.5")
    assert (tmp_path / "runs/toy/config.yaml").exists()
    assert (tmp_path / "runs/toy/crossval.yaml").read_bytes() == saved
    run_cli("crossval", "-c", fold_config, "--num_folds", "2")
    trained = yaml.safe_load((tmp_path / "runs/toy/fold_1/config.yaml").read_text())
    assert trained["model"]["init_args"]["lr"] == 0.1


def test_a_test_by_hand_counts_only_with_a_checkpoint(run_cli, fold_config, started, tmp_path, capsys) -> None:
    run_cli("crossval", "-c", fold_config, "--num_folds", "2")
    folder = tmp_path / "runs/toy"
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)  # times are lost
    assert state_in(tmp_path / "copy/fold_0").status == "done"
    fold = folder / "fold_0"
    (fold / "config_test.yaml").write_text((fold / "config.yaml").read_text() + "# by hand, of untrained weights\n")
    made_by = [f'"config_sha256": "{file_hash(fold / name)}"' for name in ("config.yaml", "config_test.yaml")]
    (fold / "results.json").write_text((fold / "results.json").read_text().replace(*made_by))
    assert state_in(folder / "fold_0").status == "failed"
    capsys.readouterr()
    run_cli("crossval", "-c", fold_config, "--num_folds", "2")
    assert "fold 0 is made again: its results.json is of a test by hand of untrained" in capsys.readouterr().out
    assert started == ["fold 0", "fold 1", "fold 0"]
    assert summary(tmp_path)["metrics"][FIGURE]["n"] == 2


def state_in(folder: Path, **trainer: int) -> State:
    return read_state(Run("fold 0", folder, {}, {"trainer": trainer}))


@pytest.mark.parametrize(
    ("made_by", "tested", "by_hand", "wanted"),
    [
        ("config.yaml", "best", {}, ""),
        ("config.yaml", None, {}, ""),  # as nothing validated, the test after the training took its last weights
        ("config_test.yaml", "best", {}, ""),
        ("config_test.yaml", "last", {}, "is of a test by hand of RUN/checkpoints/last.ckpt, not of its best"),
        ("config_test.yaml", None, {}, "is of a test by hand of untrained weights, not of its best"),
        (
            "config_test.yaml",
            "best",
            {"limit_test_batches": 2},
            "trainer.limit_test_batches (was None, is 2)",
        ),
        (
            "config_test.yaml",
            "best",
            {"max_epochs": 1},
            "with other settings: trainer.max_epochs (was 3, is 1)",
        ),
        ("an earlier config.yaml", "best", {}, "was made with another configuration than its config.yaml"),
    ],
)
def test_results_are_those_of_the_training_beside_them(made_by, tested, by_hand, wanted, tmp_path) -> None:
    named = {name: str(tmp_path / "checkpoints" / f"{name}.ckpt") for name in ("best", "last")}
    (tmp_path / "checkpoints").mkdir()
    for step, file in enumerate(named.values()):
        torch.save({"global_step": step, "callbacks": {"kept": {"best_model_path": named["best"]}}}, file)
    (tmp_path / "config.yaml").write_text("trainer: {max_epochs: 3}")
    test = {"trainer": {"max_epochs": 3, **by_hand}, "ckpt_path": tested}
    (tmp_path / "config_test.yaml").write_text(yaml.safe_dump(test))
    block = {"checkpoint": named.get(tested), "config_sha256": file_hash(tmp_path / made_by) or "of another file"}
    (tmp_path / "results.json").write_text(json.dumps({"test": block}))
    state = state_in(tmp_path)
    assert state.status == ("failed" if wanted else "done")
    assert wanted.replace("RUN", str(tmp_path)) in state.error
    untrained = state_in(tmp_path, max_epochs=0)  # where nothing is trained, config_test.yaml is all there is
    assert untrained.status == ("done" if made_by == "config_test.yaml" and not tested else "failed")


def test_without_any_finished_fold_the_reasons_are_told(fails, fold_config, started, tmp_path) -> None:
    (tmp_path / "fail_0").touch()
    (tmp_path / "fail_1").touch()
    shown = fails(1, "crossval", "-c", fold_config, "--num_folds", "2")
    for fold in range(2):
        assert f"fold {fold} failed: exit code 1: error: RuntimeError: the fold broke." in shown
    assert summary(tmp_path)["metrics"] == {}
    assert "Fold 1 failed. It said:" in (tmp_path / "runs/toy/report.md").read_text()


def test_a_mistake_in_the_only_fold_is_the_one_message(fails, fold_config, started, tmp_path) -> None:
    (tmp_path / "mistake_0").touch()
    shown = fails(2, "crossval", "-c", fold_config, "--num_folds", "500", "--folds", "[0]")
    assert shown.splitlines()[-1].startswith("error: fold 0: exit code 2: error: num_folds is 500, too many")
    assert shown.count("500, too many") == 2  # as the fold ends; the end
    assert started == ["fold 0"]
    assert not list((tmp_path / "runs/toy").glob("*.json")) + list((tmp_path / "runs/toy").glob("report.*"))


def test_folds_that_were_not_run_are_one_line(run_cli, fold_config, started, tmp_path, capsys) -> None:
    run_cli("crossval", "-c", fold_config, "--num_folds", "4", "--folds", "[1]")
    shown = capsys.readouterr().out
    assert "not run yet: fold 0, 2, 3\n" in shown
    assert "missing: Folds 0, 2, 3 are missing. Give the crossval command again" in shown


def test_two_experiments_do_not_share_a_folder(fails, run_cli, fold_config, started, tmp_path) -> None:
    (tmp_path / "grid.yaml").write_text("model.init_args.lr: [0.1]")
    with alone_in(tmp_path / "runs/toy"):
        for arguments in (["crossval"], ["ablate", "--grid", "grid.yaml"]):
            shown = fails(2, arguments[0], "-c", fold_config, *arguments[1:])
            assert "error: an experiment is running in runs/toy" in shown
            assert "--trainer.default_root_dir" in shown
    assert not started
    run_cli("crossval", "-c", fold_config, "--num_folds", "2")
    assert len(started) == 2


def test_jobs_know_where_they_write_from_any_folder(run_cli, fold_config, tmp_path, monkeypatch) -> None:
    given: list[jobs.Job] = []
    monkeypatch.setattr(runs, "run_jobs", lambda jobs, *_: given.extend(jobs))
    with pytest.raises(SystemExit):
        run_cli("crossval", "-c", fold_config, "--num_folds", "2")
    assert [job.folder for job in given] == [str(tmp_path / f"runs/toy/fold_{fold}") for fold in range(2)]
    assert {job.cwd for job in given} == {str(tmp_path)}


def test_another_division_of_the_data_is_refused(fails, run_cli, fold_config, started, tmp_path) -> None:
    run_cli("crossval", "-c", fold_config, "--num_folds", "2")
    file = tmp_path / "runs/toy/fold_1/results.json"
    file.write_text(file.read_text().replace('"abc"', '"other"'))
    shown = fails(2, "crossval", "-c", fold_config, "--num_folds", "2")
    assert "different divisions of the data (folds_sha256 in their results.json; fold 0: abc, fold 1: other)" in shown


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"notes": {"folds_sha256": "abc", "features": "b"}}, "different features or labels (features"),
        ({"processes": 4}, "different numbers of processes (processes in their results.json; fold 0: 1, fold 1: 4)"),
        ({"precision": "bf16-mixed"}, "different precisions"),
    ],
)
def test_folds_that_were_run_differently_are_not_averaged(change, wanted) -> None:
    block = {"notes": {"folds_sha256": "abc", "features": "a"}, "processes": 1, "precision": "32-true", "seed": 1}
    check_division({0: block, 1: {**block, "seed": 2}})
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_division({0: block, 1: {**block, **change}})


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--num_folds", "1"], "--num_folds is 1; a cross-validation needs at least 2"),
        (["--num_folds", "3", "--folds", "[3]"], "--folds is [3]; the folds are 0 to 2"),
        (["--folds", "[-1]"], "the folds are 0 to 4"),
        (["--folds", "[]"], "--folds is []"),
        (["--data", "toy_run.ToyData"], "toy_run.ToyData cannot be cut into folds"),
        (["--num_fold", "3"], "unknown key 'num_fold' (on the command line). Nearest: num_folds"),
        (["--launcher", "slurm"], "launcher is 'slurm'"),
        (["--workers", "0"], "--workers is 0"),
    ],
)
def test_what_cannot_run_is_told_before_anything_runs(options, wanted, fails, fold_config, started, tmp_path) -> None:
    assert wanted in fails(2, "crossval", "-c", fold_config, *options)
    assert not started


def test_the_number_of_folds_of_the_data_counts_when_none_is_given(run_cli, fold_config, started) -> None:
    run_cli("crossval", "-c", fold_config, "--data.init_args.num_folds", "2")
    assert started == ["fold 0", "fold 1"]


def test_statistics_leave_out_what_is_not_known() -> None:
    assert statistics([None, float("nan")]) == {"mean": None, "sd": None, "low": None, "high": None, "n": 0}
    assert statistics([0.5, None])["mean"] == 0.5
    assert statistics([0.5, None])["low"] is None


WANDB = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "p", "name": "mine"}}


@pytest.mark.parametrize("logger", [WANDB, [{"class_path": "CSVLogger"}, WANDB]], ids=["one", "list"])
def test_the_runs_of_an_experiment_are_a_group_in_wandb(logger, tmp_path) -> None:
    config = {"trainer": {"logger": logger, "default_root_dir": "x"}}
    run = Run("fold 1", tmp_path / "fold_1", {"data.init_args.fold": 1}, config)
    words = command(run, tmp_path / "crossval.yaml", Plan(["python", "cli.py"]), "mine")
    (given,) = [json.loads(word.partition("=")[2]) for word in words if word.startswith("--trainer.logger=")]
    entry = given[1] if isinstance(given, list) else given
    assert entry["init_args"] == {"project": "p", "name": "mine-fold_1", "group": "mine"}
    assert WANDB["init_args"] == {"project": "p", "name": "mine"}
    assert "--data.init_args.fold=1" in words
    assert named_logger(None, "a", "b") is None
    assert named_logger({"class_path": "CSVLogger"}, "a", "b") is None


@pytest.mark.slow
def test_a_summary_run_is_kept_offline(tmp_path, capsys) -> None:
    logger = {"class_path": "WandbLogger", "init_args": {"project": "p", "offline": True}}
    log_summary(logger, "mine", tmp_path, {"a": 1}, {"fold/map_mean": 0.5, "nothing": None})
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert f"wandb sync {run}" in capsys.readouterr().out
    words = (b"mine-summary", b"fold/map_mean")
    assert all(word in records(run, *words) for word in words)


@pytest.mark.slow
def test_with_real_processes(fails, fold_config, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests/support")]))
    (tmp_path / "kill_1").touch()
    shown = fails(1, "crossval", "-c", fold_config, "--num_folds", "2")
    assert "fold 1 failed: killed by SIGKILL" in shown
    assert summary(tmp_path)["metrics"][FIGURE]["values"]["0"] == pytest.approx(0.514, abs=1e-6)
    record = json.loads((tmp_path / "runs/toy/fold_0/job.json").read_text())
    assert record["command"][:3] == [sys.executable, str(ROOT / "cli.py"), "fit"]
    assert "Seed set to 1" in (tmp_path / "runs/toy/fold_0/log.txt").read_text()
