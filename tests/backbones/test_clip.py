import hashlib
import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lightning_modules.backbones.clip import OpenClip, activation_twin, check_activation, tag_of_file
from lightning_modules.backbones.encoder import weights_fingerprint

TEXTS = ["a red car", "Two dogs on the sand.", ""]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Registers a small architecture with open_clip and gives its name."""
    import open_clip

    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    folder = tmp_path_factory.mktemp("configs")
    (folder / "test-tiny.json").write_text(json.dumps(config))
    config["vision_cfg"]["image_size"] = 48
    (folder / "test-tiny-48.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return "test-tiny"


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 52, 3), dtype=np.uint8)) for _ in range(5)]


def test_embeddings_equal_open_clip_for_any_batch(tiny, images):
    encoder = OpenClip(tiny, None)
    pixels = torch.stack([encoder.preprocess(image) for image in images])
    model = encoder.towers.model
    with torch.no_grad():
        expected = torch.stack([model.encode_image(p[None])[0] for p in pixels])
    got = encoder.encode_image(pixels)
    assert got.shape == (5, encoder.embed_dim) == (5, 24)
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(got.norm(dim=1), torch.ones(5), atol=1e-2)  # not normalised
    one_by_one = torch.cat([encoder.encode_text([text]) for text in TEXTS])
    assert torch.allclose(encoder.encode_text(TEXTS), one_by_one, atol=1e-5)
    assert encoder.encode_image(pixels[:0]).shape == encoder.encode_text([]).shape == (0, 24)
    assert not got.requires_grad


def test_preprocess_against_a_naive_version(tiny, images):
    encoder = OpenClip(tiny, None)
    square = images[0].crop((0, 0, 32, 32))  # already the model's size: only the scaling is left
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    expected = ((np.asarray(square, np.float64) / 255 - mean) / std).transpose(2, 0, 1)
    assert np.allclose(encoder.preprocess(square).numpy(), expected, atol=1e-5)
    assert encoder.preprocess(images[0]).shape == (3, 32, 32)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\) is needed"):
        encoder.encode_image(encoder.preprocess(square))


def test_fingerprint_is_the_hash_of_the_weights(tiny):
    encoder = OpenClip(tiny, None)
    digest = hashlib.sha256()
    for name, value in encoder.towers.model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode() + value.numpy().tobytes())
    assert encoder.fingerprint() == digest.hexdigest()
    assert weights_fingerprint(torch.nn.Linear(2, 2).bfloat16()) != weights_fingerprint(
        torch.nn.Linear(2, 2).bfloat16()
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_local_files(tiny, tmp_path, suffix):
    source = OpenClip(tiny, None)
    state = source.towers.model.state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if suffix == ".pt" else state, path)
    loaded = OpenClip(tiny, str(path))
    assert loaded.fingerprint() == source.fingerprint()
    assert torch.equal(loaded.encode_text(TEXTS), source.encode_text(TEXTS))
    assert loaded.name == f"test-tiny weights{suffix}"


def test_damaged_and_misfitting_files(tiny, tmp_path):
    state = OpenClip(tiny, None).towers.model.state_dict()
    good, cut = tmp_path / "good.safetensors", tmp_path / "cut.safetensors"
    save_file(state, good)
    cut.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut\.safetensors is damaged.*Download it again"):
        _ = OpenClip(tiny, str(cut)).towers
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint at all")
    with pytest.raises(ValueError, match=r"noise\.pt is damaged"):
        _ = OpenClip(tiny, str(tmp_path / "noise.pt")).towers
    with pytest.raises(ValueError, match=r"good\.safetensors does not fit the model test-tiny-48: it has 5 image pos"):
        _ = OpenClip("test-tiny-48", str(good)).towers
    missing = {k: v for k, v in state.items() if k != "ln_final.weight"}
    save_file(missing, tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match=r"missing\.safetensors does not fit.*ln_final\.weight"):
        _ = OpenClip(tiny, str(tmp_path / "missing.safetensors")).towers
    with pytest.raises(FileNotFoundError, match=r"absent\.pt does not exist"):
        _ = OpenClip(tiny, str(tmp_path / "absent.pt")).towers


class Evil:
    def __reduce__(self):
        return (open, ("/nonexistent/evil", "w"))


def test_files_that_could_run_code_are_not_loaded(tiny, tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hook": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="could run code; it was not loaded"):
        _ = OpenClip(tiny, str(tmp_path / "evil.pt")).towers
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        _ = OpenClip(tiny, str(tmp_path / "list.pt")).towers


@pytest.mark.parametrize(
    ("model", "tag", "right"),
    [
        ("ViT-B-32", "openai", "ViT-B-32-quickgelu"),
        ("ViT-L-14", "metaclip_400m", "ViT-L-14-quickgelu"),
        ("RN50", "openai", "RN50-quickgelu"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "ViT-B-32"),
        ("ViT-H-14-378", "dfn5b", "ViT-H-14-378-quickgelu"),
    ],
)
def test_activation_mismatch_names_the_right_model(model, tag, right):
    with pytest.raises(ValueError, match=rf"Use model: {right}$"):
        _ = OpenClip(model, tag).towers
    check_activation(right, tag)


def test_activation_of_a_local_file_is_told_by_its_folder(tmp_path):
    folder = tmp_path / "models--timm--vit_base_patch32_clip_224.openai" / "snapshots" / "x"
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, folder / "open_clip_model.safetensors")
    assert tag_of_file("ViT-B-32", folder / "open_clip_model.safetensors") == "openai"
    with pytest.raises(ValueError, match="Use model: ViT-B-32-quickgelu"):
        _ = OpenClip("ViT-B-32", str(folder / "open_clip_model.safetensors")).towers


def test_every_mismatch_of_open_clip_has_a_right_model():
    import open_clip

    for model, tag in open_clip.list_pretrained():
        config, twin = open_clip.get_model_config(model), activation_twin(model)
        if config is None or twin is None:
            continue
        wants = open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False)
        right = model if wants == config.get("quick_gelu", False) else twin
        check_activation(right, tag)


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match=r"no model 'ViT-B32'\. Nearest: ViT-B-32"):
        _ = OpenClip("ViT-B32", None).towers
    with pytest.raises(ValueError, match="no model 'ViT-B32'"):
        _ = OpenClip("ViT-B32", None).embed_dim
    with pytest.raises(ValueError, match=r"neither a tag of ViT-B-32 nor a weight file\. Nearest: laion2b_s34b_b79k"):
        _ = OpenClip("ViT-B-32", "laion2b_s34b_b79").towers
    with pytest.raises(ValueError, match="That tag belongs to ViT-B-16-SigLIP"):
        _ = OpenClip("ViT-B-32", "webli").towers
    with pytest.raises(ValueError, match="precision is 'fp16'; known: 32-true"):
        OpenClip(precision="fp16")


def test_offline_says_which_file_to_put_where(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("open_clip.download_pretrained", lambda cfg: (_ for _ in ()).throw(OSError("no network\nmore")))
    with pytest.raises(FileNotFoundError) as caught:
        _ = OpenClip("ViT-B-32-quickgelu", "openai").towers
    text = str(caught.value)
    assert "could not be downloaded (no network)" in text
    assert "open_clip_model.safetensors from https://huggingface.co/timm/vit_base_patch32_clip_224.openai" in text
    assert "pretrained: /path/to/vit_base_patch32_clip_224.openai/open_clip_model.safetensors" in text


def test_autocast_stays_near_full_precision(tiny, images):
    full = OpenClip(tiny, None)
    half = OpenClip(tiny, None, precision="bf16-mixed")
    _ = half.towers.model.load_state_dict(full.towers.model.state_dict())
    pixels = torch.stack([full.preprocess(image) for image in images])
    a, b = full.encode_image(pixels), half.encode_image(pixels)
    assert b.dtype == torch.float32
    assert 0 < (a - b).abs().max() < 0.05 * a.abs().max()
    assert half.name == "test-tiny random bf16-mixed"


def test_compiled_towers_give_the_same(tiny, images, monkeypatch):
    # Graph capture without code generation: that takes half a minute and a C++ compiler, and is torch's own affair.
    calls = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kw: calls.append(kw) or real(f, backend="eager", **kw))
    plain, fast = OpenClip(tiny, None), OpenClip(tiny, None, compile=True)
    pixels = torch.stack([plain.preprocess(image) for image in images])
    _ = fast.towers.model.load_state_dict(plain.towers.model.state_dict())
    assert calls == [{"dynamic": True}] * 2
    for size in (5, 3):
        assert torch.allclose(fast.encode_image(pixels[:size]), plain.encode_image(pixels[:size]), atol=1e-4)
    assert torch.allclose(fast.encode_text(TEXTS), plain.encode_text(TEXTS), atol=1e-4)
    assert fast.fingerprint() == plain.fingerprint()


def test_pickling_leaves_the_weights_at_home(tiny, images):
    encoder = OpenClip(tiny, None)
    pixels = encoder.preprocess(images[0])
    buffer = io.BytesIO()
    pickle.dump(encoder, buffer)
    assert buffer.tell() < 10_000
    copy = pickle.loads(buffer.getvalue())
    assert torch.equal(copy.preprocess(images[0]), pixels)
    assert copy._towers is None
