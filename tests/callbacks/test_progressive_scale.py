"""ProgressiveScale: values of both schedules, what is logged, resuming, refusals."""

import math

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from callbacks.progressive_scale import ProgressiveScale, linear_scale, sqrt_scale

BATCHES = 3


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("scale", torch.tensor(1.0))

    def set_scale(self, value):
        self.scale.fill_(value)

    def forward(self, x):
        return torch.tanh(self.scale * self.linear(x))


class Module(LightningModule):
    def __init__(self, heads=2):
        super().__init__()
        self.heads = nn.ModuleList([Head() for _ in range(heads)])
        self.rest = nn.Linear(2, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append([head.scale.item() for head in self.heads])
        return self.rest(sum((head(batch) for head in self.heads), batch)).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class LoggedScales(Callback):
    def __init__(self):
        self.values = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.values.append(trainer.callback_metrics["scale"].item())


def fit(module, callback, epochs, ckpt_path=None, **arguments):
    logged = LoggedScales()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, logged],
        **arguments,
    )
    trainer.fit(module, DataLoader(torch.randn(BATCHES * 2, 2), batch_size=2), ckpt_path=ckpt_path)
    return trainer, logged.values


def test_linear_is_the_formula_from_the_first_epoch_on():
    module = Module()
    _, logged = fit(module, ProgressiveScale(start=1.0, end=10.0), epochs=4)
    expected = [1 + 9 * epoch / 3 for epoch in range(4)]
    assert module.seen == [[value] * 2 for value in expected for _ in range(BATCHES)]
    assert logged == expected


def test_sqrt_is_hashnets_rule_over_steps():
    module = Module()
    fit(module, ProgressiveScale("sqrt", gamma=0.5, every=2, end=2.0), epochs=4)
    expected = [min(2.0, math.sqrt(1 + 0.5 * (step // 2 * 2))) for step in range(4 * BATCHES)]
    assert [scales[0] for scales in module.seen] == pytest.approx(expected)


def test_sqrt_defaults_reach_the_published_value():
    assert sqrt_scale(9999) == pytest.approx(math.sqrt(1 + 0.005 * 9800))
    assert sqrt_scale(10_000) == pytest.approx(7.141, abs=1e-3)
    assert [linear_scale(epoch, 1) for epoch in (0, 1)] == [1.0, 10.0]


@pytest.mark.parametrize("schedule", ["linear", "sqrt"])
def test_a_resumed_run_continues_the_schedule(schedule, tmp_path):
    def callback():
        return ProgressiveScale(schedule, gamma=0.5, every=2)

    whole, first, second = Module(), Module(), Module()
    fit(whole, callback(), epochs=5)

    class StopAfterTwo(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 1

    trainer = Trainer(
        max_epochs=5,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback(), StopAfterTwo()],
    )
    trainer.fit(first, DataLoader(torch.randn(BATCHES * 2, 2), batch_size=2))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    fit(second, callback(), epochs=5, ckpt_path=tmp_path / "half.ckpt")
    assert first.seen + second.seen == whole.seen


def test_resuming_with_another_schedule_is_noticed():
    callback = ProgressiveScale(end=10.0)
    with pytest.warns(UserWarning, match=r"another schedule \(end 5.0 -> 10.0\)"):
        callback.load_state_dict(ProgressiveScale(end=5.0).state_dict())


def test_a_module_without_hash_heads_is_named():
    with pytest.raises(ValueError, match="Module has no hash head"):
        fit(Module(heads=0), ProgressiveScale(), epochs=1)


def test_linear_needs_an_end():
    with pytest.raises(ValueError, match=r"needs trainer\.max_epochs"):
        fit(Module(), ProgressiveScale(), epochs=-1, max_steps=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "cosine"}, "schedule is 'cosine'"),
        ({"start": 0.0}, "start is 0.0"),
        ({"start": 5.0, "end": 2.0}, "start is 5.0 and end is 2.0"),
        ({"every": 0}, "every is 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveScale(**arguments)
