"""Fusions, hash layer and classifier against naive float64 versions; the sizes that were published."""

import math

import pytest
import torch
from torch import nn

from callbacks.progressive_scale import ProgressiveScale
from lightning_modules.multilabel.networks import (
    ConcatFusion,
    HadamardFusion,
    HashLayer,
    classifier_head,
    decompose,
)


def count(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def rows(n, width, seed=0, dtype=torch.float64):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def naive_split(vector):
    length = math.sqrt(sum(x * x for x in vector)) + 1e-6
    return [x / length for x in vector], math.log(length)


def naive_layer(linear, vector, relu=True):
    values = [
        sum(w * x for w, x in zip(row, vector, strict=True)) + b
        for row, b in zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)
    ]
    return [max(value, 0.0) for value in values] if relu else values


def naive_fusion(layers, joined):
    return naive_layer(layers[3], naive_layer(layers[0], joined))


def test_sizes_are_the_published_ones():
    shared = HashLayer(512, 64), classifier_head("linear", 64, 80)
    assert count(HadamardFusion(768, 768), *shared) == 2_925_200
    assert count(ConcatFusion(768, 768), *shared) == 2_136_720
    assert count(classifier_head("mlp", 1536, 80)) == 827_984


@pytest.mark.parametrize(("n", "width"), [(1, 1), (4, 3), (7, 16)])
def test_decompose_equals_a_naive_loop(n, width):
    x = rows(n, width)
    direction, magnitude = decompose(x)
    assert magnitude.shape == (n, 1)
    for i, vector in enumerate(x.tolist()):
        expected, length = naive_split(vector)
        assert direction[i].tolist() == pytest.approx(expected, rel=1e-12)
        assert magnitude[i].item() == pytest.approx(length, rel=1e-12, abs=1e-12)


