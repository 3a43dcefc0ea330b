"""What training does with a batch: augmentation, patches, targets, learning rate, and which images count how much."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from lightning_modules.detection import augment
from lightning_modules.detection.augment import cut_patches, flip_half, jitter, paste_patches
from lightning_modules.detection.batches import stacked, targets_of, truths_of
from lightning_modules.detection.mining import HardNegativeMiner
from lightning_modules.detection.optimiser import warm_cosine
from lightning_modules.detection.weights import hardness_weights, highest
from lightning_modules.metrics import flatten_detections


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def target(boxes, **rest):
    boxes = torch.tensor(boxes, dtype=torch.float).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.arange(len(boxes)), "ignore": torch.zeros(len(boxes)).bool(), **rest}


def marked(number, height, width):
    """Pictures of noise below 200, with a rectangle of 255 where the one box is."""
    images, targets = torch.randint(0, 200, (number, 3, height, width), dtype=torch.uint8), []
    for image in images:
        x, y = int(torch.randint(0, width - 2, ())), int(torch.randint(0, height - 2, ()))
        w, h = int(torch.randint(1, width - x + 1, ())), int(torch.randint(1, height - y + 1, ()))
        image[:, y : y + h, x : x + w] = 255
        targets.append(target([[x / width, y / height, (x + w) / width, (y + h) / height]]))
    return images, targets


def marked_box(image):
    """Of the pixels of 255, as fractions."""
    ys, xs = torch.nonzero((image == 255).all(dim=0)).unbind(dim=1)
    height, width = image.shape[-2:]
    corners = [xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height]
    return [corner.item() for corner in corners]


def test_boxes_are_mirrored_with_their_image():
    images, targets = marked(64, 12, 20)
    before, boxes = images.clone(), [one["boxes"].clone() for one in targets]
    mirrored, others = flip_half(images, targets)
    turned = 0
    for old, new, one, other in zip(images, mirrored, targets, others, strict=True):
        assert other["boxes"][0].tolist() == pytest.approx(marked_box(new), abs=1e-6)
        assert torch.equal(new, old) or torch.equal(new, torch.from_numpy(old.numpy()[:, :, ::-1].copy()))
        turned += not torch.equal(new, old)
        assert torch.equal(other["labels"], one["labels"])
        assert torch.equal(other["ignore"], one["ignore"])
    assert 16 < turned < 48
    assert torch.equal(images, before)
    assert all(torch.equal(one["boxes"], box) for one, box in zip(targets, boxes, strict=True))


def test_mirroring_twice_gives_the_same(monkeypatch):
    monkeypatch.setattr(torch, "rand", torch.zeros)  # all are mirrored
    images, targets = marked(8, 16, 32)  # fractions that floats hold exactly
    targets[3] = target([])
    once, between = flip_half(images, targets)
    assert not torch.equal(once, images)
    assert between[3]["boxes"].shape == (0, 4)
    twice, ends = flip_half(once, between)
    assert torch.equal(twice, images)
    assert all(torch.equal(end["boxes"], one["boxes"]) for end, one in zip(ends, targets, strict=True))


def test_brightness_and_contrast_are_drawn_for_each_image():
    """A line through old and new values has the contrast as its slope; the mean tells the brightness."""
    images = torch.randint(100, 150, (200, 3, 8, 8), dtype=torch.uint8)
    changed = jitter(images, 0.2)
    slopes, bright = [], []
    for old, new in zip(images.double().flatten(1).numpy(), changed.double().flatten(1).numpy(), strict=True):
        slope, start = np.polyfit(old, new, 1)
        assert np.abs(slope * old + start - new).max() < 1  # both are whole numbers
        slopes.append(slope)
        bright.append(new.mean() / old.mean())
    for factors in (slopes, bright):
        assert 0.795 < min(factors) < 0.82
        assert 1.18 < max(factors) < 1.205
        assert np.mean(factors) == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(slopes, bright)[0, 1]) < 0.2


def test_without_strength_or_at_factor_1_images_stay(monkeypatch):
    images = torch.randint(0, 256, (5, 3, 7, 9), dtype=torch.uint8)
    assert torch.equal(jitter(images, 0), images)
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, 0.5))
    assert torch.equal(jitter(images, 1.0), images)


def test_one_factor_keeps_the_mean_and_the_other_the_contrast(monkeypatch):
    image = torch.randint(80, 160, (1, 3, 16, 16), dtype=torch.uint8)
    found = []
    for draws in ([0.0, 0.5], [0.5, 0.0]):  # one of the factors is 0.8
        monkeypatch.setattr(torch, "rand", lambda *_, draws=draws, **__: torch.tensor(draws).reshape(2, 1, 1, 1, 1))
        values = jitter(image, 0.2).float()
        found.append((values.mean() / image.float().mean(), values.std() / image.float().std()))
    contrast, brightness = sorted(found, reverse=True)
    assert contrast == pytest.approx((1, 0.8), abs=0.004)
    assert brightness == pytest.approx((0.8, 1), abs=0.004)


def test_values_are_cut_off_and_do_not_wrap():
    images = torch.arange(256, dtype=torch.uint8).repeat(100, 3).reshape(100, 3, 16, 16)
    changed = jitter(images, 1.0)
    assert changed.dtype == torch.uint8
    assert (changed.flatten(2).int().diff(dim=-1) >= 0).all()  # brighter pixels stay brighter
    assert changed.min() == 0
    assert changed.max() == 255


def pasted_at(image, patch):
    """Left and top of the patch on a black image, which holds nothing else; None if it is black."""
    ys, xs = torch.nonzero(image.any(dim=0)).unbind(dim=1)
    if len(xs) == 0:
        return None
    h, w = patch.shape[-2:]
    x, y = int(xs.min()), int(ys.min())
    assert torch.equal(image[:, y : y + h, x : x + w], patch)
    assert int(image.sum()) == int(patch.sum())
    return x, y


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_patches_touch_no_box(height, width):
    pasted, refused = 0, 0
    for _ in range(60):
        corners = torch.rand(6, 5, 2)
        boxes = torch.cat([corners, (corners + 0.8 * torch.rand(6, 5, 2)).clamp(max=1)], dim=-1)
        targets = [target(of_image[:number].tolist()) for number, of_image in enumerate(boxes)]
        targets[1]["ignore"][:] = True  # they are objects too
        patch = torch.randint(1, 256, (3, *torch.randint(1, 13, (2,)).tolist()), dtype=torch.uint8)
        images = torch.zeros(6, 3, height, width, dtype=torch.uint8)
        result = paste_patches(images, targets, [patch])
        assert not images.any()
        for image, one in zip(result, targets, strict=True):
            place = pasted_at(image, patch)
            assert place or len(one["boxes"])
            pasted, refused = pasted + (place is not None), refused + (place is None)
            for x1, y1, x2, y2 in one["boxes"].tolist() if place else []:
                (x, y), (h, w) = place, patch.shape[-2:]
                across = min(x + w, x2 * width) - max(x, x1 * width)
                down = min(y + h, y2 * height) - max(y, y1 * height)
                assert min(across, down) <= 1e-4
    assert pasted > 100
    assert refused > 5


def test_an_image_without_room_stays():
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    full = [
        target([[0, 0, 1, 1]]),
        target([[0, 0, 0.5, 1], [0.5, 0, 1, 1]]),
        target([[0.45, 0, 0.55, 1], [0, 0.45, 1, 0.55]]),
    ]
    assert torch.equal(paste_patches(images, full, [torch.zeros(3, 8, 8, dtype=torch.uint8)]), images)
    assert torch.equal(paste_patches(images, full, []), images)


def test_a_patch_larger_than_half_the_image_is_not_used():
    images, free = torch.zeros(40, 3, 16, 20, dtype=torch.uint8), [target([])] * 40
    large = [torch.full((3, *size), 255, dtype=torch.uint8) for size in ((9, 2), (2, 11), (16, 20), (30, 30))]
    assert not paste_patches(images, free, large).any()
    half = torch.full((3, 8, 10), 7, dtype=torch.uint8)
    result = paste_patches(images, free, [*large, half])
    places = {pasted_at(image, half) for image in result}
    assert None not in places
    assert max(x for x, _ in places) <= 10
    assert max(y for _, y in places) <= 8


def test_every_patch_and_every_place_has_its_turn():
    patches = [torch.full((3, 2, 2), value, dtype=torch.uint8) for value in (1, 2, 3)]
    result = paste_patches(torch.zeros(400, 3, 4, 4, dtype=torch.uint8), [target([])] * 400, patches)
    values = result.flatten(1).amax(dim=1)
    assert values.bincount().tolist() == pytest.approx([0, 133, 133, 133], abs=40)
    places = [pasted_at(image, patches[int(value) - 1]) for image, value in zip(result, values, strict=True)]
    assert set(places) == {(x, y) for x in range(3) for y in range(3)}


def test_the_places_beside_a_box_are_free(monkeypatch):
    monkeypatch.setattr(augment, "PLACES", 500)
    beside = target([[0, 0, 0.5, 1], [0.75, 0, 1, 1]])  # two columns of eight are free
    result = paste_patches(torch.zeros(9, 3, 8, 8, dtype=torch.uint8), [beside] * 9, [torch.ones(3, 4, 2).byte()])
    assert {pasted_at(image, torch.ones(3, 4, 2).byte())[0] for image in result} == {4}


def pictures(number, side=32, size=(64, 128)):
    """Squashed from height 64 and width 128; no two pixels of a picture are alike."""
    pixels = torch.arange(side * side).reshape(side, side)
    return [
        {
            "image": torch.stack([pixels % 256, pixels // 256, torch.full_like(pixels, k)]).byte(),
            "size": torch.tensor(size),
        }
        for k in range(number)
    ]


def cut(found, truths, most=10, **options):
    miner = HardNegativeMiner(**options)
    records = miner.find_hard_negatives(found, truths)
    return cut_patches(pictures(len(found)), records, flatten_detections(found, truths), most)


def test_patches_are_cut_where_nothing_was_taken_for_an_object():
    found = [
        {  # too unsure, a hit, background
            "boxes": [[0, 0, 40, 40], [8, 8, 24, 24], [64, 32, 96, 48]],
            "scores": [0.3, 0.9, 0.6],
            "labels": [0, 0, 1],
        },
        {"boxes": [], "scores": [], "labels": []},
        {  # badly placed, background that touches a truth, background, perhaps an object without annotation
            "boxes": [[0, 0, 40, 20], [30, 18, 100, 64], [100, 40, 128, 64], [50, 0, 60, 10]],
            "scores": [0.85, 0.7, 0.8, 0.95],
            "labels": [0, 0, 2, 0],
        },
    ]
    truths = [
        {"boxes": [[8, 8, 24, 24]], "labels": [0]},
        {"boxes": [], "labels": []},
        {"boxes": [[0, 0, 40, 60]], "labels": [0]},
    ]
    first, second = cut(found, truths)
    images = [item["image"] for item in pictures(3)]
    assert torch.equal(first, images[2][:, 20:32, 25:32])
    assert torch.equal(second, images[0][:, 16:24, 16:24])
    assert torch.equal(cut(found, truths, most=1)[0], first)
    assert len(cut(found, truths, most=1)) == 1
    assert cut(found, truths, most=0) == []
    assert len(cut(found, truths, confidence_threshold=0.7)) == 1


def test_the_smallest_piece_is_a_pixel():
    corners = [[0, 0, 0.5, 0.5], [127, 63, 127.5, 63.5], [127.9, 63.9, 128, 64], [64, 32, 64.5, 64]]
    found = [{"boxes": corners, "scores": [0.8, 0.7, 0.6, 0.5], "labels": [0] * 4}]
    patches = cut(found, [{"boxes": [], "labels": []}])
    image = pictures(1)[0]["image"]
    wanted = [image[:, :1, :1], image[:, 31:, 31:], image[:, 31:, 31:], image[:, 16:, 16:17]]
    for patch, piece in zip(patches, wanted, strict=True):
        assert torch.equal(patch, piece)


def test_targets_are_fractions_of_the_picture():
    boxes = [torch.tensor([[10.0, 20, 50, 40]]), torch.zeros(0, 4)]
    batch = {
        "image": torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        "boxes": boxes,
        "box_labels": [torch.tensor([3]), torch.zeros(0).long()],
        "ignore": [torch.tensor([True]), torch.zeros(0).bool()],
        "size": torch.tensor([[80, 100], [7, 9]]),
    }
    first, second = targets_of(batch)
    assert first["boxes"].tolist() == [pytest.approx([0.1, 0.25, 0.5, 0.5])]
    assert (first["labels"].tolist(), first["ignore"].tolist()) == ([3], [True])
    assert second["boxes"].shape == (0, 4)
    assert [one["boxes"] is box for one, box in zip(truths_of(batch), boxes, strict=True)] == [True, True]
    assert boxes[0].tolist() == [[10, 20, 50, 40]]
    assert stacked(batch) is batch["image"]
    with pytest.raises(ValueError, match=r"Set data\.init_args\.image_size"):
        stacked({**batch, "image": list(batch["image"])})


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.2), (100, 0.05), (7, 0.0), (3, 0.1), (1, 0.0), (40, 0.9)])
def test_the_learning_rate_rises_to_1_and_falls_to_0(steps, warmup):
    factors = [warm_cosine(step, steps, warmup) for step in range(steps + 1)]
    assert factors[-1] == pytest.approx(0, abs=1e-12)
    assert factors[0] > 0
    assert warm_cosine(steps + 5, steps, warmup) == pytest.approx(0, abs=1e-12)
    rising = warmup * steps
    for step, factor in enumerate(factors):
        if step < rising:
            assert factor == pytest.approx(min(1, (step + 1) / rising))
        else:
            assert factor == pytest.approx(0.5 + 0.5 * math.cos(math.pi * (step - rising) / (steps - rising)))
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)


@pytest.mark.parametrize("number", [1, 2, 7, 32])
@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.7, 1.0])
def test_the_highest_losses_alone_are_learned_from(number, share):
    losses = torch.rand(number, dtype=torch.float64, requires_grad=True)
    chosen = highest(losses, share)
    count = math.ceil(Fraction(str(share)) * number)
    ranked = sorted(range(number), key=lambda row: -losses[row].item())
    assert chosen.tolist() == [losses[row].item() for row in ranked[:count]]
    chosen.mean().backward()
    assert losses.grad.tolist() == pytest.approx([(row in ranked[:count]) / count for row in range(number)])


def naive_weights(hardness, ratio, cap):
    """Solved for the weight of an easy image, 1, and what a unit of hardness adds to a hard one."""
    images = len(hardness)
    most = math.ceil(Fraction(str(ratio)) / 2 * images)
    last = sorted(hardness, reverse=True)[most - 1] if most else math.inf
    hard = [h > 0 and h >= last for h in hardness]
    number = sum(hard)
    if number == 0 or number / images >= ratio:
        return [1 / images] * images
    wanted = ratio / (1 - ratio) * (images - number)  # weight of all hard images beside that of the easy ones
    slope = (wanted - number) / sum(h for h, is_hard in zip(hardness, hard, strict=True) if is_hard)
    weights = [min(1 + slope * h, cap) if is_hard else 1 for h, is_hard in zip(hardness, hard, strict=True)]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("images", [1, 2, 5, 40, 333])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("cap", [1.0, 2.5, 10.0, 1e6])
def test_weights_are_those_of_plain_loops(images, ratio, cap):
    rng = np.random.default_rng(images)
    worlds = [np.where(rng.random(images) < share, rng.random(images) * 5, 0) for share in (0.02, 0.1, 0.5, 1)]
    worlds += [worlds[2].round(), worlds[3].round(), np.ones(images), np.zeros(images), rng.random(images) ** 20 * 1e9]
    for hardness in worlds:
        weights = hardness_weights(torch.from_numpy(hardness), ratio, cap)
        assert weights.tolist() == pytest.approx(naive_weights(hardness.tolist(), ratio, cap), rel=1e-9)
        assert weights.sum().item() == pytest.approx(1)
        assert weights.min() > 0
        assert weights.max() <= cap * weights.min() * (1 + 1e-12)


@pytest.mark.parametrize(("ratio", "number"), [(0.3, 15), (0.1, 5), (0.02, 1), (0.9, 45)])
def test_no_more_than_the_hardest_are_drawn_more_often(ratio, number):
    """All of a hundred images have errors."""
    hardness = torch.randperm(100).double() + 1
    weights = hardness_weights(hardness, ratio, cap=1e9)
    hard = hardness > 100 - number
    assert ((weights > weights.min() * (1 + 1e-9)) == hard).all()
    assert weights[hard].sum().item() == pytest.approx(ratio)
    above = weights[hard] / weights.min() - 1
    assert (above / hardness[hard]).tolist() == pytest.approx([(above / hardness[hard])[0].item()] * number)


def test_images_tied_with_the_last_hard_one_are_hard():
    tied = hardness_weights(torch.tensor([3.0, 1, 1, 1, *[0.5] * 16]), ratio=0.3, cap=100)  # three hard, and a tie
    assert tied[:4].sum().item() == pytest.approx(0.3)
    assert len(set(tied[4:].tolist())) == 1
    many = hardness_weights(torch.tensor([3.0, *[1.0] * 9, *[0.0] * 10]), ratio=0.3)  # ties: half of all are hard
    assert many.tolist() == pytest.approx([0.05] * 20)
