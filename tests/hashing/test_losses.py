"""Losses against naive float64 double loops, against finite differences, and against golden arrays."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules.hashing.losses import balanced_contrastive_loss, hashnet_pairwise_loss, nt_xent_loss


def unit(rows):
    return [[v / math.sqrt(sum(x * x for x in row)) for v in row] for row in rows]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def naive_nt_xent(image, text, temperature):
    rows, count, total = unit(image + text), len(image), 0.0
    for i, row in enumerate(rows):
        e = [math.exp(dot(row, other) / temperature) if j != i else 0.0 for j, other in enumerate(rows)]
        total -= math.log(e[(i + count) % (2 * count)] / sum(e))
    return total / (2 * count)


def naive_balanced(image, text, temperature, weight):
    image, text, count, total = unit(image), unit(text), len(image), 0.0
    for i, row in enumerate(image):
        e = [math.exp(dot(row, other) / temperature) for other in text]
        negatives = count / (count - 1) * sum(e[j] for j in range(count) if j != i)
        total -= weight * math.log(e[i] / (e[i] + negatives))
    return total / count


def naive_hashnet(a, b, similar, scale, weighted):
    terms = {True: [], False: []}
    for i, row in enumerate(a):
        for j, other in enumerate(b):
            logit = scale * dot(row, other)
            terms[bool(similar[i][j])].append(math.log1p(math.exp(logit)) - similar[i][j] * logit)
    if weighted:
        return sum(sum(t) / len(t) for t in terms.values() if t)
    return sum(terms[True] + terms[False]) / (len(a) * len(b))


def finite_difference(function, x, step=1e-6):
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        up, down = x.clone(), x.clone()
        up.view(-1)[i] += step
        down.view(-1)[i] -= step
        gradient.view(-1)[i] = (function(up) - function(down)) / (2 * step)
    return gradient


def pair(count, width, dtype=torch.float64):
    g = torch.Generator().manual_seed(count * 100 + width)
    return torch.randn(count, width, generator=g, dtype=dtype), torch.randn(count, width, generator=g, dtype=dtype)


SHAPES = [(2, 1), (2, 5), (3, 4), (7, 3), (16, 8)]


@pytest.mark.parametrize(("count", "width"), SHAPES)
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_contrastive_losses_equal_a_naive_loop(count, width, temperature):
    image, text = pair(count, width)
    lists = image.tolist(), text.tolist()
    assert nt_xent_loss(image, text, temperature).item() == pytest.approx(naive_nt_xent(*lists, temperature), rel=1e-10)
    for weight in (None, 1.0, 3.5):
        expected = naive_balanced(*lists, temperature, count if weight is None else weight)
        assert balanced_contrastive_loss(image, text, temperature, weight).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("count", "width"), [(2, 3), (5, 4)])
@pytest.mark.parametrize("loss", [nt_xent_loss, balanced_contrastive_loss])
def test_contrastive_gradients_equal_finite_differences_of_the_naive_loop(count, width, loss):
    image, text = (x.requires_grad_() for x in pair(count, width))
    loss(image, text).backward()
    naive = {
        nt_xent_loss: lambda a, b: naive_nt_xent(a.tolist(), b.tolist(), 0.5),
        balanced_contrastive_loss: lambda a, b: naive_balanced(a.tolist(), b.tolist(), 0.5, count),
    }[loss]
    i, t = image.detach(), text.detach()
    torch.testing.assert_close(image.grad, finite_difference(lambda x: naive(x, t), i), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(text.grad, finite_difference(lambda x: naive(i, x), t), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("rows", "columns", "bits"), [(1, 1, 2), (3, 5, 4), (8, 2, 16)])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("similar_share", [0.0, 0.4, 1.0])
def test_hashnet_equals_a_naive_loop(rows, columns, bits, weighted, similar_share):
    g = torch.Generator().manual_seed(rows)
    a = torch.rand(rows, bits, generator=g, dtype=torch.float64) * 2 - 1
    b = torch.rand(columns, bits, generator=g, dtype=torch.float64) * 2 - 1
    similar = (torch.rand(rows, columns, generator=g) < similar_share).double()
    a.requires_grad_()
    loss = hashnet_pairwise_loss(a, b, similar, 10 / bits, weighted)
    loss.backward()

    def naive(x):
        return naive_hashnet(x.tolist(), b.tolist(), similar.tolist(), 10 / bits, weighted)

    assert loss.item() == pytest.approx(naive(a.detach()), rel=1e-10)
    torch.testing.assert_close(a.grad, finite_difference(naive, a.detach()), rtol=1e-5, atol=1e-7)


def test_large_logits_stay_finite():
    a = torch.full((2, 64), 1.0)
    loss = hashnet_pairwise_loss(a, torch.stack([a[0], -a[0]]), torch.tensor([[0, 1], [0, 1]]), scale=10.0)
    assert loss.item() == pytest.approx(1280.0)
    image, text = pair(8, 4, torch.float32)
    assert torch.isfinite(nt_xent_loss(image, text, 1e-3))
    assert torch.isfinite(balanced_contrastive_loss(image, text, 1e-3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    image, text = pair(6, 8, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = nt_xent_loss(image, text), balanced_contrastive_loss(image, text)
        pairwise = hashnet_pairwise_loss(image, text, torch.eye(6))
    expected = naive_nt_xent(image.tolist(), text.tolist(), 0.5)
    assert [x.dtype for x in (*got, pairwise)] == [torch.float32] * 3
    assert got[0].item() == pytest.approx(expected, rel=1e-5)
    assert got[1].item() == pytest.approx(naive_balanced(image.tolist(), text.tolist(), 0.5, 6), rel=1e-5)


def test_the_positive_weight_does_not_turn_the_gradient():
    image, text = pair(6, 4)
    gradients = []
    for weight in (1.0, None):
        x = image.clone().requires_grad_()
        balanced_contrastive_loss(x, text, positive_weight=weight).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], 6 * gradients[0])


@pytest.mark.parametrize("loss", [nt_xent_loss, balanced_contrastive_loss])
def test_unusable_input_is_named(loss):
    with pytest.raises(ValueError, match="at least 2 pairs"):
        loss(torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\) and text \(3, 3\)"):
        loss(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match="temperature"):
        loss(torch.ones(2, 3), torch.ones(2, 3), 0.0)


def test_unfitting_similarity_is_named():
    with pytest.raises(ValueError, match="do not fit"):
        hashnet_pairwise_loss(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4, 2))


@pytest.fixture
def goldens():
    folder = os.environ.get("CLIP_SUITE_GOLDENS")
    if folder is None:
        pytest.skip("CLIP_SUITE_GOLDENS is not set")
    return Path(folder)


def test_golden_losses(goldens):
    u, h = np.load(goldens / "ucmfh_a.npz"), np.load(goldens / "hash_losses_a.npz")
    tensors = {name: torch.from_numpy(h[name]) for name in h.files if h[name].ndim}
    loss = nt_xent_loss(torch.from_numpy(u["emb_i"]), torch.from_numpy(u["emb_j"]))
    assert loss.item() == pytest.approx(u["contrastive_loss"].item(), rel=1e-4)
    balanced = balanced_contrastive_loss(tensors["emb_i"], tensors["emb_j"])
    assert balanced.item() == pytest.approx(h["balanced_contrastive_loss"].item(), rel=1e-4)
    similar = tensors["labels_a"] @ tensors["labels_b"].T > 0
    codes = tensors["codes_a"], tensors["codes_b"], similar
    plain = hashnet_pairwise_loss(*codes, scale=10 / 32, weighted=False)
    assert plain.item() == pytest.approx(h["pairwise_unweighted_scale_10_over_bits"].item(), rel=1e-4)
    weighted = hashnet_pairwise_loss(*codes, scale=1.0, weighted=True)
    assert weighted.item() == pytest.approx(h["pairwise_weighted_scale_1"].item(), rel=1e-4)
