"""A whole test of heatmap detection against a loop over images in the style of the published demos.

Both read the same pictures, take CLIP Surgery's path through a ViT-B/32 of random weights, enlarge the maps of 20
classes to the picture, threshold at a quantile, box the components and compute average precision; boxes and scores are
compared. Both encode the class names within the time.

python benchmarks/heatmap_throughput.py [--small]
"""

from __future__ import annotations

import argparse
import logging
import resource
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from PIL import Image
from scipy import ndimage
from table import print_table, write_section
from torch import Tensor

from datamodules import DIOR
from datamodules.dior import CLASSES
from datamodules.scenes.dior_layout import write_dior
from datamodules.scenes.sprites import CLASS_NAMES
from lightning_modules import HeatmapDetection
from lightning_modules.backbones import OpenClip
from lightning_modules.backbones.encoder import Towers

NAMES = [*CLASS_NAMES, *(name for name in CLASSES if name not in CLASS_NAMES)][:20]
PERCENT = 75.0
Found = list[dict[str, Tensor]]


class RandomClip(OpenClip):
    """A ViT-B/32 of random weights, the same in every run."""

    def load(self) -> Towers:
        """Build it from a fixed seed."""
        torch.manual_seed(0)
        return super().load()


def surgery_of_one(visual: Any, pixels: Tensor) -> Tensor:
    """CLIP Surgery's tokens of one image, block by block with explicit attention matrices: ``(1, 50, 512)``."""

    def attend(block: Any, x: Tensor, kinds: list[str]) -> list[Tensor]:
        attention, n = block.attn, x.shape[1]
        parts = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        parts = parts.reshape(1, n, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        qkv = dict(zip("qkv", parts, strict=True))
        outs = []
        for kind in kinds:
            weights = (qkv[kind[0]] @ qkv[kind[1]].transpose(-2, -1) * parts.shape[-1] ** -0.5).softmax(-1)
            outs.append(attention.out_proj((weights @ qkv["v"]).transpose(1, 2).reshape(1, n, -1)))
        return outs

    x = visual._embeds(pixels)
    blocks = visual.transformer.resblocks
    for block in blocks[:-6]:
        x = x + attend(block, x, ["qk"])[0]
        x = x + block.mlp(block.ln_2(x))
    new = x
    for block in blocks[-6:]:
        own, other = attend(block, x, ["qk", "vv"])
        new, x = new + other, x + own
        x = x + block.mlp(block.ln_2(x))
    return visual.ln_post(torch.cat([x[:, :1], new[:, 1:]], 1)) @ visual.proj


def demo_loop(data: DIOR, encoder: OpenClip) -> tuple[Found, float]:
    """Image by image and class by class, as the demos do: boxes of each image, and AP at 0.2."""
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(iou_thresholds=[0.05, 0.1, 0.2, 0.5], backend="faster_coco_eval", class_metrics=True)
    metric.warn_on_many_detections = False
    visual, records, found = encoder.towers.visual, data.records("val"), []
    rows = [encoder.encode_text([f"a photo of a {name}."])[0] for name in data.display_names]
    text = F.normalize(torch.stack(rows), dim=-1)
    for row, path in enumerate(records.paths):
        with Image.open(path) as picture:
            small = picture.convert("RGB").resize((data.image_size,) * 2, Image.Resampling.BICUBIC)
        pixels = encoder.normalise(torch.from_numpy(np.array(small)).permute(2, 0, 1)[None])
        tokens = F.normalize(surgery_of_one(visual, pixels), dim=-1)
        probability = (2 * tokens[:, :1] @ text.T).softmax(-1)
        weights = probability / probability.mean(-1, keepdim=True)
        products = tokens[0, :, None] * text[None] * weights.reshape(1, -1, 1)  # (N, K, D)
        similarity = (products - products.mean(1, keepdim=True)).sum(-1)[1:]  # (HW, K)
        side = round(len(similarity) ** 0.5)
        height, width = records.sizes[row].tolist()
        boxes, scores, labels = [], [], []
        for label in range(len(NAMES)):
            grid = similarity[:, label].reshape(1, 1, side, side)
            full = F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
            parts, _ = ndimage.label(full >= np.percentile(full, PERCENT), np.ones((3, 3)))
            for number, (ys, xs) in enumerate(ndimage.find_objects(parts), 1):
                boxes.append([xs.start, ys.start, xs.stop, ys.stop])
                scores.append(float(full[parts == number].max()))
                labels.append(label)
        order = torch.tensor(scores).argsort(descending=True, stable=True)[:100]
        found.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32)[order],
                "scores": torch.tensor(scores)[order],
                "labels": torch.tensor(labels)[order],
            }
        )
        truth = {"boxes": torch.from_numpy(records.boxes[row]), "labels": torch.from_numpy(records.box_labels[row])}
        metric.update([found[-1]], [truth])
    per_iou = torch.as_tensor(metric.compute()["map"])
    return found, float(per_iou)


