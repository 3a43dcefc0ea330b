"""The adapters start as the model itself, train only themselves, and lower the loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.backbones.vit import vision_transformer
from lightning_modules.heatmap.adapter import AdaptedPath, TokenCache, inside_loss
from lightning_modules.heatmap.dense import dense_tokens, resolve_path


def adapted(visual, adapter: str) -> AdaptedPath:
    visual.requires_grad_(False)
    return AdaptedPath(vision_transformer(visual), resolve_path("surgery", 2), "last", adapter, rank=3, dim=12)


@pytest.mark.parametrize("adapter", ["none", "linear", "lora"])
def test_an_untrained_adapter_changes_no_direction(adapter, visual, images) -> None:
    path = adapted(visual, adapter)
    found = F.normalize(path(path.frozen(images)), dim=-1)
    wanted = F.normalize(dense_tokens(visual, images, "surgery", 2), dim=-1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert path.frozen(images).shape[-1] == (16 if adapter == "lora" else 12)


@pytest.mark.parametrize("adapter", ["linear", "lora"])
def test_training_raises_the_gap_and_leaves_the_model(adapter, visual, images) -> None:
    path = adapted(visual, adapter)
    weights = {name: value.clone() for name, value in visual.state_dict().items()}
    text = F.normalize(torch.randn(2, 12, generator=torch.Generator().manual_seed(1)), dim=-1)
    seen = F.normalize(path(path.frozen(images)), dim=-1)[:, 1:].detach()
    directions = seen @ torch.randn(12, 2, generator=torch.Generator().manual_seed(2))  # what an adapter can find
    coverage = (directions > directions.quantile(0.7, dim=1, keepdim=True)).float()

    bias = torch.zeros((), requires_grad=True)

    def gap_and_loss() -> tuple[float, torch.Tensor]:
        similarity = F.normalize(path(path.frozen(images)), dim=-1)[:, 1:] @ text.T
        inside, outside = similarity[coverage > 0].mean(), similarity[coverage == 0].mean()
        return float((inside - outside).detach()), inside_loss(similarity, coverage, 10.0, bias)

    before, _ = gap_and_loss()
    optimiser = torch.optim.AdamW([*path.parameters(), bias], lr=0.05)
    first = path(path.frozen(images))[:, 0].detach()
    for _ in range(60):
        optimiser.zero_grad()
        gap_and_loss()[1].backward()
        optimiser.step()
    after, _ = gap_and_loss()
    assert after > before + 0.05
    assert all(torch.equal(value, weights[name]) for name, value in visual.state_dict().items())
    if adapter == "linear":
        torch.testing.assert_close(path(path.frozen(images))[:, 0], first)  # the image's embedding stays


def test_loss_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator)
    coverage = torch.rand(2, 5, 3, dtype=torch.float64, generator=generator)
    inside = outside = weight_in = weight_out = 0.0
    for s, c in zip(similarity.flatten().tolist(), coverage.flatten().tolist(), strict=True):
        probability = 1 / (1 + math.exp(-(7 * s - 0.3)))
        inside, weight_in = inside - c * math.log(probability), weight_in + c
        outside, weight_out = outside - (1 - c) * math.log(1 - probability), weight_out + 1 - c
    wanted = (inside / weight_in + outside / weight_out) / 2
    assert float(inside_loss(similarity, coverage, 7.0, -0.3)) == pytest.approx(wanted)
    assert torch.isfinite(inside_loss(similarity, torch.zeros_like(coverage), 7.0, 0.0))


@pytest.mark.parametrize("keep", [True, False])
def test_the_cache_computes_what_it_lacks_and_nothing_else(keep) -> None:
    cache, tokens, asked = TokenCache(), torch.randn(5, 3, 4), []

    def of(*index: int) -> torch.Tensor:
        def compute(places: list[int]) -> torch.Tensor:
            asked.append([index[place] for place in places])
            return tokens[asked[-1]]

        with torch.autocast("cpu", torch.bfloat16):  # stacks no float16 on a CPU
            return cache.tokens(index, compute, torch.device("cpu"), keep)

    halves = tokens.half().float() if keep else tokens
    assert torch.equal(of(2, 4, 1), tokens[[2, 4, 1]])  # exact where it is computed
    assert torch.equal(of(1, 0, 4), torch.stack([halves[1], tokens[0], halves[4]]))
    assert torch.equal(of(0, 2), halves[[0, 2]])
    assert asked == ([[2, 4, 1], [0]] if keep else [[2, 4, 1], [1, 0, 4], [0, 2]])
