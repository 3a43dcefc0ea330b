"""A whole test step of CorrCLIP against the time of its two networks alone, and windows in batches against one by one.

Random weights of ViT-B/16 and DINO ViT-B/8; pictures of the size of VOC's and ADE20K's with regions by felzenszwalb. A
step is what `test` does for a picture: resize, windows, both networks, correlations, stitching, decision, correction,
scores, and the control with random texts. The networks alone are open_clip's image tower, with its patches, and timm's
`forward_features` on the same windows in the same batches. Both take turns.

python benchmarks/corrclip_loop.py [--small] [--profile]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from math import prod
from statistics import median
from typing import Any

import torch
from corrclip import regions_of
from table import print_table, write_section
from torch import Tensor, nn

from lightning_modules import CorrClipSegmentation
from lightning_modules.backbones import OpenClip
from lightning_modules.backbones.encoder import Towers
from lightning_modules.backbones.guide import Guide
from lightning_modules.backbones.masks import Felzenszwalb
from lightning_modules.corrclip.evaluation import Evaluation
from lightning_modules.corrclip.windows import padding, resized_size, window_starts

CLIP, DINO = "ViT-B-16-quickgelu", "vit_base_patch8_224.dino"
STRIDE, BATCH = 112, 8  # pixels between windows; windows at once
CASES = {  # height, width, shorter side, queries a class
    "VOC21": (375, 500, 336, [26, *[1] * 20]),
    "ADE20K": (512, 683, 448, [1] * 150),
}
SMALL = {"small": (120, 160, 112, [2, 1, 1])}
Rows = list[dict[str, Any]]


class RandomClip(OpenClip):
    """Random weights, the same in every run."""

    def load(self) -> Towers:
        """Build it from a fixed seed."""
        torch.manual_seed(0)
        return super().load()


def picture_of(height: int, width: int) -> Tensor:
    """A picture uint8 (3, height, width) of coloured parts with some noise."""
    generator = torch.Generator().manual_seed(0)
    parts = regions_of(height, width, 40, seed=0)
    colours = torch.randint(0, 256, (3, 40), generator=generator)[:, parts]
    return (colours + 8 * torch.randn(3, height, width, generator=generator)).clamp(0, 255).byte()


def module_of(encoder: OpenClip, guide: Guide, queries: list[int], short: int, crop: int, batch: int) -> Any:
    """The module, ready to test without a trainer.

    Args:
        encoder: CLIP.
        guide: DINO.
        queries: Ways to name each class.
        short: Shorter side of the resized picture.
        crop: Side of a window.
        batch: Windows at once.
    """
    lines = ["; ".join(f"thing {number} {way}" for way in range(ways)) for number, ways in enumerate(queries)]
    module = CorrClipSegmentation(
        encoder,
        guide,
        lines,
        ["{}"],
        text_cache=None,
        short=short,
        crop=crop,
        stride=STRIDE,
        window_batch=batch,
        threshold=0.2,
    )
    module.to(encoder.device).configure_model()
    guide.model.to(encoder.device)
    module.segmenters, module.classes = [module.segmenter], [module.prompt(lines)]  # what a trainer's data would set
    module.evaluations = nn.ModuleList([Evaluation("", len(lines))])
    return module


def window_batches(size: tuple[int, int], short: int, crop: int, device: torch.device) -> list[Tensor]:
    """Noise in the shape of each batch of a picture's windows, of the module's own stride and batch.

    Args:
        size: Height and width of the picture.
        short: Shorter side of the resized picture.
        crop: Side of a window.
        device: Where to.
    """
    resized = resized_size(size, short)
    number = prod(len(window_starts(side, crop, STRIDE)) for side in resized)
    sides = [padding(min(crop, side), 16)[1] for side in resized]
    windows = torch.randn(number, 3, *sides, generator=torch.Generator().manual_seed(1))
    return list(windows.to(device).split(BATCH))


def seconds(call: Callable[[], Any]) -> float:
    """Of one call, with all that a GPU does for it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median over turns of the second's share of the first's."""
    pairs = [(seconds(first), seconds(second)) for _ in range(rounds + 1)][1:]  # the first loads and allocates
    return median(a for a, _ in pairs), median(b for _, b in pairs), median(b / a for a, b in pairs)


def rows_of(cases: dict[str, Any], rounds: int, crop: int, profile: bool) -> Rows:
    """A row for each case.

    Args:
        cases: Name -> height, width, shorter side, ways to name each class.
        rounds: Turns.
        crop: Side of a window.
        profile: Print where the time of a step goes.
    """
    gpu = torch.cuda.is_available()
    encoder, guide = RandomClip(CLIP, None), Guide(DINO, pretrained=False)
    networks = [crop_tower(crop).to(encoder.device), guide.model]
    rows = []
    for name, (height, width, short, queries) in cases.items():
        picture = picture_of(height, width)
        ids = Felzenszwalb().masks(picture)
        target = regions_of(height, width, len(queries), seed=1)
        batch = {"image": [picture], "instance_mask": [ids], "target": [target], "index": torch.tensor([0])}
        batch = {key: [each.to(encoder.device) for each in value] for key, value in batch.items()}
        batch["index"] = torch.stack(batch["index"])
        module = module_of(encoder, guide, queries, short, crop, BATCH)
        single = module_of(encoder, guide, queries, short, crop, 1) if gpu else None
        windows = window_batches((height, width), short, crop, encoder.device)

        def alone(windows: list[Tensor] = windows) -> None:
            for part in windows:
                networks[0](part)
                networks[1].forward_features(part)

        def step(module: Any = module, batch: dict[str, Any] = batch) -> None:
            module.test_step(batch, 0)

        precision = torch.autocast("cuda", torch.float16) if gpu else nullcontext()
        with torch.inference_mode(), precision:
            bare, whole, ratio = in_turns(alone, step, rounds)
            row = {
                "case": f"{name}, {height} x {width}",
                "windows": sum(map(len, windows)),
                "queries": sum(queries),
                "regions": len(ids.unique()),
                "networks alone, s": bare,
                "test step, s": whole,
                "x networks": round(ratio, 3),
            }
            if single is not None:
                _, one, more = in_turns(step, lambda one=single, batch=batch: one.test_step(batch, 0), rounds)
                row |= {"one window at a time, s": one, "x batched": round(more, 2)}
            if profile:
                with torch.profiler.profile() as seen:
                    step()
                print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))
        rows.append(row | {"turns": rounds})
    return rows


def crop_tower(crop: int) -> Any:
    """open_clip's own image tower for windows of this side, which also returns its patches."""
    import open_clip

    visual = open_clip.create_model(CLIP, pretrained=None, force_image_size=crop).visual.eval().requires_grad_(False)
    visual.output_tokens = True
    return visual


def main(arguments: list[str] | None = None) -> Rows:
    """Measure, print, and keep the full measurement in RESULTS.md.

    Args:
        arguments: Of the command line.

    Returns:
        The rows of the table.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a window of 112 pixels; prints only")
    parser.add_argument("--profile", action="store_true", help="also print the operations of a step; keeps nothing")
    asked = parser.parse_args(arguments)
    rows = rows_of(*((SMALL, 2, 112) if asked.small else (CASES, 5, 336)), asked.profile)
    title = "CorrCLIP: a test step against its two networks alone (aim: at most 1.15 x)"
    if asked.small or asked.profile:
        print_table(title, rows)
    else:
        write_section(title, "python benchmarks/corrclip_loop.py", rows)
    return rows


if __name__ == "__main__":
    main()
