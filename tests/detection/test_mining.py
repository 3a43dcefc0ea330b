"""Mining of hard negatives: cases worked out by hand; the plain loop over all is in benchmarks/mining.py."""

import json
import math

import numpy as np
import pytest
import torch
from detection_worlds import world

from lightning_modules.detection.mining import (
    HardNegative,
    HardNegativeMiner,
    HardNegatives,
    ema,
    hardest_losses,
    hardness_weights,
    overlooked_score,
)
from lightning_modules.metrics import class_means, flatten_detections, tide_errors, tide_gains

A, B, FAR = [0.0, 0, 10, 10], [40.0, 0, 50, 10], [80.0, 80, 90, 90]
THIRD = [0.0, 0, 10, 3]  # IoU 0.3 with A


def found(boxes, scores, labels=None):
    return {"boxes": boxes, "scores": scores, "labels": labels or [0] * len(boxes)}


def truth(boxes, labels=None, **rest):
    return {"boxes": boxes, "labels": labels or [0] * len(boxes), **rest}


def guide(strategy="confidence_based", **arguments):
    """The guide's example: 1000 predictions in 830 images, 80 of them below the threshold."""
    predictions = [found([A], [0.9])] * 800 + [found([FAR] * 4, [0.8] * 4)] * 30
    predictions[:80] = [found([A, B], [0.9, 0.4])] * 80
    return HardNegativeMiner(strategy=strategy, **arguments), predictions, [truth([A])] * 830


def test_the_report_of_the_guide():
    miner, predictions, truths = guide()
    records = miner.find_hard_negatives(predictions, truths)
    report = miner.generate_report()
    statistics = report["statistics"]
    types = statistics.pop("types")
    assert statistics == {
        "total_predictions": 1000,
        "hard_negatives": 150,
        "false_positives": 120,
        "false_negatives": 30,
        "true_positives": 800,
        "below_threshold": 80,
        "ignored": 0,
        "suspected_label_errors": 0,
    }
    assert types == {"localisation": 0, "class": 0, "both": 0, "duplicate": 0, "background": 120, "missed": 30}
    rounded = {name: round(value, 4) for name, value in report["metrics"].items()}
    assert rounded == {"precision": 0.8696, "recall": 0.9639, "f1_score": 0.9143, "hard_negative_rate": 0.15}
    assert len(records) == 150


def test_batches_and_single_images_give_the_same():
    whole, predictions, truths = guide()
    whole.find_hard_negatives(predictions, truths)
    parts = HardNegativeMiner()
    listed = [record for start in range(0, 800, 100) for record in find(parts, predictions, truths, start, 100)]
    for i in range(800, 830):
        listed += parts.find_hard_negatives(predictions[i], truths[i])
    assert listed == parts.hard_negatives == whole.hard_negatives
    assert parts.generate_report() == whole.generate_report()
    assert torch.equal(parts.weights(900), whole.weights(900))
    parts.reset()
    assert parts.generate_report()["statistics"]["total_predictions"] == 0
    assert math.isnan(parts.generate_report()["metrics"]["precision"])


def find(miner, predictions, truths, start, number):
    return miner.find_hard_negatives(predictions[start : start + number], truths[start : start + number])


def test_a_record_of_each_type_points_back():
    boxes = [[200.0, 0, 210, 10], B, [40.0, 0, 50, 9], THIRD, [100.0, 0, 110, 10], [120.0, 0, 130, 3], FAR]
    prediction = found(boxes, [0.2, 0.9, 0.8, 0.7, 0.6, 0.65, 0.95], [0, 0, 0, 0, 1, 1, 0])
    targets = truth([A, B, [100.0, 0, 110, 10], [120.0, 0, 130, 10]], index=7)
    miner = Everything()
    records = miner.find_hard_negatives([prediction], [targets], ["folder/7.png"])
    rows = [(r.type, r.prediction_index, r.truth_index, round(r.iou, 6), round(r.confidence, 6)) for r in records]
    assert rows == [
        ("duplicate", 2, 1, 0.9, 0.8),
        ("localisation", 3, 0, 0.3, 0.7),
        ("class", 4, 2, 1.0, 0.6),
        ("both", 5, 3, 0.3, 0.65),
        ("background", 6, None, 0.0, 0.95),
        ("missed", None, 3, 0.0, 0.0),
    ]
    assert {(r.image_index, r.image_id) for r in records} == {(7, "folder/7.png")}
    assert [(r.label, r.truth_label) for r in records] == [(0, 0), (0, 0), (1, 0), (1, 0), (0, None), (0, 0)]
    assert [r.suspected_label_error for r in records] == [False] * 4 + [True, False]
    assert HardNegativeMiner().find_hard_negatives(prediction, targets, "folder/7.png") == records[1:]  # no duplicate


