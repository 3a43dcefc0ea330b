"""TIDE against plain loops over Python floats, and cases worked out by hand."""

import math

import numpy as np
import pytest
import torch
from detection_worlds import iou, naive_matches, world

from lightning_modules.metrics import (
    TIDE,
    DetectionScores,
    average_precisions,
    class_means,
    flatten_detections,
    tide_errors,
    tide_gains,
)
from lightning_modules.metrics.tide import TYPES

CASES = [
    {},
    {"ignored": 0.3},
    {"levels": 3},
    {"grid": True},
    {"grid": True, "levels": 2, "ignored": 0.5},
    {"classes": 1},
    {"classes": 6, "most": 20},
]


def naive_errors(predictions, targets, positive, background, limit=100):
    """For each image: type, truth and IoU of each detection (None = no false positive), and outcome of each truth."""
    result = []
    for found, truth, outcome in zip(
        predictions, targets, naive_matches(predictions, targets, positive, limit), strict=True
    ):
        counted = [t for t in range(len(truth["labels"])) if not truth["ignore"][t]]
        matched = {t for t, ignored in outcome if t >= 0 and not ignored}
        kinds = []
        for row, (match, ignored) in enumerate(outcome):
            if match >= 0 or ignored:
                kinds.append(None)
                continue
            overlaps = {t: iou(found["boxes"][row].tolist(), truth["boxes"][t].tolist(), False) for t in counted}

            def best(truths, overlaps=overlaps):
                t = max(truths, key=lambda t: overlaps[t], default=None)
                return (overlaps[t], t if overlaps[t] > 0 else None) if t is not None else (0.0, None)

            same = [t for t in counted if truth["labels"][t] == found["labels"][row]]
            own, other = best(same), best([t for t in counted if t not in same])
            taken = best([t for t in same if t in matched])
            if background <= own[0] < positive:
                kinds.append(("localisation", own[1], own[0]))
            elif other[0] >= positive:
                kinds.append(("class", other[1], other[0]))
            elif taken[0] >= positive:
                kinds.append(("duplicate", taken[1], taken[0]))
            elif max(own[0], other[0]) <= background:
                kinds.append(("background", None, max(own[0], other[0])))
            else:
                kinds.append(("both", other[1], other[0]))
        best_of = {}  # truth -> the error that would find it
        for row in sorted(range(len(kinds)), key=lambda row: -float(found["scores"][row])):
            if kinds[row] and kinds[row][0] in ("localisation", "class") and kinds[row][1] not in matched:
                best_of.setdefault(kinds[row][1], row)
        missed = {t for t in counted if t not in matched and t not in best_of}
        result.append((kinds, outcome, matched, set(best_of.values()), missed, counted))
    return result


def average_precision(points, total):
    """COCO's, of (score, hit) in the order of the images."""
    hits, curve = 0, []
    for rank, (_, hit) in enumerate(sorted(points, key=lambda point: -point[0]), start=1):
        hits += hit
        curve.append((hits / total, hits / rank))
    return sum(max((p for r, p in curve if r >= point), default=0.0) for point in np.linspace(0, 1, 101)) / 101


def naive_gains(predictions, targets, errors, classes):
    """Type -> gain of each class."""
    values = {}
    for fixed in (None, *TYPES, "false_positive", "false_negative"):
        points, totals = [[] for _ in range(classes)], [0] * classes
        for found, truth, (kinds, outcome, matched, right, missed, counted) in zip(
            predictions, targets, errors, strict=True
        ):
            for row, (kind, (match, ignored)) in enumerate(zip(kinds, outcome, strict=True)):
                label, hit = int(found["labels"][row]), match >= 0
                if ignored or (kind and fixed == "false_positive"):
                    continue
                if kind and kind[0] == fixed:
                    if row not in right:
                        continue
                    label, hit = int(truth["labels"][kind[1]]), True
                points[label].append((float(found["scores"][row]), hit))
            for t in counted:
                gone = (fixed == "missed" and t in missed) or (fixed == "false_negative" and t not in matched)
                totals[int(truth["labels"][t])] += not gone
        values[fixed] = [average_precision(p, n) if n else math.nan for p, n in zip(points, totals, strict=True)]
    before = values.pop(None)
    # a class that has lost all its truths had found none: it gains nothing
    return {
        name: [0.0 if math.isnan(b) and not math.isnan(a) else b - a for a, b in zip(before, after, strict=True)]
        for name, after in values.items()
    }


