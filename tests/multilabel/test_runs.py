"""What a run of multi-label hashing remembers and refuses: its items, its selection, the length of its schedule."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from toy_multilabel import planted_data

from callbacks import AverageWeights, MultilabelPredictions
from callbacks.trained_weights import TrainedWeights
from lightning_modules import MultilabelHashing
from lightning_modules.multilabel.model import HashClassifier

SMALL: dict[str, Any] = {"bits": 16, "hidden": 32, "width": 32, "lr": 1e-2}


def trainer(folder: Path, epochs: int | None = 4, **arguments: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0, **arguments},
    )


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """Weights that were trained on all folds but fold 0."""
    run = trainer(tmp_path, epochs=1)
    run.fit(MultilabelHashing(**SMALL), datamodule=planted_data(tmp_path))
    run.save_checkpoint(tmp_path / "fold_0.ckpt")
    return tmp_path / "fold_0.ckpt"


@pytest.mark.parametrize("change", [{"fold": 1}, {"num_folds": 4}, {"split_seed": 1}, {"select_fraction": 0.2}])
@pytest.mark.parametrize("command", ["test", "validate", "predict", "fit"])
def test_weights_of_another_fold_are_refused(tmp_path, checkpoint, change, command) -> None:
    data, run = planted_data(tmp_path, **change), trainer(tmp_path, epochs=2)
    with pytest.raises(ValueError, match="was trained on other items than this fold's"):
        getattr(run, command)(MultilabelHashing(**SMALL), datamodule=data, ckpt_path=str(checkpoint))


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_weights_of_no_training_are_refused(tmp_path, command) -> None:
    run = trainer(tmp_path, callbacks=[TrainedWeights()])
    with pytest.raises(ValueError, match=r"The weights are random: .* Name one \(--ckpt_path best\)"):
        getattr(run, command)(MultilabelHashing(**SMALL), datamodule=planted_data(tmp_path))


def test_weights_of_the_same_fold_are_taken(tmp_path, checkpoint) -> None:
    run = trainer(tmp_path, epochs=2)
    for command in (run.test, run.validate, run.predict, run.fit):
        command(MultilabelHashing(**SMALL), datamodule=planted_data(tmp_path), ckpt_path=str(checkpoint))


def test_the_kept_score_is_that_of_the_tested_weights_whatever_chose_them(tmp_path) -> None:
    seen = []

    class Watch(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append(trainer.callback_metrics["val/map"].item())

    seed_everything(10, verbose=False)  # the score falls, then rises: neither the first nor the last is the lowest
    lowest, latest = (
        ModelCheckpoint(tmp_path / "kept", monitor="val/map", mode="min"),
        ModelCheckpoint(tmp_path / "all"),
    )
    callbacks = [Watch(), lowest, latest, MultilabelPredictions()]
    run = trainer(tmp_path, enable_checkpointing=True, callbacks=callbacks)
    module, data = MultilabelHashing(**SMALL), planted_data(tmp_path)
    run.fit(module, datamodule=data)
    assert seen[0] != min(seen) < seen[-1]
    for path, expected in ((lowest.best_model_path, min(seen)), (latest.best_model_path, seen[-1])):
        run.test(MultilabelHashing(**SMALL), datamodule=data, ckpt_path=path, verbose=False)
        with np.load(tmp_path / "predictions.npz") as arrays:
            assert arrays["score"] == pytest.approx(expected)


def test_weights_that_nothing_selected_have_no_score(tmp_path) -> None:
    run = trainer(tmp_path, epochs=1, limit_val_batches=0, callbacks=[MultilabelPredictions()])
    module, data = MultilabelHashing(**SMALL), planted_data(tmp_path)
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data, verbose=False)
    with np.load(tmp_path / "predictions.npz") as arrays:
        assert math.isnan(arrays["score"])


def test_what_a_validation_scored_is_counted_also_after_a_test(tmp_path, checkpoint) -> None:
    module, data = MultilabelHashing(**SMALL), planted_data(tmp_path, batch_size=3)
    trainer(tmp_path).test(module, datamodule=data, ckpt_path=str(checkpoint), verbose=False)
    assert "n_test" in module.result_notes()
    run = trainer(tmp_path, limit_val_batches=1)
    run.validate(module, datamodule=data, ckpt_path=str(checkpoint), verbose=False)
    notes = module.result_notes()
    assert {name: value for name, value in notes.items() if name.startswith("n_")} == {"n_select": 3}


def test_votes_are_those_of_the_settings_and_not_of_the_checkpoint(tmp_path) -> None:
    run, knn = trainer(tmp_path, epochs=1), {**SMALL, "head": "knn"}
    run.fit(MultilabelHashing(**knn, knn_neighbours=9), datamodule=planted_data(tmp_path))
    run.save_checkpoint(tmp_path / "9.ckpt")
    module = MultilabelHashing(**knn, knn_neighbours=3, knn_temperature=0.5)
    run.test(module, datamodule=planted_data(tmp_path), ckpt_path=str(tmp_path / "9.ckpt"), verbose=False)
    taken, module.fitted = module.fitted, None
    fitted = module.fit_to_training_items()  # anew, from the data
    assert (taken.votes.k, taken.votes.temperature) == (3, 0.5)
    torch.testing.assert_close(taken.thresholds, fitted.thresholds, rtol=0, atol=0)
    found = module.predictions["test"]
    torch.testing.assert_close(found["binary"], fitted.votes.probabilities(found["codes"]))
    with pytest.raises(ValueError, match="Lower knn_neighbours to at most 71"):
        MultilabelHashing.load_from_checkpoint(tmp_path / "9.ckpt", knn_neighbours=72, weights_only=True)


def test_a_checkpoint_of_averaged_weights_holds_what_was_fitted_to_them(tmp_path) -> None:
    best = ModelCheckpoint(tmp_path / "kept", monitor="val/map", mode="max")
    run = trainer(tmp_path, epochs=2, enable_checkpointing=True, callbacks=[best, AverageWeights(decay=0.9)])
    run.fit(MultilabelHashing(**SMALL), datamodule=planted_data(tmp_path))
    module = MultilabelHashing(**SMALL)
    trainer(tmp_path).test(module, datamodule=planted_data(tmp_path), ckpt_path=best.best_model_path, verbose=False)
    kept, module.fitted = module.fitted, None
    torch.testing.assert_close(kept.thresholds, module.fit_to_training_items().thresholds, rtol=0, atol=0)


def test_a_fit_without_a_checkpoint_takes_no_pass_over_the_training_items(tmp_path) -> None:
    run, module = trainer(tmp_path, epochs=1), MultilabelHashing(**SMALL)
    run.fit(module, datamodule=planted_data(tmp_path))
    assert module.fitted is None


@pytest.mark.parametrize("head", ["linear", "knn"])
def test_codes_of_a_model_that_diverged_are_refused(head) -> None:
    model = HashClassifier(image_dim=4, text_dim=4, num_classes=2, bits=8, head=head).eval()
    torch.nn.init.constant_(model.hash_layer.output.weight, math.nan)
    with pytest.raises(ValueError, match=r"relaxed codes holds NaN .* Check the features and the learning rate"):
        model.scored(torch.ones(3, 4), torch.ones(3, 4), None)


def test_no_worst_item_is_refused_before_the_training() -> None:
    with pytest.raises(ValueError, match="worst is 0; at least 1 item"):
        MultilabelPredictions(worst=0)


class Orders(Callback):
    """The items of each batch by epoch."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.seen: dict[int, list[int]] = {}
        self.stop_after = stop_after

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.setdefault(trainer.current_epoch, []).extend(batch["index"].tolist())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch == self.stop_after


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_order_of_an_undisturbed_one(tmp_path, workers) -> None:
    def run(stop_after: int | None = None, resume: str | None = None) -> dict[int, list[int]]:
        seed_everything(1, verbose=False)
        orders = Orders(stop_after)
        fit = trainer(tmp_path, epochs=3, callbacks=[orders])
        data = planted_data(tmp_path, num_workers=workers, persistent_workers=workers > 0)
        fit.fit(MultilabelHashing(**SMALL), datamodule=data, ckpt_path=resume)
        fit.save_checkpoint(tmp_path / "stopped.ckpt")
        return orders.seen

    whole = run()
    assert len({tuple(order) for order in whole.values()}) == 3
    run(stop_after=0)
    resumed = run(resume=str(tmp_path / "stopped.ckpt"))
    assert resumed == {epoch: whole[epoch] for epoch in (1, 2)}


