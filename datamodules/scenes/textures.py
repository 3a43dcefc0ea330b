"""Noise and ground textures of the generated world."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BACKGROUNDS = ("grass", "sand", "water", "forest", "concrete", "farmland")
ATLAS = 384  # side of the precomputed textures in pixels; scenes are random crops of them


def value_noise(rng: np.random.Generator, size: int, cells: int) -> NDArray[np.float32]:
    """Smooth noise: random values on a coarse grid, interpolated bicubically.

    Args:
        rng: Source of randomness.
        size: Side of the result in pixels.
        cells: Side of the coarse grid; fewer cells give larger blobs.

    Returns:
        Noise of mean 0 and unit variance, ``(size, size)`` float32.
    """
    grid = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    noise = np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
    return (noise - noise.mean()) / (noise.std() + 1e-6)


def _ground(rng: np.random.Generator, name: str) -> NDArray[np.float32]:
    """One ground texture, ``(ATLAS, ATLAS, 3)`` in 0..255."""
    fine, medium, coarse = (value_noise(rng, ATLAS, cells) for cells in (ATLAS, 96, 16))
    y, x = np.mgrid[0:ATLAS, 0:ATLAS].astype(np.float32)
    if name == "grass":
        base, weight = (96, 138, 62), 6 * fine + 7 * medium + 6 * coarse
    elif name == "sand":
        ripples = np.sin((x + 0.4 * y + 6 * coarse) * 0.55)
        base, weight = (208, 184, 136), 4 * fine + 8 * ripples + 5 * coarse
    elif name == "water":
        waves = np.sin((y + 0.25 * x + 9 * coarse) * 0.32)
        base, weight = (44, 92, 138), 3 * fine + 7 * waves + 5 * medium
    elif name == "forest":
        crowns = np.abs(value_noise(rng, ATLAS, 72))
        base, weight = (38, 74, 40), 5 * fine + 14 * crowns - 10 + 4 * coarse
    elif name == "concrete":
        joints = ((x % 48 < 2) | (y % 48 < 2)).astype(np.float32)
        base, weight = (150, 150, 148), 5 * fine + 4 * coarse - 22 * joints
    else:  # farmland
        furrows = np.sin(x * 0.5) + 0.5 * np.sin(x * 0.06 + coarse)
        base, weight = (146, 112, 74), 5 * fine + 12 * furrows + 4 * medium
    tint = 1 + 0.02 * np.stack([coarse, medium, -coarse], -1)
    return np.asarray(base, np.float32) * tint + weight[..., None]


@lru_cache(maxsize=1)
def ground_atlas() -> dict[str, NDArray[np.float32]]:
    """The six ground textures, made once for a process from a fixed seed."""
    rng = np.random.default_rng(7)
    return {name: _ground(rng, name) for name in BACKGROUNDS}


@lru_cache(maxsize=1)
def grain_atlas() -> NDArray[np.float32]:
    """Fine and medium noise that roughens painted surfaces, ``(ATLAS, ATLAS)``, unit variance."""
    rng = np.random.default_rng(11)
    grain = value_noise(rng, ATLAS, ATLAS) + value_noise(rng, ATLAS, ATLAS // 4)
    return (grain / grain.std()).astype(np.float32)


def random_crop(rng: np.random.Generator, atlas: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """A random window of an atlas in one of its eight orientations, ``(size, size, ...)``.

    A window larger than the atlas is mirrored at the borders.
    """
    reach = ATLAS - size
    if reach >= 0:
        top, left = rng.integers(0, reach + 1, 2)
        crop = atlas[top : top + size, left : left + size]
    else:
        pad = [(0, size - ATLAS)] * 2 + [(0, 0)] * (atlas.ndim - 2)
        crop = np.pad(atlas, pad, mode="symmetric")
    crop = np.rot90(crop, int(rng.integers(4)))
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def ground_texture(rng: np.random.Generator, name: str, size: int) -> NDArray[np.float32]:
    """A patch of ground with its own tone, ``(size, size, 3)`` float32 in 0..255."""
    tone = rng.normal(1.0, 0.07) * (1 + rng.normal(0, 0.025, 3))
    return random_crop(rng, ground_atlas()[name], size) * tone.astype(np.float32)
