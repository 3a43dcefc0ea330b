"""Fusion encoder and hash head."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_modules.hashing.networks import FusionEncoder, HashHead, binary_codes


def naive_fusion(encoder, image, text):
    """The encoder written out for sequences of length one: attention over one key is its value projection."""
    state = {name: value.double() for name, value in encoder.state_dict().items()}
    x = torch.cat([image, text], 1).double()
    width = x.shape[1]
    for i in range(2):
        p = f"encoder.layers.{i}."
        value = (
            x @ state[p + "self_attn.in_proj_weight"][2 * width :].T + state[p + "self_attn.in_proj_bias"][2 * width :]
        )
        x = x + value @ state[p + "self_attn.out_proj.weight"].T + state[p + "self_attn.out_proj.bias"]
        x = F.layer_norm(x, (width,), state[p + "norm1.weight"], state[p + "norm1.bias"])
        inner = F.relu(x @ state[p + "linear1.weight"].T + state[p + "linear1.bias"])
        x = x + inner @ state[p + "linear2.weight"].T + state[p + "linear2.bias"]
        x = F.layer_norm(x, (width,), state[p + "norm2.weight"], state[p + "norm2.bias"])
    x = x / x.norm(dim=1, keepdim=True)
    return x[:, : image.shape[1]], x[:, image.shape[1] :]


@pytest.mark.parametrize(("image_dim", "text_dim"), [(6, 4), (5, 2), (8, 8)])
def test_fusion_equals_the_written_out_encoder(image_dim, text_dim):
    torch.manual_seed(0)
    encoder = FusionEncoder(image_dim, text_dim, feedforward=16).eval()
    image, text = torch.randn(5, image_dim), torch.randn(5, text_dim)
    for got, expected in zip(encoder(image, text), naive_fusion(encoder, image, text), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


def test_an_item_does_not_depend_on_its_batch_in_either_mode():
    torch.manual_seed(0)
    image, text = torch.randn(5, 6), torch.randn(5, 4)
    encoder = FusionEncoder(6, 4, feedforward=16, dropout=0.0)
    train = encoder.train()(image, text)[0]
    torch.testing.assert_close(encoder.eval()(image, text)[0], train)
    torch.testing.assert_close(encoder(image[2:3], text[2:3])[0], train[2:3])


def test_the_number_of_heads_changes_nothing():
    encoders = [FusionEncoder(6, 6, heads=heads, feedforward=16).eval() for heads in (1, 4)]
    encoders[1].load_state_dict(encoders[0].state_dict())
    image, text = torch.randn(3, 6), torch.randn(3, 6)
    torch.testing.assert_close(encoders[0](image, text)[0], encoders[1](image, text)[0])


def test_hash_head_equals_its_formula_and_keeps_its_signs_at_any_scale():
    torch.manual_seed(0)
    head = HashHead(6, 16, hidden=8).eval()
    x = torch.randn(4, 6)
    unit = x / x.norm(dim=1, keepdim=True)
    raw = torch.relu(unit @ head.hidden.weight.T + head.hidden.bias) @ head.output.weight.T + head.output.bias
    for scale in (1.0, 2.5, 10.0):
        head.set_scale(scale)
        torch.testing.assert_close(head(x), torch.tanh(scale * raw))
        assert torch.equal(binary_codes(head(x)), torch.where(raw >= 0, 1, -1).to(torch.int8))


def test_the_scale_travels_with_the_weights():
    trained, loaded = HashHead(3, 4, hidden=5), HashHead(3, 4, hidden=5)
    trained.set_scale(7.0)
    loaded.load_state_dict(trained.state_dict())
    assert loaded.scale.item() == 7.0


@pytest.mark.parametrize("bits", [0, -3])
def test_a_code_needs_a_bit(bits):
    with pytest.raises(ValueError, match=f"bits is {bits}"):
        HashHead(4, bits)


def test_golden_outputs():
    folder = os.environ.get("CLIP_SUITE_GOLDENS")
    if folder is None:
        pytest.skip("CLIP_SUITE_GOLDENS is not set")
    from safetensors.torch import load_file

    arrays = np.load(Path(folder) / "ucmfh_a.npz")
    weights = load_file(Path(folder) / "ucmfh_a.safetensors")

    def part(prefix, names):
        found = {}
        for key, value in weights.items():
            if key.startswith(prefix):
                name = key.removeprefix(prefix)
                for old, new in names.items():
                    name = name.replace(old, new)
                found[name] = value
        return found

    fusion = FusionEncoder(32, 32).eval()
    fusion.load_state_dict(part("fusion.", {"transformerEncoder": "encoder"}))
    fused = fusion(torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["text"]))
    for name, features in zip(("image", "text"), fused, strict=True):
        head = HashHead(32, 16).eval()
        head.load_state_dict(
            {"scale": torch.tensor(1.0), **part(f"{name}_head.", {"fc1": "hidden", "tohash": "output"})}
        )
        torch.testing.assert_close(features, torch.from_numpy(arrays[f"fused_{name}"]), rtol=1e-4, atol=1e-5)
        codes = F.normalize(head(features), dim=1)  # the reference's head ends in this normalisation
        torch.testing.assert_close(codes, torch.from_numpy(arrays[f"hash_{name}"]), rtol=1e-4, atol=1e-5)
