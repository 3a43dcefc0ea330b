"""Class names as texts: prompt templates and the mean embedding of a class over them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
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
        ValueError: Unknown name, or a template without exactly one ``{}``, or with other braces.

    Example:
        >>> prompt_templates("photo"), len(prompt_templates("imagenet_scene"))
        (['a photo of a {}.'], 85)
    """
    if not isinstance(name, str):
        around = [template.split("{}") for template in name]
        if not name or any(len(parts) != 2 or set("".join(parts)) & set("{}") for parts in around):
            raise ValueError(
                f"templates {list(name)} must each hold {{}} once, in the place of the class name, and no other braces."
            )
        return list(name)
    if name not in NAMED:
        raise ValueError(f"There are no templates '{name}'; known: {', '.join(NAMED)}, or a list of your own.")
    if name.startswith("imagenet"):
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        imagenet = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
        return [*imagenet, *SCENE] if name == "imagenet_scene" else imagenet
    return {"plain": ["{}"], "photo": ["a photo of a {}."], "aerial": list(AERIAL)}[name]


def class_embeddings(
    encoder: FrozenEncoder, names: Sequence[str], templates: Sequence[str], cache_dir: str | None = None
) -> Tensor:
    """One unit vector a class: the mean over the templates of the unit embeddings.

    Args:
        encoder: Its text tower encodes.
        names: K class names, as people write them.
        templates: As :func:`prompt_templates` gives them.
        cache_dir: Folder where the vectors are kept, apart for each model, precision and list of templates; None =
            nowhere.

    Returns:
        ``(K, D)`` float32 on the encoder's device.

    Raises:
        ValueError: No name, or an empty one.

    Reference:
        Radford et al., CLIP, 2021, section 3.1.4.
    """
    if not names or any(not name.strip() for name in names):
        raise ValueError(f"class names {list(names)} cannot be encoded; give at least one, and none empty.")
    if cache_dir is None:
        return mean_embeddings(encoder, [[template.format(name) for template in templates] for name in names])
    what = [encoder.name, encoder.preprocessing, encoder.fingerprint(), list(templates)]
    folder = Path(cache_dir).expanduser() / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    files = [folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npy" for name in names]
    known = [_read_vector(file, encoder.embed_dim) for file in files]
    missing = [place for place, vector in enumerate(known) if vector is None]
    if missing:
        made = class_embeddings(encoder, [names[place] for place in missing], templates)
        for place, vector in zip(missing, made.cpu().numpy(), strict=True):
            known[place] = vector
            _write_vector(files[place], vector)
    return torch.from_numpy(np.stack([vector for vector in known if vector is not None])).to(encoder.device)


def _read_vector(path: Path, length: int) -> NDArray[np.float32] | None:
    """A kept vector; None where there is none, or a broken file, which is written anew."""
    try:
        vector = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return vector if vector.shape == (length,) and vector.dtype == np.float32 else None


def _write_vector(path: Path, vector: NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    with draft.open("wb") as file:
        np.save(file, vector)
    os.replace(draft, path)


def mean_embeddings(encoder: FrozenEncoder, groups: Sequence[Sequence[str]]) -> Tensor:
    """The unit vector of the mean of the texts' unit embeddings for each group of texts, ``(groups, D)``."""
    texts = [text for group in groups for text in group]
    rows = torch.cat([encoder.encode_text(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK)])
    parts = F.normalize(rows, dim=-1).split([len(group) for group in groups])
    return F.normalize(torch.stack([part.mean(dim=0) for part in parts]), dim=-1)
