"""Losses against naive float64 loops, their gradients against finite differences, and their extremes."""

import math

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.multilabel.losses import (
    alignment_loss,
    asymmetric_loss,
    bit_balance_loss,
    decorrelation_loss,
    quantisation_loss,
)


def naive_asymmetric(logits, labels, gamma_negative, gamma_positive, clip):
    total, entries = 0.0, 0
    for row, marks in zip(logits, labels, strict=True):
        for x, y in zip(row, marks, strict=True):
            p = 1 / (1 + math.exp(-x))
            q = max(p - clip, 0.0)
            if y:
                total -= (1 - p) ** gamma_positive * math.log(p)
            elif q > 0:
                total -= q**gamma_negative * math.log(1 - q)
            entries += 1
    return total / entries


def naive_quantisation(codes):
    return sum((abs(h) - 1) ** 2 for row in codes for h in row) / (len(codes) * len(codes[0]))


def means(codes):
    return [sum(column) / len(codes) for column in zip(*codes, strict=True)]


def naive_balance(codes):
    return sum(mean**2 for mean in means(codes)) / len(codes[0])


def naive_decorrelation(codes):
    mean, bits, total = means(codes), len(codes[0]), 0.0
    for a in range(bits):
        for b in range(bits):
            if a != b:
                total += (sum((row[a] - mean[a]) * (row[b] - mean[b]) for row in codes) / len(codes)) ** 2
    return total / bits**2


def naive_alignment(image, text):
    total = 0.0
    for a, b in zip(image, text, strict=True):
        lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        total += 1 - sum(x * y for x, y in zip(a, b, strict=True)) / lengths
    return total / len(image)


def finite_difference(function, x, step=1e-6):
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        up, down = x.clone(), x.clone()
        up.view(-1)[i] += step
        down.view(-1)[i] -= step
        gradient.view(-1)[i] = (function(up.tolist()) - function(down.tolist())) / (2 * step)
    return gradient


def random(n, width, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(loss, naive, x):
    """Value and gradient in ``x``."""
    x = x.clone().requires_grad_()
    value = loss(x)
    value.backward()
    assert value.item() == pytest.approx(naive(x.tolist()), rel=1e-10, abs=1e-14)
    torch.testing.assert_close(x.grad, finite_difference(naive, x.detach()), rtol=1e-5, atol=1e-8)


SHAPES = [(1, 1), (2, 5), (7, 3), (16, 8)]


@pytest.mark.parametrize(("n", "classes"), SHAPES)
@pytest.mark.parametrize(
    ("gamma_negative", "gamma_positive", "clip"), [(4, 0, 0.05), (2, 1, 0), (0, 0, 0), (0, 3, 0.2), (1.5, 0.5, 0.1)]
)
def test_asymmetric_loss_equals_a_naive_loop(n, classes, gamma_negative, gamma_positive, clip):
    logits, labels = random(n, classes) * 3, (random(n, classes, 1) > 0.5).int()
    arguments = gamma_negative, gamma_positive, clip
    check(
        lambda x: asymmetric_loss(x, labels, *arguments),
        lambda x: naive_asymmetric(x, labels.tolist(), *arguments),
        logits,
    )


def test_without_exponents_and_clip_it_is_binary_cross_entropy():
    logits, labels = random(9, 6) * 20, (random(9, 6, 1) > 0).double()
    expected = F.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(asymmetric_loss(logits, labels, 0, 0, 0), expected)
    assert asymmetric_loss(logits.float(), labels.bool(), 0, 0, 0).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("gammas", "clip"), [((4, 0), 0.05), ((4, 1), 0), ((0.5, 0.5), 0.05), ((0, 0), 0.05)])
def test_extreme_logits_stay_finite(gammas, clip):
    logits = torch.tensor([[-1e4, -100, -20, 0, 20, 100, 1e4]]).repeat(2, 1).requires_grad_()
    labels = torch.tensor([0, 1])[:, None].expand(2, 7)
    loss = asymmetric_loss(logits, labels, *gammas, clip)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, :3].abs().max() < 1e-8  # easy negatives cost nothing
    assert (logits.grad[1, :3] < 0).all()  # missed positives pull


@pytest.mark.parametrize(("n", "bits"), [*SHAPES, (5, 2)])
@pytest.mark.parametrize(
    ("loss", "naive"),
    [
        (quantisation_loss, naive_quantisation),
        (bit_balance_loss, naive_balance),
        (decorrelation_loss, naive_decorrelation),
    ],
)
def test_code_losses_equal_naive_loops(n, bits, loss, naive):
    check(loss, naive, random(n, bits).tanh())


def test_code_losses_are_zero_for_perfect_codes_and_large_for_useless_ones():
    perfect = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    assert [f(perfect).item() for f in (quantisation_loss, bit_balance_loss, decorrelation_loss)] == [0, 0, 0]
    same = torch.ones(4, 3)
    assert (bit_balance_loss(same).item(), decorrelation_loss(same).item()) == (1, 0)
    copies = torch.tensor([[1.0], [-1.0]]).expand(2, 4)
    assert decorrelation_loss(copies).item() == pytest.approx(12 / 16)
    assert quantisation_loss(torch.zeros(2, 2)).item() == 1
    assert decorrelation_loss(torch.randn(1, 4)).item() == 0


@pytest.mark.parametrize(("n", "width"), [(1, 2), (4, 3), (6, 16)])
def test_alignment_loss_equals_a_naive_loop(n, width):
    image, text = random(n, width), random(n, width, 1)
    check(lambda x: alignment_loss(x, text), lambda x: naive_alignment(x, text.tolist()), image)
    check(lambda x: alignment_loss(image, x), lambda x: naive_alignment(image.tolist(), x), text)
    assert alignment_loss(image, image).item() == pytest.approx(0, abs=1e-12)
    assert alignment_loss(image, -image).item() == pytest.approx(2)


def test_alignment_of_a_zero_vector_is_that_of_a_right_angle():
    image = torch.zeros(1, 4, requires_grad=True)
    loss = alignment_loss(image, torch.ones(1, 4))
    loss.backward()
    assert loss.item() == 1
    assert image.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x, y = random(512, 8).tanh().to(dtype), random(512, 8, 1).to(dtype)
    labels = (random(512, 8, 2) > 0).int()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = {
            quantisation_loss(x): naive_quantisation(x.tolist()),
            bit_balance_loss(x): naive_balance(x.tolist()),
            decorrelation_loss(x): naive_decorrelation(x.tolist()),
            alignment_loss(x, y): naive_alignment(x.tolist(), y.tolist()),
            asymmetric_loss(y, labels): naive_asymmetric(y.tolist(), labels.tolist(), 4, 0, 0.05),
        }
    for value, expected in got.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected, rel=1e-4)


def test_unusable_input_is_named():
    with pytest.raises(ValueError, match=r"logits \(2, 3\) and labels \(2, 4\)"):
        asymmetric_loss(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match="gamma_negative is -1"):
        asymmetric_loss(torch.ones(2, 3), torch.ones(2, 3), gamma_negative=-1)
    with pytest.raises(ValueError, match=r"clip is 1\.0"):
        asymmetric_loss(torch.ones(2, 3), torch.ones(2, 3), clip=1.0)
    for loss in (quantisation_loss, bit_balance_loss, decorrelation_loss):
        with pytest.raises(ValueError, match=r"codes have shape \(3,\)"):
            loss(torch.ones(3))
        with pytest.raises(ValueError, match=r"codes have shape \(0, 3\)"):
            loss(torch.ones(0, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        alignment_loss(torch.ones(2, 3), torch.ones(2, 4))
