"""Similarities against the published products of features in float64, and what cannot change a mask."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.heatmap.similarity import (
    REDUNDANCIES,
    centred_patches,
    class_similarity,
    class_weights,
    feature_surgery,
    on_grid,
    similarity_map,
)


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = F.normalize(torch.randn(3, 17, 8, dtype=torch.float64, generator=generator), dim=-1)
    return tokens, F.normalize(torch.randn(5, 8, dtype=torch.float64, generator=generator), dim=-1)


def published_surgery(tokens: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Products of features, class by class and image by image, as the paper writes them."""
    found = []
    for image in tokens:
        probability = (2 * image[:1] @ text.T).softmax(-1)
        weights = (probability / probability.mean()).reshape(-1)
        products = image[:, None] * text[None] * weights[None, :, None]  # (N, K, D)
        found.append((products - products.mean(1, keepdim=True)).sum(-1))
    return torch.stack(found)


def test_feature_surgery_is_the_published_one_in_closed_form(features) -> None:
    torch.testing.assert_close(feature_surgery(*features), published_surgery(*features), rtol=0, atol=1e-12)


def test_partial_surgery_goes_from_weighted_similarity_to_the_published_one(features) -> None:
    tokens, text = features
    similarity = tokens @ text.T
    weighted = similarity * class_weights(similarity[:, :1])
    none, half, whole = (feature_surgery(tokens, text, alpha) for alpha in (0.0, 0.5, 1.0))
    torch.testing.assert_close(none, weighted)
    torch.testing.assert_close(half, (none + whole) / 2)
    torch.testing.assert_close(feature_surgery(tokens, text, weighted=False).mean(-1), torch.zeros(3, 17).double())


def test_each_redundancy_is_what_it_says(features) -> None:
    tokens, text = features
    empty = text[0].flip(0)
    scaled = 3 * tokens  # brought to unit length inside
    wanted = {
        "none": tokens @ text.T,
        "class_mean": published_surgery(tokens, text),
        "empty_prompt": tokens @ (text - 0.5 * empty).T,
        "class_token": tokens @ text.T - 0.5 * tokens[:, :1] @ text.T,
    }
    shifted = torch.stack([image - 0.5 * image[1:].mean(0) for image in tokens])
    wanted["patch_mean"] = shifted @ text.T
    wanted["patch_mean_unit"] = (shifted / shifted.norm(dim=-1, keepdim=True)) @ text.T
    assert set(wanted) == set(REDUNDANCIES)
    for name, values in wanted.items():
        found = class_similarity(scaled, text, name, 1.0 if name == "class_mean" else 0.5, empty)
        torch.testing.assert_close(found, values[:, 1:], msg=name)


def test_centring_without_new_length_is_a_constant_for_each_map(features) -> None:
    tokens, text = features
    plain = class_similarity(tokens, text, "none")
    difference = class_similarity(tokens, text, "patch_mean") - plain
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference))
    with_length = class_similarity(tokens, text, "patch_mean_unit") - plain
    assert float((with_length - with_length[:, :1]).abs().max()) > 0.05  # that one does change the map
    torch.testing.assert_close(centred_patches(tokens, unit=False)[:, 1:].mean(1), torch.zeros(3, 8).double())


@pytest.mark.parametrize("percent", [30, 50, 75])
def test_the_bias_of_the_class_token_and_centring_leave_every_quantile_mask(features, percent) -> None:
    tokens, text = features
    masks = []
    for name in ("none", "patch_mean", "class_token"):
        maps = class_similarity(tokens, text, name)
        masks.append(maps >= torch.quantile(maps, percent / 100, dim=1, keepdim=True, interpolation="lower"))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_a_similarity_map_is_stretched_and_enlarged() -> None:
    similarity = torch.tensor([[[2.0, 5.0], [4.0, 5.0], [3.0, 5.0], [6.0, 5.0]]])  # (1, 4 patches, 2 classes)
    found = similarity_map(similarity, (2, 2))
    assert found[0, 0].tolist() == [[0.0, 0.5], [0.25, 1.0]]
    assert found[0, 1].tolist() == [[0.0, 0.0], [0.0, 0.0]]  # a constant map, no NaN
    wide = similarity_map(similarity, (1, 8), grid=(1, 4))
    torch.testing.assert_close(wide[0, 0, 0], torch.tensor([0, 0.125, 0.375, 0.4375, 0.3125, 0.4375, 0.8125, 1.0]))
    assert on_grid(similarity, (2, 2))[0, 0].tolist() == [[2.0, 4.0], [3.0, 6.0]]


def test_wrong_settings_are_told(features) -> None:
    with pytest.raises(ValueError, match="no redundancy 'mean'"):
        class_similarity(*features, "mean")
    with pytest.raises(ValueError, match="needs the embedding of an empty prompt"):
        class_similarity(*features, "empty_prompt")


def test_a_single_class_has_no_mean_over_classes_to_take_away() -> None:
    with pytest.raises(ValueError, match="redundancy to none"):
        class_similarity(torch.ones(1, 5, 8), torch.ones(1, 8), "class_mean", 1.0, None)
