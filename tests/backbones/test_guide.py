"""Guides: queries plus keys of a ViT against a forward written out in float64, and against timm's own by hooks."""

import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from toy_vit import small_vit

from lightning_modules.backbones.guide import ClipGuide, Guide, queries_plus_keys
from lightning_modules.backbones.vit import vision_transformer

SMALL = {"depth": 3, "embed_dim": 24, "num_heads": 2}


def noisy(model):
    generator = torch.Generator().manual_seed(2)
    for weight in model.parameters():
        weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def images(height=40, width=56):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def small(monkeypatch):
    """``small(name, ...)``: a guide whose model is a small one of the family, with noise for weights."""

    def build(name, kind="qk", **settings):
        guide = Guide(name, False, kind, device="cpu")
        guide.__dict__["model"] = noisy(
            timm.create_model(name, num_classes=0, dynamic_img_size=True, **SMALL, **settings)
        )
        return guide

    return build


def cubic(t, a=-0.75):
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def naive_resize(positions, stored, grid):
    """Each new position as 16 weighted old ones, sampled every ``stored / (grid + 0.1)`` steps."""
    if grid == stored:
        return positions
    out = np.zeros((*grid, positions.shape[1]))
    plane = positions.reshape(*stored, -1)
    for row in range(grid[0]):
        for column in range(grid[1]):
            y = (row + 0.5) * stored[0] / (grid[0] + 0.1) - 0.5
            x = (column + 0.5) * stored[1] / (grid[1] + 0.1) - 0.5
            for i in range(math.floor(y) - 1, math.floor(y) + 3):
                for j in range(math.floor(x) - 1, math.floor(x) + 3):
                    old = plane[min(max(i, 0), stored[0] - 1), min(max(j, 0), stored[1] - 1)]
                    out[row, column] += cubic(y - i) * cubic(x - j) * old
    return out.reshape(-1, positions.shape[1])


