"""The generated world: aerial-like scenes with captions, boxes, masks, labels and tags, made from a seed."""

from datamodules.scenes.captions import scene_captions, scene_tags
from datamodules.scenes.datamodule import SceneDataset, Scenes
from datamodules.scenes.render import Scene, SceneObject, render_scene
from datamodules.scenes.sprites import CLASS_NAMES
from datamodules.scenes.textures import BACKGROUNDS

__all__ = [
    "BACKGROUNDS",
    "CLASS_NAMES",
    "Scene",
    "SceneDataset",
    "SceneObject",
    "Scenes",
    "render_scene",
    "scene_captions",
    "scene_tags",
]
