"""The shipped W&B sweeps, started as the agent does it: each run in a folder of its own, with its arguments whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SWEEPS = sorted((Path(__file__).resolve().parents[2] / "configs" / "sweep").glob("*.yaml"))
PRINTS = "import json, sys; print(json.dumps(sys.argv[1:]))"


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_each_run_has_its_folder_and_its_arguments(file: Path, tmp_path, monkeypatch) -> None:
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    sweep = yaml.safe_load(file.read_text())
    assert sweep["program"] == "cli.py"
    program = tmp_path / "a program.py"
    program.write_text(PRINTS)
    parameters = {name: entry["values"] for name, entry in sweep["parameters"].items()}
    monkeypatch.setenv("WANDB_RUN_ID", "before")  # of the agent's last run, when it makes the command
    for run, place in (("one", 0), ("two", -1)):
        values = {name: options[place] for name, options in parameters.items()}
        parts = {
            **utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}}),
            "env": ["/usr/bin/env"],
            "interpreter": [sys.executable],
            "program": [str(program)],
        }
        words = []
        for word in utils.create_sweep_command(list(sweep["command"])):
            macro = word.startswith("${") and word.endswith("}")
            words += parts[word[2:-1]] if macro else [word]
        shown = subprocess.run(words, env={**os.environ, "WANDB_RUN_ID": run}, capture_output=True, check=True)
        assert json.loads(shown.stdout) == [
            *("fit", "--config=configs/multilabel/world.yaml", "--config=configs/logger/wandb.yaml"),
            "--test_after_fit=true",
            *(f"--{name}={value}" for name, value in values.items()),
            f"--trainer.default_root_dir=runs/sweep/{file.stem}/{run}",
        ]