class Keeping(HeatmapDetection):
    """Keeps the boxes that a validation found."""

    def detect(self, *args: Any, **kwargs: Any) -> Any:
        """As the module does, kept."""
        found = super().detect(*args, **kwargs)
        self.kept = [*getattr(self, "kept", []), *found["heatmap"]]
        return found


def our_loop(data: DIOR, encoder: OpenClip) -> tuple[Found, float]:
    """The same through the module and the Trainer: boxes of each image, and the mean of the four APs."""
    module = Keeping(encoder, templates="photo", value=PERCENT, class_source="all")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=0,
            enable_checkpointing=False,
        )  # fmt: skip
        (values,) = trainer.validate(module, datamodule=data, verbose=False)
    return module.kept, float(np.mean([values[f"val/ap_{name}"] for name in ("05", "10", "20", "50")]))


def same_boxes(ours: Found, theirs: Found) -> float:
    """Share of the demo's boxes that ours has too, with the same class, corners within a pixel and score to 1e-4."""
    hits = total = 0
    for mine, other in zip(ours, theirs, strict=True):
        near = (mine["boxes"][:, None] - other["boxes"][None]).abs().amax(-1) <= 1
        near &= mine["labels"][:, None] == other["labels"][None]
        near &= (mine["scores"][:, None] - other["scores"][None]).abs() < 1e-4
        hits, total = hits + int(near.any(0).sum()), total + len(other["boxes"])
    return hits / total


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, and keep the full measurement in RESULTS.md.

    Args:
        arguments: Of the command line.

    Returns:
        The rows of the table.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="some seconds; prints only")
    small = parser.parse_args(arguments).small
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    size, images, rounds = (160, 15, 1) if small else (800, 160, 3)
    encoder = RandomClip("ViT-B-32-quickgelu", None)
    with tempfile.TemporaryDirectory() as folder:
        write_dior(folder, images, size)
        rows = measure(Path(folder), encoder, size, rounds)
    title = f"Heatmap detection: a test of 20 classes at {size} x {size} (aim: at least 3 x)"
    if small:
        print_table(f"{title} (small)", rows)
    else:
        write_section(title, "python benchmarks/heatmap_throughput.py", rows)
    return rows


def measure(folder: Path, encoder: OpenClip, size: int, rounds: int) -> list[dict[str, Any]]:
    """The rows of the table: both loops in turns over the validation part."""

    def data() -> DIOR:
        return DIOR(str(folder), classes=NAMES, image_size=224, batch_size=16, split_dir=str(folder / "splits"))

    spent: dict[str, list[float]] = {"demo loop, image by image": [], "suite, whole validation": []}
    our_loop(data(), encoder)  # compiles the kernels
    for _ in range(rounds):
        start = time.perf_counter()
        with torch.inference_mode():
            theirs, their_ap = demo_loop(data(), encoder)
        spent["demo loop, image by image"].append(time.perf_counter() - start)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        ours, our_ap = our_loop(data(), encoder)
        spent["suite, whole validation"].append(time.perf_counter() - start)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    share = same_boxes(ours, theirs)
    loop = median(spent["demo loop, image by image"])
    return [
        {
            "what": name,
            "images": len(ours),
            "ms an image": 1000 * median(times) / len(ours),
            "x demo": round(loop / median(times), 1),
            "mean AP": f"{ap:.6f}",
            "boxes in common": f"{share:.4f}",
            "peak memory beyond the demo's (MiB)": f"{more:.0f}" if name.startswith("suite") else "-",
        }
        for (name, times), ap in zip(spent.items(), (their_ap, our_ap), strict=True)
    ]


if __name__ == "__main__":
    main()
