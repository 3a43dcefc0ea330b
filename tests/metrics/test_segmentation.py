"""Segmentation scores against loops over pixels, scikit-learn's and torchmetrics' values, and by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score
from torchmetrics.classification import MulticlassJaccardIndex

from lightning_modules.metrics import (
    SegmentationCounts,
    SegmentationScores,
    bootstrap_mean_iou,
    majority_class,
    mean_iou_difference,
    oracle_map,
)


def maps(images=6, classes=5, seed=0, ignored=0.1, right=0.6):
    """Label maps of coarse blocks in several sizes, and predictions that are right in most pixels."""
    g = torch.Generator().manual_seed(seed)
    targets, predictions = [], []
    for i in range(images):
        h, w = 12 + 3 * i, 20 - i
        blocks = torch.randint(0, classes - 1, (h // 4 + 1, w // 4 + 1), generator=g)  # the last class never occurs
        target = blocks.repeat_interleave(4, 0).repeat_interleave(4, 1)[:h, :w].contiguous()
        noise = torch.randint(0, classes, (h, w), generator=g)
        predictions.append(torch.where(torch.rand(h, w, generator=g) < right, target, noise))
        targets.append(target.masked_fill(torch.rand(h, w, generator=g) < ignored, 255))
    return predictions, targets


def scored(predictions, targets, classes=5, **kwargs):
    metric = SegmentationScores(classes, **kwargs)
    metric.update(predictions, targets, torch.arange(len(targets)))
    return metric


def naive(predictions, targets, classes):
    """Confusion matrix by a loop over pixels."""
    matrix = np.zeros((classes, classes), np.int64)
    for prediction, target in zip(predictions, targets, strict=True):
        for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
            if t != 255:
                matrix[t, p] += 1
    return matrix


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_a_loop_over_pixels(seed):
    predictions, targets = maps(seed=seed)
    metric = scored(predictions, targets)
    matrix = naive(predictions, targets, 5)
    assert np.array_equal(metric.collected()[0].confusion(), matrix)
    both, true, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore"):
        iou, dice = both / (true + predicted - both), 2 * both / (true + predicted)
    np.testing.assert_array_equal(metric.per_class()["iou"], iou)
    np.testing.assert_array_equal(metric.per_class()["dice"], dice)
    np.testing.assert_array_equal(metric.per_class()["true_pixels"], true)
    found = metric.compute()
    assert found["miou"] == pytest.approx(np.nanmean(iou))
    assert found["mdice"] == pytest.approx(np.nanmean(dice))
    assert found["pixel_accuracy"] == both.sum() / matrix.sum()
    assert found["fwiou"] == pytest.approx(np.nansum(iou * true) / true.sum())
    assert found["num_pixels"] == matrix.sum()
    assert found["num_images"] == 6


def test_scores_are_those_of_torchmetrics_and_scikit_learn():
    predictions, targets = maps(images=4, seed=5)
    p, t = (torch.cat([labels.flatten() for labels in side]) for side in (predictions, targets))
    theirs = MulticlassJaccardIndex(5, average="none", ignore_index=255)(p, t)
    metric = scored(predictions, targets)
    np.testing.assert_allclose(metric.per_class()["iou"], theirs.numpy(), rtol=1e-6)
    p, t = p[t != 255], t[t != 255]
    assert np.array_equal(metric.collected()[0].confusion(), confusion_matrix(t, p, labels=range(5)))
    np.testing.assert_allclose(metric.per_class()["dice"], f1_score(t, p, labels=range(5), average=None))


def test_values_by_hand():
    metric = SegmentationScores(4)
    # class 0: 2 right of 3 true and 2 predicted; class 1: 1 of 1 and 2; class 2: predicted only; class 3: nowhere
    metric.update(torch.tensor([[[0, 0, 1, 1, 2]]]), torch.tensor([[[0, 0, 0, 1, 255]]]), torch.tensor([3]))
    np.testing.assert_array_equal(metric.per_class()["iou"], [2 / 3, 1 / 2, np.nan, np.nan])
    metric.update(torch.tensor([[[2]]]), torch.tensor([[[1]]]), torch.tensor([4]))
    np.testing.assert_array_equal(metric.per_class()["iou"], [2 / 3, 1 / 3, 0, np.nan])
    found = metric.compute()
    assert found["miou"] == pytest.approx(1 / 3)
    assert found["mdice"] == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)
    assert found["pixel_accuracy"] == 3 / 5
    assert found["fwiou"] == pytest.approx(3 / 5 * 2 / 3 + 2 / 5 * 1 / 3)
    assert (found["classes_scored"], found["num_pixels"]) == (3, 5)
    assert "label 255 ignored" in metric.convention
    assert "2.0% of the diagonal" in metric.convention


def test_sums_are_exact_beyond_the_precision_of_floats():
    zero, pixels = np.zeros(2, np.int64), np.array([2**53, 1])
    counts = SegmentationCounts(2, 1, np.arange(2), zero, zero, zero, pixels)
    assert counts.confusion().tolist() == [[2**53 + 1]]
    assert counts.classes().both.tolist() == [2**53 + 1]


def test_many_classes_take_the_path_of_few():
    predictions, targets = maps(images=3, seed=2)
    few, many = scored(predictions, targets), scored(predictions, targets, classes=5000, ignore_index=-1)
    with pytest.raises(ValueError, match="ignore_index is 255"):
        SegmentationScores(5000)
    assert many.compute()["num_pixels"] == sum(t.numel() for t in targets)  # 255 is a class here
    many = SegmentationScores(5000, ignore_index=-1)
    many.update(predictions, [t.masked_fill(t == 255, -1) for t in targets], torch.arange(3))
    wanted, found = few.compute(), many.compute()
    assert {name: pytest.approx(value) for name, value in wanted.items()} == found
    np.testing.assert_array_equal(many.per_class()["boundary_iou"][:5], few.per_class()["boundary_iou"])


def test_batches_lists_stacks_and_repeats_do_not_matter():
    predictions, targets = maps(seed=3)
    wanted = scored(predictions, targets).compute()
    metric = SegmentationScores(5)
    for i in (4, 0, 5, 2, 1, 3, 0, 4):  # 0 and 4 twice, as of a sampler that pads
        metric.update(predictions[i][None], targets[i][None].to(torch.uint8), torch.tensor([i]))
    assert metric.compute() == wanted
    assert metric.collected()[1].tolist() == list(range(6))
    metric.update([predictions[0]], [targets[0]], torch.tensor([1]))
    with pytest.raises(ValueError, match="share index 1"):
        metric.compute()
    metric.reset()
    with pytest.raises(ValueError, match="seen no image"):
        metric.collected()


def test_an_image_that_is_ignored_altogether():
    metric = SegmentationScores(2)
    metric.update(torch.zeros(1, 4, 4).long(), torch.full((1, 4, 4), 255), torch.tensor([0]))
    found = metric.compute()
    assert np.isnan(found["miou"])
    assert np.isnan(found["pixel_accuracy"])
    assert found["num_images"] == 1
    assert np.isnan(bootstrap_mean_iou(metric.collected()[0])).all()
    assert np.isnan(majority_class(metric.collected()[0])["miou"])


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (torch.zeros(2, 2).long(), torch.zeros(2, 3).long(), r"prediction is \(2, 2\) and the target \(2, 3\)"),
        (torch.zeros(2, 2), torch.zeros(2, 2).long(), "the prediction is torch.float32"),
        (torch.full((2, 2), 3), torch.zeros(2, 2).long(), "the prediction holds 3, but classes are 0 to 2"),
        (torch.zeros(2, 2).long(), torch.full((2, 2), 3), "the target holds 3, but classes are 0 to 2 and 255"),
        (torch.zeros(2, 2).long(), torch.full((2, 2), -1), "the target holds -1"),
        (torch.full((2, 2), 255), torch.full((2, 2), 255), "the prediction holds 255"),
    ],
)
def test_malformed_images_are_refused(prediction, target, message):
    metric = SegmentationScores(3)
    with pytest.raises(ValueError, match=message):
        metric.update([prediction], [target], torch.tensor([9]))
    with pytest.raises(ValueError, match="2 predictions, 1 targets and 1 indices"):
        metric.update([prediction] * 2, [target], torch.tensor([9]))
    assert not metric.images


@pytest.mark.parametrize(("classes", "ratio"), [(0, 0.02), (30_000, 0.02), (3, 0.0)])
def test_malformed_arguments_are_refused(classes, ratio):
    with pytest.raises(ValueError, match=r"num_classes is|boundary_ratio is"):
        SegmentationScores(classes, ignore_index=-1, boundary_ratio=ratio)


def test_the_majority_class_is_the_constant_map_of_it():
    predictions, targets = maps(images=5, seed=4)
    counts = scored(predictions, targets).collected()[0]
    most = int(counts.classes().true.argmax())
    constant = scored([torch.full_like(t, most) for t in targets], targets).compute()
    assert majority_class(counts) == {name: constant[name] for name in majority_class(counts)}


def test_the_oracle_gives_each_region_its_majority():
    g = torch.Generator().manual_seed(0)
    _, (target, *_) = maps(images=1, seed=7)
    mask = torch.randint(0, 9, target.shape, generator=g) * 7000
    found = oracle_map(mask, target, 5)
    for region in mask.unique():
        votes = target[(mask == region) & (target != 255)]
        assert found[mask == region].unique().tolist() == [votes.bincount().argmax().item()]
    assert scored([oracle_map(target.clamp(max=9), target, 5)], [target]).compute()["miou"] == 1
    tied = oracle_map(torch.tensor([[3, 3, 3, 1]]), torch.tensor([[4, 2, 255, 255]]), 5)
    assert tied.tolist() == [[2, 2, 2, 0]]
    assert oracle_map(torch.zeros(1, 2).int(), torch.full((1, 2), 255), 5).tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="in its own size"):
        oracle_map(mask[1:], target, 5)
    with pytest.raises(ValueError, match="mask holds -1"):
        oracle_map(mask - 1, target, 5)
    with pytest.raises(ValueError, match=r"target holds [5-8]; it must lie between 0 and 4"):
        oracle_map(mask, target + 5, 5, ignore_index=260)


def test_the_interval_is_that_of_images_drawn_again_and_again():
    predictions, targets = maps(images=8, seed=1)
    metric = scored(predictions, targets)
    value, low, high = bootstrap_mean_iou(metric.collected()[0], num_redraws=300, seed=5)
    assert value == metric.compute()["miou"]
    rng, redrawn = np.random.default_rng(5), []
    for _ in range(300):
        drawn = rng.integers(0, 8, 8, dtype=np.int32)
        again = scored([predictions[i] for i in drawn], [targets[i] for i in drawn], boundary_ratio=None)
        redrawn.append(again.compute()["miou"])
    np.testing.assert_allclose([low, high], np.quantile(redrawn, [0.025, 0.975]))
    with pytest.raises(ValueError, match="confidence is 95"):
        bootstrap_mean_iou(metric.collected()[0], confidence=95)
    with pytest.raises(ValueError, match="num_redraws is 0"):
        bootstrap_mean_iou(metric.collected()[0], num_redraws=0)


def test_a_class_that_a_redraw_lacks_is_left_out():
    target = torch.zeros(30, 2, 2).long()
    target[0] = 1  # in one image, always right
    metric = scored(target, target, classes=3)
    assert bootstrap_mean_iou(metric.collected()[0]) == (1, 1, 1)
    half = torch.tensor([[0, 1], [0, 1]])
    metric = scored([torch.zeros(1, 1).long(), half, half], [torch.full((1, 1), 255), half * 0, half * 0], classes=3)
    value, low, high = bootstrap_mean_iou(metric.collected()[0])  # one redraw in 27 has no pixel
    assert (value, low, high) == (0.25, 0.25, 0.25)


def test_the_difference_of_two_methods_on_the_same_redraws():
    predictions, targets = maps(images=12, seed=6, right=0.7)
    worse = [torch.where(torch.arange(p.shape[1]) % 4 == 0, 4, p) for p in predictions]
    a, b = (scored(p, targets).collected()[0] for p in (predictions, worse))
    value, low, high = mean_iou_difference(a, b)
    assert value == scored(predictions, targets).compute()["miou"] - scored(worse, targets).compute()["miou"]
    assert 0 < low < value < high
    assert mean_iou_difference(a, a) == (0, 0, 0)
    single = [bootstrap_mean_iou(counts) for counts in (a, b)]
    assert high - low < max(high - low for _, low, high in single)
    other = scored(predictions[:11], targets[:11]).collected()[0]
    with pytest.raises(ValueError, match="different images or classes"):
        mean_iou_difference(a, other)
    swapped = scored(predictions[::-1], targets[::-1]).collected()[0]
    with pytest.raises(ValueError, match="different images or classes"):
        mean_iou_difference(a, swapped)
