"""Who draws what: by weight, the same in every process, and under a Trainer from the epoch alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from processes import launch
from scipy.stats import chisquare

from datamodules.detection import DetectionData
from datamodules.samplers import UnpaddedSampler, WeightedDistributedSampler


class Numbers(DetectionData):
    """15 train, 7 val and 7 test items that are nothing but their index."""

    class_names = ()

    def read_part(self, part):
        raise NotImplementedError

    def dataset(self, part):
        image, size = torch.zeros(3, 1, 1), torch.ones(2)
        return [{"image": image, "size": size, "index": i, "id": str(i)} for i in range(15 if part == "train" else 7)]


class Recorder(LightningModule):
    """Writes down the indices of its batches: of training by epoch, of all else by step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = {"train": {}, "validation": [], "predict": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].setdefault(self.current_epoch, []).extend(batch["index"].tolist())
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.seen["validation"] += batch["index"].tolist()

    def predict_step(self, batch, batch_idx):
        self.seen["predict"] += batch["index"].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SetWeights(Callback):
    """Leaves items 3, 4 and 11 to draw after epoch 1."""

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.datamodule.sampler.set_weights(WEIGHTS)


WEIGHTS = torch.zeros(15).index_fill(0, torch.tensor([3, 4, 11]), 0.5)
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def fit(data, epochs, callbacks=(), ckpt_path=None, **arguments):
    module, trainer = Recorder(), Trainer(max_epochs=epochs, callbacks=list(callbacks), **QUIET, **arguments)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module.seen["train"], trainer


@pytest.fixture
def as_rank(monkeypatch):
    """``as_rank(1, 3)``: be the second of three processes."""

    def set_rank(rank, world):
        monkeypatch.setattr("datamodules.samplers.rank_and_world", lambda: (rank, world))

    return set_rank


def test_draws_follow_the_weights():
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0, 10.0])
    sampler, counts = WeightedDistributedSampler(range(6), seed=3), np.zeros(6, int)
    sampler.set_weights(weights)
    for epoch in range(2000):
        sampler.set_epoch(epoch)
        counts += np.bincount(list(sampler), minlength=6)
    assert counts.sum() == 12000
    assert counts[weights == 0].sum() == 0
    expected = 12000 * (weights / weights.sum()).numpy()
    assert chisquare(counts[weights > 0], expected[weights > 0]).pvalue > 0.01


def test_equal_weights_draw_every_item_once():
    sampler = WeightedDistributedSampler(range(50), seed=3)
    unset = list(sampler)
    assert sorted(unset) == list(range(50))
    assert unset != list(range(50))
    sampler.set_weights(torch.full((50,), 0.3))
    assert list(sampler) == unset
    sampler.set_weights(torch.arange(50) % 2)
    assert len(set(sampler)) < len(list(sampler)) == 50


@pytest.mark.parametrize("weights", [torch.ones(40), torch.arange(40)])
def test_the_order_follows_from_seed_and_epoch_alone(weights):
    orders = {}
    for seed, epoch in [(0, 0), (0, 1), (7, 0), (7, 1), (0, 0), (7, 1)]:
        torch.rand(seed + 3)  # the global generator does not matter
        sampler = WeightedDistributedSampler(range(40), seed)
        sampler.set_weights(weights)
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert list(sampler) == order == orders.setdefault((seed, epoch), order)
    assert len(set(map(tuple, orders.values()))) == 4


@pytest.mark.parametrize(("count", "world"), [(12, 3), (13, 3), (2, 5)])
@pytest.mark.parametrize("equal", [True, False])
def test_processes_take_their_own_entries_of_one_draw(as_rank, count, world, equal):
    sampler = WeightedDistributedSampler(range(count), seed=5)  # made before there were other processes
    sampler.set_weights(torch.ones(count) if equal else torch.arange(count))
    shares = []
    for rank in range(world):
        as_rank(rank, world)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler) == -(-count // world)
    draw = torch.tensor(shares).T.flatten()
    assert torch.equal(draw, sampler.draw())
    if equal:  # all items, and no item more often than filling up the shares needs
        times = torch.bincount(draw, minlength=count)
        assert times.min() >= 1
        assert times.max() - times.min() <= 1


def test_weights_are_copied():
    sampler, weights = WeightedDistributedSampler(range(8)), torch.arange(8, dtype=torch.float64)
    sampler.set_weights(weights)
    order = list(sampler)
    weights.fill_(0)
    assert list(sampler) == order


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(3), r"shape \(3,\); it must be \(4,\), one an item"),
        (torch.ones(4, 1), r"shape \(4, 1\)"),
        (torch.tensor([1, 1, -0.5, -1]), r"2 of 4 weights are negative or not finite, first that of item 2: -0\.5"),
        (torch.tensor([1, torch.nan, 1, 1]), "1 of 4 weights .* item 1: nan. Give each item a finite weight"),
        (torch.tensor([torch.inf, 1, 1, 1]), "item 0: inf"),
        (torch.zeros(4), "All 4 weights are 0. Give at least one item a weight above 0"),
    ],
)
def test_bad_weights_are_named_and_change_nothing(weights, message):
    sampler = WeightedDistributedSampler(range(4))
    before = list(sampler)
    with pytest.raises(ValueError, match=message):
        sampler.set_weights(weights)
    assert list(sampler) == before


