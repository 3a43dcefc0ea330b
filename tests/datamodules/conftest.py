"""Tiny datasets in the real layouts, for the tests of the readers and of the feature cache."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}, {"id": 90, "name": "toothbrush"}]


def _write_image(path: Path, seed: int, size: tuple[int, int] = (16, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _write_coco(root: Path, train: int = 9, val: int = 6, nested: bool = True) -> Path:
    """A COCO 2017 folder; image 0 of each part has no annotation, image 1 has a crowd region and six captions."""
    for part, count, start in (("train2017", train, 0), ("val2017", val, 1000)):
        images, annotations, captions = [], [], []
        for i in range(count):
            number = start + i
            name = f"{number:012d}.jpg"
            _write_image((root / "images" if nested else root) / part / name, number)
            images.append({"id": number, "file_name": name, "width": 16, "height": 12})
            captions += [
                {"image_id": number, "id": 10 * number + k, "caption": f"picture {number}\n caption {k} "}
                for k in range(6 if i == 1 else 5)
            ]
            if i == 0:
                continue
            category = CATEGORIES[i % 3]["id"]
            annotations.append({"image_id": number, "category_id": category, "bbox": [1, 2, 5, 6], "iscrowd": 0})
            if i == 1:
                annotations.append({"image_id": number, "category_id": 90, "bbox": [0, 0, 3, 3], "iscrowd": 1})
        folder = root / "annotations"
        folder.mkdir(parents=True, exist_ok=True)
        instances = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (folder / f"instances_{part}.json").write_text(json.dumps(instances))
        (folder / f"captions_{part}.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return root


def _write_mirflickr(root: Path, count: int = 10, nested: bool = True) -> Path:
    """A MIRFlickr folder: image 1 has no label, image 2 no frequent tag, image 3 no tag at all."""
    folder = root / "mirflickr" if nested else root
    (folder / "meta" / "tags").mkdir(parents=True)
    for i in range(1, count + 1):
        _write_image(folder / f"im{i}.jpg", i)
        tags = {2: ["rare"], 3: []}.get(i, ["sky", "sea", f"only{i}"])
        (folder / "meta" / "tags" / f"tags{i}.txt").write_text("".join(f"{tag}\r\n" for tag in tags))
    labels = root / "annotations"
    labels.mkdir(exist_ok=True)
    (labels / "sky.txt").write_text("".join(f"{i}\r\n" for i in range(2, count + 1)))
    (labels / "animals.txt").write_text("".join(f"{i}\n" for i in range(2, count + 1, 2)))
    (labels / "sky_r1.txt").write_text("2\n")
    (labels / "README.txt").write_text("not a label file")
    return root


@pytest.fixture
def write_image():
    return _write_image


@pytest.fixture
def write_coco():
    return _write_coco


@pytest.fixture
def write_mirflickr():
    return _write_mirflickr