def naive_features(model, pixels, kind):
    """A DINO ViT in numpy and float64, one picture at a time, head by head."""
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}
    patch, heads, eps = model.patch_embed.patch_size[0], model.blocks[0].attn.num_heads, 1e-6

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    results = []
    for image in pixels.double().numpy():
        rows, columns = image.shape[1] // patch, image.shape[2] // patch
        cells = [
            image[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
            for r in range(rows)
            for c in range(columns)
        ]
        kernel = w["patch_embed.proj.weight"]
        x = np.stack([(kernel * cell).sum((1, 2, 3)) for cell in cells]) + w["patch_embed.proj.bias"]
        x = x + naive_resize(w["pos_embed"][0, 1:], model.patch_embed.grid_size, (rows, columns))
        x = np.concatenate([w["cls_token"][0] + w["pos_embed"][0, :1], x])
        for number in range(len(model.blocks)):
            name = f"blocks.{number}"
            q, k, v = np.split(linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv"), 3, axis=-1)
            if kind == "qk" and number == len(model.blocks) - 1:
                results.append((q + k)[1:])
                break
            mixed = []
            for a, b, c in zip(*(np.split(part, heads, axis=-1) for part in (q, k, v)), strict=True):
                scores = np.exp(a @ b.T / math.sqrt(a.shape[1]))
                mixed.append(scores / scores.sum(1, keepdims=True) @ c)
            x = x + linear(np.concatenate(mixed, axis=-1), f"{name}.attn.proj")
            hidden = torch.from_numpy(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
            x = x + linear(F.gelu(hidden).numpy(), f"{name}.mlp.fc2")
        else:
            results.append(norm(x, "norm")[1:])
    features = np.stack(results)
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


@pytest.mark.parametrize("kind", ["qk", "x"])
@pytest.mark.parametrize("size", [(40, 56), (32, 32), (24, 40), (16, 64)])
def test_features_equal_a_forward_written_out(small, kind, size):
    guide = small("vit_small_patch8_224.dino", kind, img_size=32)
    features, grid = guide.features(images(*size))
    assert grid == (size[0] // 8, size[1] // 8)
    assert guide.patch_size == (8, 8)
    np.testing.assert_allclose(features.numpy(), naive_features(guide.model, images(*size), kind), atol=2e-6)


def test_positions_are_not_those_of_timm(small):
    guide = small("vit_small_patch8_224.dino", "x", img_size=32)
    own, _ = guide.features(images())
    with torch.no_grad():
        other = F.normalize(guide.model.forward_features(images())[:, 1:], dim=-1)
        assert not torch.allclose(own, other, atol=1e-3)
        same = F.normalize(guide.model.forward_features(images(32, 32))[:, 1:], dim=-1)  # nothing to resize
    torch.testing.assert_close(guide.features(images(32, 32))[0], same, atol=1e-6, rtol=0)


def test_what_is_left_over_beside_whole_patches_is_not_seen(small):
    guide = small("vit_small_patch8_224.dino", img_size=32)
    features, grid = guide.features(images(45, 63))
    assert grid == (5, 7)
    torch.testing.assert_close(features, guide.features(images(45, 63)[:, :, :40, :56])[0])


FAMILIES = {
    "vit_small_patch14_dinov2.lvd142m": {"img_size": 56},
    "vit_small_patch14_reg4_dinov2.lvd142m": {"img_size": 56},
    "vit_small_patch16_dinov3.lvd1689m": {"img_size": 64},
    "vit_small_patch16_dinov3_qkvb.lvd1689m": {"img_size": 64},
    "vit_small_patch16_rope_mixed_224": {"img_size": 64},
    "vit_base_patch16_clip_224.openai": {"img_size": 64},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_equal_timm_where_nothing_is_resized(small, name):
    side = FAMILIES[name]["img_size"]
    guide = small(name, "x", **FAMILIES[name])
    model, seen = guide.model, []
    hook = model.blocks[-1].norm1.register_forward_hook(lambda *parts: seen.append(parts[-1]))
    with torch.no_grad():
        final = model.forward_features(images(side, side))
    hook.remove()
    prefix = model.num_prefix_tokens
    assert prefix == {"reg4": 5, "dinov3": 5}.get("reg4" if "reg4" in name else "dinov3" if "dinov3" in name else "", 1)
    features, grid = guide.features(images(side, side))
    torch.testing.assert_close(features, F.normalize(final[:, prefix:], dim=-1), atol=1e-6, rtol=0)
    # q and k from the tokens that timm's own forward gave to the last attention
    attention = model.blocks[-1].attn
    weight, bias = attention.qkv.weight, attention.qkv.bias
    if getattr(attention, "q_bias", None) is not None:
        bias = torch.cat([attention.q_bias, torch.zeros(24), attention.v_bias])
    q, k, _ = (seen[0] @ weight.T + (0 if bias is None else bias)).split(24, dim=-1)
    guide.kind = "qk"
    features, grid = guide.features(images(side, side))
    assert grid == (4, 4)
    torch.testing.assert_close(features, F.normalize((q + k)[:, prefix:], dim=-1), atol=1e-6, rtol=0)
    assert guide.features(images(3 * side // 4, side))[0].shape == (2, 12, 24)


def test_normed_queries_and_separate_projections():
    from timm.layers import Attention
    from timm.models.eva import EvaAttention

    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    normed = noisy(Attention(12, 3, qkv_bias=True, qk_norm=True, norm_layer=torch.nn.LayerNorm))
    q, k, _ = (part.unflatten(-1, (3, 4)) for part in normed.qkv(x).chunk(3, dim=-1))
    torch.testing.assert_close(queries_plus_keys(normed, x), (normed.q_norm(q) + normed.k_norm(k)).flatten(2))
    apart = noisy(EvaAttention(12, 3, qkv_fused=False, norm_layer=torch.nn.LayerNorm))
    torch.testing.assert_close(queries_plus_keys(apart, x), apart.q_proj(x) + apart.k_proj(x))


def test_pixels_of_each_family():
    dino = Guide("vit_tiny_patch16_224", False, device="cpu")
    assert (dino.mean, dino.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert dino.features(images())[0].shape == (2, 6, 192)
    assert not any(weight.requires_grad for weight in dino.model.parameters())
    dino = Guide("vit_small_patch8_224.dino", False, device="cpu")
    assert (dino.mean, dino.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_weights_from_a_file(tmp_path):
    name = "vit_tiny_patch16_224"
    model = noisy(timm.create_model(name, num_classes=0))
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    torch.save(model.state_dict(), tmp_path / "b.pth")
    for file in ("a.safetensors", "b.pth"):
        guide = Guide(name, str(tmp_path / file), device="cpu")
        assert torch.equal(guide.model.blocks[3].attn.qkv.weight, model.blocks[3].attn.qkv.weight)
    save_file({"blocks.0.norm1.weight": torch.zeros(192)}, tmp_path / "few.safetensors")
    with pytest.raises(ValueError, match=r"few\.safetensors does not fit vit_tiny.*149 weights are missing"):
        _ = Guide(name, str(tmp_path / "few.safetensors")).model
    save_file({**model.state_dict(), "cls_token": torch.zeros(1, 1, 7)}, tmp_path / "shape.safetensors")
    with pytest.raises(ValueError, match="size mismatch for cls_token"):
        _ = Guide(name, str(tmp_path / "shape.safetensors")).model
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match="damaged"):
        _ = Guide(name, str(tmp_path / "cut.safetensors")).model
    with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
        _ = Guide(name, str(tmp_path / "none.pth")).model


def test_weights_in_the_names_of_dinov2_itself(tmp_path):
    name = "vit_small_patch14_reg4_dinov2.lvd142m"
    model = noisy(timm.create_model(name, num_classes=0, img_size=518))
    state = model.state_dict()
    first = state["pos_embed"].new_full((1, 1, 384), 0.5)  # the original adds it to the class token
    own = {key.replace("reg_token", "register_tokens"): value for key, value in state.items()}
    own |= {"pos_embed": torch.cat([first, state["pos_embed"]], dim=1), "mask_token": torch.zeros(1, 384)}
    torch.save(own, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    loaded = Guide(name, str(tmp_path / "dinov2_vits14_reg4_pretrain.pth"), device="cpu").model
    torch.testing.assert_close(loaded.cls_token, model.cls_token + 0.5)
    assert torch.equal(loaded.reg_token, model.reg_token)
    assert torch.equal(loaded.pos_embed, model.pos_embed)


def test_guides_that_will_not_do():
    with pytest.raises(
        FileNotFoundError, match=r"model.safetensors from https://huggingface.co/timm/vit_small_patch8_224"
    ):
        _ = Guide("vit_small_patch8_224.dino").model
    with pytest.raises(ValueError, match=r"no model 'vit_bass_patch8_224\.dino'\. Nearest: vit_base_patch8_224\.dino"):
        _ = Guide("vit_bass_patch8_224.dino").model
    with pytest.raises(ValueError, match="resnet18 is no ViT"):
        _ = Guide("resnet18", False).model
    with pytest.raises(ValueError, match="kind is 'v'"):
        Guide(kind="v")


@pytest.mark.parametrize("size", [(32, 32), (24, 48)])
def test_the_clip_itself_as_guide(size):
    visual, seen = small_vit(), []
    guide = ClipGuide(visual, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert (guide.mean, guide.std, guide.patch_size) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), (8, 8))
    features, grid = guide.features(images(*size))
    assert grid == (size[0] // 8, size[1] // 8)
    # the tower's own blocks, on the tokens of the bicubic positions
    x = vision_transformer(visual, "bicubic").embed(images(*size))
    last = visual.transformer.resblocks[-1]
    hook = last.ln_1.register_forward_hook(lambda *parts: seen.append(parts[-1]))
    with torch.no_grad():
        final = visual.transformer(x)
    hook.remove()
    q, k, _ = F.linear(seen[0], last.attn.in_proj_weight, last.attn.in_proj_bias).chunk(3, dim=-1)
    torch.testing.assert_close(features, F.normalize((q + k)[:, 1:], dim=-1), atol=1e-6, rtol=0)
    tokens, _ = ClipGuide(visual, (0.5,) * 3, (0.5,) * 3, kind="x").features(images(*size))
    torch.testing.assert_close(tokens, F.normalize(final[:, 1:], dim=-1), atol=1e-6, rtol=0)
    same = ClipGuide(vision_transformer(visual, "bicubic"), (0.5,) * 3, (0.5,) * 3).features(images(*size))[0]
    assert torch.equal(same, features)
