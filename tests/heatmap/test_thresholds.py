import math

import numpy as np
import pytest
import torch

from lightning_modules.heatmap.thresholds import (
    RULES,
    fit_class_thresholds,
    fixed,
    map_thresholds,
    mean_sd,
    otsu,
    quantile,
    relative,
    top_k,
)
from lightning_modules.metrics import fit_thresholds

VALUES = {"quantile": 62.5, "relative": 40, "top_k": 17, "otsu": None, "mean_sd": 0.7}


def whole_numbers(*shape, seed=0, high=1000):
    """Maps on which a factor and a constant of whole numbers are exact in float32."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, high, shape).astype(np.float32))


def mask(maps, rule, value=None):
    return maps >= map_thresholds(maps, rule, value)[..., None, None]


@pytest.mark.parametrize("percent", [0, 7, 12.5, 30, 50, 75, 99.9, 100])
@pytest.mark.parametrize("shape", [(3, 2, 5, 8), (4, 1, 101), (28, 28)])
def test_quantile_is_numpys(percent, shape):
    maps = torch.randn(shape)
    wanted = np.percentile(maps.double().numpy(), percent, axis=(-2, -1))
    found = quantile(maps, percent)
    assert found.shape == maps.shape[:-2]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)


@pytest.mark.parametrize("rule", list(VALUES))
def test_rules_against_naive_float64(rule):
    maps = torch.randn(6, 11, 9)
    for found, row in zip(map_thresholds(maps, rule, VALUES[rule]).tolist(), maps.flatten(1).tolist(), strict=True):
        ordered = sorted(row)
        mean = sum(row) / len(row)
        variance = sum((x - mean) ** 2 for x in row) / len(row)
        wanted = {
            "quantile": ordered[61] + 0.25 * (ordered[62] - ordered[61]),  # 0.625 * 98 = 61.25
            "relative": ordered[0] + 0.4 * (ordered[-1] - ordered[0]),
            "top_k": ordered[-17],
            "otsu": naive_otsu(row),
            "mean_sd": mean + 0.7 * math.sqrt(variance),
        }[rule]
        assert found == pytest.approx(wanted, rel=1e-12)


def naive_otsu(row):
    """The within-class variance, which is smallest where the one between the classes is largest."""
    low, high = min(row), max(row)
    bins = [min(int((x - low) / (high - low) * 256), 255) for x in row]
    best, where = math.inf, None
    for split in range(1, 256):
        within = 0.0
        for part in ([b for b in bins if b < split], [b for b in bins if b >= split]):
            centre = sum(part) / len(part)
            within += sum((b - centre) ** 2 for b in part)
        if within < best * (1 - 1e-12):
            best, where = within, split
    return min(x for x, b in zip(row, bins, strict=True) if b >= where)


def test_otsu_separates_two_heaps():
    heaps = torch.cat([torch.randn(300), 12 + torch.randn(100)]).view(1, 20, 20)
    assert (heaps >= otsu(heaps)).sum() == 100


@pytest.mark.parametrize("rule", list(VALUES))
@pytest.mark.parametrize(("factor", "constant"), [(1, 5), (3, 0), (7, -400)])
def test_masks_do_not_see_a_positive_factor_and_a_constant(rule, factor, constant):
    maps = whole_numbers(40, 14, 14)
    assert torch.equal(mask(maps, rule, VALUES[rule]), mask(factor * maps + constant, rule, VALUES[rule]))


def test_masks_are_the_same_before_and_after_min_max():
    maps = torch.randn(40, 14, 14)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    stretched = (maps - low) / (high - low)
    for percent in (25, 30, 50, 75):
        assert torch.equal(mask(maps, "quantile", percent), mask(stretched, "quantile", percent))


@pytest.mark.parametrize("percent", [1, 25, 30, 50, 75, 99])
def test_top_k_is_the_quantile_by_another_name(percent):
    maps = torch.randn(30, 16, 16)
    inside = mask(maps, "quantile", percent)
    k = 256 - math.ceil(percent * 255 / 100)
    assert (inside.sum((1, 2)) == k).all()
    assert torch.equal(inside, mask(maps, "top_k", k))


@pytest.mark.parametrize("percent", [1, 25, 30, 50, 75, 99])
def test_the_inverted_map_is_the_complement(percent):
    order = np.random.default_rng(0).permuted(np.tile(np.arange(256.0), (30, 1)), axis=1)  # no ties
    maps = torch.from_numpy(order).float().view(30, 16, 16)
    assert torch.equal(mask(-maps, "quantile", percent), ~mask(maps, "quantile", 100 - percent))


def test_relative_is_not_the_quantile():
    maps = torch.nn.functional.interpolate(torch.randn(1, 50, 14, 14), size=(224, 224), mode="bilinear")[0]
    share = [mask(maps, rule, 75).float().mean().item() for rule in ("quantile", "relative")]
    assert share[0] == pytest.approx(0.25, abs=1e-3)
    assert share[1] < 0.1


def test_a_threshold_between_two_neighbours_of_float32_tells_them_apart():
    low = torch.tensor(0.1)
    maps = torch.stack([low, low.nextafter(torch.tensor(1.0))]).view(1, 1, 2).repeat(1, 1, 50)
    maps[..., -1] = 0.2
    assert mask(maps, "quantile", 49.7).sum() == 50  # place 49.2: between the 50 lower pixels and the 50 others
    assert quantile(maps, 49.7).float() == low  # rounded, it would let all in


@pytest.mark.parametrize("rule", RULES)
def test_a_constant_map_shows_nothing(rule):
    maps = torch.full((2, 3, 4, 5), 0.1)
    maps[1, 2, 0, 0] = 0.2
    found = map_thresholds(maps, rule, VALUES.get(rule), torch.zeros(3))
    assert found.isfinite().tolist() == [[False] * 3, [False, False, True]]
    assert (found[0] == math.inf).all()


def test_a_constant_map_up_to_rounding_shows_nothing():
    weight = torch.rand(50, 50)
    nearly = weight * 0.1 + (1 - weight) * 0.1
    assert nearly.min() < nearly.max()
    assert quantile(nearly, 75) == math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_keep_their_values(dtype):
    maps = torch.randn(3, 8, 8, dtype=torch.float64).to(dtype)
    assert torch.equal(top_k(maps, 5), maps.double().flatten(1).topk(5).values[:, -1])


def test_fixed_takes_the_thresholds_of_the_classes():
    maps = torch.randn(2, 3, 4, 4)
    assert fixed(maps, torch.tensor([0.25, math.inf, -1])).tolist() == [[0.25, math.inf, -1]] * 2


def test_fitted_thresholds_have_the_best_f1():
    rng = np.random.default_rng(1)
    inside = rng.random((400, 4)) < [0.3, 0.05, 0.5, 0.0]
    scores = (rng.normal(size=(400, 4)) + 1.5 * inside).round(1).astype(np.float32)  # rounded: ties
    found = fit_class_thresholds(torch.from_numpy(scores), torch.from_numpy(inside))
    assert found[3] == math.inf
    for column in range(3):
        s, y = scores[:, column], inside[:, column]
        f1 = {float(t): 2 * (y & (s >= t)).sum() / (y.sum() + (s >= t).sum()) for t in np.unique(s)}
        assert found[column] == max(t for t in f1 if f1[t] == max(f1.values()))


def test_fitted_thresholds_agree_with_those_of_probabilities():
    scores, inside = torch.rand(300, 5), torch.rand(300, 5) < 0.4
    assert torch.equal(fit_class_thresholds(scores, inside), fit_thresholds(scores, inside).double())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: map_thresholds(m, "percentile", 3), "choose one of quantile"),
        (lambda m: map_thresholds(m, "quantile"), "quantile needs a value"),
        (lambda m: map_thresholds(m, "fixed"), "fit them on the training split"),
        (lambda m: quantile(m, 101), "101 percent"),
        (lambda m: relative(m, -1), "-1 percent"),
        (lambda m: quantile(m, math.nan), "nan percent"),
        (lambda m: top_k(m, 0), "1 to 12"),
        (lambda m: top_k(m, 13), "1 to 12"),
        (lambda m: top_k(m, 2.5), "whole number"),
        (lambda m: fixed(m, torch.zeros(3)), "one number a class"),
        (lambda m: fixed(m, torch.tensor([0, math.nan])), "none of them NaN"),
        (lambda m: mean_sd(m / 0, 1), "NaN or infinite"),
        (lambda m: otsu(torch.where(m > 0.5, math.nan, m)), "NaN or infinite"),
        (lambda m: otsu(m[..., :0]), "at least one pixel"),
        (lambda m: fit_class_thresholds(m[0], m[0]), "inside bool"),
        (lambda m: fit_class_thresholds(m[0], m[0, :2] > 0), "both must be"),
        (lambda m: fit_class_thresholds(m[0] / 0, m[0] > 0), "embeddings of the training images"),
    ],
)
def test_wrong_arguments_name_the_cure(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.arange(24.0).view(2, 3, 4))
