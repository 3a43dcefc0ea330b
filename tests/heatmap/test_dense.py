"""Dense paths against an independent float64 loop over heads and tokens, and against the model itself."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toy_vit import small_vit

from lightning_modules.backbones.vit import resized_positions, vision_transformer
from lightning_modules.heatmap.dense import PATHS, dense_tokens, resolve_path, self_self_attention

GOLDENS = os.environ.get("CLIP_SUITE_GOLDENS")


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def quick_gelu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-1.702 * x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class Naive:
    """One image through a ViT, head by head, in float64."""

    def __init__(self, visual: nn.Module, activation=gelu) -> None:
        self.w = {name: value.detach().double().numpy() for name, value in visual.state_dict().items()}
        self.heads, self.layers = visual.transformer.resblocks[0].attn.num_heads, len(visual.transformer.resblocks)
        self.activation = activation

    def ln(self, x, name):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-5) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def mlp(self, x, b):
        x = self.ln(x, f"{b}.ln_2")
        x = self.activation(x @ self.w[f"{b}.mlp.c_fc.weight"].T + self.w[f"{b}.mlp.c_fc.bias"])
        return x @ self.w[f"{b}.mlp.c_proj.weight"].T + self.w[f"{b}.mlp.c_proj.bias"]

    def heads_of(self, x, b, attend):
        normed = self.ln(x, f"{b}.ln_1")
        qkv = normed @ self.w[f"{b}.attn.in_proj_weight"].T + self.w[f"{b}.attn.in_proj_bias"]
        width = x.shape[-1]
        d = width // self.heads
        outs = []
        for h in range(self.heads):
            q, k, v = (qkv[:, part * width + h * d : part * width + (h + 1) * d] for part in range(3))
            outs.append(attend(q, k, v, normed, d))
        joined = np.concatenate(outs, -1)
        return joined @ self.w[f"{b}.attn.out_proj.weight"].T + self.w[f"{b}.attn.out_proj.bias"]

    def embed(self, image):
        kernel = self.w["conv1.weight"]
        p = kernel.shape[-1]
        rows = []
        for i in range(image.shape[1] // p):
            for j in range(image.shape[2] // p):
                patch = image[:, i * p : (i + 1) * p, j * p : (j + 1) * p]
                rows.append([(each * patch).sum() for each in kernel])
        x = np.concatenate([self.w["class_embedding"][None], np.array(rows)])
        return self.ln(x + self.w["positional_embedding"], "ln_pre")

    def out(self, x):
        return self.ln(x, "ln_post") @ self.w["proj"]

    def run(self, image, attend, layers, residual, ffn, fused=False):
        x = self.embed(image.double().numpy())
        own = lambda q, k, v, n, d: softmax(q @ k.T / math.sqrt(d)) @ v  # noqa: E731
        for number in range(self.layers):
            b = f"transformer.resblocks.{number}"
            if number == self.layers - layers:
                new, kept = (x.copy() if residual else np.zeros_like(x)), []
            if number >= self.layers - layers:
                new = new + self.heads_of(x, b, attend)
                new = new + self.mlp(new, b) if ffn else new
                kept.append(unit(self.out(new)))
            x = x + self.heads_of(x, b, own)
            x = x + self.mlp(x, b)
        patches = np.mean(kept, 0) if fused else self.out(new)
        return np.concatenate([self.out(x)[:1], patches[1:]])


def identity(q, k, v, n, d):
    return v


def pairs(*names):
    def attend(q, k, v, n, d):
        part = {"q": q, "k": k, "v": v}
        return sum(softmax(part[a] @ part[b].T / math.sqrt(d)) @ v for a, b in names)

    return attend


def gem(q, k, v, n, d):
    tau = np.linalg.norm(n, axis=-1).mean() / math.sqrt(d)
    total = 0
    for z in (v, k, q):
        z = unit(z)
        z = unit(softmax(tau * z @ z.T) @ z)
        total = total + softmax(tau * z @ z.T) @ v
    return total / 3


PUBLISHED = {
    "maskclip": (identity, 1, True, True),
    "vv": (pairs("vv"), 1, False, False),
    "surgery": (pairs("vv"), 6, True, False),
    "gem": (gem, 6, True, False),
    "sclip": (pairs("qq", "kk"), 1, True, True),
    "qq": (pairs("qq"), 1, False, False),
    "qkv_sum": (pairs("qq", "kk", "vv"), 1, False, False),
}


@pytest.mark.parametrize("path", PUBLISHED)
def test_each_path_is_that_of_the_naive_loop(path, visual, images) -> None:
    found = dense_tokens(visual.double(), images.double(), path)
    naive = Naive(visual)
    for image, tokens in zip(images, found, strict=True):
        np.testing.assert_allclose(tokens.detach().numpy(), naive.run(image, *PUBLISHED[path]), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("path", "layers", "residual", "ffn"),
    [("surgery", 3, False, True), ("maskclip", 1, False, False), ("qq", 8, True, False), ("gem", 2, False, False)],
)
def test_settings_replace_the_published_ones(path, layers, residual, ffn, visual, images) -> None:
    found = dense_tokens(visual.double(), images.double(), path, layers, residual, ffn)
    wanted = Naive(visual).run(images[1], PUBLISHED[path][0], layers, residual, ffn)
    np.testing.assert_allclose(found[1].detach().numpy(), wanted, rtol=1e-8, atol=1e-8)


def test_fusion_is_the_mean_of_unit_tokens_over_the_blocks(visual, images) -> None:
    found = dense_tokens(visual.double(), images.double(), "surgery", 4, fusion="mean")
    wanted = Naive(visual).run(images[0], PUBLISHED["surgery"][0], 4, True, False, fused=True)
    np.testing.assert_allclose(found[0].detach().numpy(), wanted, rtol=1e-8, atol=1e-8)


def test_both_activations(images) -> None:
    from open_clip.model import QuickGELU

    visual = small_vit(activation=QuickGELU)
    found = dense_tokens(visual.double(), images.double())
    wanted = Naive(visual, quick_gelu).run(images[2], *PUBLISHED["surgery"])
    np.testing.assert_allclose(found[2].detach().numpy(), wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("path", PATHS)
def test_the_first_token_is_what_encode_image_gives(path, visual, images) -> None:
    torch.testing.assert_close(dense_tokens(visual, images, path)[:, 0], visual(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{"pool_type": "avg"}, {"pool_type": "avg", "final_ln_after_pool": True}])
def test_other_pooling_too(settings, images) -> None:
    visual = small_vit(**settings)
    torch.testing.assert_close(dense_tokens(visual, images, "qq")[:, 0], visual(images), rtol=1e-4, atol=1e-5)


def test_vanilla_patches_are_those_of_the_model(visual, images) -> None:
    visual.output_tokens = True
    _, tokens = visual(images)
    torch.testing.assert_close(dense_tokens(visual, images, "vanilla")[:, 1:], tokens @ visual.proj)


@pytest.mark.parametrize("path", PATHS)
def test_a_batch_is_as_single_images(path, visual, images) -> None:
    single = torch.cat([dense_tokens(visual, image[None], path) for image in images])
    torch.testing.assert_close(dense_tokens(visual, images, path), single, rtol=1e-4, atol=1e-5)


def test_another_resolution_between_changes_nothing(visual, images) -> None:
    before = {name: value.clone() for name, value in visual.state_dict().items()}
    first = dense_tokens(visual, images)
    other = dense_tokens(visual, torch.randn(1, 3, 72, 40))
    assert other.shape == (1, 1 + 9 * 5, 12)
    assert torch.equal(dense_tokens(visual, images), first)
    assert all(torch.equal(value, before[name]) for name, value in visual.state_dict().items())


def test_positions_are_enlarged_bilinearly() -> None:
    positions = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert resized_positions(positions, (2, 2), (2, 2)) is positions
    found = resized_positions(positions, (2, 2), (1, 4))[:, 0]  # rows averaged; columns at -1/4, 1/4, 3/4, 5/4
    torch.testing.assert_close(found, torch.tensor([1.0, 1.25, 1.75, 2.0]))


def test_with_one_token_vv_is_the_value(visual) -> None:
    q, k, v = torch.randn(3, 2, 1, 1, 8).unbind()
    torch.testing.assert_close(nn.functional.scaled_dot_product_attention(v, v, v), v)
    torch.testing.assert_close(self_self_attention(q, k, v, torch.ones(2)), v)


def test_gradients_reach_the_weights(images) -> None:
    visual = small_vit(size=16).double()
    small = images[:1, :, :16, :16].double()
    weight = visual.transformer.resblocks[-1].attn.in_proj_weight
    dense_tokens(visual, small)[:, 1:].square().sum().backward()
    step = torch.zeros_like(weight)
    step[40, 3] = 1e-6  # a value row
    with torch.no_grad():
        value = lambda: dense_tokens(visual, small)[:, 1:].square().sum()  # noqa: E731
        weight += step
        up = value()
        weight -= 2 * step
        down = value()
    assert float(weight.grad[40, 3]) == pytest.approx(float((up - down) / 2e-6), rel=1e-4)


def test_siglip_takes_the_same_paths() -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    model = SiglipVisionModel(config).eval()
    vision = getattr(model, "vision_model", model)
    images = torch.randn(2, 3, 32, 32)
    pooled = model(pixel_values=images).pooler_output
    for path in PATHS:
        found = dense_tokens(vision, images, path, num_layers=None if path in ("vanilla",) else 2)
        assert found.shape == (2, 17, 16)
        torch.testing.assert_close(found[:, 0], pooled, rtol=1e-4, atol=1e-5)
    # the head over a single patch is what a patch becomes
    last = model(pixel_values=images).last_hidden_state
    alone = torch.stack([vision.head(last[:, row : row + 1]) for row in range(16)], 1)
    torch.testing.assert_close(dense_tokens(vision, images, "vanilla")[:, 1:], alone, rtol=1e-4, atol=1e-5)


def test_what_is_no_vit_is_refused(images) -> None:
    import open_clip

    resnet = open_clip.create_model("RN50", pretrained=None).visual
    with pytest.raises(ValueError, match="ModifiedResNet is no vision transformer"):
        dense_tokens(resnet, images)
    with pytest.raises(ValueError, match="pools with attention"):
        vision_transformer(small_vit(attentional_pool=True, attn_pooler_heads=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "surgry"}, "no path 'surgry'"),
        ({"num_layers": 9}, "the ViT has 8 blocks"),
        ({"num_layers": 0}, "at least one block"),
        ({"path": "vanilla", "ffn": False}, "Path vanilla is the model itself"),
    ],
)
def test_wrong_settings_are_told(settings, message, visual, images) -> None:
    with pytest.raises(ValueError, match=message):
        dense_tokens(visual, images, **settings)
    with pytest.raises(ValueError, match="at least one patch"):
        dense_tokens(visual, torch.zeros(1, 3, 4, 4))
    assert resolve_path("gem").num_layers == 6


@pytest.mark.gpu
@pytest.mark.parametrize("path", PATHS)
def test_a_gpu_gives_the_tokens_of_the_processor(path, visual, images) -> None:
    here = dense_tokens(visual, images, path)
    torch.testing.assert_close(dense_tokens(visual.cuda(), images.cuda(), path).cpu(), here, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not GOLDENS, reason="CLIP_SUITE_GOLDENS does not point at the reference arrays")
def test_the_reference_implementation() -> None:
    from open_clip.model import QuickGELU
    from open_clip.transformer import VisionTransformer
    from safetensors.torch import load_file

    from lightning_modules.heatmap.similarity import class_similarity, feature_surgery, similarity_map

    arrays = np.load(Path(GOLDENS) / "clip_surgery_a.npz")
    golden = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    visual = VisionTransformer(64, 8, 128, 8, 2, 4.0, output_dim=32, act_layer=QuickGELU).eval()
    stored = load_file(Path(GOLDENS) / "clip_surgery_a_visual.safetensors")
    visual.load_state_dict({name.removeprefix("visual."): value for name, value in stored.items()})
    with torch.no_grad():
        tokens = dense_tokens(visual, golden["image"])
    torch.testing.assert_close(tokens, golden["tokens"], rtol=0, atol=1e-5)
    unit_tokens = nn.functional.normalize(tokens, dim=-1)
    found = feature_surgery(unit_tokens, golden["text_features"])
    torch.testing.assert_close(found, golden["surgery_similarity"], rtol=0, atol=1e-5)
    maps = similarity_map(class_similarity(tokens, golden["text_features"], "class_mean"), (80, 80))
    torch.testing.assert_close(maps.permute(0, 2, 3, 1), golden["similarity_map"], rtol=0, atol=1e-5)
