"""CrossModalHashing as a whole: what is trained, logged, predicted, saved and loaded; several processes as one."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from processes import launch

from datamodules.paired_features import PairedFeatures
from lightning_modules.hashing import CrossModalHashing, hashnet_pairwise_loss, nt_xent_loss
from lightning_modules.hashing.networks import binary_codes


def write_features(path, image_dim=8, text_dim=8, count=96, classes=3):
    g = np.random.default_rng(0)
    arrays = {}
    means = {"image": g.standard_normal((classes, image_dim)), "text": g.standard_normal((classes, text_dim))}
    for split, n in (("train", count), ("query", 21), ("database", 65)):
        label = np.arange(n) % classes
        for name, mean in means.items():
            arrays[f"{split}_{name}"] = mean[label] + 0.5 * g.standard_normal((n, mean.shape[1]))
        arrays[f"{split}_labels"] = np.eye(classes)[label]
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture
def source(tmp_path):
    return write_features(tmp_path / "features.npz")


def make_data(source, **arguments):
    return PairedFeatures(source, **{"batch_size": 32, **arguments})


def make_module(**arguments):
    return CrossModalHashing(**{"bits": 16, "hidden": 32, "lr_hash": 5e-3, **arguments})


def make_trainer(epochs=3, **arguments):
    settings = {"logger": False, "enable_checkpointing": False, **arguments}
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )


@pytest.mark.parametrize("loss", ["nt_xent", "balanced", "hashnet"])
@pytest.mark.parametrize("fusion", [True, False])
def test_fit_and_test_beat_the_logged_floor_under_every_protocol(loss, fusion, source):
    seed_everything(0)
    module, data, trainer = make_module(loss=loss, fusion=fusion), make_data(source), make_trainer(12)
    trainer.fit(module, datamodule=data)
    assert 0 < trainer.callback_metrics["val/map"] <= 1
    figures = trainer.test(module, datamodule=data, verbose=False)[0]
    keys = [f"{p}_{d}" for p in (("fused", "unimodal") if fusion else ("unimodal",)) for d in ("i2t", "t2i")]
    for key in keys:
        assert figures[f"test/{key}_map"] > 1.3 * figures["test/random_map"]
        assert 0 <= figures[f"test/{key}_map_at_50"] <= 1
        floor = module.results[key]["random_precision_radius_2"]  # of its own balls
        assert figures[f"test/random_{key}_precision_radius_2"] == pytest.approx(floor.item())
    assert any(name.startswith("test/fused") for name in figures) == fusion
    notes = module.result_notes()
    assert (notes["n_query"], notes["n_database"], notes["n_empty"]) == (21, 65, 0)
    assert notes["random_map"] == pytest.approx(figures["test/random_map"])
    assert "expected" in notes["convention"]


def fitted_step(source, **arguments):
    """A module attached to a trainer, dropout off, with one batch."""
    seed_everything(0)
    module, data = make_module(**arguments), make_data(source)
    make_trainer(epochs=1, limit_train_batches=0, limit_val_batches=0).fit(module, datamodule=data)
    module.log_dict = lambda *_, **__: None
    return module.eval(), next(iter(data.train_dataloader()))


def test_the_loss_is_the_weighted_sum_of_its_terms(source):
    module, batch = fitted_step(source, unimodal_weight=2.0, hash_weight=0.25)
    image, text = batch["image"], batch["text"]
    fused = module.fusion(image, text)
    own = nt_xent_loss(module.image_head(image), module.text_head(text))
    mixed = nt_xent_loss(module.image_head(fused[0]), module.text_head(fused[1]))
    expected = nt_xent_loss(*fused) + 0.25 * mixed + 2.0 * own
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_unimodal_weight_zero_is_the_published_loss(source):
    module, batch = fitted_step(source, unimodal_weight=0.0)
    fused = module.fusion(batch["image"], batch["text"])
    expected = nt_xent_loss(*fused) + 0.5 * nt_xent_loss(*module(*fused))
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_features_of_unequal_widths_train_on_codes_alone(tmp_path):
    module, batch = fitted_step(write_features(tmp_path / "f.npz", text_dim=5), unimodal_weight=0.0)
    fused = module.fusion(batch["image"], batch["text"])
    torch.testing.assert_close(module.training_step(batch, 0), 0.5 * nt_xent_loss(*module(*fused)))


def test_hashnet_averages_pairs_across_and_within_modalities(source):
    module, batch = fitted_step(source, loss="hashnet", fusion=False)
    image, text = module(batch["image"], batch["text"])
    similar = batch["labels"] @ batch["labels"].T > 0

    def pairs(a, b):
        return hashnet_pairwise_loss(a, b, similar, 10 / 16)

    expected = pairs(image, text) / 2 + pairs(image, image) / 4 + pairs(text, text) / 4
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_a_unimodal_code_does_not_see_the_other_modality_and_a_fused_one_does(source):
    module, batch = fitted_step(source)
    changed = {**batch, "text": batch["text"].roll(1, 0)}
    before, after = module.codes(batch), module.codes(changed)
    assert torch.equal(before["unimodal"][0], after["unimodal"][0])
    assert not torch.equal(before["fused"][0], after["fused"][0])


def test_predict_gives_unimodal_codes_with_their_items(source):
    module, data, trainer = make_module(), make_data(source), make_trainer(epochs=1)
    trainer.fit(module, datamodule=data)
    query, database = trainer.predict(module, datamodule=data)
    assert torch.cat([batch["index"] for batch in database]).tolist() == list(range(65))
    assert {batch["dataloader_idx"] for batch in query} == {0}
    assert {batch["dataloader_idx"] for batch in database} == {1}
    image = torch.from_numpy(data.splits["query"].image)
    with torch.no_grad():
        expected = binary_codes(module.eval().image_head(image))
    got = torch.cat([batch["image_codes"] for batch in query])
    assert got.dtype == torch.int8
    assert torch.equal(got, expected)


def test_a_diverged_model_is_neither_scored_nor_predicted_with(source):
    module, _ = fitted_step(source)
    module.image_head.output.weight.data.fill_(torch.nan)
    for run in (make_trainer().test, make_trainer().predict):
        with pytest.raises(ValueError, match=r"NaN or infinite values in .* the learning rate"):
            run(module, make_data(source))


def test_a_checkpoint_loads_with_data_and_without(source, tmp_path):
    module, data, trainer = make_module(), make_data(source), make_trainer()
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)  # plain values only
    expected = trainer.test(module, datamodule=data, verbose=False)
    fresh = make_trainer().test(
        make_module(), datamodule=make_data(source), ckpt_path=tmp_path / "a.ckpt", verbose=False
    )
    assert fresh == expected
    loaded = CrossModalHashing.load_from_checkpoint(tmp_path / "a.ckpt").eval()
    assert (loaded.hparams["image_dim"], loaded.hparams["text_dim"]) == (8, 8)
    x = torch.randn(4, 8)
    torch.testing.assert_close(loaded(x, x), module.cpu().eval()(x, x))


def test_a_resumed_run_ends_like_an_undisturbed_one(source, tmp_path):
    seed_everything(3)
    whole = make_module()
    make_trainer(epochs=4).fit(whole, datamodule=make_data(source))
    seed_everything(3)
    trainer = make_trainer(epochs=2)
    trainer.fit(make_module(), datamodule=make_data(source))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    seed_everything(3)
    resumed = make_module()
    make_trainer(epochs=4).fit(resumed, datamodule=make_data(source), ckpt_path=tmp_path / "half.ckpt")
    # outputs, not weights: over one key the query and key projections have no effect, and drift by rounding alone
    image, text = torch.randn(5, 8), torch.randn(5, 8)
    fused, fused_resumed = (m.eval().fusion(image, text) for m in (whole, resumed))
    torch.testing.assert_close(fused_resumed, fused, rtol=0, atol=0)
    torch.testing.assert_close(resumed(image, text), whole(image, text), rtol=0, atol=0)


DDP_RUN = """
import sys
import torch
from lightning.pytorch import Trainer
from datamodules.paired_features import PairedFeatures
from lightning_modules.hashing import CrossModalHashing

