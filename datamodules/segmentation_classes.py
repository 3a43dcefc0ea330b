"""Class names of the segmentation benchmarks: as the sets publish them, and as CorrCLIP's code prompts them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from datamodules.annotation_files import read_text
from datamodules.scenes.captions import GROUNDS, NOUNS

SYNONYMS = ";"  # separates the ways to name a class, with a blank after it or without

Names = Literal["reference", "plain"]


def _listed(text: str) -> list[str]:
    return [" ".join(name.split()) for name in text.split(",")]


VOC = _listed(
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog, horse, motorbike, person, "
    "potted plant, sheep, sofa, train, tv monitor"
)
CONTEXT = _listed(
    "aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car, cat, "
    "ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground, horse, "
    "keyboard, light, motorbike, mountain, mouse, person, plate, platform, potted plant, road, rock, sheep, shelves, "
    "sidewalk, sign, sky, snow, sofa, table, track, train, tree, truck, tv monitor, wall, water, window, wood"
)
COCO_THINGS = _listed(
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, "
    "teddy bear, hair drier, toothbrush"
)
COCO_STUFF = _listed(
    "banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, "
    "ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, "
    "floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, "
    "grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, "
    "net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, "
    "roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, "
    "structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, "
    "wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood"
)
ADE = _listed(
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, "
    "table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, "
    "armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, "
    "chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, "
    "case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, "
    "book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, "
    "hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, "
    "dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, "
    "fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, "
    "minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, "
    "screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, "
    "monitor, bulletin board, shower, radiator, glass, clock, flag"
)
CITYSCAPES = _listed(
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
    "rider, car, truck, bus, train, motorcycle, bicycle"
)
PLAIN = {
    "voc21": ["background", *VOC],
    "voc20": VOC,
    "context60": ["background", *CONTEXT],
    "context59": CONTEXT,
    "coco_stuff": COCO_THINGS + COCO_STUFF,
    "coco_object": ["background", *COCO_THINGS],
    "ade20k": ADE,
    "cityscapes": CITYSCAPES,
    "world": ["background", *(forms[0][0] for forms in NOUNS.values())],
}
# What the reference asks for in place of "background": things that are often there and are none of the classes.
BACKGROUND = {
    "voc21": "sky, wall, tree, wood, grass, road, sea, river, mountain, sands, desk, bed, building, cloud, lamp, door, "
    "window, wardrobe, ceiling, shelf, curtain, stair, floor, hill, rail, fence",
    "coco_object": "sky, wall, tree, wood, grass, road, sea, river, mountain, sands, desk, building, cloud, floor, "
    "hill, rail",
    "world": ", ".join(forms[0].removeprefix("a ") for forms in GROUNDS.values()),
}
JOINED = ("voc21", "voc20", "context60", "context59", "coco_stuff", "ade20k", "cityscapes")  # words run together
VOC_WORDS = {"boat": "ship", "dining table": "table"}


def class_lines(benchmark: str, names: Names = "reference") -> list[str]:
    """What to prompt for each class of a benchmark: one line a class, ways to name it separated by ``"; "``.

    Args:
        benchmark: ``voc21``, ``voc20``, ``context60``, ``context59``, ``coco_stuff``, ``coco_object``, ``ade20k``,
            ``cityscapes`` or ``world``.
        names: ``plain`` as the set publishes them, in words. ``reference`` as CorrCLIP's code has them: ``people`` for
            person, ``ship`` for VOC's boat, background as a list of things, and most names of two words run together
            as in ``pottedplant``, which the tokenizer takes apart otherwise.

    Returns:
        C lines, in the order of the labels.

    Raises:
        ValueError: An unknown benchmark or kind of names.

    Reference:
        Zhang et al., "CorrCLIP: Reconstructing Patch Correlations in CLIP for Open-Vocabulary Semantic Segmentation",
        ICCV 2025, the class lists of its code.

    Example:
        >>> class_lines("cityscapes")[6], class_lines("cityscapes", "plain")[6]
        ('trafficlight', 'traffic light')
    """
    if benchmark not in PLAIN:
        raise ValueError(f"benchmark is {benchmark!r}; known: {', '.join(PLAIN)}.")
    if names not in get_args(Names):
        raise ValueError(f"names is {names!r}; known: {', '.join(get_args(Names))}.")
    if names == "plain" or benchmark == "world":
        plain = list(PLAIN[benchmark])
    else:
        plain = ["people" if name == "person" else name for name in PLAIN[benchmark]]
    if names == "plain":
        return plain
    if benchmark.startswith("voc"):
        plain = [VOC_WORDS.get(name, name) for name in plain]
    if benchmark in JOINED:
        plain = [name.replace(" ", "") for name in plain]
    if benchmark in BACKGROUND:
        plain[0] = "; ".join(_listed(BACKGROUND[benchmark]))
    return plain


def read_class_lines(path: Path) -> list[str]:
    """Class lines of a text file: one a class in the order of the labels, ways to name it separated by ``"; "``.

    Args:
        path: UTF-8 text.

    Returns:
        C lines; an empty one at the end of the file is none.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: No class, a malformed line, or two classes of one first name; names file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Class file {path} does not exist. Write one line a class, in the order of the labels."
        )
    lines = [line.strip() for line in read_text(path).rstrip().splitlines()]
    if not lines:
        raise ValueError(f"Class file {path} is empty. Write one line a class, in the order of the labels.")
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not all(name.strip() for name in line.split(SYNONYMS)):
            raise ValueError(f"Class file {path}, line {number}: '{line}' must be one or more names, separated by ';'.")
        first = first_name(line)
        if first in seen:
            raise ValueError(
                f"Class file {path}, line {number}: '{first}' is already class {seen[first]}. Name each class once; a "
                "class with two labels needs two names."
            )
        seen[first] = number - 1
    return lines


def first_name(line: str) -> str:
    """The first way to name a class.

    Example:
        >>> first_name("people; person"), first_name("people;person")
        ('people', 'people')
    """
    return line.split(SYNONYMS)[0].strip()
