"""Time, peak memory and parameters of CorrCLIP's components: the paper's efficiency table.

Random weights of ViT-B/16 and DINO ViT-B/8, one picture of VOC's size. Each row does what the rows before it do, up to
the mask sources, which stand alone. Times are medians of turns in one process. Peak memory is that of a process of its
own beyond its imports (on a GPU: of its tensors), CLIP's text tower included, which the parameters leave out. The last
row is a whole process on a large photo. Linux only.

python benchmarks/corrclip_components.py [--small]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from corrclip import regions_of
from corrclip_loop import BATCH, CLIP, DINO, RandomClip, module_of, picture_of, seconds, window_batches
from table import print_table, write_section
from torch import Tensor, nn

from lightning_modules.backbones.guide import Guide
from lightning_modules.backbones.mask_sam import SegmentAnything
from lightning_modules.backbones.masks import Felzenszwalb
from lightning_modules.backbones.vit import vision_transformer
from lightning_modules.heatmap.dense import trunk_tokens

PHOTO = "whole process, 4000 x 3000, 171 classes (aim: below 4096 MiB)"
SETTINGS = {  # of the features, row by row
    "+ scope": {"similarity": "clip_qq", "alpha": 0, "beta": 0},
    "+ value": {"alpha": 0, "beta": 0},
    "+ spatial branch": {"beta": 0},
    "+ semantic branch": {},
}
Rows = list[dict[str, Any]]


class RandomSam(SegmentAnything):
    """SAM ViT-B with random weights."""

    @cached_property
    def predictor(self) -> Any:
        """As the parent's, without a checkpoint."""
        from segment_anything import SamPredictor, sam_model_registry

        device = "cuda" if torch.cuda.is_available() else "cpu"
        return SamPredictor(sam_model_registry["vit_b"]().eval().requires_grad_(False).to(device))


class Bench:
    """The components, each built at its first use.

    Args:
        size: Height and width of the picture.
        classes: Number of classes, one query each.
        side: Shorter side of the resized picture, and side of a window.
    """

    def __init__(self, size: tuple[int, int], classes: int, side: int) -> None:
        self.size, self.classes, self.side = size, classes, side
        self.encoder, self.guide, self.sam = RandomClip(CLIP, None), Guide(DINO, pretrained=False), RandomSam("vit_b")

    @cached_property
    def picture(self) -> Tensor:
        """uint8 (3, H, W)."""
        return picture_of(*self.size)

    @cached_property
    def ids(self) -> Tensor:
        """Region ids (H, W), some of them small."""
        return regions_of(*self.size, 60, seed=2)

    def segmenter(self, **settings: Any) -> tuple[Any, Any]:
        """A segmenter with some settings of the features, and its classes."""
        module = module_of(self.encoder, self.guide, [1] * self.classes, self.side, self.side, BATCH)
        module.segmenters[0].features.update(settings)
        return module.segmenters[0], module.classes[0]

    def rows(self) -> dict[str, Callable[[], Callable[[], Any]]]:
        """Name -> what makes the call that is measured."""
        return {
            "CLIP ViT-B/16 alone": self._clip,
            "+ guide DINO ViT-B/8": self._clip_and_guide,
            **{name: lambda values=values: self._logits(values) for name, values in SETTINGS.items()},
            "+ label map": lambda: self._labels(correction=False),
            "+ correction = CorrCLIP": lambda: self._labels(correction=True),
            "masks: felzenszwalb": lambda: lambda: Felzenszwalb().masks(self.picture),
            "masks: SAM ViT-B, the picture": lambda: lambda: self.sam.embed(self.picture),
            "masks: SAM ViT-B, 64 of 1024 points": self._sam_points,
        }

    @cached_property
    def windows(self) -> list[Tensor]:
        """Batches of windows for the networks alone."""
        return window_batches(self.size, self.side, self.side, self.encoder.device)

    def _clip(self) -> Callable[[], Any]:
        vit = vision_transformer(self.encoder.towers.visual, positions="bicubic")
        return lambda: [vit.project(trunk_tokens(vit, part, 0)) for part in self.windows]

    def _clip_and_guide(self) -> Callable[[], Any]:
        clip, model = self._clip(), self.guide
        return lambda: (clip(), [model.features(part) for part in self.windows])

    def _logits(self, settings: dict[str, Any]) -> Callable[[], Any]:
        segmenter, classes = self.segmenter(**settings)
        return lambda: segmenter.logits([self.picture], [self.ids], classes.text)

    def _labels(self, correction: bool) -> Callable[[], Any]:
        segmenter, classes = self.segmenter()
        segmenter = replace(segmenter, correction=correction)
        return lambda: segmenter(self.picture, self.ids, classes)

    def _sam_points(self) -> Callable[[], Any]:
        embedding = self.sam.embed(self.picture)  # belongs to the row before
        points = torch.rand(64, 2, generator=torch.Generator().manual_seed(0))
        return lambda: self.sam.decode(embedding, points)

    def parameters(self, name: str) -> int:
        """Of the networks of a row: of CLIP the image tower."""
        if name.startswith("masks: SAM"):
            return count(self.sam.predictor.model)
        if name.startswith("masks"):
            return 0
        return count(self.encoder.towers.visual) + (0 if name.startswith("CLIP") else count(self.guide.model))