source, weights, target, processes = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
found = {}
for loss in ("nt_xent", "balanced", "hashnet"):
    module = CrossModalHashing(16, 8, 8, loss, fusion=False, hidden=32, dropout=0.0)
    module.load_state_dict(torch.load(weights))
    # one full batch and no dropout: the pairs gathered from two processes are those of one
    data = PairedFeatures(source, batch_size=96 // processes, val_fraction=10 / 106)
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )
    trainer.fit(module, datamodule=data)
    scores = trainer.test(module, datamodule=data, verbose=False)[0]
    found[loss] = {"weights": module.state_dict(), "scores": scores}
torch.manual_seed(0)
both = CrossModalHashing(16, 8, 8, hidden=32)
found["untrained, with fusion"] = {"scores": trainer.test(both, datamodule=data, verbose=False)[0]}
if trainer.is_global_zero:
    torch.save(found, target)
"""


@pytest.mark.slow
def test_two_processes_train_and_score_like_one(tmp_path):
    source = write_features(tmp_path / "f.npz", count=106)
    start = make_module(fusion=False, image_dim=8, text_dim=8)
    torch.save(start.state_dict(), tmp_path / "start.pt")
    for processes in (1, 2):
        launch(DDP_RUN, processes, source, tmp_path / "start.pt", tmp_path / f"{processes}.pt")
    one, two = (torch.load(tmp_path / f"{processes}.pt") for processes in (1, 2))
    for loss in ("nt_xent", "balanced", "hashnet"):
        for name, value in one[loss]["weights"].items():
            torch.testing.assert_close(two[loss]["weights"][name], value, rtol=1e-4, atol=1e-5)
        assert not torch.equal(one[loss]["weights"]["image_head.output.weight"], start.image_head.output.weight)
        assert two[loss]["scores"] == pytest.approx(one[loss]["scores"], abs=1e-6)
    fused = [run["untrained, with fusion"]["scores"] for run in (one, two)]
    assert "test/fused_i2t_map" in fused[0]
    assert fused[1] == pytest.approx(fused[0], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 0}, "bits is 0"),
        ({"loss": "triplet"}, "loss is 'triplet'"),
        ({"hash_weight": -1.0}, "must not be negative"),
        ({"lr_hash": -0.1}, "lr_hash -0.1; learning rates must be above 0"),
        ({"fusion": False, "unimodal_weight": 0.0}, "nothing to train"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrossModalHashing(**arguments)


def test_widths_that_do_not_fit_the_data_are_named(source):
    with pytest.raises(ValueError, match="image_dim is 9, but the data has 8"):
        make_trainer().fit(make_module(image_dim=9), datamodule=make_data(source))
    data = make_data(source)
    data.setup("fit")
    with pytest.raises(ValueError, match="image_dim is not set and the data has none"):
        make_trainer().fit(make_module(), data.train_dataloader())
