import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from lightning_modules.metrics.ap_from_histogram import (
    expected_precision_sums,
    precision_at,
    precision_recall_curve,
    precision_within,
    random_average_precision,
    recall_at,
)
from lightning_modules.metrics.intervals import bootstrap_interval


def naive_sum(ranked, k):
    hits, total = 0, 0.0
    for rank, relevant in enumerate(ranked[:k], start=1):
        if relevant:
            hits += 1
            total += hits / rank
    return total, hits


def orders(buckets):
    """Every order of the items that keeps the buckets in place."""
    items = [[0] * irrelevant + [1] * relevant for irrelevant, relevant in buckets]
    return [sum(parts, ()) for parts in itertools.product(*(itertools.permutations(bucket) for bucket in items))]


def histogram(buckets):
    return torch.tensor(buckets).T[None]  # (1, 2, D)


BUCKETS = [
    [(1, 1)],
    [(0, 3)],
    [(2, 0), (0, 0), (1, 2)],
    [(0, 1), (2, 1), (1, 1), (1, 0)],
    [(3, 2), (1, 1)],
    [(1, 0), (3, 2), (0, 1)],
    [(2, 0), (1, 0)],
]


@pytest.mark.parametrize("buckets", BUCKETS)
@pytest.mark.parametrize("top_k", [None, 1, 2, 3, 4, 5, 50])
def test_expected_values_equal_the_mean_over_all_orders(buckets, top_k):
    every = orders(buckets)
    n, relevant = len(every[0]), sum(every[0])
    sums = np.mean([naive_sum(order, top_k)[0] for order in every])
    assert expected_precision_sums(histogram(buckets), top_k).item() == pytest.approx(sums, abs=1e-12)
    if top_k is not None:
        found = np.mean([sum(order[:top_k]) for order in every])
        assert precision_at(histogram(buckets), top_k).item() == pytest.approx(found / min(top_k, n), abs=1e-12)
        if relevant:
            assert recall_at(histogram(buckets), top_k).item() == pytest.approx(found / relevant, abs=1e-12)


def test_large_ties_equal_a_monte_carlo_mean():
    rng = np.random.default_rng(0)
    buckets = rng.integers(0, 12, (9, 2))
    draws = np.empty((4000, 2))
    for draw in draws:
        order = np.concatenate([rng.permutation([0] * int(a) + [1] * int(b)) for a, b in buckets])
        draw[:] = naive_sum(order, None)[0], naive_sum(order, 20)[0]
    error = 4 * draws.std(axis=0) / np.sqrt(len(draws))
    for column, top_k in enumerate((None, 20)):
        value = expected_precision_sums(histogram(buckets.tolist()), top_k).item()
        assert abs(value - draws[:, column].mean()) < error[column]


def test_nothing_is_lost_in_a_large_bucket():
    # one relevant item anywhere among n: the mean of 1/rank is H_n / n
    n = 200_000
    value = expected_precision_sums(torch.tensor([[[n - 1], [1]]])).item()
    assert value == pytest.approx(math.fsum(1 / rank for rank in range(1, n + 1)) / n, rel=1e-12)


@pytest.mark.parametrize("relevant", [0, 1, 3, 6])
@pytest.mark.parametrize("top_k", [None, 1, 2, 4, 6, 9])
@pytest.mark.parametrize("divisor", ["relevant_in_top_k", "min_k_relevant", "relevant"])
@pytest.mark.parametrize("empty", ["zero", "skip"])
def test_the_random_floor_equals_the_mean_over_all_rankings(relevant, top_k, divisor, empty):
    values = []
    for chosen in itertools.combinations(range(6), relevant):
        total, found = naive_sum([rank in chosen for rank in range(6)], top_k)
        k = 6 if top_k is None else top_k
        below = {"relevant_in_top_k": found, "min_k_relevant": min(k, relevant), "relevant": relevant}[divisor]
        if below or empty == "zero":
            values.append(total / below if below else 0.0)
    value = random_average_precision(torch.tensor([relevant]), 6, top_k, divisor, empty).item()
    assert value == pytest.approx(np.mean(values) if values else float("nan"), abs=1e-12, nan_ok=True)


def test_the_random_floor_holds_for_a_large_database():
    # 1 of 10 relevant: a random mAP is a little above the prevalence
    assert random_average_precision(torch.tensor([10_000]), 100_000).item() == pytest.approx(0.1, abs=1e-3)
    assert 0.1 < random_average_precision(torch.tensor([10_000]), 100_000, 50).item() < 0.25


@pytest.mark.parametrize(("n", "k", "relevant"), [(9, 4, 6), (12, 5, 1), (200, 50, 3), (10**6, 50, 1), (10**6, 50, 7)])
def test_the_random_floor_has_all_its_digits(n, k, relevant):
    # j relevant among the first k: hypergeometric; given j, the mean precision at them is a ratio of harmonic numbers
    harmonic = sum(Fraction(1, rank) for rank in range(1, k + 1))
    chances = {
        j: Fraction(math.comb(relevant, j) * math.comb(n - relevant, k - j), math.comb(n, k))
        for j in range(1, min(k, relevant) + 1)
    }
    values = {j: (harmonic + Fraction(j - 1, k - 1) * (k - harmonic)) / k for j in chances}
    exact = sum(chance * values[j] for j, chance in chances.items())
    value = random_average_precision(torch.tensor([relevant]), n, k)
    assert value.item() == pytest.approx(float(exact), rel=1e-12)
    counted = random_average_precision(torch.tensor([relevant]), n, k, empty="skip")
    assert counted.item() == pytest.approx(float(exact / sum(chances.values())), rel=1e-12)


def test_a_ball_without_items_counts_zero():
    counts = torch.tensor([[[0, 0, 1, 4], [0, 0, 3, 2]], [[0, 0, 0, 9], [0, 0, 0, 1]]])
    assert precision_within(counts, 2).tolist() == [0.75, 0.0]


def test_the_curve_equals_a_loop():
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 4, (6, 2, 9))
    counts[2, :, :4] = 0  # nothing near
    counts[4, 1] = 0  # nothing relevant
    counts[:, :, 0] = 0  # a radius that no query finds anything in
    curve = precision_recall_curve(torch.from_numpy(counts))
    for radius in range(9):
        inside = counts[:, :, : radius + 1].sum(axis=2)
        precisions = [hit / (miss + hit) for miss, hit in inside if miss + hit]
        recalls = [inside[q, 1] / counts[q, 1].sum() for q in range(6) if counts[q, 1].sum()]
        assert curve.radius[radius] == radius
        assert curve.precision[radius].item() == pytest.approx(np.mean(precisions) if precisions else 0.0)
        assert curve.recall[radius].item() == pytest.approx(np.mean(recalls))
        assert curve.answered[radius].item() == pytest.approx(len(precisions) / 6)


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        low, high = bootstrap_interval(torch.from_numpy(rng.beta(2, 5, 80)), samples=300, seed=seed)
        hits += bool(low <= 2 / 7 <= high)
    assert 180 <= hits <= 199  # 95 % of 200, give or take


def test_the_interval_is_seeded_and_ignores_skipped_items():
    values = torch.rand(50)
    padded = torch.cat([torch.full((3,), torch.nan), values])
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(padded, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    assert all(end.isnan() for end in bootstrap_interval(torch.tensor([0.5, torch.nan])))
    with pytest.raises(ValueError, match="No value counts"):
        bootstrap_interval(torch.full((3,), torch.nan))
    with pytest.raises(ValueError, match="confidence is 95"):
        bootstrap_interval(values, confidence=95)
