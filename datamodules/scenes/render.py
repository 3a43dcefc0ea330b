"""One scene of the generated world: which objects it holds, and its picture with masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.scenes.sprites import CLASS_NAMES, CLASSES, draw_sprite
from datamodules.scenes.textures import BACKGROUNDS, grain_atlas, ground_texture, random_crop

MIN_VISIBLE = 0.5  # share of an object that must stay unoccluded and inside the image


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene.

    Args:
        category: Index into ``CLASS_NAMES``.
        colour: Name of its colour.
        length: Side of its sprite as a share of the image's side.
        box: Visible extent, ``(x_min, y_min, x_max, y_max)`` in pixels, the maxima exclusive.
    """

    category: int
    colour: str
    length: float
    box: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        """The class name."""
        return CLASS_NAMES[self.category]


@dataclass(frozen=True)
class Scene:
    """A picture and everything that is true of it.

    Args:
        image: ``(S, S, 3)`` uint8.
        instances: ``(S, S)`` uint8, 0 for the ground and ``k + 1`` where ``objects[k]`` is visible.
        background: One of ``BACKGROUNDS``.
        objects: The objects from the lowest to the topmost.
    """

    image: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    background: str
    objects: tuple[SceneObject, ...]

    @property
    def semantic(self) -> NDArray[np.uint8]:
        """Class map, ``(S, S)`` uint8: 0 for the ground, ``1 + category`` elsewhere."""
        table = np.array([0, *(1 + item.category for item in self.objects)], np.uint8)
        return table[self.instances]

    @property
    def labels(self) -> NDArray[np.float32]:
        """Which classes are present, ``(12,)`` of 0 and 1."""
        present = np.zeros(len(CLASS_NAMES), np.float32)
        present[[item.category for item in self.objects]] = 1
        return present


def _transformed(rng: np.random.Generator, name: str, variant: int, side: int) -> NDArray[np.float32]:
    """A sprite, stretched a little, scaled to ``side`` pixels and rotated: ``(h, w, 4)`` float32, alpha in 0..1."""
    sprite = draw_sprite(rng, name, variant)
    stretch = rng.uniform(0.85, 1.15, 2)
    width, height = (max(round(side * s), 4) for s in stretch)
    sprite = sprite.resize((width, height), Image.Resampling.BILINEAR)
    sprite = sprite.rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC, expand=True)
    pixels = np.asarray(sprite, np.float32).copy()
    grain = random_crop(rng, grain_atlas(), max(pixels.shape[:2]))[: pixels.shape[0], : pixels.shape[1]]
    pixels[..., :3] += 5 * grain[..., None]
    pixels[..., 3] /= 255
    return pixels


def _window(
    centre: NDArray[np.float64], shape: tuple[int, ...], size: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a patch of ``shape`` put at ``centre`` lies in the image, and which part of the patch that is."""
    top, left = (round(c - extent / 2) for c, extent in zip(centre, shape, strict=False))
    rows = slice(max(top, 0), max(min(top + shape[0], size), 0))
    columns = slice(max(left, 0), max(min(left + shape[1], size), 0))
    inside = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    return (rows, columns), inside


def render_scene(
    rng: np.random.Generator,
    size: int = 96,
    max_objects: int = 5,
    close_up: bool = False,
) -> Scene:
    """Draw a random scene.

    Args:
        rng: Source of randomness; the same state gives the same scene.
        size: Side of the image in pixels.
        max_objects: Most objects in the scene, at least 1.
        close_up: One object that nearly fills the frame instead of one to ``max_objects`` of ordinary size.

    Returns:
        The scene.

    Example:
        >>> scene = render_scene(np.random.default_rng(0), size=64)
        >>> scene.image.shape, int(scene.instances.max()) == len(scene.objects)
        ((64, 64, 3), True)
    """
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    canvas = ground_texture(rng, background, size).copy()
    instances = np.zeros((size, size), np.uint8)
    sun = rng.uniform(0, 2 * np.pi)
    shadow = np.array([np.sin(sun), np.cos(sun)]) * size * rng.uniform(0.01, 0.03)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + 0.12 * (np.sin(sun) * ramp[:, None] + np.cos(sun) * ramp[None, :])
    drawn: list[tuple[int, str, float]] = []
    areas: list[int] = []
    for _ in range(1 if close_up else int(rng.integers(1, max_objects + 1))):
        category = int(rng.integers(len(CLASS_NAMES)))
        spec = CLASSES[CLASS_NAMES[category]]
        variant = int(rng.integers(len(spec.colours)))
        length = rng.uniform(0.55, 1.0) if close_up else rng.uniform(*spec.length)
        patch = _transformed(rng, CLASS_NAMES[category], variant, int(length * size))
        for _attempt in range(8):
            centre = rng.uniform(0.08, 0.92, 2) * size if not close_up else rng.uniform(0.4, 0.6, 2) * size
            (rows, columns), inside = _window(centre, patch.shape, size)
            solid = patch[(*inside, 3)] > 0.5
            whole = int((patch[..., 3] > 0.5).sum())
            trial = instances.copy()
            trial[rows, columns][solid] = len(drawn) + 1
            counts = np.bincount(trial.ravel(), minlength=len(drawn) + 2)[1:]
            if solid.sum() >= MIN_VISIBLE * whole and all(
                count >= MIN_VISIBLE * area for count, area in zip(counts, [*areas, whole], strict=True)
            ):
                break
        else:
            if drawn:
                continue  # no room is left for this object
        (under_rows, under_columns), under = _window(centre + shadow, patch.shape, size)
        canvas[under_rows, under_columns] *= 1 - 0.45 * patch[(*under, slice(3, 4))]
        alpha = patch[(*inside, slice(3, 4))]
        canvas[rows, columns] += alpha * (patch[(*inside, slice(0, 3))] - canvas[rows, columns])
        instances = trial
        areas.append(whole)
        drawn.append((category, spec.colours[variant][0], length))
    exposure, warmth = rng.normal(1.0, 0.08), rng.normal(0, 0.03)
    canvas *= light[..., None] * (exposure * np.array([1 + warmth, 1, 1 - warmth], np.float32))
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(2, 7)
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    objects = []
    for number, (category, colour, length) in enumerate(drawn, 1):
        ys, xs = np.nonzero(instances == number)
        box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
        objects.append(SceneObject(category, colour, float(length), box))
    return Scene(image, instances, background, tuple(objects))
