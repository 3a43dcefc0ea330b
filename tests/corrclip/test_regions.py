"""Regions against loops over masks, ids and patches, and against scikit-learn's DBSCAN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from lightning_modules.corrclip.regions import (
    check_ids,
    cluster_roots,
    merge_regions,
    region_labels,
    region_means,
    region_ranks,
)


def dbscan(similarity: np.ndarray, eps: float) -> np.ndarray:
    import sklearn
    from sklearn.cluster import DBSCAN

    distance = np.clip(similarity.max() - similarity, 0, None)
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        return DBSCAN(eps=eps, min_samples=1, metric="precomputed").fit(distance).labels_


def merged_region_by_region(features: np.ndarray, labels: np.ndarray, eps: float) -> np.ndarray:
    """One image (N, C), (N,): the ids after merging, 0 for the smallest."""
    ids = sorted(set(labels.tolist()))
    found = np.zeros_like(labels)
    if len(ids) == 2:
        found[labels == ids[1]] = 1
    if len(ids) > 2:
        means = np.stack([features[labels == each].mean(0) for each in ids[1:]])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        for each, cluster in zip(ids[1:], dbscan(means @ means.T, eps), strict=True):
            found[labels == each] = cluster + 1
    return found


@pytest.mark.parametrize(("size", "grid"), [((6, 8), (3, 4)), ((7, 5), (3, 2)), ((2, 3), (5, 6)), ((1, 1), (2, 2))])
def test_labels_are_the_nearest_pixels(size, grid) -> None:
    mask = torch.randint(0, 65536, (2, *size), generator=torch.Generator().manual_seed(0))
    found = region_labels(mask, grid).view(2, *grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            pixel = mask[:, row * size[0] // grid[0], column * size[1] // grid[1]]
            assert torch.equal(found[:, row, column], pixel)


def test_ranks_are_the_positions_among_the_ids() -> None:
    ids = torch.randint(0, 30, (5, 20), generator=torch.Generator().manual_seed(1)) * 2184 + 3
    ids[0, 0] = 65535
    naive = [[sorted(set(row)).index(each) for each in row] for row in ids.tolist()]
    assert region_ranks(ids).tolist() == naive
    assert region_ranks(ids.int()).tolist() == naive


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_means_of_regions(dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(3, 40, 5, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, 4, (3, 40), generator=generator)
    found = region_means(features, labels, 6)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not found[:, 4:].any()
    for image in range(3):
        for region in range(4):
            rows = [features[image, n].double() for n in range(40) if labels[image, n] == region]
            torch.testing.assert_close(found[image, region].double(), sum(rows) / len(rows), rtol=1e-5, atol=1e-6)


def test_merging_is_dbscan_in_a_thousand_cases() -> None:
    generator = np.random.default_rng(4)
    merged = 0
    for _ in range(1000):
        regions, patches = int(generator.integers(1, 13)), int(generator.integers(12, 40))
        directions = generator.normal(size=(int(generator.integers(1, 5)), 6))
        labels = generator.choice(65536, regions, replace=False)[generator.integers(0, regions, patches)]
        features = directions[labels % len(directions)] + generator.random() * generator.normal(size=(patches, 6))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        eps = float(generator.choice([0.01, 0.05, 0.2, 0.5]))
        naive = merged_region_by_region(features, labels, eps)
        found = merge_regions(torch.from_numpy(features)[None], torch.from_numpy(labels)[None], eps)
        np.testing.assert_array_equal(found[0].numpy(), naive)
        merged += naive.max() < len(set(labels.tolist())) - 1
    assert 300 < merged < 950


def test_clusters_of_any_min_samples_are_those_of_dbscan() -> None:
    from sklearn.cluster import DBSCAN

    generator = np.random.default_rng(5)
    for case in range(300):
        size, min_samples = int(generator.integers(1, 25)), 1 + case % 4
        near = generator.random((size, size)) < generator.choice([0.02, 0.06, 0.15])
        near = near | near.T | np.eye(size, dtype=bool)
        naive = DBSCAN(eps=0.5, min_samples=min_samples, metric="precomputed").fit(1.0 - near).labels_
        roots = cluster_roots(torch.from_numpy(near)[None], min_samples)[0].numpy()
        core = near.sum(1) >= min_samples
        firsts = sorted(set(roots[core].tolist()))
        found = [firsts.index(root) if core[root] else -1 for root in roots]
        assert found == naive.tolist()
        assert [root for root, label in zip(roots, naive, strict=True) if label == -1] == np.flatnonzero(
            naive == -1
        ).tolist()


def test_a_long_chain_is_one_cluster() -> None:
    for size in (2, 3, 64, 65, 100):
        near = torch.eye(size, dtype=torch.bool)
        near[range(1, size), range(size - 1)] = True
        assert not cluster_roots((near | near.T)[None]).any()


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    generator = torch.Generator().manual_seed(6)
    features = normalize(torch.randn(4, 60, 8, generator=generator), dim=-1)
    labels = torch.randint(0, 20, (4, 60), generator=generator) * torch.tensor([[0], [1], [30], [400]])
    labels[1] %= 2
    for eps, min_samples in ((0.2, 1), (0.6, 1), (0.6, 3), (None, 1)):
        together = merge_regions(features, labels, eps, min_samples)
        for image in range(4):
            alone = merge_regions(features[image : image + 1], labels[image : image + 1], eps, min_samples)
            assert torch.equal(together[image : image + 1], alone)
    assert merge_regions(features, labels, 0.6)[2].max() < merge_regions(features, labels, None)[2].max()
    assert torch.equal(merge_regions(features, labels, None), region_ranks(labels))


def test_autocast_does_not_round_what_merging_compares() -> None:
    generator = torch.Generator().manual_seed(7)
    features = normalize(1 + 0.3 * torch.randn(1, 60, 8, generator=generator), dim=-1)
    labels = torch.arange(60)[None]
    exact = [merge_regions(features, labels, eps) for eps in (0.01, 0.02, 0.03)]
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, exact, [merge_regions(features, labels, eps) for eps in (0.01, 0.02, 0.03)]))


def test_regions_without_enough_neighbours_stay_alone() -> None:
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    labels = torch.tensor([[0, 1, 2, 3]])
    assert merge_regions(features, labels, 0.2, min_samples=2).tolist() == [[0, 1, 1, 2]]
    assert merge_regions(features, labels, 0.2, min_samples=3).tolist() == [[0, 1, 2, 3]]


def test_merging_refuses_what_does_not_fit() -> None:
    features, labels = torch.ones(1, 4, 2), torch.zeros(1, 4).long()
    with pytest.raises(ValueError, match="eps is -1"):
        merge_regions(features, labels, -1)
    with pytest.raises(ValueError, match="min_samples 0"):
        merge_regions(features, labels, min_samples=0)
    with pytest.raises(ValueError, match=r"labels have shape \(1, 4\), features \(1, 5, 2\)"):
        merge_regions(torch.ones(1, 5, 2), labels)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(1, 4, 5).int(), r"shape \(1, 4, 5\), but .* \(1, 4, 4\).*nearest"),
        (torch.zeros(4, 4).int(), r"shape \(4, 4\)"),
        (torch.zeros(1, 4, 4), "float32.*integers"),
        (torch.zeros(1, 4, 4).bool(), "bool.*integers"),
        (torch.arange(-1, 15).view(1, 4, 4), "ids from -1 to 14"),
        (torch.full((1, 4, 4), 65536), "ids from 65536 to 65536.*65535"),
    ],
)
def test_an_id_map_that_is_none(mask, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_ids(mask, (1, 4, 4))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64])
def test_id_maps_of_any_integers(dtype) -> None:
    mask = torch.tensor([[[0, 3], [255, 0]]]).to(dtype)
    check_ids(mask, (1, 2, 2))
    assert region_labels(mask, (2, 2)).tolist() == [[0, 3, 255, 0]]
