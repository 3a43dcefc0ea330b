"""Two trainings do not write one folder: the second is refused before it touches a file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from callbacks.run_lock import LOCK, take_lock

HOLD = """\
import os, pathlib, sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
print("held", flush=True)
time.sleep(120)
"""


@pytest.fixture
def training(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has the lock of ``runs/toy``."""
    folder = tmp_path / "runs/toy"
    folder.mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder / LOCK)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    yield other
    other.kill()
    other.wait()
    other.stdout.close()


def test_a_second_training_is_refused_and_leaves_all_as_it_was(run_cli, toy_config, training, tmp_path, capsys) -> None:
    folder = tmp_path / "runs/toy"
    (folder / "checkpoints").mkdir()
    written = [folder / name for name in ("config.yaml", "metrics.csv", "checkpoints/last.ckpt", LOCK)]
    for file in written[:3]:
        file.write_text("of the first")
    before = {file: file.read_text() for file in written}
    with pytest.raises(SystemExit) as stop:
        run_cli("fit", "-c", toy_config)
    assert stop.value.code == 2
    assert f"process {training.pid} is training in runs/toy, and two would" in capsys.readouterr().err
    assert {file: file.read_text() for file in folder.rglob("*") if file.is_file()} == before

    training.kill()
    training.wait()
    for _ in range(2):  # the lock ended with its process, and ends with a training
        lock = take_lock(folder / LOCK)
        assert lock is not None
        lock.release()
