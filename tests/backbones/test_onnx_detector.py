import copy
import importlib.util
import pickle

import numpy as np
import pytest
import torch
from toy_onnx import save_linear

from lightning_modules.backbones.onnx_detector import OnnxDetector, select
from lightning_modules.backbones.yolo_layouts import decode_yolov8, decode_yolox, letterbox

CLASSES = 3
PLACES = 16 + 4 + 1  # of a frame of 32 x 32 pixels
ROWS = {"yolox": (1, PLACES, 5 + CLASSES), "yolov8": (1, 4 + CLASSES, PLACES)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Path, weights and bias of a file of each layout."""
    root, rng = tmp_path_factory.mktemp("onnx"), np.random.default_rng(1)
    spread = np.concatenate([rng.uniform(6, 26, (2, PLACES)), rng.uniform(8, 24, (2, PLACES)), rng.random((3, PLACES))])
    settings = {"yolox": {}, "yolov8": {"bias": spread, "gain": 1.0}}
    paths = {layout: str(root / f"{layout}.onnx") for layout in ROWS}
    return {layout: (path, *save_linear(path, ROWS[layout], **settings[layout])) for layout, path in paths.items()}


def picture(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


def bilinear(image, height, width):
    """Plain loop: each new pixel's centre lies between four old ones."""
    found = np.zeros((3, height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * image.shape[1] / height - 0.5, 0), image.shape[1] - 1)
            u = min(max((x + 0.5) * image.shape[2] / width - 0.5, 0), image.shape[2] - 1)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, image.shape[1] - 1), min(left + 1, image.shape[2] - 1)
            above = image[:, top, left] * (1 - u + left) + image[:, top, right] * (u - left)
            below = image[:, bottom, left] * (1 - u + left) + image[:, bottom, right] * (u - left)
            found[:, y, x] = above * (1 - v + top) + below * (v - top)
    return found.round()


