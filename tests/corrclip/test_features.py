"""CorrCLIP's features against an independent float64 loop over regions, heads and tokens, and against plain CLIP."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from naive_corrclip import NaiveCorrCLIP, bicubic
from torch import nn
from toy_vit import small_vit

from lightning_modules.backbones.vit import resized_positions, vision_transformer
from lightning_modules.corrclip.features import SIMILARITIES, corrclip_features, spatial_blocks

GOLDENS = os.environ.get("CLIP_SUITE_GOLDENS")
OWN, GRID = (4, 6), (8, 12)  # patches of CLIP and of the guide in images of 32 x 48


def blobs(generator: torch.Generator, count: int, sites: int = 6) -> torch.Tensor:
    """Id maps (count, 32, 48) of the nearest of some sites."""
    ys, xs = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    points = torch.rand(count, sites, 2, generator=generator) * torch.tensor([32.0, 48.0])
    squares = [(ys - p[:, 0, None, None]).square() + (xs - p[:, 1, None, None]).square() for p in points]
    return torch.stack([each.argmin(0) for each in squares])


@pytest.fixture(scope="module")
def visual() -> nn.Module:
    return small_vit().double()


@pytest.fixture(scope="module")
def world() -> dict[str, torch.Tensor]:
    """Four images of 32 x 48, their guide on 8 x 12 and their masks with 6, 6, 1 and 2 regions."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(4, 3, 32, 48, generator=generator, dtype=torch.float64)
    masks = blobs(generator, 4)
    masks[1] += 40
    masks[2] = 5
    masks[3] = masks[3] % 2
    directions = torch.randn(3, 10, generator=generator, dtype=torch.float64)
    patches = masks[:, 2::4, 2::4].flatten(1)
    guide = directions[patches % 3] + 0.5 * torch.randn(4, 96, 10, generator=generator, dtype=torch.float64)
    return {"images": images, "guide": guide, "instance_mask": masks}


def run(visual, world, rows=slice(None), **settings) -> torch.Tensor:
    with torch.no_grad():
        return corrclip_features(visual, grid=GRID, **{name: value[rows] for name, value in world.items()}, **settings)


