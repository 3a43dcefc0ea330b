"""Multi-label hashing as a whole: it learns, scores what it says, leaks nothing, resumes, refuses what cannot work."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from processes import launch
from sklearn.metrics import average_precision_score, f1_score
from toy_multilabel import CLASSES, WIDTH, PlantedSource, planted_data

from callbacks import MultilabelPredictions, Results
from lightning_modules import MultilabelHashing

SMALL: dict[str, Any] = {"bits": 16, "hidden": 32, "width": 32, "lr": 1e-2}


def trainer(folder: Path, epochs: int = 8, **arguments: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0, **arguments},
    )


def trained(folder: Path, source: PlantedSource | None = None, epochs: int = 30, **settings: Any):
    """Module, trainer and data after fit and test, selected by ``val/map``."""
    seed_everything(0, verbose=False)
    data = planted_data(folder, source)
    module = MultilabelHashing(**{**SMALL, **settings})
    best = ModelCheckpoint(folder / "checkpoints", monitor="val/map", mode="max")
    stop = EarlyStopping("val/map", mode="max", patience=6)
    run = trainer(folder, epochs, enable_checkpointing=True, callbacks=[best, stop])
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data, ckpt_path="best", verbose=False)
    return module, run, data


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"fusion": "concat"},
        {"head": "mlp"},
        {"head": "knn", "knn_neighbours": 5},
        {"bits": None},
        {"loss": "asymmetric"},
    ],
    ids=str,
)
def test_each_variant_learns_and_its_figures_are_those_of_scikit_learn(tmp_path, settings) -> None:
    module, run, _ = trained(tmp_path, **settings)
    for part in ("fold", "test"):
        found = module.predictions[part]
        for kind in module.scorings:
            scores, labels = found[kind].double().numpy(), found["labels"].numpy()
            expected = average_precision_score(labels, scores, average="macro")
            assert run.callback_metrics[f"{part}/{kind}_map_macro"].item() == pytest.approx(expected, abs=1e-6)
            decided = scores >= module.fitted.thresholds[kind].double().numpy()
            f1 = f1_score(labels, decided, average="macro")
            assert run.callback_metrics[f"{part}/{kind}_f1_macro_fitted"].item() == pytest.approx(f1, abs=1e-6)
            floor = run.callback_metrics[f"{part}/random_map_macro"].item()
            n, positives = len(labels), labels.sum(axis=0)
            harmonic = (1 / np.arange(1, n + 1)).sum()
            # a positive at rank r has precision (1 + (r - 1)(R - 1)/(n - 1)) / r on average
            ahead = (positives - 1) / (n - 1)
            assert floor == pytest.approx(np.mean(harmonic + ahead * (n - harmonic)) / n, abs=1e-6)
            assert expected > floor + 0.2


def test_soft_and_binary_differ_as_tanh_and_sign_do(tmp_path) -> None:
    module, _, data = trained(tmp_path)
    batch = next(iter(data.test_dataloader()[1]))
    module.eval()
    with torch.no_grad():
        logits, codes = module(batch["image"], batch["text"])
        signs = torch.where(codes >= 0, 1.0, -1.0)
        binary = module.model.classifier(signs).sigmoid()
    found = module.predictions["test"]
    torch.testing.assert_close(found["soft"][:16], logits.sigmoid())
    torch.testing.assert_close(found["binary"][:16], binary)
    torch.testing.assert_close(found["codes"][:16].float(), signs)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal to the last bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same(found[name], value)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name


def state_of(module: MultilabelHashing, run: Trainer) -> dict[str, Any]:
    fitted = module.fitted
    assert fitted is not None
    return {
        "weights": {name: value.clone() for name, value in module.model.state_dict().items()},
        "thresholds": fitted.thresholds,
        "frequency": fitted.train_frequency,
        "gallery": fitted.votes.state_dict() if fitted.votes else None,
        "stopped": run.early_stopping_callback.stopped_epoch,
        "best": Path(run.checkpoint_callback.best_model_path).name,
        "score": run.checkpoint_callback.best_model_score.item(),
    }


@pytest.mark.parametrize("head", ["linear", "knn"])
def test_nothing_that_is_fitted_or_chosen_has_seen_the_fold_or_the_hold_out(tmp_path, head) -> None:
    """Other features and labels there: the same weights, thresholds, gallery, stopping; only the scores differ."""
    honest = PlantedSource(tmp_path)
    module, run, data = trained(tmp_path, honest, head=head, knn_neighbours=5)
    changed = copy.deepcopy(honest)
    changed.data = honest.data  # the folds stay; only what stands in them changes
    changed.change("development", data.rows["fold"])
    changed.change("test", np.arange(60))
    other_module, other_run, _ = trained(tmp_path / "again", changed, head=head, knn_neighbours=5)
    assert_same(state_of(other_module, other_run), state_of(module, run))
    for part in ("fold", "test"):
        name = f"{part}/{module.scorings[0]}_map_macro"
        assert other_run.callback_metrics[name] < run.callback_metrics[name] - 0.1


def test_the_selection_items_choose_the_epoch_but_nothing_is_fitted_to_them(tmp_path) -> None:
    states = []
    source = PlantedSource(tmp_path)
    for changed in (False, True):
        seed_everything(0, verbose=False)
        data = planted_data(tmp_path, source)
        if changed:
            honest, data.source = data.source, copy.deepcopy(source)
            data.source.data = honest.data
            data.source.change("development", states[0]["select"])
        module, run = MultilabelHashing(**SMALL, head="knn", knn_neighbours=5), trainer(tmp_path, epochs=2)
        run.fit(module, datamodule=data)
        fitted = module.fit_to_training_items().state_dict()
        states.append({"select": data.rows["select"], "weights": module.model.state_dict(), "fitted": fitted})
    np.testing.assert_array_equal(states[0].pop("select"), states[1].pop("select"))
    assert_same(states[1], states[0])


def test_a_term_without_gradient_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="no gradient and only shifts the loss"):
        MultilabelHashing(alignment_weight=1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 0}, "bits is 0"),
        ({"bits": None, "head": "knn"}, "head knn compares binary codes"),
        ({"head": "knn", "knn_neighbours": 0}, "knn_neighbours is 0; at least 1 neighbour must vote. Set it to 20"),
        ({"balance_weight": -1.0}, "balance_weight is -1.0"),
        ({"unfreeze_blocks": -1}, "unfreeze_blocks is -1"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"min_lr": 1.0}, "min_lr 1.0"),
    ],
)
def test_settings_that_do_not_fit(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        MultilabelHashing(**settings)


def test_more_neighbours_than_the_gallery_holds(tmp_path) -> None:
    run, data = trainer(tmp_path, epochs=1), planted_data(tmp_path)
    with pytest.raises(ValueError, match=r"is 72; each of 72 .* others to vote\. Lower knn_neighbours to at most 71\."):
        run.fit(MultilabelHashing(**SMALL, head="knn", knn_neighbours=72), datamodule=data)


def test_notes_count_what_is_not_scored_and_give_random_codes_their_score_on_each_part(tmp_path) -> None:
    source = PlantedSource(tmp_path)
    labels = source.parts["test"].labels
    labels[:, 3] = 0
    labels[:5] = 0
    module, _, data = trained(tmp_path, source, epochs=1)
    notes = module.result_notes()
    assert notes["num_classes"] == 4
    assert (notes["classes_not_scored_fold"], notes["classes_not_scored_test"]) == ([], ["tree"])
    pool = source.parts["development"].labels
    for name in ("train", "fold"):
        assert notes[f"unlabelled_{name}"] == (pool[data.rows[name]].sum(axis=1) == 0).sum() > 0
    assert notes["unlabelled_test"] == (labels.sum(axis=1) == 0).sum() >= 5
    for part in ("fold", "test"):  # near the floor, with which such codes share that they know nothing
        own = module.trainer.callback_metrics[f"{part}/random_map_macro"].item()
        assert notes[f"random_codes_map_macro_{part}"] == pytest.approx(own, abs=0.1)
    assert notes["random_codes_map_macro_fold"] != notes["random_codes_map_macro_test"]


def test_trained_towers_need_live_images(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"Set data\.init_args\.live: true"):
        trainer(tmp_path).fit(MultilabelHashing(**SMALL, unfreeze_blocks=1), datamodule=planted_data(tmp_path))


def test_terms_are_logged_and_sum_to_the_loss(tmp_path) -> None:
    module, run = MultilabelHashing(**SMALL), trainer(tmp_path, epochs=1)
    run.fit(module, datamodule=planted_data(tmp_path))
    logged = {name: value.item() for name, value in run.callback_metrics.items() if name.startswith("train/loss")}
    assert set(logged) == {
        f"train/loss{end}" for end in ("", "_classification", "_quantisation", "_balance", "_decorrelation")
    }
    assert logged.pop("train/loss") == pytest.approx(sum(logged.values()), rel=1e-5)


def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path) -> None:
    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    def run(resume: str | None = None, callbacks: tuple[Callback, ...] = ()) -> MultilabelHashing:
        seed_everything(3, verbose=False)
        module, fit = MultilabelHashing(**SMALL, dropout=0.3), trainer(tmp_path, epochs=4, callbacks=list(callbacks))
        fit.fit(module, datamodule=planted_data(tmp_path), ckpt_path=resume)
        fit.save_checkpoint(tmp_path / "stopped.ckpt")
        return module

    whole = run().model.state_dict()
    assert not torch.equal(run(callbacks=(Stop(),)).model.state_dict()["classifier.bias"], whole["classifier.bias"])
    assert_same(dict(run(resume=str(tmp_path / "stopped.ckpt")).model.state_dict()), dict(whole))


def test_a_checkpoint_holds_what_was_fitted_and_loads_without_data(tmp_path) -> None:
    module, run, _ = trained(tmp_path, head="knn", knn_neighbours=5)
    path = run.checkpoint_callback.best_model_path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = MultilabelHashing.load_from_checkpoint(path, weights_only=True).eval()
    assert loaded.class_names == CLASSES
    torch.testing.assert_close(loaded.fitted.thresholds, module.fitted.thresholds)
    image, text = torch.randn(3, WIDTH), torch.randn(3, WIDTH)
    with torch.no_grad():
        votes = [each.model.eval().scored(image, text, each.fitted.votes)[0]["binary"] for each in (loaded, module)]
    torch.testing.assert_close(votes[0], votes[1])


def test_predictions_file_holds_what_the_test_scored(tmp_path) -> None:
    data, module = planted_data(tmp_path), MultilabelHashing(**SMALL)
    run = trainer(tmp_path, epochs=1, callbacks=[MultilabelPredictions(), Results()])
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data, verbose=False)
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as arrays:
        assert arrays["class_names"].tolist() == CLASSES
        assert sorted(arrays["fold_ids"].tolist()) == sorted(f"development/{i}" for i in data.rows["fold"])
        np.testing.assert_array_equal(arrays["test_labels"], data.labels["test"])
        np.testing.assert_array_equal(arrays["test_soft"], module.predictions["test"]["soft"].numpy())
        bits = np.unpackbits(arrays["test_codes"], axis=1)[:, :16]
        logits = (bits * 2.0 - 1) @ arrays["classifier_weight"].T + arrays["classifier_bias"]
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), arrays["test_binary"], atol=1e-5)


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = ["tests/support"]
import torch
from lightning.pytorch import Trainer, seed_everything
from toy_multilabel import planted_data
from lightning_modules import MultilabelHashing

folder, processes = Path(sys.argv[1]), int(sys.argv[2])
seed_everything(0, verbose=False)
module = MultilabelHashing(bits=16, hidden=32, width=32, head="{head}", knn_neighbours=5)
trainer = Trainer(accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", max_epochs=2,
    default_root_dir=folder, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, num_sanity_val_steps=0)
data = planted_data(folder, batch_size=16 // processes)
trainer.fit(module, datamodule=data)
module.load_state_dict(torch.load(folder / "start.pt")) if (folder / "start.pt").exists() else None
module.fitted = None
trainer.test(module, datamodule=data, verbose=False)
if trainer.is_global_zero:
    if not (folder / "start.pt").exists():
        torch.save(module.state_dict(), folder / "start.pt")
    metrics = {{name: value.item() for name, value in trainer.callback_metrics.items()}}
    torch.save((module.predictions, metrics), folder / f"{{processes}}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "knn"])
def test_two_processes_score_the_same_weights_alike(tmp_path, head) -> None:
    for processes in (1, 2):
        launch(SCRIPT.format(head=head), processes, tmp_path)
    (one, scores), (two, others) = (torch.load(tmp_path / f"{processes}.pt") for processes in (1, 2))
    for part in ("fold", "test"):
        torch.testing.assert_close(two[part], one[part], rtol=0, atol=1e-6)
    names = [name for name in scores if name.startswith(("fold/", "test/"))]
    assert len(names) > 60
    assert {name: others[name] for name in names} == pytest.approx({name: scores[name] for name in names}, abs=1e-6)