@pytest.mark.parametrize(("positive", "background"), [(0.5, 0.1), (0.2, 0.05)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_errors_and_gains_are_those_of_plain_loops(case, positive, background):
    classes = case.get("classes", 3)
    seen = set()
    for seed in range(12):
        predictions, targets = world(**case, seed=seed)
        naive = naive_errors(predictions, targets, positive, background)
        errors = tide_errors(flatten_detections(predictions, targets), classes, positive, background)
        offsets = np.cumsum([0, *(len(t["labels"]) for t in targets)])
        kinds = [
            (TYPES.index(kind[0]), kind[1] + offset if kind[1] is not None else -1, pytest.approx(kind[2], abs=1e-6))
            if kind
            else (-1, -1, 0)
            for rows, offset in zip(naive, offsets, strict=False)
            for kind in rows[0]
        ]
        assert list(zip(errors.kind.tolist(), errors.truth.tolist(), errors.iou.tolist(), strict=True)) == kinds
        missed = [t + offset for rows, offset in zip(naive, offsets, strict=False) for t in sorted(rows[4])]
        assert np.flatnonzero(errors.missed).tolist() == missed
        gains = tide_gains(errors)
        for name, wanted in naive_gains(predictions, targets, naive, classes).items():
            np.testing.assert_allclose(gains[name], wanted, atol=1e-9, err_msg=name)
        seen |= {TYPES[kind] for kind in errors.kind if kind >= 0}
    assert len(seen) == 5 if case.get("most") else len(seen) >= 3  # the worlds hold what is compared


def image(boxes, labels, scores=None, ignore=None):
    return {
        "boxes": boxes,
        "labels": labels,
        **({"scores": scores} if scores else {"ignore": ignore or [0] * len(labels)}),
    }


def errors_of(found, truth, classes=2):
    return tide_errors(flatten_detections([found], [truth]), classes)


A, B, FAR = [0.0, 0, 10, 10], [40.0, 0, 50, 10], [80.0, 80, 90, 90]
THIRD = [0.0, 0, 10, 3]  # IoU 0.3 with A


@pytest.mark.parametrize(
    ("box", "label", "kind", "truth", "overlap"),
    [
        (THIRD, 0, "localisation", 0, 0.3),
        ([0.0, 0, 10, 1], 0, "localisation", 0, 0.1),  # the lower end belongs to it
        (A, 1, "class", 0, 1.0),
        (THIRD, 1, "both", 0, 0.3),
        ([40.0, 0, 50, 9], 1, "duplicate", 1, 0.9),
        (FAR, 0, "background", -1, 0.0),
        ([0.0, 0, 10, 1], 1, "background", -1, 0.1),
    ],
)
def test_a_case_of_each_type(box, label, kind, truth, overlap):
    """Truths A of class 0, which nothing finds, and B of class 1, which the first detection finds."""
    errors = errors_of(image([B, box], [1, label], [0.9, 0.8]), image([A, B], [0, 1]))
    assert TYPES[errors.kind[1]] == kind
    assert (errors.truth[1], errors.iou[1]) == (truth, pytest.approx(overlap))
    assert errors.kind[0] == errors.truth[0] == -1
    assert errors.missed.tolist() == [kind not in ("localisation", "class"), False]


def test_each_fix_worked_out_by_hand():
    """One class, hit at rank 2 of two truths: AP 1/4 by area. What the false positive above it is decides the cure."""
    gains = {}
    for kind, box in {"localisation": THIRD, "background": FAR, "duplicate": B}.items():
        scores = [0.9, 0.8] if kind != "duplicate" else [0.7, 0.8]
        errors = errors_of(image([box, B], [0, 0], scores), image([A, B], [0, 0]), 1)
        assert TYPES[errors.kind[0]] == kind
        gains[kind] = {name: row.item() for name, row in tide_gains(errors, "area").items()}
    assert gains["localisation"]["localisation"] == 0.75
    assert gains["localisation"]["missed"] == 0  # the truth is within reach
    assert gains["localisation"]["false_positive"] == 0.25
    assert gains["localisation"]["false_negative"] == 0.25
    assert gains["background"]["background"] == gains["background"]["missed"] == 0.25
    assert gains["duplicate"]["duplicate"] == 0  # it stands below the hit


def test_a_class_error_counts_in_the_class_of_its_truth():
    errors = errors_of(image([A, B], [1, 1], [0.9, 0.8]), image([A, B], [0, 1]))
    gains = tide_gains(errors, "area")
    assert gains["class"].tolist() == [1.0, 0.5]  # class 0 finds its truth, class 1 loses its false positive
    assert errors.per_class().tolist() == [[0, 0], [0, 1], [0, 0], [0, 0], [0, 0], [0, 0]]


def test_only_the_best_error_of_a_truth_is_corrected():
    errors = errors_of(image([THIRD, A], [0, 1], [0.8, 0.9]), image([A], [0]))
    assert errors.corrected.tolist() == [False, True]
    gains = tide_gains(errors, "area")
    assert (gains["class"][0], gains["localisation"][0]) == (1.0, 0.0)


def test_an_error_about_a_matched_truth_is_removed():
    errors = errors_of(image([THIRD, A], [0, 0], [0.9, 0.8]), image([A], [0]), 1)
    assert TYPES[errors.kind[0]] == "localisation"
    assert not errors.corrected.any()
    assert tide_gains(errors, "area")["localisation"] == 0.5


def test_ignored_truths_make_no_errors():
    found = image([A, THIRD, FAR], [0, 1, 0], [0.9, 0.8, 0.7])
    errors = errors_of(found, image([A, FAR], [0, 1], ignore=[1, 0]))
    assert [TYPES[k] if k >= 0 else None for k in errors.kind] == [None, "background", "class"]
    assert not errors.missed.any()


def test_a_class_without_truths_costs_no_other_class():
    found, truth = image([A, FAR], [0, 1], [0.9, 0.8]), image([A], [0])
    errors = errors_of(found, truth)
    gains = tide_gains(errors)
    assert gains["background"][0] == 0
    assert math.isnan(gains["background"][1])
    assert class_means(average_precisions(errors.matches)).item() == 1


def test_a_class_that_is_missed_altogether_gains_nothing_from_losing_its_truths():
    gains = tide_gains(errors_of(image([FAR], [0], [0.9]), image([A], [0]), 1))
    assert gains["missed"] == gains["false_negative"] == 0


def test_errors_are_counted_by_class_and_by_image():
    predictions, targets = world(images=30, ignored=0.2, most=20)
    errors = tide_errors(flatten_detections(predictions, targets), 3)
    hits = (errors.matches.truth[0] >= 0) & ~errors.matches.ignored[0]
    assert errors.per_class()[:5].sum() == (~hits & ~errors.matches.ignored[0]).sum()
    assert errors.per_class().sum(axis=1).tolist() == errors.per_image().sum(axis=1).tolist()
    kept = errors.found.sum() + errors.missed.sum() + errors.corrected.sum()
    assert kept == errors.matches.truths().sum()  # each truth is found, within reach, or missed
    assert errors.per_image().shape == (6, 30)


def test_the_metric_gives_the_same_over_batches_and_beside_the_scores():
    predictions, targets = world(images=20, ignored=0.2, most=20)
    metric, scores = TIDE(3), DetectionScores(3, (0.5,))
    for rows in (range(10, 20), range(10), range(8, 12)):  # some twice
        batch = [predictions[i] for i in rows], [targets[i] for i in rows], torch.tensor(rows)
        metric.update(*batch)
        scores.update(*batch)
    errors = tide_errors(flatten_detections(predictions, targets), 3)
    values = metric.compute()
    assert values.items() >= scores.compute().items()
    for name, row in tide_gains(errors).items():
        assert values[f"dap_{name}"] == pytest.approx(class_means(row).item())
    for name, row in zip(TYPES, errors.per_class(), strict=True):
        assert values[f"num_{name}"] == row.sum()
        assert metric.per_class()[f"num_{name}"].tolist() == row.tolist()
    assert "TIDE" in metric.convention


def test_nothing_at_all():
    nothing = {"boxes": [], "scores": [], "labels": []}
    errors = tide_errors(flatten_detections([nothing] * 2, [nothing] * 2), 2)
    assert errors.per_image().tolist() == [[0, 0]] * 6
    assert all(np.isnan(row).all() for row in tide_gains(errors).values())
    only_truths = tide_errors(flatten_detections([nothing], [image([A], [0], ignore=[0])]), 2)
    assert only_truths.missed.tolist() == [True]


@pytest.mark.parametrize(("positive", "background"), [(0.5, 0.5), (0.5, 0), (1.0, 0.1), (math.nan, 0.1)])
def test_unsuitable_ious_are_refused(positive, background):
    with pytest.raises(ValueError, match="0 < background < positive < 1"):
        tide_errors(flatten_detections([], []), 1, positive, background)


def test_a_class_out_of_range_is_refused():
    with pytest.raises(ValueError, match="prediction has label 2, but num_classes is 2"):
        tide_errors(flatten_detections([image([A], [2], [0.5])], [image([], [], ignore=[])]), 2)