class Everything(HardNegativeMiner):
    def weigh(self, errors, data):
        assert len(data.scores) >= sum(error.type != "missed" for error in errors)
        return [2.0] * len(errors)


def test_a_strategy_can_be_overridden_and_suspected_label_errors_weigh_nothing():
    miner = Everything()
    miner.find_hard_negatives([found([FAR, THIRD], [0.95, 0.6]), found([FAR], [0.95])], [truth([A]), truth([])])
    assert miner.image_hardness(3).tolist() == [2.0, 0.0, 0.0]
    assert miner.generate_report()["statistics"]["suspected_label_errors"] == 2


class LocalisationOnly(HardNegativeMiner):
    def weigh(self, errors, data):
        return super().weigh(errors, data) * (errors.columns()["type"] == "localisation")


def test_a_strategy_can_compute_with_columns_and_build_on_another():
    miner = LocalisationOnly()
    records = miner.find_hard_negatives(found([FAR, THIRD], [0.75, 0.625]), truth([A]))
    assert [(r.type, r.confidence) for r in records] == [("localisation", 0.625)]
    assert miner.image_hardness(1).tolist() == [0.625]


def test_records_are_a_sequence_held_as_columns():
    prediction, targets = found([THIRD, FAR], [0.75, 0.96875], [0, 1]), truth([A, B], [0, 2], index=4)
    records = HardNegativeMiner().find_hard_negatives([prediction] * 2, [targets, truth([])], ["a.png", "b.png"])
    listed = [
        HardNegative(4, "a.png", "localisation", 0, 0, 0.3, 0.75, 0, 0, False),
        HardNegative(4, "a.png", "background", 1, None, 0.0, 0.96875, 1, None, True),
        HardNegative(4, "a.png", "missed", None, 1, 0.0, 0.0, 2, 2, False),
        HardNegative(1, "b.png", "background", 0, None, 0.0, 0.75, 0, None, False),
        HardNegative(1, "b.png", "background", 1, None, 0.0, 0.96875, 1, None, True),
    ]
    assert isinstance(records, HardNegatives)
    assert records == listed
    assert list(records) == listed
    assert (records[0], records[-1], len(records)) == (listed[0], listed[-1], 5)
    assert records[1:3] == listed[1:3]
    assert records != listed[:4]
    assert records != listed[::-1]
    assert listed[2] in records
    with pytest.raises(IndexError):
        records[5]
    for record in (records[2], next(iter(records))):
        assert [type(value) for value in record if value is not None] == [
            type(value) for value in listed[2 if record.type == "missed" else 0] if value is not None
        ]  # plain numbers, as JSON needs
    assert {name: column.tolist() for name, column in records.columns().items()} == {
        "image_index": [4, 4, 4, 1, 1],
        "image_id": ["a.png"] * 3 + ["b.png"] * 2,
        "type": ["localisation", "background", "missed", "background", "background"],
        "prediction_index": [0, 1, -1, 0, 1],
        "truth_index": [0, -1, 1, -1, -1],
        "iou": [0.3, 0, 0, 0, 0],
        "confidence": [0.75, 0.96875, 0, 0.75, 0.96875],
        "label": [0, 1, 2, 0, 1],
        "truth_label": [0, -1, 2, -1, -1],
        "suspected_label_error": [False, True, False, False, True],
    }
    assert HardNegatives.joined([records[:2], records[2:2], records[2:]]) == listed
    nothing = HardNegatives.joined([])
    assert nothing == []
    assert {name: column.dtype for name, column in nothing.columns().items()} == {
        name: column.dtype for name, column in records.columns().items()
    }


