"""Curves that survive a resume, and W&B's fall-back."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from callbacks.loggers import RunCSVLogger, end_wandb_run, fall_back_to_offline, wandb_problem


def rows(folder: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as lines:
        return list(csv.DictReader(lines))


def write(folder: Path, earlier: str, values: dict[int, dict[str, float]]) -> None:
    logger = RunCSVLogger(str(folder), earlier=earlier)
    for step, metrics in values.items():
        logger.log_metrics(metrics, step)
    logger.finalize("success")


def test_a_test_adds_its_rows_and_columns(tmp_path) -> None:
    write(tmp_path, "restart", {0: {"loss": 3.0}, 1: {"loss": 2.0}})
    write(tmp_path, "keep", {0: {"test/map": 0.5}})
    assert [(row["step"], row["loss"], row["test/map"]) for row in rows(tmp_path)] == [
        ("0", "3.0", ""),
        ("1", "2.0", ""),
        ("0", "", "0.5"),
    ]


def test_a_resumed_training_repeats_no_row(tmp_path) -> None:
    write(tmp_path, "restart", {step: {"loss": float(step)} for step in range(6)})  # killed after step 5
    write(tmp_path, "rewind", {step: {"loss": step + 0.5} for step in range(4, 8)})  # its checkpoint was at step 4
    assert [float(row["loss"]) for row in rows(tmp_path)] == [0, 1, 2, 3, 4.5, 5.5, 6.5, 7.5]


def test_a_new_training_starts_a_new_curve_and_keeps_the_old(tmp_path) -> None:
    write(tmp_path, "restart", {0: {"loss": 3.0}})
    write(tmp_path, "restart", {0: {"other": 1.0}})
    assert [row["other"] for row in rows(tmp_path)] == ["1.0"]
    assert [row["loss"] for row in rows(tmp_path, "metrics.previous.csv")] == ["3.0"]


def test_every_row_is_on_disk_at_once(tmp_path) -> None:
    logger = RunCSVLogger(str(tmp_path))
    logger.log_metrics({"loss": 1.0}, 0)
    assert len(rows(tmp_path)) == 1


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_without_a_key_wandb_goes_offline(no_key, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "")
    assert "WANDB_API_KEY" in str(fall_back_to_offline())
    import os

    assert os.environ["WANDB_MODE"] == "offline"


def test_a_key_without_a_network_is_a_problem(no_key, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
    problem = wandb_problem(timeout=1)
    assert problem is not None
    assert "cannot be reached" in problem
    assert "secret" not in problem


def test_a_chosen_mode_is_left_alone(no_key, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert fall_back_to_offline() is None


def test_other_loggers_have_no_offline_folder(tmp_path) -> None:
    assert end_wandb_run(RunCSVLogger(str(tmp_path)), False) is None
