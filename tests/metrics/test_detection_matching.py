"""Matching of detections against plain loops and cases worked out by hand."""

import time

import numpy as np
import pytest
import torch
from detection_worlds import iou, naive_matches, world

from lightning_modules.metrics import box_iou, flatten_detections, match_detections, match_flat
from lightning_modules.metrics.detection_kernels import overlap

THRESHOLDS = (0.05, 0.1, 0.2, 0.5)


def image(boxes, scores=None, labels=None, ignore=None):
    labels = [0] * len(boxes) if labels is None else labels
    rest = {"scores": scores} if scores is not None else {"ignore": ignore or [0] * len(boxes)}
    return {"boxes": boxes, "labels": labels, **rest}


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize(("ignored", "levels"), [(0.0, None), (0.3, None), (0.3, 3)])
@pytest.mark.parametrize("max_detections", [100, 2])
def test_matches_are_those_of_plain_loops(grid, ignored, levels, max_detections):
    for seed in range(8):
        predictions, targets = world(seed=seed, grid=grid, ignored=ignored, levels=levels)
        matches = match_detections(predictions, targets, 3, THRESHOLDS, max_detections)
        offsets = np.cumsum([0, *(len(t["labels"]) for t in targets)])
        for k, threshold in enumerate(THRESHOLDS):
            naive = naive_matches(predictions, targets, threshold, max_detections)
            wanted = [(t + offsets[i] if t >= 0 else -1, g) for i, rows in enumerate(naive) for t, g in rows]
            assert list(zip(matches.truth[k].tolist(), matches.ignored[k].tolist(), strict=True)) == wanted
        assert matches.image.tolist() == [i for i, p in enumerate(predictions) for _ in p["labels"]]
        assert matches.scores.tolist() == torch.cat([p["scores"] for p in predictions]).tolist()
        assert matches.labels.tolist() == torch.cat([p["labels"] for p in predictions]).tolist()
        counts = [[int(((t["labels"] == label) & (t["ignore"] == 0)).sum()) for label in range(3)] for t in targets]
        assert matches.truths().tolist() == counts


def test_the_best_score_chooses_first_and_takes_the_highest_overlap():
    truths = [[0.0, 0, 10, 10], [0, 0, 10, 8]]
    found = image([[0.0, 0, 10, 8], [0, 0, 10, 9.5], [0, 0, 10, 10]], scores=[0.9, 0.8, 0.7])
    matches = match_detections([found], [image(truths)], 1, [0.5, 0.99])
    assert matches.truth.tolist() == [[1, 0, -1], [1, -1, 0]]  # 0.95 is not 0.99
    assert not matches.ignored.any()


def test_equal_overlaps_take_the_last_truth_and_equal_scores_go_in_order():
    box = [0.0, 0, 4, 4]
    matches = match_detections([image([box] * 3, scores=[0.5] * 3)], [image([box, box])], 1, [0.5])
    assert matches.truth.tolist() == [[1, 0, -1]]


def test_an_overlap_equal_to_the_threshold_is_enough():
    found = image([[0.0, 0, 5, 1], [6, 0, 8, 1]], scores=[0.9, 0.8], labels=[0, 1])
    truth = image([[0.0, 0, 10, 1], [6, 0, 16, 1]], labels=[0, 1])
    matches = match_detections([found], [truth], 2, [0.2, 0.5, 1.0])
    assert matches.truth.tolist() == [[0, 1], [0, -1], [-1, -1]]
    assert match_detections([image([[0.0, 0, 3, 7]], scores=[1])], [image([[0.0, 0, 3, 7]])], 1, [1.0]).truth == 0