@pytest.mark.parametrize("strategy", ["confidence_based", "iou_based", "tide", "loss_based"])
def test_flattened_images_give_the_same(strategy):
    predictions, truths = world(images=30, ignored=0.2, most=20)
    index, names = list(range(100, 130)), [f"{i}.png" for i in range(30)]
    truths = [{**one, "index": i} for one, i in zip(truths, index, strict=True)]
    losses = torch.rand(30, generator=torch.Generator().manual_seed(0)) if strategy == "loss_based" else None
    ours, flat = (HardNegativeMiner(confidence_threshold=0.2, strategy=strategy) for _ in range(2))
    records = ours.find_hard_negatives(predictions, truths, names, losses)
    assert flat.mine(flatten_detections(predictions, truths), np.array(index), names, losses) == records
    assert len(records) > 5
    assert flat.generate_report() == ours.generate_report()
    assert flat.hardness == ours.hardness
    with pytest.raises(ValueError, match="30 images, 30 indices and 2 names"):
        flat.mine(flatten_detections(predictions, truths), index, names[:2], losses)


def test_records_are_those_of_the_errors_among_confident_predictions():
    predictions, truths = world(images=40, ignored=0.2, most=20)
    records = Everything(confidence_threshold=0.3).find_hard_negatives(predictions, truths)
    rows = [torch.nonzero(p["scores"] >= 0.3).flatten() for p in predictions]
    confident = [{k: v[r] for k, v in p.items()} for p, r in zip(predictions, rows, strict=True)]
    errors = tide_errors(flatten_detections(confident, truths), 3)
    assert len(records) == errors.per_image().sum()
    for image in range(40):
        mine = [record for record in records if record.image_index == image]
        assert [[r.type for r in mine].count(name) for name in NAMES] == errors.per_image()[:, image].tolist()
        for r in mine:
            if r.prediction_index is not None:
                assert r.confidence == predictions[image]["scores"][r.prediction_index]
                assert r.label == predictions[image]["labels"][r.prediction_index]
            if r.truth_index is not None:
                assert r.truth_label == truths[image]["labels"][r.truth_index]
                assert not truths[image]["ignore"][r.truth_index]


NAMES = ["localisation", "class", "both", "duplicate", "background", "missed"]


def test_ignored_truths_absorb_and_are_not_missed():
    miner = HardNegativeMiner()
    records = miner.find_hard_negatives(found([A, FAR], [0.9, 0.8]), truth([A, B], ignore=[1, 1]))
    assert [record.type for record in records] == ["background"]
    statistics = miner.generate_report()["statistics"]
    assert (statistics["ignored"], statistics["false_negatives"]) == (1, 0)


@pytest.mark.parametrize("strategy", ["confidence_based", "tide"])
def test_a_crowded_picture_that_is_found_is_not_hard(strategy):
    crowd = [[20.0 * k, 0, 20 * k + 10, 10] for k in range(150)]
    miner = HardNegativeMiner(strategy=strategy)
    miner.find_hard_negatives([found(crowd, [0.8] * 150), found([A], [0.8])], [truth(crowd), truth([FAR])])
    statistics = miner.generate_report()["statistics"]
    assert [statistics[n] for n in ("true_positives", "false_negatives", "ignored")] == [150, 1, 0]
    hardness = miner.image_hardness(2)
    assert hardness[0] == 0 < hardness[1]


def test_each_class_has_its_threshold():
    prediction = found([FAR, FAR], [0.6, 0.6], [0, 1])
    miner = HardNegativeMiner(confidence_threshold=[0.5, 0.7])
    assert [r.label for r in miner.find_hard_negatives(prediction, truth([]))] == [0]
    assert miner.generate_report()["statistics"]["below_threshold"] == 1


def test_confidence_weighs_and_what_was_missed_weighs_one():
    miner = HardNegativeMiner()
    miner.find_hard_negatives([found([FAR, FAR], [0.75, 0.5]), found([], []), found([A], [0.9])], [truth([A])] * 3)
    assert miner.image_hardness(4).tolist() == [2.25, 1.0, 0.0, 0.0]


