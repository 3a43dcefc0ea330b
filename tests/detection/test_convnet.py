"""The compact detector against plain loops over Python floats, written from the papers."""

import math

import pytest
import torch

from lightning_modules.detection import convnet
from lightning_modules.detection.assignment import REACH, assign_cells, cell_centres, covered_cells
from lightning_modules.detection.convnet import BOX_WEIGHT, STRIDES, ConvDetector


def random_boxes(number, height, width, g):
    """Boxes on quarters of a pixel, which floats hold exactly: small, at the edges, too large, and twice the same."""
    boxes = []
    for _ in range(number):
        kind = int(torch.randint(0, 6, (), generator=g))
        x, y, w, h = (torch.rand(4, generator=g) * torch.tensor([width, height, width, height])).tolist()
        if kind == 0:  # smaller than a cell
            w, h = w % 6, h % 6
        elif kind == 1:  # larger than the picture
            x, y, w, h = -x, -y, 2 * width + w, 2 * height + h
        elif kind == 2:  # ends where the picture ends
            w, h = width - x, height - y
        elif kind == 3:  # exactly what a grid reaches
            w, h = REACH * [8, 16][int(torch.randint(0, 2, (), generator=g))], h % 40
        elif kind == 4 and boxes:  # a tie
            x, y, w, h = boxes[-1][0] + 2, boxes[-1][1], boxes[-1][2] - boxes[-1][0], boxes[-1][3] - boxes[-1][1]
        x, y, w, h = (round(4 * value) / 4 for value in (x, y, w, h))
        boxes.append([x, y, x + max(w, 0.25), y + max(h, 0.25)])
    return boxes


def naive_cells(boxes, image, sizes, strides):
    """(image, cell) -> row of the object that it learns."""
    claims = {}
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        fitting = [k for k, stride in enumerate(strides) if max(x2 - x1, y2 - y1) <= REACH * stride]
        level = min(fitting, default=len(strides) - 1)
        stride, (rows, columns) = strides[level], sizes[level]
        column = min(max(math.floor((x1 + x2) / 2 / stride), 0), columns - 1)
        line = min(max(math.floor((y1 + y2) / 2 / stride), 0), rows - 1)
        for j in (line - 1, line, line + 1):
            for i in (column - 1, column, column + 1):
                x, y = (i + 0.5) * stride, (j + 0.5) * stride
                if not (0 <= i < columns and 0 <= j < rows):
                    continue
                if (i, j) == (column, line) or (x1 < x < x2 and y1 < y < y2):
                    cell = sum(a * b for a, b in sizes[:level]) + j * columns + i
                    claims.setdefault((image[row], cell), []).append(((x2 - x1) * (y2 - y1), row))
    return {cell: min(rows)[1] for cell, rows in claims.items()}


GRIDS = [
    ([(8, 8), (4, 4), (2, 2)], (8, 16, 32)),
    ([(5, 9), (3, 5), (2, 3)], (8, 16, 32)),
    ([(1, 1), (1, 1), (1, 1)], (8, 16, 32)),
    ([(16, 11), (8, 6)], (4, 8)),
    ([(7, 3)], (16,)),
]