def test_scored_items_come_once_over_all_processes(as_rank):
    sampler, shares = UnpaddedSampler(range(7)), []
    for rank in range(2):
        as_rank(rank, 2)
        shares.append(list(sampler))
        assert len(sampler) == len(shares[-1])
    assert shares == [[0, 1, 2, 3], [4, 5, 6]]
    as_rank(0, 8)
    with pytest.raises(ValueError, match=r"7 items cannot be shared among 8 processes. Set fewer trainer\.devices"):
        len(sampler)


@pytest.mark.parametrize(
    ("loading", "reload"),
    [({}, 0), ({}, 1), ({"num_workers": 2, "persistent_workers": True}, 0)],
    ids=["alone", "reloading", "workers"],
)
def test_weights_act_from_the_next_epoch_and_a_resumed_run_repeats_its_order(tmp_path, loading, reload):
    arguments = {"reload_dataloaders_every_n_epochs": reload}
    whole, _ = fit(Numbers("", batch_size=4, **loading), 4, [SetWeights()], **arguments)
    assert sorted(whole[0]) == sorted(whole[1]) == list(range(15))
    assert whole[0] != whole[1]
    assert whole[2] != whole[3]
    assert set(whole[2]) == set(whole[3]) == {3, 4, 11}
    assert list(map(len, whole.values())) == [15] * 4

    first, trainer = fit(Numbers("", batch_size=4, **loading), 2, **arguments)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    assert first == {epoch: whole[epoch] for epoch in (0, 1)}
    data = Numbers("", batch_size=4, **loading)
    data.sampler.set_weights(WEIGHTS)  # as a callback that remembers them does, before the first loader is made
    rest, _ = fit(data, 4, ckpt_path=tmp_path / "half.ckpt", **arguments)
    assert rest == {epoch: whole[epoch] for epoch in (2, 3)}


DDP_RUN = """
import os
import sys
sys.path[:0] = [".", "tests/support", "tests/datamodules"]
import torch
from lightning.pytorch import Trainer
from test_samplers import Numbers, QUIET, Recorder, SetWeights

target, processes = sys.argv[1], int(sys.argv[2])
module, data = Recorder(), Numbers("", batch_size=2)
sampler, loader = data.sampler, data.val_dataloader()  # made before the process group
ddp = {"strategy": "ddp", "devices": processes, "num_sanity_val_steps": 0, **QUIET}
Trainer(max_epochs=3, callbacks=[SetWeights()], limit_val_batches=0, **ddp).fit(module, datamodule=data)
assert data.sampler is sampler
trainer = Trainer(**ddp)
trainer.validate(module, dataloaders=loader)
trainer.predict(module, datamodule=data, return_predictions=False)
torch.save(module.seen, f"{target}/{os.environ['LOCAL_RANK']}.pt")
"""


@pytest.mark.slow
def test_two_processes_share_what_they_draw_and_what_they_score(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "9")
    launch(DDP_RUN, 2, tmp_path)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (one["validation"], two["validation"]) == ([0, 1, 2, 3], [4, 5, 6])
    assert (one["predict"], two["predict"]) == ([0, 1, 2, 3], [4, 5, 6])
    shares = [[one["train"][epoch], two["train"][epoch]] for epoch in range(3)]
    draws = [np.stack(share, axis=1).flatten() for share in shares]  # (16,) each: the processes take turns
    for epoch in range(2):  # 15 items for two shares of 8: the first comes again
        order = torch.randperm(15, generator=torch.Generator().manual_seed(9 + epoch)).numpy()
        np.testing.assert_array_equal(draws[epoch], [*order, order[0]])
    generator = torch.Generator().manual_seed(9 + 2)
    np.testing.assert_array_equal(draws[2], torch.multinomial(WEIGHTS.double(), 16, True, generator=generator))