def test_iou_based_takes_what_lies_near_the_threshold():
    near = [[0.0, 0, 10, 4.5], [0.0, 0, 10, 3.9], [0.0, 0, 10, 5.9], [0.0, 0, 10, 6.1]]
    miner = HardNegativeMiner(strategy="iou_based")
    records = miner.find_hard_negatives(found([A, *near], [0.9] + [0.8] * 4), truth([A]))
    assert [(r.type, r.prediction_index) for r in records] == [("localisation", 1), ("duplicate", 3)]


def test_iou_based_takes_no_missed_truth_however_low_the_threshold():
    miner = HardNegativeMiner(strategy="iou_based", iou_threshold=0.1)
    records = miner.find_hard_negatives(found([[0.0, 0, 10, 0.5]], [0.9]), truth([A, B]))
    assert [(r.type, r.iou) for r in records] == [("localisation", 0.05)]
    assert miner.counts["missed"] == 1


def test_tide_weighs_by_the_gain_of_the_type():
    predictions, truths = world(images=40, most=20)
    predictions = [{**p, "scores": p["scores"] * 0.8} for p in predictions]  # below suspicion
    miner = HardNegativeMiner(confidence_threshold=0.2, strategy="tide")
    records = miner.find_hard_negatives(predictions, truths)
    gains = tide_gains(tide_errors(flatten_detections(predictions, truths), 3))
    wanted = sum(max(0.0, class_means(gains[name]).item()) for name in {record.type for record in records})
    assert miner.image_hardness(40).sum() == pytest.approx(wanted)
    assert all(class_means(gains[record.type]) > 0 for record in records)


def test_loss_based_takes_the_images_with_the_highest_losses():
    miner = HardNegativeMiner(strategy="loss_based", hard_negative_ratio=0.4)
    predictions, truths = [found([FAR], [0.8])] * 10, [truth([])] * 10
    losses = torch.arange(10.0).flip(0)
    records = miner.find_hard_negatives(predictions, truths, losses=losses)
    assert [record.image_index for record in records] == [0, 1]
    assert miner.image_hardness(10).tolist() == [9, 8, *[0] * 8]
    assert miner.weights(10)[:2].sum() == pytest.approx(0.4)
    with pytest.raises(ValueError, match="'loss_based', which needs them"):
        miner.find_hard_negatives(predictions, truths)
    with pytest.raises(ValueError, match=r"shape \(3,\) and there are 10"):
        miner.find_hard_negatives(predictions, truths, losses=[1, 2, 3])
    with pytest.raises(ValueError, match="loss of image 1 is nan"):
        miner.find_hard_negatives(predictions[:2], truths[:2], losses=[1, math.nan])
    with pytest.raises(ValueError, match="strategy is 'tide'"):
        HardNegativeMiner(strategy="tide").find_hard_negatives(predictions, truths, losses=losses)
    assert hardest_losses(np.array([1.0, 2, 2, 0]), 0.25).tolist() == [0, 2, 2, 0]
    assert hardest_losses(np.array([1.0]), 0).tolist() == [0]


def test_samples_are_saved(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"png")
    miner = HardNegativeMiner(save_samples=True, output_dir=tmp_path / "out")
    records = miner.find_hard_negatives([found([FAR], [0.8])] * 2, [truth([])] * 2, [picture, "gone.png"])
    report = miner.generate_report()
    out = tmp_path / "out"
    lines = (out / "hard_negatives.jsonl").read_text().splitlines()
    assert [HardNegative(**json.loads(line)) for line in lines] == records
    assert json.loads((out / "report.json").read_text())["statistics"] == report["statistics"]
    assert (out / "000000_a.png").read_bytes() == b"png"
    assert len(list(out.iterdir())) == 3


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (found([FAR], [math.nan]), truth([A]), r"In image 1 \(b\): A prediction's score is not finite"),
        (found([[5, 0, 1, 1]], [0.5]), truth([A]), r"In image 1 \(b\): The box .* ends before it begins"),
        (found([FAR], [0.5, 0.5]), truth([A]), r"In image 1 \(b\): .* do not belong together"),
        (found([FAR], [0.5], [2]), truth([A]), r"prediction of image 1 \(b\) has label 2; labels go from 0 to 1"),
        (found([FAR], [0.5], [-1]), truth([A]), r"prediction of image 1 \(b\) has label -1"),
        (found([FAR], [0.5]), truth([A], [5]), r"truth of image 1 \(b\) has label 5"),
    ],
)
def test_malformed_images_are_named(prediction, target, message):
    miner = HardNegativeMiner(confidence_threshold=[0.5, 0.5])
    good = found([A], [0.9])
    with pytest.raises(ValueError, match=message):
        miner.find_hard_negatives([good, prediction], [truth([A]), target], ["a", "b"])
    assert miner.generate_report()["statistics"]["total_predictions"] == 0