@pytest.mark.parametrize(("sizes", "strides"), GRIDS, ids=str)
@pytest.mark.parametrize("counts", [(3,), (0, 5, 0), (12, 1, 30), (0, 0), (80, 80)], ids=str)
def test_cells_are_those_of_plain_loops(sizes, strides, counts):
    total = sum(rows * columns for rows, columns in sizes)
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        height, width = sizes[0][0] * strides[0], sizes[0][1] * strides[0]
        image = [i for i, count in enumerate(counts) for _ in range(count)]
        boxes = random_boxes(len(image), height, width, g)
        if seed % 2:  # objects of the images in any order
            order = torch.randperm(len(image), generator=g).tolist()
            image = [image[row] for row in order]
        given = torch.tensor(boxes).reshape(-1, 4), torch.tensor(image, dtype=torch.long)
        cells, owners = assign_cells(*given, len(counts), sizes, strides)
        wanted = naive_cells(boxes, image, sizes, strides)
        assert cells.tolist() == sorted(i * total + cell for i, cell in wanted)
        assert {(c // total, c % total): o for c, o in zip(cells.tolist(), owners.tolist(), strict=True)} == wanted


@pytest.mark.parametrize(("side", "first"), [(4.0, 0), (64.0, 0), (64.25, 64), (128.0, 64), (128.25, 80), (500.0, 80)])
def test_the_longer_side_chooses_the_grid(side, first):
    """64 + 16 + 4 cells of a picture of 64 pixels."""
    for box in ([0, 0, side, 9], [0, 0, 9, side]):
        cells, _ = assign_cells(
            torch.tensor([box], dtype=torch.float), torch.tensor([0]), 1, [(8, 8), (4, 4), (2, 2)], STRIDES
        )
        assert first <= cells.min() <= cells.max() < {0: 64, 64: 80, 80: 84}[first]


def test_the_smallest_object_wins_and_of_equal_ones_the_first():
    sizes, strides = [(4, 4)], [8]
    small, large, beside = [9.0, 9, 15, 15], [0.0, 0, 24, 24], [1.0, 0, 25, 24]

    def owners(*boxes):
        cells, rows = assign_cells(torch.tensor(boxes), torch.zeros(len(boxes)).long(), 1, sizes, strides)
        return dict(zip(cells.tolist(), rows.tolist(), strict=True))

    around = [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert owners(large) == dict.fromkeys(around, 0)
    assert owners(large, small) == {**dict.fromkeys(around, 0), 5: 1}
    assert owners(large, beside) == dict.fromkeys(around, 0)
    assert owners(beside, large) == dict.fromkeys(around, 0)
    assert owners([30.0, 30, 32, 32]) == {15: 0}
    assert owners([32.0, 8, 32, 8]) == {7: 0}  # a point on the edge: the last column


def test_covered_cells_lie_strictly_inside():
    centres = cell_centres([(2, 2)], [8], torch.device("cpu"))
    boxes = torch.tensor([[4.0, 0, 20, 8], [0, 10, 5, 16]])
    assert covered_cells(boxes, centres).tolist() == [False, True, True, False]
    assert covered_cells(boxes[:0], centres).tolist() == [False] * 4


def giou_loss(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return 1 - shared / union + (hull - union) / hull


def naive_losses(logits, found, sizes, targets, height, width):
    """Loss of each image, from logits and boxes of all cells."""
    centres = [
        ((i + 0.5) * stride, (j + 0.5) * stride)
        for (rows, columns), stride in zip(sizes, STRIDES, strict=True)
        for j in range(rows)
        for i in range(columns)
    ]
    losses = []
    for row, target in enumerate(targets):
        boxes = [[x1 * width, y1 * height, x2 * width, y2 * height] for x1, y1, x2, y2 in target["boxes"].tolist()]
        labels, ignore = target["labels"].tolist(), target["ignore"].tolist()
        objects = [k for k in range(len(boxes)) if not ignore[k]]
        owner = naive_cells([boxes[k] for k in objects], [0] * len(objects), sizes, STRIDES)
        loss = 0.0
        for cell, (x, y) in enumerate(centres):
            own = objects[owner[0, cell]] if (0, cell) in owner else None
            hidden = any(b[0] < x < b[2] and b[1] < y < b[3] for b, out in zip(boxes, ignore, strict=True) if out)
            if own is None and hidden:
                continue
            for label, logit in enumerate(logits[row][cell]):
                p = 1 / (1 + math.exp(-logit))
                if own is not None and labels[own] == label:
                    loss -= 0.25 * (1 - p) ** 2 * math.log(p)
                else:
                    loss -= 0.75 * p**2 * math.log(1 - p)
            if own is not None:
                loss += BOX_WEIGHT * giou_loss(found[row][cell], boxes[own])
        losses.append(loss / max(len(owner), 1))
    return losses


def random_targets(counts, height, width, classes, g, ignored):
    targets = []
    for count in counts:
        boxes = torch.tensor(random_boxes(count, height, width, g)).reshape(-1, 4)
        if height % 64 and width % 64:  # their fractions are rounded, so keep away from the edges of cells
            boxes = boxes + 0.01 + 0.1 * torch.rand(count, 4, generator=g)
        targets.append(
            {
                "boxes": boxes / torch.tensor([width, height, width, height]),
                "labels": torch.randint(0, classes, (count,), generator=g),
                "ignore": torch.rand(count, generator=g) < ignored,
            }
        )
    return targets


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 128), (40, 8), (70, 41)])
@pytest.mark.parametrize("ignored", [0.0, 0.4, 1.0])
def test_losses_are_those_of_plain_loops(height, width, ignored):
    for seed, (classes, counts) in enumerate([(1, (2, 0, 7)), (3, (4, 9)), (5, (0, 0)), (2, (25, 1, 0, 3))]):
        g = torch.Generator().manual_seed(seed)
        network = ConvDetector(classes, width=8)
        images = torch.randint(0, 256, (len(counts), 3, height, width), generator=g, dtype=torch.uint8)
        targets = random_targets(counts, height, width, classes, g, ignored)
        with torch.no_grad():
            logits, found, centres, sizes = network(images)
            moved = found + torch.rand(found.shape, generator=g) * torch.tensor([-9.0, -9, 9, 9])
            drawn = 3 * torch.randn(logits.shape, generator=g)
            for output in ((logits, found), (drawn, moved)):
                losses = network.losses_of((*output, centres, sizes), images, targets)
                wanted = naive_losses(*(values.double().tolist() for values in output), sizes, targets, height, width)
                assert losses.tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)
            whole = network.image_losses(images, targets)
            assert torch.equal(whole, network.losses_of((logits, found, centres, sizes), images, targets))
            assert network.loss(images, targets).item() == pytest.approx(whole.mean().item())