def test_an_ignored_truth_absorbs_what_finds_nothing_else():
    small, crowd = [0.0, 0, 2, 2], [0.0, 0, 20, 20]
    found = image([small, small, [5.0, 5, 7, 7], [30.0, 30, 32, 32]], scores=[0.9, 0.8, 0.7, 0.6])
    matches = match_detections([found], [image([crowd, small], ignore=[1, 0])], 1, [0.5])
    assert matches.truth.tolist() == [[1, 0, 0, -1]]  # inside the crowd: 4 / 4, however small the box
    assert matches.ignored.tolist() == [[False, True, True, False]]
    assert matches.truths().tolist() == [[1]]


def test_classes_and_images_do_not_mix():
    box = [0.0, 0, 4, 4]
    predictions = [image([box], scores=[0.9], labels=[1]), image([box], scores=[0.9], labels=[0])]
    targets = [image([box], labels=[0]), image([box], labels=[1])]
    assert match_detections(predictions, targets, 2).truth.tolist() == [[-1, -1]] * 4


def test_detections_beyond_the_limit_do_not_count():
    box = [0.0, 0, 4, 4]
    found = image([box] * 4, scores=[0.1, 0.4, 0.3, 0.2], labels=[0, 0, 0, 1])
    matches = match_detections([found], [image([box] * 4, labels=[0, 0, 0, 1])], 2, [0.5], max_detections=2)
    assert matches.truth.tolist() == [[-1, 2, 1, 3]]
    assert matches.ignored.tolist() == [[True, False, False, False]]


def test_nothing_at_all():
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
    matches = match_detections([{**empty, "scores": torch.zeros(0)}] * 2, [empty] * 2, 3)
    assert matches.truth.shape == (4, 0)
    assert matches.truths().tolist() == [[0] * 3] * 2
    assert match_flat(flatten_detections([], []), 3).num_images == 0


def test_overlaps_are_those_of_a_plain_formula():
    g = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 40, 2, generator=g, dtype=torch.float64)
    boxes = torch.cat([corners, corners + torch.rand(2, 40, 2, generator=g)], dim=2).numpy()
    crowd = np.arange(40) % 3 == 0
    wanted = [[iou(a, b, c) for b, c in zip(boxes[1], crowd, strict=True)] for a in boxes[0]]
    np.testing.assert_allclose(box_iou(boxes[0][:, None], boxes[1][None], crowd), wanted, atol=1e-12)
    assert box_iou(np.zeros(4), np.zeros(4)) == 0


def test_compiled_overlaps_are_the_same_to_the_last_bit():
    rng = np.random.default_rng(0)
    for draw in (lambda: rng.uniform(0, 9, (200, 2)), lambda: rng.integers(0, 4, (200, 2)).astype(float)):
        boxes, truths = (np.concatenate([corner, corner + draw()], axis=1) for corner in (draw(), draw()))  # some empty
        crowd = rng.uniform(size=200) < 0.3
        wanted = box_iou(boxes[:, None], truths[None], crowd)
        ours = [[overlap(box, *pair) for pair in zip(truths, crowd, strict=True)] for box in boxes]
        assert np.array_equal(ours, wanted)
        assert 0 < np.count_nonzero(wanted) < wanted.size


def test_images_are_laid_one_after_the_other_whatever_they_are_made_of():
    """More images than are joined at once; tensors of several types, arrays, lists, images without boxes."""
    rng = np.random.default_rng(0)
    predictions, targets = [], []
    for i in range(70):
        boxes, n = [[i, 0, i + 1, j + 1] for j in range(i % 3)], i % 3
        kind = (torch.tensor, np.array, list, lambda x: torch.tensor(x, dtype=torch.float16))[int(rng.integers(4))]
        predictions.append({"boxes": kind(boxes), "scores": kind([0.5] * n), "labels": kind([i % 7] * n)})
        targets.append(
            {"boxes": kind(boxes), "labels": kind([i % 5] * n), **({"ignore": [i % 2] * n} if i > 35 else {})}
        )
    data = flatten_detections(predictions, targets)
    rows = [(i, j) for i in range(70) for j in range(i % 3)]
    assert data.image.tolist() == data.truth_image.tolist() == [i for i, _ in rows]
    assert data.boxes.tolist() == data.truth_boxes.tolist() == [[i, 0, i + 1, j + 1] for i, j in rows]
    assert data.scores.tolist() == [0.5] * len(rows)
    assert data.labels.tolist() == [i % 7 for i, _ in rows]
    assert data.truth_labels.tolist() == [i % 5 for i, _ in rows]
    assert data.truth_ignored.tolist() == [i > 35 and i % 2 == 1 for i, _ in rows]


