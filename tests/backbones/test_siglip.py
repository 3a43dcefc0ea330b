import json

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.backbones.siglip import Siglip2

WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "red", "car", "dog"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A SigLIP2 folder with the real files: random towers, an eight-word tokenizer that keeps the case."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessor, SiglipModel

    torch.manual_seed(0)
    towers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**towers, "vocab_size": 16, "max_position_embeddings": 64, "projection_size": 32},
        vision_config={**towers, "image_size": 32, "patch_size": 16},
    )
    folder = tmp_path_factory.mktemp("siglip") / "siglip2-tiny"
    model = SiglipModel(config)
    # The library's own start values give the text head nothing to tell words apart by.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(checkpoint):
    return Siglip2(str(checkpoint))


def test_text_is_lowered_and_padded_on_the_right_to_64(encoder):
    tokens = encoder.towers.tokenize(["A Red car", "dog " * 100])
    assert tokens.shape == (2, 64)
    assert tokens[0].tolist() == [4, 5, 6] + [0] * 61
    assert tokens[1].tolist() == [7] * 64
    assert torch.equal(encoder.encode_text(["A RED CAR"]), encoder.encode_text(["a red car"]))


def test_embeddings_equal_the_model_without_mask(encoder, checkpoint):
    from transformers import SiglipModel

    model = SiglipModel.from_pretrained(checkpoint).eval()
    ids = torch.tensor([[4, 5, 6] + [0] * 61, [4, 7] + [0] * 62])
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
    with torch.no_grad():
        text = model.text_model(input_ids=ids).pooler_output
        vision = model.vision_model(pixel_values=pixels[None]).pooler_output
    assert torch.allclose(encoder.encode_text(["a red car", "a dog"]), text, atol=1e-5)
    assert torch.allclose(encoder.preprocess(image), pixels, atol=1e-5)
    assert torch.allclose(encoder.encode_image(encoder.preprocess(image)[None]), vision, atol=1e-5)
    assert encoder.embed_dim == 32
    assert encoder.name == "siglip2-tiny"
    assert not torch.allclose(text[0], text[1])


def test_same_weights_same_fingerprint(encoder, checkpoint):
    assert encoder.fingerprint() == Siglip2(str(checkpoint)).fingerprint()
    assert "64 tokens" in encoder.preprocessing


def copy(checkpoint, target):
    import shutil

    return shutil.copytree(checkpoint, target)


def test_bad_folders(checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty is incomplete.*model\.safetensors"):
        _ = Siglip2(str(tmp_path / "empty")).towers
    cut = copy(checkpoint, tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ValueError, match="damaged"):
        _ = Siglip2(str(cut)).towers
    kind = copy(checkpoint, tmp_path / "kind")
    config = json.loads((kind / "config.json").read_text())
    for model_type, hint in (("siglip2", "NaFlex"), ("clip", "kind 'clip'")):
        (kind / "config.json").write_text(json.dumps({"model_type": model_type}))
        with pytest.raises(ValueError, match=hint):
            _ = Siglip2(str(kind)).towers
    config["text_config"]["num_hidden_layers"] = 3
    (kind / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="missing or misshapen"):
        _ = Siglip2(str(kind)).towers


def test_offline_says_which_files_to_put_where(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as caught:
        _ = Siglip2("google/siglip2-base-patch16-256").towers
    assert "config.json, model.safetensors" in str(caught.value)
    assert "path: /path/to/siglip2-base-patch16-256" in str(caught.value)