def test_an_ignored_object_is_no_target_and_hides_its_cells():
    """All logits 0: each class of each cell costs 0.75 / 4 log 2, an owned one's class a third of it."""
    network, images = ConvDetector(1, width=8), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    _, found, centres, sizes = network(images)
    cost = 0.75 / 4 * math.log(2)

    def loss(boxes, ignore):
        target = {"boxes": torch.tensor(boxes) / 64, "labels": torch.zeros(len(boxes)).long()}
        target["ignore"] = torch.tensor(ignore)
        exact = torch.tensor(boxes[-1]).expand_as(found)  # what is found is the last object
        return network.losses_of((torch.zeros(1, 84, 1), exact, centres, sizes), images, [target]).item()

    assert loss([[0.0, 0, 64, 64]], [True]) == 0
    assert loss([[0.0, 0, 8, 8]], [True]) == pytest.approx(83 * cost)
    assert loss([[0.0, 0, 64, 64], [0.0, 0, 8, 8]], [True, False]) == pytest.approx(cost / 3, rel=1e-5)
    assert loss([[0.0, 0, 8, 8]], [False]) == pytest.approx((83 + 1 / 3) * cost, rel=1e-5)
    assert loss([[0.0, 0, 16, 16]], [False]) == pytest.approx((80 + 4 / 3) / 4 * cost, rel=1e-5)


def test_a_loss_depends_on_its_image_alone():
    g = torch.Generator().manual_seed(1)
    network = ConvDetector(3, width=8)
    images = torch.randint(0, 256, (5, 3, 64, 96), generator=g, dtype=torch.uint8)
    targets = random_targets((3, 0, 6, 1, 12), 64, 96, 3, g, 0.3)
    with torch.no_grad():
        losses = network.image_losses(images, targets)
        assert len(set(losses.tolist())) == 5
        for rows in ([4, 2, 0, 1, 3], [1, 3], [2], [0, 0, 4]):
            some = network.image_losses(images[rows], [targets[row] for row in rows])
            torch.testing.assert_close(some, losses[rows], rtol=1e-5, atol=1e-6)
        assert torch.equal(network.eval().image_losses(images, targets), losses)


