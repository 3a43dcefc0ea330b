"""Class names as texts: prompt templates and the mean embedding of a class over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.backbones.encoder import FrozenEncoder

AERIAL = (
    "an aerial image of a {}.",
    "a satellite image of a {}.",
    "an aerial view of a {}.",
    "a remote sensing image of a {}.",
    "a {} seen from above.",
)
SCENE = tuple(f"there is {article} {{}} in the scene." for article in ("a", "the", "this", "one", "some"))
CHUNK = 256  # texts that the text tower takes at a time
NAMED = ("plain", "photo", "aerial", "imagenet", "imagenet_scene")


def prompt_templates(name: str | Sequence[str]) -> list[str]:
    """The templates of an ensemble; each holds one ``{}``.

    Args:
        name: ``plain`` (the class name alone), ``photo``, ``aerial`` (five), ``imagenet`` (OpenAI's 80),
            ``imagenet_scene`` (these and five about scenes, as CLIP Surgery has them), or templates of one's own.

    Raises:
        ValueError: Unknown name, or a template without exactly one ``{}``.

    Example:
        >>> prompt_templates("photo"), len(prompt_templates("imagenet_scene"))
        (['a photo of a {}.'], 85)
    """
    if not isinstance(name, str):
        if not name or any(template.count("{}") != 1 for template in name):
            raise ValueError(f"templates {list(name)} must each hold {{}} once, in the place of the class name.")
        return list(name)
    if name not in NAMED:
        raise ValueError(f"There are no templates '{name}'; known: {', '.join(NAMED)}, or a list of your own.")
    if name.startswith("imagenet"):
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        imagenet = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
        return [*imagenet, *SCENE] if name == "imagenet_scene" else imagenet
    return {"plain": ["{}"], "photo": ["a photo of a {}."], "aerial": list(AERIAL)}[name]


def class_embeddings(encoder: FrozenEncoder, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One unit vector a class: the mean over the templates of the unit embeddings.

    Args:
        encoder: Its text tower encodes.
        names: K class names, as people write them.
        templates: As :func:`prompt_templates` gives them.

    Returns:
        ``(K, D)`` float32 on the encoder's device.

    Raises:
        ValueError: No name, or an empty one.

    Reference:
        Radford et al., CLIP, 2021, section 3.1.4.
    """
    if not names or any(not name.strip() for name in names):
        raise ValueError(f"class names {list(names)} cannot be encoded; give at least one, and none empty.")
    return mean_embeddings(encoder, [[template.format(name) for template in templates] for name in names])


def mean_embeddings(encoder: FrozenEncoder, groups: Sequence[Sequence[str]]) -> Tensor:
    """The unit vector of the mean of the texts' unit embeddings for each group of texts, ``(groups, D)``."""
    texts = [text for group in groups for text in group]
    rows = torch.cat([encoder.encode_text(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK)])
    parts = F.normalize(rows, dim=-1).split([len(group) for group in groups])
    return F.normalize(torch.stack([part.mean(dim=0) for part in parts]), dim=-1)
