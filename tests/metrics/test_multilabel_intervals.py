"""Bootstrap intervals of average precision against redraws that are carried out; Student's interval by its table."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from lightning_modules.metrics import (
    average_precision,
    average_precision_intervals,
    macro_interval,
    paired_difference,
    t_interval,
)
from lightning_modules.metrics import multilabel_intervals as module


def make(n=60, classes=4, levels=None, seed=0, signal=2.0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, classes, generator=torch.Generator().manual_seed(0)) < torch.linspace(0.05, 0.5, classes)
    labels[:, 0] = False
    probabilities = torch.sigmoid(torch.randn(n, classes, generator=g) + signal * labels - 1)
    return ((probabilities * levels).round() / levels if levels else probabilities), labels.int()


def redraws(p, y, samples, seed):
    """(samples, C) average precision of really drawn items, centred on that of all; NaN without positives."""
    rng = np.random.default_rng(seed)
    values = np.full((samples, y.shape[1]), np.nan)
    for sample in range(samples):
        rows = rng.integers(0, len(y), len(y), dtype=np.int32)
        for column in range(y.shape[1]):
            if y[rows, column].any():
                values[sample, column] = average_precision_score(y[rows, column], p[rows, column])
    present = np.flatnonzero(y.any(axis=0))
    for column in present:
        values[:, column] += average_precision_score(y[:, column], p[:, column]) - np.nanmean(values[:, column])
    return values


@pytest.mark.parametrize("levels", [None, 6])
@pytest.mark.parametrize("at_once", [100, 2**22])  # redraws one by one, or all together
def test_intervals_are_those_of_real_redraws(levels, at_once, monkeypatch):
    monkeypatch.setattr(module, "DRAWS_AT_ONCE", at_once)
    probabilities, labels = make(levels=levels)
    other, _ = make(levels=levels, seed=1, signal=1.0)
    values, others = (redraws(p.double().numpy(), labels.numpy(), 40, seed=3) for p in (probabilities, other))
    low, high = average_precision_intervals(probabilities, labels, confidence=0.9, samples=40, seed=3)
    wanted = np.nanquantile(values[:, 1:], [0.05, 0.95], axis=0).clip(0, 1)
    assert low.dtype == high.dtype == torch.float64
    np.testing.assert_allclose(torch.stack([low, high])[:, 1:], wanted, atol=1e-6)
    assert low[0].isnan()
    assert high[0].isnan()

    means, other_means = (np.nanmean(found[:, 1:], axis=1) for found in (values, others))
    value, *ends = macro_interval(probabilities, labels, confidence=0.9, samples=40, seed=3)
    assert value == pytest.approx(average_precision(probabilities, labels)[1:].mean().item())
    assert ends == pytest.approx(np.quantile(means, [0.05, 0.95]).tolist(), abs=1e-6)
    difference, *ends = paired_difference(probabilities, other, labels, samples=40, confidence=0.9, seed=3)
    assert difference == pytest.approx(value - average_precision(other, labels)[1:].mean().item())
    assert ends == pytest.approx(np.quantile(means - other_means, [0.05, 0.95]).tolist(), abs=1e-6)


def test_macro_interval_holds_its_value_with_classes_of_one_positive():
    """A positive drawn twice stands above itself: without centring both ends lie above the value."""
    g = torch.Generator().manual_seed(0)
    probabilities, labels = torch.rand(80, 60, generator=g), torch.zeros(80, 60, dtype=torch.int64)
    labels[torch.arange(60), torch.arange(60)] = 1
    value, low, high = macro_interval(probabilities, labels)
    assert low < value < high
    difference, low, high = paired_difference(probabilities, probabilities.flip(0), labels)
    assert low < difference < high


def test_macro_interval_stays_between_0_and_1():
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 1, 0, 0, 0])[:, None]  # redraws are shifted upwards here
    value, _, high = macro_interval(torch.linspace(0.9, 0.1, 10)[:, None], labels)
    assert value < high == 1


def test_a_redraw_without_positives_does_not_count():
    scores, labels = torch.linspace(0.1, 0.9, 12)[:, None], torch.zeros(12, 1)
    labels[4] = 1
    low, high = average_precision_intervals(scores, labels)
    assert 0 < low < average_precision(scores, labels) < high <= 1


def test_intervals_repeat_and_tighten():
    probabilities, labels = make(n=400)
    first = average_precision_intervals(probabilities, labels, seed=1)
    assert torch.equal(
        torch.stack(first)[:, 1:], torch.stack(average_precision_intervals(probabilities, labels, seed=1))[:, 1:]
    )
    narrow = average_precision_intervals(probabilities, labels, confidence=0.5, seed=1)
    assert (narrow[1] - narrow[0] < first[1] - first[0])[1:].all()


def test_a_model_does_not_differ_from_itself():
    probabilities, labels = make(n=200)
    assert paired_difference(probabilities, probabilities, labels, samples=50) == (0, 0, 0)
    better, low, high = paired_difference(*(make(n=200, signal=s)[0] for s in (3.0, 0.5)), labels, samples=200)
    assert 0 < low < better < high


def test_without_positives_nothing_is_known():
    labels = torch.zeros(5, 2)
    assert all(end.isnan().all() for end in average_precision_intervals(torch.rand(5, 2), labels, samples=3))
    assert all(math.isnan(value) for value in macro_interval(torch.rand(5, 2), labels, samples=3))
    assert all(math.isnan(value) for value in paired_difference(torch.rand(5, 2), torch.rand(5, 2), labels, samples=3))


@pytest.mark.parametrize(
    ("arguments", "message"), [({"confidence": 95}, "confidence is 95"), ({"samples": 0}, "samples")]
)
def test_unsuitable_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        average_precision_intervals(*make(), **arguments)
    with pytest.raises(ValueError, match="both must be"):
        paired_difference(torch.rand(60, 4), torch.rand(59, 4), make()[1])


def test_student_interval():
    mean, deviation, low, high = t_interval([1.0, 2.0, 3.0, 4.0])
    assert (mean, deviation) == (2.5, pytest.approx(math.sqrt(5 / 3)))
    half = 3.182446305 * deviation / 2  # t of 3 degrees of freedom at 0.975, from the table
    assert (low, high) == (pytest.approx(mean - half), pytest.approx(mean + half))
    assert t_interval([0.25, 0.25])[1:] == (0, 0.25, 0.25)
    one = t_interval([0.5])
    assert one[0] == 0.5
    assert all(math.isnan(value) for value in one[1:])
    with pytest.raises(ValueError, match="no value"):
        t_interval([])
    with pytest.raises(ValueError, match="confidence"):
        t_interval([1, 2], confidence=1)