@pytest.mark.parametrize("ignored", [0.0, 1.0])
@pytest.mark.parametrize("counts", [(0, 0), (1, 0)])
def test_gradients_are_finite_without_objects(counts, ignored):
    g = torch.Generator().manual_seed(0)
    network = ConvDetector(2, width=8)
    images = torch.full((2, 3, 64, 64), 7, dtype=torch.uint8)  # no variance: group norm must not divide by 0
    network.loss(images, random_targets(counts, 64, 64, 2, g, ignored)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert network.class_head[-1].bias.grad.abs().sum() > 0


def test_gradients_are_finite_at_an_object_without_area():
    network, images = ConvDetector(1, width=8), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    target = {"boxes": torch.full((1, 4), 0.5), "labels": torch.tensor([0]), "ignore": torch.tensor([False])}
    network.loss(images, [target]).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (70, 33), (8, 40)])
def test_boxes_are_sides_in_strides_about_the_centres(height, width):
    network = ConvDetector(2, width=8)
    torch.nn.init.zeros_(network.box_head[-1].weight)
    torch.nn.init.zeros_(network.class_head[-1].weight)
    raw = torch.tensor([0.0, 1.0, -1.0, 2.0])
    network.box_head[-1].bias.data = raw
    with torch.no_grad():
        logits, boxes, _, sizes = network(torch.zeros(2, 3, height, width, dtype=torch.uint8))
    assert sizes == [(math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]
    assert logits.shape == (2, sum(a * b for a, b in sizes), 2)
    assert logits.sigmoid().flatten().tolist() == pytest.approx([0.01] * logits.numel(), rel=1e-4)
    left, top, right, bottom = (math.log(1 + math.exp(value)) for value in raw.tolist())
    wanted = [
        [(i + 0.5 - left) * s, (j + 0.5 - top) * s, (i + 0.5 + right) * s, (j + 0.5 + bottom) * s]
        for (rows, columns), s in zip(sizes, STRIDES, strict=True)
        for j in range(rows)
        for i in range(columns)
    ]
    for of_image in boxes:
        torch.testing.assert_close(of_image, torch.tensor(wanted))


def answering(monkeypatch, probabilities, boxes, **options):
    """A network whose cells answer this: (B, P, C) and (B, P, 4)."""
    network = ConvDetector(len(probabilities[0][0]), width=8, **options)
    output = torch.tensor(probabilities).logit(), torch.tensor(boxes), torch.zeros(0), []
    monkeypatch.setattr(network, "forward", lambda images: output)
    return network


def test_boxes_worked_out_by_hand(monkeypatch):
    """Two cells see the first object, one of them also as the other class; a third box leaves the picture."""
    first, close, outside = [8.0, 4, 24, 20], [8.0, 4, 24, 18], [-10.0, 20, 50, 90]
    network = answering(monkeypatch, [[[0.5, 0.25], [0.75, 0.004], [0.1, 0.9]]], [[first, close, outside]])
    images = torch.zeros(1, 3, 32, 64, dtype=torch.uint8)
    (found,) = network.detect(images, torch.tensor([[320, 128]]))  # 10 times as high, twice as wide
    assert found["labels"].tolist() == [1, 0, 1, 0]
    assert found["scores"].tolist() == pytest.approx([0.9, 0.75, 0.25, 0.1])
    wanted = [[0, 200, 100, 320], [16, 40, 48, 180], [16, 40, 48, 200], [0, 200, 100, 320]]
    assert found["boxes"].tolist() == wanted


@pytest.mark.parametrize(
    ("options", "candidates"),
    [
        ({}, 1000),
        ({"score_threshold": 0.6}, 1000),
        ({"score_threshold": 0.999}, 1000),
        ({"nms_iou": 0.2, "max_detections": 7}, 1000),
        ({"nms_iou": 1.0}, 1000),
        ({"nms_iou": 0.4}, 25),
    ],
    ids=str,
)
def test_detections_are_those_of_plain_loops(options, candidates, monkeypatch):
    monkeypatch.setattr(convnet, "CANDIDATES", candidates)
    for classes in (1, 3):
        g = torch.Generator().manual_seed(classes)
        probabilities = torch.rand(2, 60, classes, generator=g) * 0.99 + 0.001
        corners = torch.rand(2, 60, 2, generator=g) * torch.tensor([60.0, 28]) - 8
        boxes = torch.cat([corners, corners + 4 + 24 * torch.rand(2, 60, 2, generator=g)], dim=-1)
        network = answering(monkeypatch, probabilities.tolist(), boxes.tolist(), **options)
        sizes = torch.tensor([[640, 480], [50, 333]])
        found = network.detect(torch.zeros(2, 3, 32, 64, dtype=torch.uint8), sizes)
        for row, one in enumerate(found):
            wanted = naive_detections(network, probabilities[row].tolist(), boxes[row].tolist(), sizes[row], candidates)
            assert one["labels"].tolist() == [label for _, label, _ in wanted]
            assert one["scores"].tolist() == pytest.approx([score for score, _, _ in wanted], abs=1e-6)
            assert one["boxes"].flatten().tolist() == pytest.approx([x for _, _, box in wanted for x in box], abs=1e-3)


def naive_detections(network, probabilities, boxes, size, candidates):
    """(score, label, box) of an image of 32 by 64, by greedy suppression within each class."""
    ranked = sorted(
        ((p, label, cell) for cell, row in enumerate(probabilities) for label, p in enumerate(row)), reverse=True
    )[:candidates]
    kept = []
    for score, label, cell in ranked:
        x1, y1, x2, y2 = boxes[cell]
        box = [max(0, min(x1, 64)), max(0, min(y1, 32)), max(0, min(x2, 64)), max(0, min(y2, 32))]
        if score < network.score_threshold or len(kept) == network.max_detections:
            continue
        if all(other != label or overlap(box, taken) <= network.nms_iou for _, other, taken in kept):
            kept.append((score, label, box))
    height, width = size.tolist()
    return [
        (score, label, [x1 / 64 * width, y1 / 32 * height, x2 / 64 * width, y2 / 32 * height])
        for score, label, (x1, y1, x2, y2) in kept
    ]


def overlap(a, b):
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0.0


def test_it_learns_four_pictures():
    torch.manual_seed(0)
    boxes = [[8, 8, 28, 24], [30, 10, 60, 50], [4, 36, 40, 60], [20, 20, 44, 44]]
    images = torch.randint(0, 60, (4, 3, 64, 64), dtype=torch.uint8)
    targets = []
    for image, (x1, y1, x2, y2), label in zip(images, boxes, (0, 1, 0, 1), strict=True):
        image[label, y1:y2, x1:x2] = 230
        target = {"boxes": torch.tensor([[x1, y1, x2, y2]]) / 64, "labels": torch.tensor([label])}
        targets.append({**target, "ignore": torch.tensor([False])})
    network = ConvDetector(2, width=8)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = network.loss(images, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


def test_unsuitable_arguments_are_refused():
    for options in ({"num_classes": 0}, {"width": 12}, {"width": 0}, {"max_detections": 0}):
        with pytest.raises(ValueError, match="there must be a class"):
            ConvDetector(**{"num_classes": 1, **options})
    for options in ({"score_threshold": 1.0}, {"nms_iou": 0.0}):
        with pytest.raises(ValueError, match="both lie between 0 and 1"):
            ConvDetector(1, **options)