SETTINGS = {
    "as published": {},
    "vanilla": {"similarity": "vanilla", "scope": False, "alpha": 0, "beta": 0},
    "values": {"similarity": "clip_vv", "alpha": 0, "beta": 0},
    "baseline": {"similarity": "clip_qq", "scope": False, "alpha": 0, "beta": 0},
    "with scope": {"similarity": "clip_qq", "alpha": 0, "beta": 0},
    "with value": {"alpha": 0, "beta": 0},
    "spatial branch": {"alpha": 0.7, "beta": 0},
    "semantic branch": {"alpha": 0, "beta": 2.0},
    "uniform": {"similarity": "uniform"},
    "queries and keys": {"similarity": "clip_qk"},
    "the paper's scope": {"unsegmented": "outer"},
    "no merging": {"eps": None, "tau": 1.0},
    "much merging": {"eps": 0.9},
    "no scope": {"scope": False},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_token_by_token(name, visual, world) -> None:
    settings = SETTINGS[name]
    found = run(visual, world, **settings)
    naive = NaiveCorrCLIP(visual)
    for image in (0, 2) if name == "as published" else (1,):
        images, guide, mask = (world[part][image].numpy() for part in ("images", "guide", "instance_mask"))
        expected = naive.features(images, guide, GRID, mask, **settings)
        np.testing.assert_allclose(found[image].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_settings_make_a_difference(visual, world) -> None:
    found = [run(visual, world, slice(0, 2), **settings) for settings in SETTINGS.values()]
    for number, first in enumerate(found):
        for second in found[:number]:
            assert (first - second).norm() / first.norm() > 1e-4


def test_a_guide_on_the_grid_of_clip(visual, world) -> None:
    guide = world["guide"].unflatten(1, GRID)[:, ::2, ::2].flatten(1, 2)
    with torch.no_grad():
        found = corrclip_features(visual, world["images"], guide, OWN, world["instance_mask"])
    images, mask = world["images"][1].numpy(), world["instance_mask"][1].numpy()
    expected = NaiveCorrCLIP(visual).features(images, guide[1].numpy(), OWN, mask)
    np.testing.assert_allclose(found[1].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_batch_is_its_images_one_by_one(visual, world) -> None:
    for settings in ({}, {"similarity": "clip_qk"}):
        together = run(visual, world, **settings)
        for image in range(4):
            alone = run(visual, world, slice(image, image + 1), **settings)
            torch.testing.assert_close(together[image : image + 1], alone, rtol=1e-9, atol=1e-9)


def test_names_of_regions_do_not_matter(visual, world) -> None:
    mask = world["instance_mask"][1:2] - 40
    other = {name: value[1:2] for name, value in world.items()}
    expected = run(visual, world, slice(1, 2))
    other["instance_mask"] = torch.tensor([0, 500, 3, 65535, 10000, 1])[mask]
    torch.testing.assert_close(run(visual, other), expected, rtol=1e-9, atol=1e-9)
    other["instance_mask"] = torch.tensor([5, 1, 2, 3, 4, 0])[mask]  # another region is the part without masks
    assert (run(visual, other) - expected).abs().max() > 1e-3


def inputs_of_blocks(visual: nn.Module, call) -> list[torch.Tensor]:
    """What comes into the blocks, first to last, while something runs."""
    seen: list[torch.Tensor] = []
    hooks = [
        block.ln_1.register_forward_pre_hook(lambda _, x: seen.append(x[0])) for block in visual.transformer.resblocks
    ]
    try:
        with torch.no_grad():
            call()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def test_patches_and_class_token_are_those_of_plain_clip(visual, world) -> None:
    square = {"images": world["images"][:, :, :, :32], "instance_mask": world["instance_mask"][:, :, :32]}
    guide = world["guide"].unflatten(1, GRID)[:, :, :8].flatten(1, 2)
    plain = inputs_of_blocks(visual, lambda: visual(square["images"]))
    ours = inputs_of_blocks(visual, lambda: corrclip_features(visual, guide=guide, grid=(8, 8), **square))
    stream = [x for x in ours if x.shape[1] == 17][:8]  # the ninth is the mean of the lower blocks
    regions = [x for x in ours if x.shape[1] != 17]
    assert len(plain) == len(stream) == len(regions) == 8
    for first, second in zip(stream, plain, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def test_the_class_token_of_a_region_that_fills_the_image_is_the_image(visual, world) -> None:
    images, mask = world["images"][:, :, :, :32], torch.zeros(4, 32, 32, dtype=torch.uint8)
    guide = world["guide"][:, :64]
    with torch.no_grad():
        found = corrclip_features(visual, images, guide, (8, 8), mask, beta=1.0)
        without = corrclip_features(visual, images, guide, (8, 8), mask, beta=0)
        expected = visual(images)[:, None].expand(-1, 64, -1)
    torch.testing.assert_close(found - without, expected, rtol=1e-9, atol=1e-9)


def test_nothing_of_the_model_or_the_input_changes(world) -> None:
    visual = small_vit().double()
    before = {name: value.clone() for name, value in visual.state_dict().items()}
    given = {name: value.clone() for name, value in world.items()}
    first, second = run(visual, world), run(visual, world)
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[name]) for name, value in visual.state_dict().items())
    assert all(torch.equal(value, given[name]) for name, value in world.items())


def test_blocks_of_the_spatial_branch() -> None:
    assert [spatial_blocks(n) for n in (12, 24, 32)] == [range(5, 10), range(10, 22), range(2, 30)]
    assert [list(spatial_blocks(n)) for n in (4, 5, 8)] == [[], [2], [2, 3, 4, 5]]


def test_positions_of_another_grid_as_dino_has_them() -> None:
    positions = torch.randn(16, 3, generator=torch.Generator().manual_seed(8))
    for grid in ((4, 6), (9, 2), (2, 8)):
        found = resized_positions(positions, (4, 4), grid, "bicubic").view(*grid, 3)
        np.testing.assert_allclose(found, bicubic(positions.double().numpy().reshape(4, 4, 3), grid), atol=2e-5)
    assert resized_positions(positions, (4, 4), (4, 4), "bicubic") is positions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instance_mask": torch.zeros(4, 48, 32).int()}, r"shape \(4, 48, 32\), but .* \(4, 32, 48\)"),
        ({"instance_mask": torch.full((4, 32, 48), -3)}, "ids from -3 to -3"),
        ({"instance_mask": torch.full((4, 32, 48), 70000)}, "70000; they go from 0"),
        ({"images": torch.zeros(4, 3, 30, 48)}, "H a multiple of 8.*pad the window"),
        ({"images": torch.zeros(3, 32, 48)}, r"images have shape \(3, 32, 48\)"),
        ({"guide": torch.zeros(4, 95, 10)}, r"guide has shape \(4, 95, 10\); features \(4, 8 x 12, C\)"),
        ({"similarity": "clip_kk"}, "'clip_kk'.*guide, uniform, clip_qq, clip_qk"),
        ({"similarity": "vanilla"}, "set scope to false, alpha and beta to 0"),
        ({"unsegmented": "none"}, "known: union, outer"),
        ({"tau": -1.0}, "tau is -1.0"),
        ({"eps": -0.1}, "eps is -0.1"),
    ],
)
def test_settings_and_sizes_that_do_not_fit(change, message, visual, world) -> None:
    with pytest.raises(ValueError, match=message):
        corrclip_features(**{"visual": visual, "grid": GRID, **world, **change})


