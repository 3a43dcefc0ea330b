"""What all tests share: no network, no windows, one thread, and the command line as a function."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# before torch, matplotlib or wandb are imported by any test
os.environ.update(MPLBACKEND="agg", WANDB_MODE="offline", WANDB_SILENT="true", HF_HUB_OFFLINE="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks first: what takes longest must not be what one of two workers still does when the other is through."""
    items.sort(key=lambda item: "notebooks" not in item.path.parts)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))


@pytest.fixture(autouse=True)
def _no_downloads(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that a test would download go to an empty folder, where their absence is noticed."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path_factory.getbasetemp() / "hub"))


@pytest.fixture
def run_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``run_cli("fit", "-c", ...)`` runs the command line in this process, in an empty folder."""
    import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIP_SUITE_DEBUG", raising=False)
    monkeypatch.setattr("sys.argv", ["cli.py"])

    def run(*arguments: str | Path) -> None:
        cli.main([str(argument) for argument in arguments])

    return run


@pytest.fixture
def toy_config(tmp_path: Path) -> Path:
    """A complete configuration of a run of a second."""
    file = tmp_path / "toy.yaml"
    file.write_text(
        """\
seed_everything: 1
trainer:
  default_root_dir: runs/toy
  max_epochs: 2
  log_every_n_steps: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {monitor: val/loss, save_last: true}
model: {class_path: toy_run.ToyModule}
data: {class_path: toy_run.ToyData}
"""
    )
    return file
