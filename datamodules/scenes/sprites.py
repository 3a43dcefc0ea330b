"""The twelve object classes of the generated world, drawn from above on a transparent square."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

CANVAS = 64  # side of a sprite in pixels, before it is scaled and rotated
Colour = tuple[int, int, int]
Draw = ImageDraw.ImageDraw
WHITE, GREY, DARK = (238, 238, 236), (128, 130, 134), (44, 46, 52)


def _airplane(draw: Draw, body: Colour, accent: Colour, rng: np.random.Generator) -> None:
    sweep = int(rng.integers(6, 14))
    draw.polygon(
        [(30, 22), (34, 22), (61, 34 + sweep), (61, 39 + sweep), (32, 38), (3, 39 + sweep), (3, 34 + sweep)], body
    )
    draw.polygon([(32, 50), (44, 58), (44, 61), (20, 61), (20, 58)], body)
    draw.ellipse((28, 2, 36, 62), body)
    for x in (17, 43):
        draw.rectangle((x, 32, x + 4, 40), accent)
    draw.ellipse((30, 5, 34, 11), DARK)
    draw.line((32, 14, 32, 58), accent, 1)


def _ship(draw: Draw, body: Colour, accent: Colour, rng: np.random.Generator) -> None:
    width = int(rng.integers(9, 12))
    draw.polygon([(32, 1), (32 + width, 16), (32 + width, 60), (32 - width, 60), (32 - width, 16)], body)
    inner = width - 3
    for y in range(16, 44, 7):
        draw.rectangle((32 - inner, y, 32 + inner, y + 4), accent if (y // 7) % 2 else WHITE)
    draw.rectangle((32 - inner, 47, 32 + inner, 57), WHITE)
    draw.rectangle((29, 50, 35, 54), DARK)


def _storagetank(draw: Draw, body: Colour, accent: Colour, rng: np.random.Generator) -> None:
    draw.ellipse((4, 4, 60, 60), accent)
    draw.ellipse((7, 7, 57, 57), body)
    for radius in (18, 9):
        draw.ellipse((32 - radius, 32 - radius, 32 + radius, 32 + radius), outline=accent, width=1)
    angle = rng.uniform(0, 2 * np.pi)
    draw.line((32, 32, 32 + 25 * np.cos(angle), 32 + 25 * np.sin(angle)), GREY, 3)
    draw.ellipse((29, 29, 35, 35), GREY)


def _tenniscourt(draw: Draw, body: Colour, accent: Colour, rng: np.random.Generator) -> None:
    draw.rectangle((10, 2, 54, 62), accent)
    draw.rectangle((17, 8, 47, 56), body, WHITE, 2)
    draw.line((22, 8, 22, 56), WHITE, 1)
    draw.line((42, 8, 42, 56), WHITE, 1)
    for y in (20, 44):
        draw.line((22, y, 42, y), WHITE, 1)
    draw.line((14, 32, 50, 32), WHITE, 3)


def _baseballfield(draw: Draw, body: Colour, accent: Colour, rng: np.random.Generator) -> None:
    draw.pieslice((-15, 9, 79, 103), 225, 315, accent)  # warning track around the outfield
    draw.pieslice((-11, 13, 75, 99), 225, 315, body)
    draw.polygon([(32, 60), (50, 42), (32, 25), (14, 42)], accent)
    draw.polygon([(32, 52), (42, 42), (32, 32), (22, 42)], body)
    draw.ellipse((29, 39, 35, 45), accent)
    draw.line((32, 58, 3, 29), WHITE, 1)
    draw.line((32, 58, 61, 29), WHITE, 1)
    for x, y in ((32, 55), (46, 42), (32, 29), (18, 42)):
        draw.rectangle((x - 1, y - 1, x + 1, y + 1), WHITE)


def _vehicle(draw: Draw, body: Colour, accent: Colour, rng: np.random.Generator) -> None:
    draw.rounded_rectangle((18, 4, 46, 60), 8, body)
    draw.rounded_rectangle((21, 18, 43, 28), 3, DARK)
    draw.rounded_rectangle((22, 46, 42, 53), 3, DARK)
    draw.rectangle((22, 29, 42, 45), accent)
    for x in (20, 38):
        draw.rectangle((x, 4, x + 6, 7), (255, 246, 190))
        draw.rectangle((x, 57, x + 6, 60), (190, 30, 30))


def _bridge(draw: Draw, body: Colour, accent: Colour, rng: np.random.Generator) -> None:
    draw.rectangle((21, 0, 43, 64), accent)
    draw.rectangle((25, 0, 39, 64), body)
    for y in range(1, 64, 9):
        draw.rectangle((31, y, 33, y + 4), WHITE)
    for y in range(4, 64, 14):
        draw.rectangle((17, y, 21, y + 4), accent)
        draw.rectangle((43, y, 47, y + 4), accent)


def _harbor(draw: Draw, body: Colour, accent: Colour, rng: np.random.Generator) -> None:
    draw.rectangle((2, 2, 62, 62), (60, 104, 140))
    draw.rectangle((2, 2, 13, 62), body)
    for y in (9, 27, 45):
        draw.rectangle((13, y, 60, y + 5), body)
        for x in (18, 29, 40, 51):
            if rng.random() < 0.8:
                draw.ellipse((x, y + 7, x + 6, y + 15), WHITE if rng.random() < 0.6 else accent)


def _house(draw: Draw, body: Colour, accent: Colour, rng: np.random.Generator) -> None:
    shade = tuple(int(0.68 * c) for c in body)
    draw.polygon([(6, 12), (58, 12), (46, 32), (18, 32)], body)
    draw.polygon([(6, 52), (58, 52), (46, 32), (18, 32)], shade)
    draw.polygon([(6, 12), (18, 32), (6, 52)], tuple(int(0.84 * c) for c in body))
    draw.polygon([(58, 12), (46, 32), (58, 52)], tuple(int(0.84 * c) for c in body))
    draw.line((18, 32, 46, 32), accent, 2)
    for y in range(16, 52, 5):
        draw.line((9, y, 55, y), accent, 1)
    draw.rectangle((38, 18, 44, 24), DARK)


def _tree(draw: Draw, body: Colour, accent: Colour, rng: np.random.Generator) -> None:
    for _ in range(14):
        angle, distance, radius = rng.uniform(0, 2 * np.pi), rng.uniform(6, 19), rng.uniform(7, 12)
        x, y = 32 + distance * np.cos(angle), 32 + distance * np.sin(angle)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), body)
    draw.ellipse((16, 16, 48, 48), body)
    for _ in range(16):
        x, y, radius = *rng.uniform(14, 50, 2), rng.uniform(2, 5)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), accent)


def _swimmingpool(draw: Draw, body: Colour, accent: Colour, rng: np.random.Generator) -> None:
    corner = int(rng.integers(8, 24))
    draw.rounded_rectangle((6, 12, 58, 52), corner, accent)
    draw.rounded_rectangle((11, 17, 53, 47), max(corner - 5, 2), body)
    for y in range(22, 46, 6):
        draw.line((15, y, 49, y), tuple(min(c + 60, 255) for c in body), 1)
    draw.rectangle((50, 28, 58, 36), WHITE)


def _solarpanel(draw: Draw, body: Colour, accent: Colour, rng: np.random.Generator) -> None:
    draw.rectangle((4, 10, 60, 54), WHITE)
    for x in range(6, 58, 9):
        for y in range(12, 52, 10):
            draw.rectangle((x, y, x + 7, y + 8), body)
            draw.line((x, y + 8, x + 7, y), accent, 1)


class ObjectClass(NamedTuple):
    """One class: how it is drawn, its size, and its colour variants (name, body, accent)."""

    draw: Callable[[Draw, Colour, Colour, np.random.Generator], None]
    length: tuple[float, float]  # side of the sprite as a share of the image
    colours: tuple[tuple[str, Colour, Colour], ...]


CLASSES: dict[str, ObjectClass] = {
    "airplane": ObjectClass(_airplane, (0.28, 0.48), (
        ("white", (236, 238, 240), (190, 40, 46)), ("silver", (176, 182, 190), (70, 90, 150)))),
    "ship": ObjectClass(_ship, (0.28, 0.50), (
        ("red", (150, 52, 44), (214, 150, 70)), ("black", (52, 54, 62), (190, 84, 50)))),
    "storagetank": ObjectClass(_storagetank, (0.20, 0.36), (
        ("white", (228, 226, 218), (150, 146, 138)), ("yellow", (224, 200, 120), (150, 126, 60)))),
    "tenniscourt": ObjectClass(_tenniscourt, (0.30, 0.46), (
        ("blue", (58, 92, 172), (62, 128, 92)), ("orange", (198, 98, 62), (58, 122, 82)))),
    "baseballfield": ObjectClass(_baseballfield, (0.32, 0.50), (
        ("brown", (120, 164, 72), (176, 118, 72)), ("orange", (104, 150, 70), (212, 128, 74)))),
    "vehicle": ObjectClass(_vehicle, (0.20, 0.32), (
        ("red", (206, 34, 40), (226, 70, 70)), ("yellow", (240, 200, 40), (250, 222, 110)),
        ("blue", (36, 70, 196), (84, 120, 226)), ("purple", (136, 48, 160), (170, 96, 190)))),
    "bridge": ObjectClass(_bridge, (0.40, 0.62), (
        ("grey", (96, 98, 102), (178, 178, 176)), ("brown", (110, 78, 56), (188, 150, 112)))),
    "harbor": ObjectClass(_harbor, (0.34, 0.52), (
        ("brown", (156, 122, 88), (214, 72, 56)), ("grey", (172, 172, 168), (222, 178, 60)))),
    "house": ObjectClass(_house, (0.24, 0.40), (
        ("red", (178, 74, 56), (120, 44, 36)), ("black", (92, 90, 98), (52, 50, 58)))),
    "tree": ObjectClass(_tree, (0.20, 0.36), (
        ("green", (52, 108, 42), (92, 154, 66)), ("orange", (196, 116, 38), (228, 160, 70)))),
    "swimmingpool": ObjectClass(_swimmingpool, (0.24, 0.40), (
        ("cyan", (70, 200, 222), (226, 220, 208)), ("turquoise", (62, 190, 166), (202, 164, 132)))),
    "solarpanel": ObjectClass(_solarpanel, (0.26, 0.42), (
        ("black", (28, 30, 58), (70, 82, 128)), ("blue", (30, 52, 130), (96, 130, 200)))),
}  # fmt: skip
CLASS_NAMES = tuple(CLASSES)


def draw_sprite(rng: np.random.Generator, name: str, variant: int) -> Image.Image:
    """An object of class ``name`` in colour variant ``variant``: RGBA, ``CANVAS`` pixels a side, facing up."""
    _, body, accent = CLASSES[name].colours[variant]
    tone = rng.normal(1.0, 0.06)
    body, accent = (tuple(int(np.clip(c * tone, 0, 255)) for c in colour) for colour in (body, accent))
    sprite = Image.new("RGBA", (CANVAS, CANVAS), (*body, 0))
    CLASSES[name].draw(ImageDraw.Draw(sprite), body, accent, rng)
    return sprite