def count(model: nn.Module) -> int:
    """Parameters of a network."""
    return sum(parameter.numel() for parameter in model.parameters())


def peak() -> float:
    """MiB: the most that this process held so far.

    Not ``ru_maxrss``, which starts at what the parent held.
    """
    (kib,) = re.findall(r"^VmHWM:\s*(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kib) / 1024


def peak_of_row(name: str, small: bool) -> float:
    """MiB of a row, in this process, which has done nothing else."""
    if name == PHOTO:
        bench = Bench((3000, 4000), 171, 336)
        with torch.inference_mode():
            bench.rows()["+ correction = CorrCLIP"]()()
        return peak()
    before = peak()
    with torch.inference_mode():
        bench_of(small).rows()[name]()()
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak() - before


def bench_of(small: bool) -> Bench:
    """The picture of all rows but the last."""
    return Bench((120, 160), 5, 112) if small else Bench((375, 500), 21, 336)


def peak_apart(name: str, small: bool) -> float:
    """MiB of a row, in a process of its own."""
    command = [sys.executable, __file__, "--memory", name, *(["--small"] if small else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure(small: bool, rounds: int, names: Iterable[str] | None = None) -> Rows:
    """The rows of the table.

    Args:
        small: A small picture.
        rounds: Turns of the times.
        names: Rows; None = all, and the large photo.
    """
    bench = bench_of(small)
    makers = {name: make for name, make in bench.rows().items() if names is None or name in names}
    with torch.inference_mode():
        calls = {name: make() for name, make in makers.items()}
        spent = [{name: seconds(call) for name, call in calls.items()} for _ in range(rounds + 1)][1:]
    rows = [
        {
            "component": name,
            "s a picture": median(turn[name] for turn in spent),
            "peak memory, MiB": round(peak_apart(name, small)),
            "parameters, M": round(bench.parameters(name) / 1e6, 1),
        }
        for name in calls
    ]
    if names is not None:
        return rows
    both = round(bench.parameters("+ scope") / 1e6, 1)
    rows.append(
        {
            "component": PHOTO,
            "s a picture": "-",
            "peak memory, MiB": round(peak_apart(PHOTO, small=False)),
            "parameters, M": both,
        }
    )
    return rows


def main(arguments: list[str] | None = None) -> Rows:
    """Measure, print, and keep the full measurement in RESULTS.md.

    Args:
        arguments: Of the command line.

    Returns:
        The rows of the table.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a small picture and one row; prints only")
    parser.add_argument("--memory", metavar="ROW", help="print the peak memory of one row; what the rows call")
    asked = parser.parse_args(arguments)
    if asked.memory:
        print(json.dumps(peak_of_row(asked.memory, asked.small)))
        return []
    title = "CorrCLIP: components on a picture of 375 x 500, 2 windows, 21 classes"
    if asked.small:
        rows = measure(small=True, rounds=1, names=["+ correction = CorrCLIP"])
        print_table(f"{title} (small)", rows)
    else:
        rows = measure(small=False, rounds=3)
        write_section(title, "python benchmarks/corrclip_components.py", rows)
    return rows


if __name__ == "__main__":
    main()