def test_many_equal_scores_go_in_order():
    predictions, targets = world(images=4, classes=2, levels=3, most=300, grid=True, ignored=0.1)
    matches = match_detections(predictions, targets, 2, [0.5], max_detections=50)
    offsets = np.cumsum([0, *(len(t["labels"]) for t in targets)])
    naive = naive_matches(predictions, targets, 0.5, 50)
    wanted = [(t + offsets[i] if t >= 0 else -1, g) for i, rows in enumerate(naive) for t, g in rows]
    assert list(zip(matches.truth[0].tolist(), matches.ignored[0].tolist(), strict=True)) == wanted
    assert max(len(p["labels"]) for p in predictions) > 100


@pytest.mark.parametrize(
    ("found", "truth", "message"),
    [
        ({"boxes": [[0, 0, 1, 1]], "labels": [0]}, image([]), r"predictions\[0\] has no 'scores'"),
        (image([[0, 0, 1, 1]], scores=[1, 2]), image([]), r"scores \(2,\)"),
        (image([[0, 0, 1]], scores=[1.0]), image([]), r"boxes \(1, 3\)"),
        (image([[0, 2, 1, 1]], scores=[1.0]), image([]), "ends before it begins"),
        (image([[0, 0, 1, 1]], scores=[float("nan")]), image([]), "score is not finite"),
        (
            image([], scores=[]),
            {"boxes": [[0, 0, 1, 1]]},
            r"targets\[0\] has no 'labels'; it needs boxes, labels, ignore",
        ),
        (image([], scores=[]), image([[0, 0, 1, 1]], ignore=[0, 0]), r"ignore \(2,\) do not belong together"),
        (image([[0, 0, 1, 1]], scores=[1.0], labels=[2]), image([]), "prediction has label 2, but num_classes is 2"),
        (image([], scores=[]), image([[0, 0, 1, 1]], labels=[-1]), "target has label -1"),
    ],
)
def test_unsuitable_images_are_refused(found, truth, message):
    with pytest.raises(ValueError, match=message):
        match_detections([found], [truth], 2)


@pytest.mark.parametrize("rows", [[1, 0], [0, 2], [-1, 0]])
def test_rows_that_do_not_lie_image_after_image_are_refused(rows):
    data = flatten_detections([image([[0, 0, 1, 1]], scores=[1.0])] * 2, [image([[0, 0, 1, 1]])] * 2)
    for name in ("image", "truth_image"):
        with pytest.raises(ValueError, match="do not lie image after image, from 0 to 1"):
            match_flat(data._replace(**{name: np.array(rows)}), 1)


def test_unsuitable_arguments_are_refused():
    with pytest.raises(ValueError, match="1 images and targets of 0"):
        match_detections([image([], scores=[])], [], 1)
    with pytest.raises(ValueError, match="thresholds are"):
        match_detections([], [], 1, [0.0])
    with pytest.raises(ValueError, match="max_detections is 0"):
        match_detections([], [], 1, max_detections=0)


def test_a_large_split_is_matched_in_less_than_a_second():
    predictions, targets = world(images=1000, classes=20, most=50)
    match_detections(predictions[:3], targets[:3], 20)  # compiles
    begin = time.perf_counter()
    match_detections(predictions, targets, 20)
    assert time.perf_counter() - begin < 1  # 0.1 s measured
