"""Which checkpoint is the best one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from callbacks.checkpoints import best_checkpoint


def test_the_state_of_the_most_steps_names_the_best_whatever_the_times(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        best_checkpoint(tmp_path)
    for place, (name, step, best) in enumerate((("b", 20, "b"), ("last", 30, "b"), ("a", 10, "a"))):  # as copied
        state = {"global_step": step, "callbacks": {"kept": {"best_model_path": f"elsewhere/{best}.ckpt"}}}
        torch.save(state, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (place, place))
    (tmp_path / "torn.ckpt").write_bytes((tmp_path / "b.ckpt").read_bytes()[:500])
    assert best_checkpoint(tmp_path) == tmp_path / "b.ckpt"
    torch.save({"global_step": 30, "callbacks": {}}, tmp_path / "c.ckpt")  # of two with as many steps the newest counts
    with pytest.raises(FileNotFoundError, match=r"c\.ckpt names no best checkpoint"):
        best_checkpoint(tmp_path)
