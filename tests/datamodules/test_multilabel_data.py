"""Parts, batches and checks of the multi-label data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_multilabel import PlantedSource, planted_data

from datamodules.feature_batches import BatchSampler, FeatureBatches


@pytest.fixture
def data(tmp_path):
    data = planted_data(tmp_path)
    data.setup("fit")
    return data


def test_parts_are_disjoint_and_cover_the_pool(data) -> None:
    train, select, fold = (set(data.rows[name].tolist()) for name in ("train", "select", "fold"))
    assert len(train) + len(select) + len(fold) == 120
    assert train | select | fold == set(range(120))
    assert len(select) == round(0.1 * (len(train) + len(select)))
    assert len(data.rows["test"]) == 60


def test_every_item_is_in_one_fold_and_all_runs_see_the_same_folds(tmp_path) -> None:
    seen, hashes = [], set()
    for fold in range(3):
        data = planted_data(tmp_path, fold=fold)
        data.setup("fit")
        seen += data.rows["fold"].tolist()
        hashes.add(data.folds_sha256)
    assert sorted(seen) == list(range(120))
    assert len(hashes) == 1
    assert len(list(tmp_path.glob("folds-*.json"))) == 1


def test_batches_are_the_rows_of_the_arrays(data) -> None:
    split = data.features["development"]
    for loader, name, shuffled in (
        (data.gallery_dataloader(), "train", False),
        (data.val_dataloader(), "select", False),
        (data.train_dataloader(), "train", True),
    ):
        batches = list(loader)
        index = torch.cat([batch["index"] for batch in batches]).numpy()
        assert sorted(index.tolist()) == data.rows[name].tolist()
        assert (index.tolist() != data.rows[name].tolist()) == shuffled
        for batch in batches:
            rows = batch["index"].numpy()
            np.testing.assert_array_equal(batch["image"].numpy(), split.image[rows].astype(np.float32))
            np.testing.assert_array_equal(batch["labels"].numpy(), split.labels[rows])
            texts = split.text[rows].astype(np.float32)  # (B, 2, D)
            which = (texts == batch["text"].numpy()[:, None]).all(axis=2)  # (B, 2)
            assert which.any(axis=1).all()
            assert shuffled or which[:, 0].all()


def test_texts_and_order_are_drawn_anew_in_each_epoch_and_the_same_when_repeated(data) -> None:
    sampler = data.train_dataloader().sampler
    runs = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        runs.append([np.concatenate(part) for part in zip(*sampler, strict=True)])
    assert not np.array_equal(runs[0][0], runs[1][0])
    assert not np.array_equal(runs[0][1], runs[1][1])
    np.testing.assert_array_equal(runs[0], runs[2])
    assert 0 < runs[0][1].mean() < 1  # both captions come


def test_no_epoch_of_a_seed_is_an_epoch_of_another(data) -> None:
    orders = {}
    for seed in range(3):
        sampler = BatchSampler(FeatureBatches(data.features["development"]), 2, 16, shuffle=True, seed=seed)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            orders[seed, epoch] = tuple(np.concatenate([positions for positions, _ in sampler]).tolist())
    assert len(set(orders.values())) == 9
    expected = torch.randperm(120, generator=torch.Generator().manual_seed(2 * 100_003 + 1))
    assert list(orders[2, 1]) == expected.tolist()


@pytest.mark.parametrize(("shuffle", "drop_last"), [(True, False), (True, True), (False, False)])
def test_processes_share_the_items(monkeypatch, data, shuffle, drop_last) -> None:
    dataset = FeatureBatches(data.features["development"])
    shares = []
    for rank in range(3):
        monkeypatch.setattr("datamodules.feature_batches.rank_and_world", lambda rank=rank: (rank, 3))
        sampler = BatchSampler(dataset, texts=2, batch_size=7, shuffle=shuffle, drop_last=drop_last)
        batches = [positions for positions, _ in sampler]
        assert len(batches) == len(sampler)
        shares.append(np.concatenate(batches))
    together = np.concatenate(shares)
    assert len(np.unique(together)) == len(together) == (105 if drop_last else 120)
    everything = BatchSampler(dataset, texts=2, batch_size=7, shared=False)
    np.testing.assert_array_equal(np.concatenate([positions for positions, _ in everything]), np.arange(120))


def test_ids_and_areas(tmp_path) -> None:
    data = planted_data(tmp_path)
    data.setup("test")
    assert data.ids_of("test", torch.tensor([3, 0])) == ["test/3", "test/0"]
    assert data.ids_of("fold", torch.tensor([5])) == ["development/5"]
    assert data.object_areas("fold", [0]) is None  # no boxes here


def test_areas_are_those_of_the_largest_box(tmp_path, write_coco) -> None:
    from datamodules import COCO, FeatureCache, MultilabelData
    from lightning_modules.backbones.tiny import TinyClip

    coco = COCO(str(write_coco(tmp_path / "coco")), protocol="holdout", split_dir=str(tmp_path / "splits"))
    data = MultilabelData(FeatureCache(coco, TinyClip()), num_folds=2, select_fraction=0.5, live=True)
    data.setup("test")
    records = data.items["test"].records
    areas = data.object_areas("test", list(range(len(records))))
    for row, boxes in enumerate(records.boxes):
        for label in range(len(records.class_names)):
            own = boxes[records.box_labels[row] == label]
            if len(own):
                from PIL import Image

                width, height = Image.open(records.paths[row]).size
                largest = max((b[2] - b[0]) * (b[3] - b[1]) for b in own) / (width * height)
                assert areas[row, label] == pytest.approx(largest)
            else:
                assert np.isnan(areas[row, label])
    batch = next(iter(data.test_dataloader()[1]))
    assert batch["image"].shape[1:] == (3, 96, 96)
    assert batch["text"][0] == records.captions[int(batch["index"][0])][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_folds": 1}, "num_folds is 1"),
        ({"fold": 3}, "fold is 3; with num_folds 3 it must be 0 to 2"),
        ({"select_fraction": 0.0}, "select_fraction is 0.0"),
        ({"augment": True}, "augment needs live: true"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        planted_data(tmp_path, **arguments)


def test_more_folds_than_items(tmp_path) -> None:
    data = planted_data(tmp_path, PlantedSource(tmp_path, sizes=(4, 4)), num_folds=5)
    with pytest.raises(ValueError, match="num_folds is 5; with 4 items"):
        data.setup("fit")


def test_a_dataset_in_the_retrieval_protocol_is_refused_with_the_cure(tmp_path) -> None:
    source = PlantedSource(tmp_path)
    source.data.protocol = "retrieval"
    with pytest.raises(ValueError, match="Set its protocol: holdout"):
        planted_data(tmp_path, source).setup("fit")


def test_a_pool_without_labels_is_refused(tmp_path) -> None:
    source = PlantedSource(tmp_path)
    source.parts["development"].labels[:] = 0
    with pytest.raises(ValueError, match="nothing to learn"):
        planted_data(tmp_path, source).setup("fit")


def test_a_class_that_a_fold_lacks_is_named(tmp_path) -> None:
    source = PlantedSource(tmp_path)
    source.parts["development"].labels[:, 3] = 0
    source.parts["development"].labels[:2, 3] = 1
    with pytest.warns(UserWarning, match=r"tree \(fold \d\)"):
        planted_data(tmp_path, source).setup("fit")