def test_decompose_has_the_gradient_of_its_formula():
    x = rows(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(decompose, (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_zero_vector_and_long_ones_stay_finite(dtype):
    x = torch.stack([torch.zeros(768), torch.full((768,), 60.0)]).to(dtype)  # 60^2 x 768 overflows float16
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        direction, magnitude = decompose(x)
    assert direction.dtype == magnitude.dtype == torch.float32
    assert direction[0].eq(0).all()
    assert magnitude[0].item() == pytest.approx(math.log(1e-6))
    assert direction[1].norm().item() == pytest.approx(1, rel=1e-5)
    assert magnitude[1].item() == pytest.approx(math.log(60 * math.sqrt(768)), rel=1e-5)
    (magnitude.sum() + direction[1].sum()).backward()
    assert x.grad.isfinite().all()


def test_hadamard_fusion_equals_a_naive_loop():
    fusion = HadamardFusion(5, 5, hidden=7, width=4).double().eval()
    image, text = rows(6, 5, 1), rows(6, 5, 2) * 9
    got = fusion(image, text)
    for i in range(6):
        (a, la), (b, lb) = naive_split(image[i].tolist()), naive_split(text[i].tolist())
        expected = naive_fusion(fusion.layers, [*a, *b, *(x * y for x, y in zip(a, b, strict=True)), la, lb])
        assert got[i].tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_concat_fusion_equals_a_naive_loop():
    fusion = ConcatFusion(5, 3, hidden=7, width=4).double().eval()
    image, text = rows(6, 5, 1), rows(6, 3, 2)
    got = fusion(image, text)
    for i in range(6):
        expected = naive_fusion(fusion.layers, image[i].tolist() + text[i].tolist())
        assert got[i].tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("make", [HadamardFusion, ConcatFusion])
def test_gradients_reach_both_modalities_and_all_weights(make):
    torch.manual_seed(0)
    fusion = make(6, 6, hidden=64, width=32, dropout=0.0).double()
    image, text = rows(8, 6, 1).requires_grad_(), rows(8, 6, 2).requires_grad_()
    assert torch.autograd.gradcheck(fusion, (image[:2], text[:2]))
    fusion(image, text).square().sum().backward()
    for tensor in (image, text, *fusion.parameters()):
        assert tensor.grad.abs().max() > 0


def test_dropout_follows_both_layers_and_ends_in_evaluation():
    fusion = HadamardFusion(6, 6, hidden=500, width=400, dropout=0.5)
    image, text = rows(1, 6, 1, torch.float32), rows(1, 6, 2, torch.float32)
    assert [type(layer) for layer in fusion.layers] == [nn.Linear, nn.ReLU, nn.Dropout] * 2
    assert not torch.equal(fusion(image, text), fusion(image, text))
    fusion.eval()
    assert torch.equal(fusion(image, text), fusion(image, text))


@pytest.mark.parametrize("make", [HadamardFusion, ConcatFusion])
def test_half_precision_features_and_weights(make):
    torch.manual_seed(0)
    fusion = make(6, 6, hidden=64, width=32).eval()
    image, text = rows(8, 6, 1, torch.float32), rows(8, 6, 2, torch.float32)
    full = fusion(image, text)
    assert torch.allclose(fusion(image.half(), text.half()), full, atol=1e-2)  # features of a cache
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(fusion(image, text).float(), full, atol=5e-2)
    small = fusion.bfloat16()(image.bfloat16(), text.bfloat16())  # precision bf16-true
    assert small.dtype == torch.bfloat16
    assert torch.allclose(small.float(), full, atol=5e-2)


def test_unequal_widths_name_the_other_fusion():
    with pytest.raises(ValueError, match=r"image_dim is 768 and text_dim is 512.*Set fusion: concat"):
        HadamardFusion(768, 512)
    assert ConcatFusion(768, 512, hidden=8, width=4)(rows(2, 768).float(), rows(2, 512).float()).shape == (2, 4)


def test_hash_layer_is_a_scaled_tanh_and_a_checkpoint_holds_its_scale():
    layer = HashLayer(5, 8).double()
    features = rows(4, 5)
    assert layer.scale.item() == 1
    layer.set_scale(7.0)
    for i, code in enumerate(layer(features).tolist()):
        logits = naive_layer(layer.output, features[i].tolist(), relu=False)
        assert code == pytest.approx([math.tanh(7 * value) for value in logits], rel=1e-10)
    copy = HashLayer(5, 8).double()
    copy.load_state_dict(layer.state_dict())
    assert copy.scale.item() == 7
    with pytest.raises(ValueError, match="bits is 0"):
        HashLayer(5, 0)


def test_the_scale_changes_no_sign_and_its_gradient_is_that_of_the_formula():
    layer, features = HashLayer(5, 8).double(), rows(4, 5)
    before = layer(features).sign()
    layer.set_scale(10.0)
    assert torch.equal(layer(features).sign(), before)
    assert torch.autograd.gradcheck(layer, (features.requires_grad_(),))


def test_the_progressive_scale_finds_the_layer():
    class Run:
        max_epochs, current_epoch, global_step = 4, 3, 0

    model = nn.Sequential(nn.Linear(3, 5), HashLayer(5, 8))
    ProgressiveScale()._apply(Run(), model)
    assert model[1].scale.item() == 10


def test_classifier_heads():
    assert isinstance(classifier_head("linear", 64, 80), nn.Linear)
    mlp = classifier_head("mlp", 6, 3, hidden=5).double().eval()
    features = rows(4, 6)
    for i, logits in enumerate(mlp(features).tolist()):
        expected = naive_layer(mlp[3], naive_layer(mlp[0], features[i].tolist()), relu=False)
        assert logits == pytest.approx(expected, rel=1e-10)
    with pytest.raises(ValueError, match="classifier is 'tree'; known are 'linear' and 'mlp'"):
        classifier_head("tree", 6, 3)
    with pytest.raises(ValueError, match="num_classes is 0"):
        classifier_head("linear", 6, 0)
