"""Pre-training losses against naive float64 loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.contrastive.losses import patch_pooled_logits, sigmoid_loss, softmax_contrastive_loss


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


@pytest.mark.parametrize(("batch", "dim"), [(2, 3), (5, 8), (9, 4)])
def test_softmax_loss_equals_a_double_loop(batch, dim):
    image, text, scale = unit(batch, dim), unit(batch, dim, seed=1), 7.0
    total = 0.0
    for i in range(batch):
        own = math.exp(scale * float(image[i] @ text[i]))
        total -= math.log(own / sum(math.exp(scale * float(image[i] @ text[j])) for j in range(batch)))
        total -= math.log(own / sum(math.exp(scale * float(image[j] @ text[i])) for j in range(batch)))
    assert softmax_contrastive_loss(image, text, scale).item() == pytest.approx(total / (2 * batch), abs=1e-12)


def test_sigmoid_loss_equals_a_double_loop():
    logits = 3 * unit(4, 6)
    positives = (unit(4, 6, seed=2) > 0).double()
    total = 0.0
    for b in range(4):
        for k in range(6):
            sign = 1.0 if positives[b, k] else -1.0
            total += math.log(1 + math.exp(-sign * float(logits[b, k])))
    assert sigmoid_loss(logits, positives).item() == pytest.approx(total / 24, abs=1e-12)


@pytest.mark.parametrize(("share", "best"), [(0.01, 1), (0.25, 5), (1.0, 20)])
def test_patch_pooling_takes_the_mean_of_the_best(share, best):
    values, phrases = unit(3, 20, 6), unit(4, 6, seed=3)
    pooled = patch_pooled_logits(values, phrases, share)
    for b in range(3):
        for k in range(4):
            ranked = sorted((float(values[b, n] @ phrases[k]) for n in range(20)), reverse=True)
            assert pooled[b, k].item() == pytest.approx(sum(ranked[:best]) / best, abs=1e-12)
