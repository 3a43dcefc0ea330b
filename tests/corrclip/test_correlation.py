"""Scope and softmax against loops over pairs of patches, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_modules.corrclip import correlation as module
from lightning_modules.corrclip.correlation import correlation, interaction_matrix


def pair_by_pair(similarity: torch.Tensor, labels: torch.Tensor, unsegmented: str) -> list[list[bool]]:
    """One image: (N, N), (N,)."""
    ids, scores = labels.tolist(), similarity.tolist()
    bare, mean = min(ids), math.fsum(map(math.fsum, scores)) / len(ids) ** 2
    rows = []
    for i, first in enumerate(ids):
        rows.append([])
        for j, second in enumerate(ids):
            parts = (first == bare) + (second == bare)
            above = scores[i][j] > mean
            in_region = first == second != bare
            rows[i].append(i == j or in_region or (above and parts >= (1 if unsegmented == "union" else 2)))
    return rows


def world(seed: int, batch: int = 3, patches: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, patches, 4, generator=generator, dtype=torch.float64)
    features = torch.nn.functional.normalize(features, dim=-1)
    return features @ features.mT, torch.randint(0, 4, (batch, patches), generator=generator)


@pytest.mark.parametrize("unsegmented", ["union", "outer"])
@pytest.mark.parametrize("seed", range(5))
def test_the_scope_pair_by_pair(unsegmented, seed) -> None:
    similarity, labels = world(seed)
    labels[1] += 7  # the smallest id need not be 0
    labels[2] = 3  # a picture of one region, which counts as the part without masks
    found = interaction_matrix(similarity, labels, unsegmented)
    for image in range(3):
        assert found[image].tolist() == pair_by_pair(similarity[image], labels[image], unsegmented)


@pytest.mark.parametrize("strip", [1, 100, 24 * 24 + 1, 2**20])
def test_strips_over_all_images_do_not_matter(strip, monkeypatch) -> None:
    similarity, labels = world(6)
    expected = [pair_by_pair(*image, "union") for image in zip(similarity, labels, strict=True)]
    monkeypatch.setattr(module, "STRIP", strip)
    assert interaction_matrix(similarity, labels).tolist() == expected
    assert interaction_matrix(similarity, labels, num_regions=60).tolist() == expected
    assert interaction_matrix(similarity.mT.contiguous().mT, labels).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_scope_in_other_precisions(dtype) -> None:
    similarity, labels = world(2)
    similarity = similarity.to(dtype).requires_grad_()
    found = interaction_matrix(similarity, labels)
    mean = similarity.detach().mean((1, 2))  # rounded to that precision
    bare = labels == labels.amin(1, keepdim=True)
    for image in range(3):
        for i in range(24):
            for j in range(24):
                above = bool(similarity[image, i, j] > mean[image]) and bool(bare[image, i] | bare[image, j])
                alike = bool(labels[image, i] == labels[image, j]) and not bool(bare[image, i])
                assert found[image, i, j] == (i == j or alike or above)


def test_the_two_rules_differ_where_a_mask_ends() -> None:
    similarity = torch.tensor([[[1.0, 0.9, 0.8], [0.9, 1.0, -1.0], [0.8, -1.0, 1.0]]])  # mean 0.49
    labels = torch.tensor([[2, 2, 5]])
    assert interaction_matrix(similarity, labels).int().tolist() == [[[1, 1, 1], [1, 1, 0], [1, 0, 1]]]
    assert interaction_matrix(similarity, labels, "outer").int().tolist() == [[[1, 1, 0], [1, 1, 0], [0, 0, 1]]]


def test_names_of_regions_do_not_matter() -> None:
    similarity, labels = world(9)
    labels[:, 0] = 0
    renamed = torch.tensor([0, 900, 4, 31])[labels]
    assert torch.equal(interaction_matrix(similarity, labels), interaction_matrix(similarity, renamed))


def test_patches_of_a_picture_of_one_colour_see_themselves() -> None:
    allowed = interaction_matrix(torch.ones(1, 4, 4), torch.zeros(1, 4).long())
    assert torch.equal(allowed[0], torch.eye(4).bool())
    assert torch.equal(correlation(torch.ones(1, 4, 4), allowed)[0], torch.eye(4))


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_the_softmax_row_by_row(tau) -> None:
    similarity, labels = world(1)
    allowed = interaction_matrix(similarity, labels)
    before = similarity.clone()
    found, free = correlation(similarity, allowed, tau), correlation(similarity, None, tau)
    assert torch.equal(similarity, before)
    for image in range(3):
        for i in range(24):
            terms = [math.exp(float(s) / tau) for s in similarity[image, i]]
            kept = [term if allowed[image, i, j] else 0.0 for j, term in enumerate(terms)]
            for weights, parts in ((found, kept), (free, terms)):
                expected = torch.tensor(parts, dtype=torch.float64) / math.fsum(parts)
                torch.testing.assert_close(weights[image, i], expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.sum(-1), torch.ones(3, 24, dtype=torch.float64))
    assert not found[~allowed].any()


def test_settings_and_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"'inner'.*known: union, outer"):
        interaction_matrix(torch.ones(1, 2, 2), torch.zeros(1, 2).long(), "inner")
    with pytest.raises(ValueError, match=r"similarity has shape \(1, 2, 3\), labels \(1, 2\)"):
        interaction_matrix(torch.ones(1, 2, 3), torch.zeros(1, 2).long())
    with pytest.raises(ValueError, match="tau is 0"):
        correlation(torch.ones(1, 2, 2), tau=0)
