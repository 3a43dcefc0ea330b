"""Compilation in place: same values, same names in the checkpoint."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from toy_run import ToyData, ToyModule

from callbacks.compile_networks import CompileNetworks


def test_compiled_networks_keep_their_names_and_values(tmp_path, monkeypatch) -> None:
    made = []

    def eager(function: object, **settings: object) -> object:  # no C++ compiler in the tests
        made.append(function)
        return function

    monkeypatch.setattr(torch, "compile", eager)
    weights = []
    for callbacks in ([], [CompileNetworks()]):
        torch.manual_seed(0)
        model = ToyModule()
        run = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            default_root_dir=tmp_path,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
        )
        run.fit(model, datamodule=ToyData())
        weights.append(model.state_dict())
    assert len(made) == 1
    assert list(weights[0]) == list(weights[1]) == ["layer.weight", "layer.bias"]
    torch.testing.assert_close(weights[0], weights[1])