def test_a_vit_without_what_a_branch_needs(world) -> None:
    from dataclasses import replace

    vit = vision_transformer(small_vit().double(), positions="bicubic")
    short = replace(vit, blocks=vit.blocks[:4])
    with pytest.raises(ValueError, match=r"five blocks, this has 4\. Set alpha to 0"):
        run(short, world)
    assert run(short, world, alpha=0).shape == (4, 96, 12)
    with pytest.raises(ValueError, match=r"class token\. Set beta to 0"):
        run(replace(vit, prefix=0), world)


def test_half_precision_stays_close(world) -> None:
    visual = small_vit()
    exact = run(visual, {name: value.float() if name != "instance_mask" else value for name, value in world.items()})
    small = {
        "images": world["images"].bfloat16(),
        "guide": world["guide"].float(),
        "instance_mask": world["instance_mask"],
    }
    found = run(visual.bfloat16(), small)
    assert found.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(found.float(), exact, dim=-1).min() > 0.98


@pytest.mark.gpu
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_gpu_gives_the_features_of_the_processor(similarity, visual, world) -> None:
    plain = {"scope": False, "alpha": 0, "beta": 0} if similarity == "vanilla" else {}
    here = run(visual, world, similarity=similarity, **plain)
    moved = {name: value.cuda() for name, value in world.items()}
    there = run(small_vit().double().cuda(), moved, similarity=similarity, **plain)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not GOLDENS, reason="CLIP_SUITE_GOLDENS does not point at the reference arrays")
def test_the_reference_implementation() -> None:
    from open_clip.model import QuickGELU
    from open_clip.transformer import VisionTransformer
    from safetensors.torch import load_file

    arrays = np.load(Path(GOLDENS) / "corrclip_a.npz")
    golden = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    visual = VisionTransformer(64, 8, 128, 12, 2, 4.0, output_dim=32, act_layer=QuickGELU).eval()
    stored = load_file(Path(GOLDENS) / "corrclip_a_vit.safetensors")
    visual.load_state_dict({name.removeprefix("visual."): value for name, value in stored.items()})
    grid, mask = tuple(golden["feat_shape"].tolist()), golden["instance_mask"][None]

    def run_with(**settings) -> float:
        with torch.no_grad():
            found = corrclip_features(visual, golden["image"], golden["dino_feats"], grid, mask, **settings)
        return float((found - golden["features"]).norm() / golden["features"].norm())

    assert run_with() < 1e-5
    for change in (
        {"tau": 0.3},
        {"beta": 0.4},
        {"alpha": 0.9},
        {"eps": None},
        {"scope": False},
    ):
        assert run_with(**change) > 1e-4, change