class Rates(Callback):
    """The learning rate of each optimiser step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def rates(folder: Path, epochs: int | None, **arguments: Any) -> list[float]:
    seen = Rates()
    run = trainer(folder, epochs, limit_val_batches=0, callbacks=[seen], **arguments)
    run.fit(MultilabelHashing(**SMALL, warmup_epochs=1), datamodule=planted_data(folder))
    return seen.seen


@pytest.mark.parametrize(
    ("epochs", "arguments", "warmup", "count"),
    [
        (None, {"max_steps": 12}, 5, 12),  # 72 items in batches of 16 are 5 steps an epoch
        (30, {"max_steps": 12}, 5, 12),
        (4, {"accumulate_grad_batches": 2}, 3, 12),
        (3, {"limit_train_batches": 4}, 4, 12),
        (4, {"limit_train_batches": 0.6}, 3, 12),
    ],
)
def test_the_schedule_knows_epochs_and_end_however_they_are_given(tmp_path, epochs, arguments, warmup, count) -> None:
    seen = rates(tmp_path, epochs, **arguments)
    assert len(seen) == count
    assert seen[:warmup] == pytest.approx([1e-2 * (step + 1) / warmup for step in range(warmup)])
    assert seen[warmup:] == sorted(seen[warmup:], reverse=True)
    assert seen[-1] == pytest.approx(1e-6)


def test_a_run_without_end_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs or trainer\.max_steps"):
        rates(tmp_path, -1, max_time="00:00:00:05")


def test_a_replaced_sampler_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="take limit_train_batches"):
        rates(tmp_path, 1, overfit_batches=2)


def test_new_images_go_through_towers_of_another_type(tmp_path) -> None:
    from lightning_modules.backbones.tiny import TinyClip
    from lightning_modules.multilabel.towers import LiveTowers

    towers = LiveTowers(TinyClip(), 0)
    pixels = torch.rand(2, 3, 96, 96)
    expected = towers(pixels, ["a", "b"], torch.device("cpu"))
    found = towers(pixels.bfloat16(), ["a", "b"], torch.device("cpu"))  # what bf16-true makes of a batch
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], expected[0], rtol=0.05, atol=0.05)
    torch.testing.assert_close(found[1], expected[1])
