"""The shipped tiny CLIP, measured again on scenes that no training saw."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader

from datamodules.scenes import CLASS_NAMES, SceneDataset, Scenes
from lightning_modules.backbones import TinyClip
from lightning_modules.backbones.tiny import WEIGHTS, encode_phrases, load_tiny_clip, normalise_images, tokenize
from lightning_modules.contrastive.evaluation import (
    pixel_average_precision,
    presence_average_precision,
    recall_at_1,
)
from lightning_modules.contrastive.networks import embeddings_and_values


@pytest.mark.slow
@torch.no_grad()
def test_shipped_weights_know_classes_places_and_captions():
    clip = load_tiny_clip()
    classes = encode_phrases(clip, Scenes().phrases[: len(CLASS_NAMES)], torch.device("cpu"))
    parts = []
    for batch in DataLoader(SceneDataset(500, split="test"), batch_size=125):
        image, values = embeddings_and_values(clip.visual, normalise_images(batch["image"]))
        text = clip.encode_text(tokenize(batch["text"]), normalize=True)
        patches = F.normalize(values, dim=-1) @ classes.T
        parts.append((F.normalize(image, dim=-1), text, patches, batch["labels"], batch["semantic"]))
    image, text, patches, labels, semantic = (torch.cat(column) for column in zip(*parts, strict=True))
    presence = torch.tensor(presence_average_precision(image @ classes.T, labels))
    assert presence.mean() >= 0.75
    assert (presence > 2 * labels.mean(0)).all(), "a class is at its prior"
    pixels = pixel_average_precision(patches, semantic)
    assert pixels[:, 1].mean() >= 0.45
    assert pixels[:, 2].mean() < 0.15  # what random patches would score
    assert recall_at_1(image, text) >= 50 / 500


def test_weights_are_small():
    assert WEIGHTS.stat().st_size <= 16 * 2**20


def test_encoder_gives_the_towers_embeddings():
    encoder, clip = TinyClip(device="cpu"), load_tiny_clip()
    item = SceneDataset(2, split="test")[1]
    picture = Image.fromarray(item["image"].permute(1, 2, 0).numpy())
    pixels = encoder.preprocess(picture)
    assert torch.allclose(pixels, normalise_images(item["image"]), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(encoder.encode_image(pixels[None]), clip.encode_image(pixels[None]), atol=1e-5)
        expected = clip.encode_text(tokenize([item["text"]]))
    assert torch.allclose(encoder.encode_text([item["text"]]), expected, atol=1e-5)
    assert encoder.embed_dim == 128
    assert len(encoder.fingerprint()) == 64


def test_missing_weights_name_the_command_that_makes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"configs/contrastive/tiny_clip\.yaml"):
        TinyClip(weights=str(tmp_path / "none.safetensors")).fingerprint()
