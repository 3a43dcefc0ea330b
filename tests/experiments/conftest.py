"""A configuration with folds, and runs of an experiment without a process of their own, as that costs seconds."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import BinaryIO

import pytest

from callbacks.experiments import jobs


@pytest.fixture
def fold_config(tmp_path: Path) -> Path:
    """A complete configuration of a run of a second, with folds."""
    file = tmp_path / "toy.yaml"
    file.write_text(
        """\
seed_everything: 1
trainer:
  default_root_dir: runs/toy
  max_epochs: 1
  log_every_n_steps: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  logger: false
model: {class_path: toy_folds.FoldModule}
data: {class_path: toy_folds.FoldData}
"""
    )
    return file


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs jobs in this process instead; holds the names of those that were started."""
    import cli

    names: list[str] = []

    def exit_code(job: jobs.Job, log: BinaryIO) -> int:
        names.append(job.name)
        text = io.StringIO()
        code = 0
        with redirect_stdout(text), redirect_stderr(text):
            try:
                cli.main(job.command[2:])
            except SystemExit as stop:
                code = int(stop.code or 0)
        log.write(text.getvalue().encode())
        return -9 if Path(f"die_{job.name.replace(' ', '_')}").exists() else code

    monkeypatch.setattr(jobs, "exit_code", exit_code)
    return names


@pytest.fixture
def fails(run_cli: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``fails(2, "crossval", ...)`` is what a command says that must end with code 2."""

    def run(code: int, *arguments: str | Path) -> str:
        with pytest.raises(SystemExit) as stop:
            run_cli(*arguments)
        shown = capsys.readouterr()
        assert stop.value.code == code, shown.out + shown.err
        return shown.out + shown.err

    return run
