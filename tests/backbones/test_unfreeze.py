"""Which parts of the towers are trained: gradients reach the last blocks and what follows them, and nothing else."""

import pytest
import torch

from lightning_modules.backbones import Siglip2, TinyClip
from lightning_modules.backbones.blocks import open_clip_image_parts, open_clip_text_parts
from lightning_modules.backbones.encoder import Towers, unfreeze_blocks

TEXTS = ["a red ship", "two dogs on sand"]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """A SigLIP of three and four blocks with random weights, saved and read back."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessor, SiglipModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**sizes, "num_hidden_layers": 4, "vocab_size": 16, "projection_size": 32},
        vision_config={**sizes, "num_hidden_layers": 3, "image_size": 32, "patch_size": 16},
    )
    folder = tmp_path_factory.mktemp("siglip")
    model = SiglipModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "dogs": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(params=["tiny", "siglip"])
def encoder(request):
    if request.param == "tiny":
        return TinyClip(device="cpu")
    return Siglip2(str(request.getfixturevalue("siglip")), device="cpu")


def pixels(encoder):
    size = 96 if isinstance(encoder, TinyClip) else 32
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def expected_names(encoder, count):
    """Prefixes of the trained parameters, spelt out."""
    if isinstance(encoder, TinyClip):
        image = [f"visual.transformer.resblocks.{i}." for i in range(12 - count, 12)]
        text = [f"transformer.resblocks.{i}." for i in range(2 - count, 2)]
        return [*image, *text, "visual.ln_post.", "visual.proj", "ln_final.", "text_projection"]
    image = [f"vision_model.encoder.layers.{i}." for i in range(3 - count, 3)]
    text = [f"text_model.encoder.layers.{i}." for i in range(4 - count, 4)]
    heads = ["vision_model.post_layernorm.", "vision_model.head.", "text_model.final_layer_norm.", "text_model.head."]
    return [*image, *text, *heads]


@pytest.mark.parametrize("count", [1, 2])
def test_gradients_reach_exactly_the_unfrozen_parts(encoder, count):
    model = encoder.towers.model
    trained = unfreeze_blocks(encoder.towers, count)
    prefixes = tuple(expected_names(encoder, count))
    names = {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == names
    assert {id(p) for p in trained} == {id(p) for name, p in model.named_parameters() if name in names}
    assert len(trained) == len(names)
    image, text = encoder.embed_images(pixels(encoder)), encoder.embed_texts(TEXTS)
    (image.square().sum() + text.square().sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert {name for name, gradient in gradients.items() if gradient is not None} == names
    assert all(gradients[name].isfinite().all() for name in names)
    # Softmax ignores a constant added to all keys, so the gradient of their bias is rounding alone.
    assert all(gradients[name].abs().max() > 0 for name in names if not name.endswith("k_proj.bias"))


def test_fewer_blocks_freeze_the_others_again(encoder):
    many, few = (len(unfreeze_blocks(encoder.towers, count)) for count in (2, 1))
    assert few < many
    assert sum(p.requires_grad for p in encoder.towers.model.parameters()) == few


def test_embeddings_with_gradients_are_those_without(encoder):
    unfreeze_blocks(encoder.towers, 1)
    images = pixels(encoder)
    assert torch.allclose(encoder.embed_images(images), encoder.encode_image(images), atol=1e-5)
    assert torch.allclose(encoder.embed_texts(TEXTS), encoder.encode_text(TEXTS), atol=1e-5)
    assert encoder.embed_images(images).requires_grad
    assert encoder.embed_texts(TEXTS).requires_grad
    assert not encoder.encode_image(images).requires_grad
    assert not encoder.encode_text(TEXTS).requires_grad
    assert encoder.embed_texts([]).shape == (0, encoder.embed_dim)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\) is needed"):
        encoder.embed_images(images[0])


def test_a_surrounding_autocast_changes_nothing_in_full_precision(encoder):
    unfreeze_blocks(encoder.towers, 1)
    images = pixels(encoder)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image, text = encoder.embed_images(images), encoder.embed_texts(TEXTS)
    # bfloat16 would be off by a hundredth
    assert torch.allclose(image, encoder.encode_image(images), atol=1e-5)
    assert torch.allclose(text, encoder.encode_text(TEXTS), atol=1e-5)


def test_a_step_moves_the_unfrozen_parts_only(encoder):
    trained = unfreeze_blocks(encoder.towers, 1)
    before = {name: p.detach().clone() for name, p in encoder.towers.model.named_parameters()}
    optimiser = torch.optim.SGD(trained, lr=0.1)
    (encoder.embed_images(pixels(encoder)).square().sum() + encoder.embed_texts(TEXTS).square().sum()).backward()
    optimiser.step()
    prefixes = tuple(expected_names(encoder, 1))
    moved = {name for name, p in encoder.towers.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.startswith(prefixes)}


def test_counts_out_of_range_name_the_tower_and_the_range(siglip):
    tiny, other = TinyClip(device="cpu").towers, Siglip2(str(siglip), device="cpu").towers
    with pytest.raises(ValueError, match=r"3 blocks .* the text tower has 2\. Take 1 to 2"):
        unfreeze_blocks(tiny, 3)
    with pytest.raises(ValueError, match=r"4 blocks .* the image tower has 3\. Take 1 to 3"):
        unfreeze_blocks(other, 4)
    with pytest.raises(ValueError, match="0 blocks"):
        unfreeze_blocks(tiny, 0)
    assert not any(p.requires_grad for p in (*tiny.model.parameters(), *other.model.parameters()))


def parts_on_meta(name):
    """Blocks and heads of an open_clip architecture, built without memory for its weights."""
    import open_clip
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    config = dict(open_clip.get_model_config(name))
    custom = config.pop("custom_text", False)
    make = CoCa if "multimodal_cfg" in config else CustomTextCLIP if custom else CLIP
    with torch.device("meta"):
        model = make(**config)
    return model, open_clip_image_parts(model.visual), open_clip_text_parts(model)


@pytest.mark.parametrize(
    ("name", "image", "text", "before"),
    [
        ("ViT-B-32", 12, 12, {"class_embedding", "positional_embedding", "conv1", "ln_pre"}),
        ("ViT-B-16-SigLIP", 12, 12, {"trunk.pos_embed", "trunk.patch_embed"}),  # timm's tower, CustomTextCLIP
        ("EVA02-B-16", 12, 12, {"trunk.pos_embed", "trunk.patch_embed", "trunk.cls_token"}),
        ("coca_ViT-B-32", 12, 12, {"class_embedding", "positional_embedding", "conv1", "ln_pre"}),
    ],
)
def test_blocks_and_what_follows_them_are_all_but_the_entrance(name, image, text, before):
    model, (blocks, head), (text_blocks, text_head) = parts_on_meta(name)
    assert (len(blocks), len(text_blocks)) == (image, text)
    owned = {
        id(p)
        for part in (*blocks, *head)
        for p in ([part] if isinstance(part, torch.nn.Parameter) else part.parameters())
    }
    rest = [parameter for parameter, value in model.visual.named_parameters() if id(value) not in owned]
    assert all(parameter.startswith(tuple(before)) for parameter in rest)
    assert len(text_head) == 2


@pytest.mark.parametrize("name", ["RN50", "convnext_base"])
def test_a_tower_without_such_blocks_is_refused(name):
    model, image, (text_blocks, text_head) = parts_on_meta(name)
    assert image == ((), ())
    towers = Towers(model, None, None, None, None, "", *image[:1], text_blocks, *image[1:], text_head)
    with pytest.raises(ValueError, match=r"image tower of this encoder is no stack .* use a ViT"):
        unfreeze_blocks(towers, 1)