def overlap(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def naive(layout, weights, bias, image, low, iou):
    """The whole way of one picture in numpy, place by place: rows of box, score and label."""
    image = image.numpy().astype(np.float64)
    ratio = min(32 / image.shape[1], 32 / image.shape[2])
    inner = [side * ratio for side in image.shape[1:]]
    height, width = (int(side) for side in inner) if layout == "yolox" else (round(side) for side in inner)
    top, left = (0, 0) if layout == "yolox" else ((32 - height) // 2, (32 - width) // 2)
    frame = np.full((3, 32, 32), 114.0)
    frame[:, top : top + height, left : left + width] = bilinear(image, height, width)
    frame = frame[::-1] if layout == "yolox" else frame / 255
    output = (frame.reshape(-1) @ weights + bias).reshape(ROWS[layout][1:])
    found, place = [], 0
    for stride in (8, 16, 32):
        for y in range(32 // stride):
            for x in range(32 // stride):
                if layout == "yolox":
                    row = output[place]
                    cx, cy = (row[0] + x) * stride, (row[1] + y) * stride
                    w, h = np.exp(row[2]) * stride, np.exp(row[3]) * stride
                    scores = row[4] * row[5:]
                else:
                    cx, cy, w, h = output[:4, place]
                    scores = output[4:, place]
                label = int(scores.argmax())
                found.append(([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], float(scores[label]), label))
                place += 1
    kept = []
    for box, score, label in sorted(found, key=lambda item: -item[1]):
        if score >= low and all(label != other[2] or overlap(box, other[0]) <= iou for other in kept):
            kept.append((box, score, label))
    x_scale, y_scale = width / image.shape[2], height / image.shape[1]
    rows = []
    for (x1, y1, x2, y2), score, label in kept:
        xs = [min(max((x - left) / x_scale, 0), image.shape[2]) for x in (x1, x2)]
        ys = [min(max((y - top) / y_scale, 0), image.shape[1]) for y in (y1, y2)]
        rows.append([xs[0], ys[0], xs[1], ys[1], score, label])
    return np.array(rows).reshape(-1, 6)


def rows_of(found):
    return torch.cat([found["boxes"], found["scores"][:, None], found["labels"][:, None]], dim=1).numpy()


@pytest.mark.parametrize("layout", ["yolox", "yolov8"])
def test_detections_are_those_of_a_plain_walk(files, layout):
    file, weights, bias = files[layout]
    images = [picture(20, 45), picture(61, 31, seed=1), picture(32, 32, seed=2), picture(9, 7, seed=3)]
    sizes = torch.tensor([image.shape[1:] for image in images])
    detector = OnnxDetector(file, layout, CLASSES, score_threshold=0.1, nms_iou=0.3)
    found = detector.detect(images, sizes)
    for one, image in zip(found, images, strict=True):
        expected = naive(layout, weights, bias, image, 0.1, 0.3)
        assert 2 < len(expected) < PLACES
        assert rows_of(one) == pytest.approx(expected, rel=1e-4, abs=2e-2)  # a few pixels are rounded elsewhere
        assert one["labels"].dtype == torch.int64
    few = OnnxDetector(file, layout, CLASSES, score_threshold=0.1, nms_iou=0.3, max_detections=2).detect(images, sizes)
    assert all(torch.equal(a["boxes"], b["boxes"][:2]) for a, b in zip(few, found, strict=True))
    stacked = detector.detect(torch.stack([images[2]] * 2), sizes[2].repeat(2, 1))
    assert all(torch.equal(one["boxes"], found[2]["boxes"]) for one in stacked)


def test_boxes_are_in_pixels_of_the_original_where_the_picture_was_resized(files):
    detector = OnnxDetector(files["yolox"][0], "yolox", CLASSES)
    image = picture(16, 20)
    own, original = (detector.detect([image], torch.tensor([size]))[0] for size in ((16, 20), (32, 60)))
    assert torch.allclose(original["boxes"], own["boxes"] * torch.tensor([3.0, 2.0, 3.0, 2.0]), atol=1e-4)
    assert torch.equal(original["scores"], own["scores"])


def test_letterbox_by_hand():
    fitted = letterbox(torch.full((3, 20, 30), 9, dtype=torch.uint8), (16, 16), centred=False)
    assert fitted.start == (0, 0)
    assert fitted.scale == (16 / 30, 10 / 20)  # 20 * 16 / 30 = 10.67 rows, rounded down
    assert fitted.pixels[:, :10].eq(9).all()
    assert fitted.pixels[:, 10:].eq(114).all()
    fitted = letterbox(torch.full((3, 20, 30), 9, dtype=torch.uint8), (16, 16), centred=True)
    assert fitted.start == (0, 2)  # 11 rows, 5 of border
    assert fitted.scale == (16 / 30, 11 / 20)
    assert fitted.pixels[0, :, 0].eq(9).tolist() == [False] * 2 + [True] * 11 + [False] * 3
    boxes = torch.tensor([[0.0, 2.0, 16.0, 13.0]])
    assert torch.allclose(fitted.to_picture(boxes), torch.tensor([[0.0, 0.0, 30.0, 20.0]]))
    exact = letterbox(picture(16, 16), (16, 16), centred=True)
    assert torch.equal(exact.pixels, picture(16, 16).float())


def test_decoding_by_hand():
    output = torch.zeros(PLACES, 6)
    output[5] = torch.tensor([0.5, 0.5, 0.0, np.log(2.0), 0.5, 0.8])  # second row, second column of the finest level
    boxes, scores = decode_yolox(output, (32, 32))
    assert boxes[5].tolist() == pytest.approx([8, 4, 16, 20], abs=1e-5)
    assert scores[5].item() == pytest.approx(0.4)
    assert boxes[17].tolist() == [8, -8, 24, 8]  # stride 16, first row, second column: centre 16, 0
    boxes, scores = decode_yolov8(torch.tensor([[10.0], [20.0], [4.0], [6.0], [0.3], [0.6]]), (32, 32))
    assert boxes.tolist() == [[8, 17, 12, 23]]
    assert scores.numpy() == pytest.approx(np.array([[0.3, 0.6]]))


def test_other_classes_do_not_suppress():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(4, 1)
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.1], [0.0, 0.7], [0.0, 0.1]])
    kept, values, labels = select((boxes, scores), 0.2, 0.5, 10)
    assert labels.tolist() == [0, 1]
    assert values.tolist() == pytest.approx([0.9, 0.7])
    assert kept.shape == (2, 4)
    assert select((boxes, scores), 0.95, 0.5, 10)[0].shape == (0, 4)


def test_nothing_found_is_empty(tmp_path):
    save_linear(tmp_path / "blind.onnx", ROWS["yolov8"], bias=np.zeros(ROWS["yolov8"]), gain=0.0)
    (found,) = run(tmp_path / "blind.onnx", layout="yolov8")
    assert found["boxes"].shape == (0, 4)
    assert found["scores"].shape == found["labels"].shape == (0,)


def test_copies_open_the_file_anew(files):
    detector = OnnxDetector(files["yolox"][0], "yolox", CLASSES)
    assert detector._session is None
    image, size = [picture(20, 20)], torch.tensor([[20, 20]])
    (expected,) = detector.detect(image, size)
    for other in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert other._session is None
        assert torch.equal(other.detect(image, size)[0]["boxes"], expected["boxes"])
    assert detector._session is not None
    assert detector.state_dict() == {}


def test_runs_on_as_many_threads_as_torch(files):
    detector = OnnxDetector(files["yolox"][0], "yolox", CLASSES)
    detector.detect([picture(8, 8)], torch.tensor([[8, 8]]))
    assert detector._session.get_session_options().intra_op_num_threads == torch.get_num_threads()


def test_half_precision_and_open_batch(tmp_path):
    file = tmp_path / "half.onnx"
    weights, bias = save_linear(file, ROWS["yolov8"], batch="batch", half=True, gain=1.0)
    (found,) = OnnxDetector(str(file), "yolov8", CLASSES, score_threshold=0.5, nms_iou=1.0).detect(
        [picture(32, 32)], torch.tensor([[32, 32]])
    )
    expected = naive("yolov8", weights, bias, picture(32, 32), 0.5, 1.0)
    assert rows_of(found) == pytest.approx(expected, abs=2e-2)


def run(file, layout="yolox", classes=CLASSES):
    return OnnxDetector(str(file), layout, classes).detect([picture(8, 8)], torch.tensor([[8, 8]]))


def test_files_that_are_no_such_detector(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no ONNX file .*none\.onnx"):
        run(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("this is no network")
    with pytest.raises(ValueError, match=r"text\.onnx cannot be read as an ONNX network"):
        run(tmp_path / "text.onnx")
    with pytest.raises(ValueError, match=r"gives an array \[1, 21, 8\]; layout yolox with 80 classes .* \[1, 21, 85\]"):
        run(files["yolox"][0], classes=80)
    with pytest.raises(ValueError, match=r"layout yolov8 with 3 classes on 32 x 32 pixels makes \[1, 7, 21\]"):
        run(files["yolox"][0], layout="yolov8")
    for name, settings, message in (
        ("open", {"frame": ("height", "width")}, r"takes images \[1, 3, 'height', 'width'\]; one picture"),
        ("many", {"batch": 4}, "one picture"),
        ("two", {"outputs": 2}, "gives output0 .*, output1 .*Export it without NMS"),
    ):
        save_linear(tmp_path / f"{name}.onnx", ROWS["yolox"], **settings)
        with pytest.raises(ValueError, match=message):
            run(tmp_path / f"{name}.onnx")


def test_arguments(files, monkeypatch):
    file = files["yolox"][0]
    with pytest.raises(ValueError, match="layout is 'yolo'; known: yolox, yolov8"):
        OnnxDetector(file, "yolo", CLASSES)
    for settings, message in (
        ({"num_classes": 0}, "above 0"),
        ({"num_classes": 1, "max_detections": 0}, "above 0"),
        ({"num_classes": 1, "nms_iou": 1.5}, r"in 0\.\.1"),
        ({"num_classes": 1, "score_threshold": -1}, r"in 0\.\.1"),
    ):
        with pytest.raises(ValueError, match=message):
            OnnxDetector(file, "yolox", **settings)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install clip-suite\[onnx\]"):
        OnnxDetector(file, "yolox", CLASSES)
