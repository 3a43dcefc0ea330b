"""A training epoch read from the feature cache against one through the frozen ViT-B/32, on the same images.

python benchmarks/feature_cache.py [--small]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from table import print_table, write_section

from datamodules import COCO, FeatureCache, PairedFeatures
from lightning_modules.backbones import OpenClip

NUM_QUERY = 4
CLASSES = ("airplane", "ship", "vehicle")


def write_coco(root: Path, count: int, side: int = 96) -> None:
    """A COCO folder of random pictures of the generated world's size, one caption each."""
    rng = np.random.default_rng(0)
    (root / "train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, objects, captions = [], [], []
    for i in range(count):
        name = f"{i:012d}.jpg"
        coarse = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(root / "train2017" / name)
        images.append({"id": i, "file_name": name})
        objects.append({"image_id": i, "category_id": i % len(CLASSES), "bbox": [8, 8, 40, 40]})
        kind = CLASSES[i % len(CLASSES)]
        captions.append({"image_id": i, "caption": f"one {kind} seen from above, number {i}"})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    instances = {"images": images, "annotations": objects, "categories": categories}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(instances))
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps({"annotations": captions}))


def seconds(call: Callable[[], int]) -> tuple[float, int]:
    """Time of a call, and what it returns."""
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


def live_epoch(data: COCO, encoder: OpenClip, ids: list[str]) -> int:
    """Decode, preprocess and encode each image and its caption; the number of items."""
    dataset = data.dataset("train")
    dataset.transform = encoder.preprocess
    row = {name: i for i, name in enumerate(data.splits["train"])}
    subset = torch.utils.data.Subset(dataset, [row[name] for name in ids])
    count = 0
    for batch in data.loader(subset, shuffle=True, collate_fn=list):
        image = encoder.encode_image(torch.stack([item["image"] for item in batch]))
        text = encoder.encode_text([item["captions"][0] for item in batch])
        assert image.shape == text.shape
        count += len(batch)
    return count


def cached_epoch(paired: PairedFeatures) -> int:
    """Read every batch of the cached training items; the number of items."""
    return sum(len(batch["image"]) for batch in paired.train_dataloader())


def measure(count: int, folder: Path) -> list[dict[str, Any]]:
    """Rows of the table: building, one live epoch, one cached epoch (mean over two seconds of them)."""
    write_coco(folder / "coco", count)
    parts = {"num_query": NUM_QUERY, "num_train": count - NUM_QUERY, "split_dir": str(folder / "splits")}
    data = COCO(str(folder / "coco"), batch_size=16, **parts)
    torch.manual_seed(0)
    encoder = OpenClip("ViT-B-32", None)
    encoder.fingerprint()  # loads the model: not part of an epoch
    paired = PairedFeatures(FeatureCache(data, encoder, str(folder / "cache")), batch_size=16)
    build, _ = seconds(lambda: paired.setup("fit") or count)
    train = paired.splits["train"]
    # The loader drops the last, incomplete batch; the live epoch gets as many items.
    items = cached_epoch(paired)
    ids = [train.ids[i] for i in paired.train_rows[:items]]
    live, live_items = seconds(lambda: live_epoch(data, encoder, ids))
    assert items == live_items == len(ids)
    # One cached epoch is shorter than the clock is steady: the mean over a second or more, busy moments included.
    spent, epochs = 0.0, 0
    while spent < 2.0:
        spent += seconds(lambda: cached_epoch(paired))[0]
        epochs += 1
    cached = spent / epochs
    rows = [
        ("build the cache", count, build),
        ("epoch through ViT-B/32", items, live),
        ("epoch from the cache", items, cached),
    ]
    return [
        {"what": what, "items": n, "seconds": s, "items/s": n / s, "x ViT-B/32": f"{live / items * n / s:,.1f}"}
        for what, n, s in rows
    ]


def main(args: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="24 images instead of 128, and leave RESULTS.md alone")
    small = parser.parse_args(args).small
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(24 if small else 128, Path(folder))
    title = "Feature cache: an epoch from the cache against ViT-B/32"
    if small:
        print_table(title, rows)
    else:
        write_section(title, "python benchmarks/feature_cache.py", rows)
    return rows


if __name__ == "__main__":
    main()
