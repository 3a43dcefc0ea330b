"""Captions and tags of a generated scene."""

from __future__ import annotations

from collections import Counter

import numpy as np

from datamodules.scenes.render import Scene, SceneObject

CAPTIONS_PER_SCENE = 5
NOUNS: dict[str, tuple[tuple[str, str], ...]] = {
    "airplane": (("airplane", "airplanes"), ("plane", "planes"), ("jet", "jets")),
    "ship": (("ship", "ships"), ("boat", "boats"), ("vessel", "vessels")),
    "storagetank": (("storage tank", "storage tanks"), ("round tank", "round tanks")),
    "tenniscourt": (("tennis court", "tennis courts"), ("court", "courts")),
    "baseballfield": (("baseball field", "baseball fields"), ("baseball diamond", "baseball diamonds")),
    "vehicle": (("vehicle", "vehicles"), ("car", "cars")),
    "bridge": (("bridge", "bridges"), ("overpass", "overpasses")),
    "harbor": (("harbor", "harbors"), ("marina", "marinas")),
    "house": (("house", "houses"), ("building", "buildings")),
    "tree": (("tree", "trees"),),
    "swimmingpool": (("swimming pool", "swimming pools"), ("pool", "pools")),
    "solarpanel": (("solar panel", "solar panels"), ("solar array", "solar arrays")),
}
GROUNDS: dict[str, tuple[str, ...]] = {
    "grass": ("grass", "a green meadow", "a lawn"),
    "sand": ("sand", "a beach", "desert sand"),
    "water": ("water", "the sea", "blue water"),
    "forest": ("a forest", "dense woods", "dark forest"),
    "concrete": ("concrete", "grey pavement", "an apron of concrete"),
    "farmland": ("farmland", "a ploughed field", "brown soil"),
}
OPENINGS = (
    "an aerial photo of {objects} on {ground}.",
    "{objects} seen from above, {ground} below.",
    "a satellite image showing {objects} over {ground}.",
    "top view of {ground} with {objects}.",
    "there is {objects} on {ground}.",
    "a bird's eye view: {objects}, {ground}.",
)
NUMBERS = ("no", "one", "two", "three", "four", "five")


def _place(item: SceneObject, size: int) -> str:
    """Where an object is, in words."""
    x = (item.box[0] + item.box[2]) / (2 * size)
    y = (item.box[1] + item.box[3]) / (2 * size)
    vertical = "top" if y < 0.36 else "bottom" if y > 0.64 else ""
    horizontal = "left" if x < 0.36 else "right" if x > 0.64 else ""
    return f"{vertical} {horizontal}".strip() or "centre"


def _phrase(rng: np.random.Generator, items: list[SceneObject], size: int) -> str:
    """Objects of one class as a noun phrase, such as ``two red cars``."""
    singular, plural = NOUNS[items[0].name][rng.integers(len(NOUNS[items[0].name]))]
    colours = sorted({item.colour for item in items})
    colour = " and ".join(colours) + " " if rng.random() < 0.7 else ""
    if len(items) > 1:
        return f"{NUMBERS[min(len(items), 5)] if rng.random() < 0.8 else 'several'} {colour}{plural}"
    article = "an" if (colour or singular)[0] in "aeiou" else "a"
    place = f" at the {_place(items[0], size)}" if rng.random() < 0.4 else ""
    return f"{article} {colour}{singular}{place}"


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def scene_captions(rng: np.random.Generator, scene: Scene) -> list[str]:
    """Five captions in varied words; the first names every class, the later ones sometimes leave one out.

    Example:
        >>> from datamodules.scenes.render import render_scene
        >>> generator = np.random.default_rng(3)
        >>> len(scene_captions(generator, render_scene(generator)))
        5
    """
    groups: dict[int, list[SceneObject]] = {}
    for item in scene.objects:
        groups.setdefault(item.category, []).append(item)
    size = scene.image.shape[0]
    captions = []
    for number in range(CAPTIONS_PER_SCENE):
        chosen = list(groups.values())
        rng.shuffle(chosen)
        if number and len(chosen) > 2 and rng.random() < 0.4:
            chosen.pop()
        objects = _join([_phrase(rng, items, size) for items in chosen])
        ground = GROUNDS[scene.background][rng.integers(len(GROUNDS[scene.background]))]
        captions.append(OPENINGS[rng.integers(len(OPENINGS))].format(objects=objects, ground=ground))
    return captions


def scene_tags(rng: np.random.Generator, scene: Scene) -> list[str]:
    """Tags as users of a photo site give them: some of what is seen, some of what is not.

    Every class present is tagged with probability 0.85; colours, the ground and chatter come beside it.
    """
    counts = Counter(item.name for item in scene.objects)
    tags = [name for name in counts if rng.random() < 0.85]
    tags += [item.colour for item in scene.objects if rng.random() < 0.3]
    if rng.random() < 0.7:
        tags.append(scene.background)
    tags += [word for word in ("aerial", "sun", "drone", "holiday", "nikon") if rng.random() < 0.2]
    return sorted(set(tags)) or ["aerial"]