def test_unsuitable_arguments_are_refused():
    for arguments, message in (
        ({"strategy": "random"}, "strategy is 'random'"),
        ({"iou_threshold": 1.0}, "iou_threshold is 1.0"),
        ({"hard_negative_ratio": 1.0}, "share of hard negatives is 1.0"),
        ({"confidence_threshold": math.nan}, "confidence_threshold is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            HardNegativeMiner(**arguments)
    miner = HardNegativeMiner()
    with pytest.raises(ValueError, match="2 images and 1 image paths"):
        miner.find_hard_negatives([found([], [])] * 2, [truth([])] * 2, "a.png")
    with pytest.raises(ValueError, match="predictions of 1 images and targets of 2"):
        miner.find_hard_negatives([found([], [])], [truth([])] * 2)
    miner.find_hard_negatives(found([FAR], [0.8]), truth([], index=9))
    with pytest.raises(ValueError, match="Image 9 was mined, but the dataset has 9"):
        miner.weights(9)


def test_overlooked_score_falls_with_the_overlap():
    scores = overlooked_score(np.array([1.0, 1.0, 0.4]), np.array([0.0, 0.1, 0.0]))
    assert scores.tolist() == [1.0, 0.9, 0.4]


@pytest.mark.parametrize(("ratio", "share", "boost"), [(0.3, 0.3, 2.43), (0.1, 0.15, 1.0), (0.0, 0.15, 1.0)])
def test_the_hard_images_get_their_share_and_never_less_than_a_fair_one(ratio, share, boost):
    weights = hardness_weights(torch.tensor([2.0] * 150 + [0.0] * 850), ratio)
    assert weights[:150].sum() == pytest.approx(share)
    assert (weights[0] / weights[-1]).item() == pytest.approx(boost, abs=0.005)
    assert weights.sum() == pytest.approx(1)


def test_a_harder_image_weighs_more_up_to_the_cap():
    hardness = torch.tensor([1.0, 2.0, 3.0] + [0.0] * 97)
    weights = hardness_weights(hardness, 0.3, cap=100)
    above = weights[:3] / weights[-1] - 1
    assert torch.allclose(above / above[0], torch.tensor([1.0, 2, 3]).double())
    assert weights[:3].sum() == pytest.approx(0.3)
    capped = hardness_weights(hardness, 0.3, cap=5)
    assert (capped[:3] / capped[-1]).tolist() == pytest.approx([5, 5, 5])
    assert (capped > 0).all()


def test_where_none_is_hard_or_all_are_equally_so_all_weigh_the_same():
    for hardness in (torch.zeros(4), torch.full((4,), 2.0)):
        assert hardness_weights(hardness).tolist() == [0.25] * 4


def test_where_all_have_errors_the_hardest_alone_are_hard():
    weights = hardness_weights(torch.tensor([1.0, 2, 3, 4]), ratio=0.3)
    assert weights.tolist() == pytest.approx([0.7 / 3] * 3 + [0.3])


def test_unsuitable_hardness_is_refused():
    for hardness in ([], [-1.0], [math.nan], [[1.0]]):
        with pytest.raises(ValueError, match="hardness"):
            hardness_weights(torch.tensor(hardness))
    with pytest.raises(ValueError, match="cap is 0"):
        hardness_weights(torch.ones(2), cap=0)
    with pytest.raises(ValueError, match="beta is 1"):
        ema(None, torch.ones(2), beta=1)
    with pytest.raises(ValueError, match="hardness of 3 images, now of 2"):
        ema(torch.ones(3), torch.ones(2))


def test_what_was_hard_long_ago_is_forgotten():
    hardness = None
    for round_ in range(8):
        hardness = ema(hardness, torch.tensor([1.0, float(round_ == 0)]))
        if round_ == 1:
            assert hardness.tolist() == [1.0, 0.5]
    assert hardness.tolist() == [1.0, 0.0]
