"""The error tables against loops over items and classes."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from lightning_modules.metrics import (
    average_precision_intervals,
    class_table,
    confused_with,
    cooccurrence_confusion,
    misses_by_area,
    worst_items,
)
from lightning_modules.metrics import multilabel_errors as module


def make(n=150, classes=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, classes, generator=g) < torch.linspace(0.05, 0.5, classes)
    labels[:, 0], labels[:5] = False, False
    probabilities = torch.sigmoid(torch.randn(n, classes, generator=g) + 2 * labels - 1)
    return (probabilities * 20).round() / 20, labels.int()


def test_the_table_of_classes():
    probabilities, labels = make()
    thresholds = torch.tensor([0.5, 0.9, 1.0, 0.5, 0.4, 0.3])
    labels[:, 2] = (torch.arange(150) == 7).int()
    probabilities[:, 2] = probabilities[:, 2].clamp(max=0.9)  # never predicted
    rows = class_table(probabilities, labels, thresholds, list("abcdef"))
    low, high = average_precision_intervals(probabilities, labels)
    assert [row["name"] for row in rows] == list("abcdef")
    assert rows[0]["support"] == 0
    assert all(math.isnan(rows[0][key]) for key in ("ap", "ap_low", "ap_high", "precision", "recall", "f1"))
    assert (rows[2]["support"], rows[2]["precision"], rows[2]["recall"], rows[2]["f1"]) == (1, 0, 0, 0)
    for i, row in enumerate(rows[1:], 1):
        y, p = labels[:, i].numpy(), probabilities[:, i].numpy()
        hard = p >= thresholds[i].item()
        assert row["support"] == y.sum()
        wanted = {
            "ap": sk.average_precision_score(y, p),
            "precision": sk.precision_score(y, hard, zero_division=0),
            "recall": sk.recall_score(y, hard),
            "f1": sk.f1_score(y, hard),
        }
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
        assert (row["ap_low"], row["ap_high"]) == (low[i].item(), high[i].item())
    with pytest.raises(ValueError, match="5 class names for 6 classes"):
        class_table(probabilities, labels, 0.5, list("abcde"))


def naive_confused(predicted, true):
    classes = true.shape[1]
    mass = np.zeros((classes, classes))
    for p, y in zip(predicted, true, strict=True):
        missed = [j for j in range(classes) if y[j] and not p[j]] or [j for j in range(classes) if y[j]]
        for i in range(classes):
            for j in missed if p[i] and not y[i] else []:
                mass[i, j] += 1 / len(missed)
    return np.array([row / row.sum() if row.sum() else row for row in mass])


def naive_cooccurrence(predicted, true):
    classes = true.shape[1]
    ratio = np.full((classes, classes), np.nan)
    for i in range(classes):
        absent = ~true[:, i]
        for j in range(classes):
            among = absent & true[:, j]
            if among.sum() >= 10 and predicted[absent, i].any():
                ratio[i, j] = predicted[among, i].mean() / predicted[absent, i].mean()
    return ratio


@pytest.mark.parametrize("rows_at_once", [7, 2**14])
def test_confusions_are_those_of_a_loop(rows_at_once, monkeypatch):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", rows_at_once)
    probabilities, labels = make()
    predictions = probabilities > 0.5
    predictions[:, 3] &= labels[:, 3].bool()  # no false positive of class 3
    arrays = predictions.numpy(), labels.bool().numpy()
    found = confused_with(predictions, labels)
    np.testing.assert_allclose(found, naive_confused(*arrays), atol=1e-12)
    assert found.diagonal().eq(0).all()
    assert found[3].eq(0).all()
    assert found[4].sum().item() == pytest.approx(1)
    ratio = cooccurrence_confusion(predictions, labels)
    np.testing.assert_allclose(ratio, naive_cooccurrence(*arrays), atol=1e-12)
    assert ratio.diagonal().isnan().all()
    assert ratio[3].isnan().all()
    assert ratio[:, 0].isnan().all()  # class 0 never occurs


def test_company_that_draws_false_alarms_stands_out():
    labels, predictions = torch.zeros(400, 2), torch.zeros(400, 2)
    labels[:200, 1] = 1  # class 0 is nowhere, class 1 in half of the items
    predictions[:30, 0] = 1  # 30 false alarms with class 1, 10 without
    predictions[200:210, 0] = 1
    assert cooccurrence_confusion(predictions, labels)[0, 1].item() == pytest.approx((30 / 200) / (40 / 400))


def test_misses_by_area():
    _, labels = make()
    g = torch.Generator().manual_seed(1)
    predictions = torch.rand(labels.shape, generator=g) < 0.6
    areas = torch.rand(labels.shape, generator=g)
    areas[3::7] = math.nan
    areas[labels == 0] = math.nan
    areas[20, 5], areas[21, 5], areas[22, 5] = 0.25, 1.0, 0.0  # on the ends of the bins
    labels[20:23, 5] = 1
    edges = [0.0, 0.25, 0.5, 1.0]
    rows = misses_by_area(predictions, labels, areas, edges)
    for number, row in enumerate(rows):
        low, high = edges[number], edges[number + 1]
        inside = labels.bool() & (areas >= low) & ((areas < high) | ((high == 1) & (areas == 1)))
        assert (row["low"], row["high"], row["objects"]) == (low, high, inside.sum().item())
        assert row["missed"] == (inside & ~predictions).sum().item()
        assert row["rate"] == row["missed"] / row["objects"]
    assert sum(row["objects"] for row in rows) == (labels.bool() & ~areas.isnan()).sum().item()
    assert math.isnan(misses_by_area(predictions, labels, areas, [2, 3])[0]["rate"])
    assert misses_by_area(predictions, labels, areas, [0.25, 0.5])[0]["objects"] == rows[1]["objects"]
    for bad in ([0.5], [0.5, 0.1], [0, math.nan, 1]):
        with pytest.raises(ValueError, match="increasing"):
            misses_by_area(predictions, labels, areas, bad)
    with pytest.raises(ValueError, match="areas are"):
        misses_by_area(predictions, labels, areas[:, :2], edges)


def test_the_worst_items():
    probabilities, labels = make()
    probabilities[9] = torch.tensor([1.0, 0, 0, 0, 0, 0])  # a certain error: the entropy stays finite
    keys = []
    for row, (p, y) in enumerate(zip(probabilities.double().numpy(), labels.numpy(), strict=True)):
        if y.any():
            lrap = sk.label_ranking_average_precision_score(y[None], p[None])
            entropy = -np.mean(np.maximum(np.log(np.where(y, p, 1 - p).clip(1e-300)), -100))
            keys.append((round(lrap, 9), -entropy, row))
    wanted = [row for *_, row in sorted(keys)]
    assert worst_items(probabilities, labels, 12).tolist() == wanted[:12]
    assert len(worst_items(probabilities, labels, 1000)) == len(wanted) < 150
    with pytest.raises(ValueError, match="count is 0"):
        worst_items(probabilities, labels, 0)


def test_unsuitable_decisions_are_refused():
    for function in (confused_with, cooccurrence_confusion):
        with pytest.raises(ValueError, match="both must be"):
            function(torch.ones(3, 2), torch.ones(3, 3))
        with pytest.raises(ValueError, match="predictions must hold only 0 and 1"):
            function(torch.full((3, 2), 0.5), torch.ones(3, 2))
