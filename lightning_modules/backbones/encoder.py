"""What the frozen image-text encoders share: lazy loading, device, autocast, compilation and the weights' hash."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
AUTOCAST = {"32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def open_image(path: str | Path) -> Image.Image:
    """An image file as RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Image {path} does not exist. Check the path.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"Image {path} cannot be decoded ({error}). Give another file.") from error


def weights_fingerprint(model: nn.Module) -> str:
    """The sha256 of a model's weights.

    Args:
        model: Any module; parameters and stored buffers are read in their order.

    Returns:
        64 hex digits over names, types, shapes and bytes.

    Example:
        >>> a, b = nn.Linear(2, 3), nn.Linear(2, 3)
        >>> _ = b.load_state_dict(a.state_dict())
        >>> weights_fingerprint(a) == weights_fingerprint(b) != weights_fingerprint(nn.Linear(2, 3))
        True
    """
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        # The byte view exists for every type, bfloat16 included, which numpy does not know.
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class Towers:
    """A loaded image-text model, as functions.

    Args:
        model: The module that holds the weights.
        image: ``(B, 3, H, W)`` pixels to ``(B, D)`` embeddings.
        text: ``(B, L)`` token ids to ``(B, D)`` embeddings.
        tokenize: B strings to ``(B, L)`` token ids.
        transform: PIL image to ``(3, H, W)`` pixels.
        preprocessing: Both of these in words; whatever changes embeddings must change this string.
        image_blocks: The transformer blocks of the image tower, first to last; empty where it is no such stack.
        text_blocks: Those of the text tower.
        image_head: What follows the last block of the image tower: norm, pooling, projection.
        text_head: What follows it in the text tower.
        visual: The image tower itself, for paths through its blocks (``backbones.vit``).
        mean: Mean of the three channels in 0..1 that pixels are normalised with.
        std: Their standard deviation.
    """

    model: nn.Module
    image: Callable[[Tensor], Tensor]
    text: Callable[[Tensor], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    transform: Callable[[Image.Image], Tensor]
    preprocessing: str
    image_blocks: Sequence[nn.Module] = ()
    text_blocks: Sequence[nn.Module] = ()
    image_head: Sequence[nn.Module | nn.Parameter] = ()
    text_head: Sequence[nn.Module | nn.Parameter] = ()
    visual: Any = None
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)


def unfreeze_blocks(towers: Towers, count: int) -> list[nn.Parameter]:
    """Make the end of both towers trainable, everything before it frozen.

    Args:
        towers: A loaded model; ``requires_grad`` of all its parameters is set.
        count: Transformer blocks of each tower, from the last; what follows the blocks is trained with them.

    Returns:
        The trainable parameters, each once, image tower first.

    Raises:
        ValueError: ``count`` is below 1 or above the number of blocks of a tower, or a tower has no such blocks.
    """
    stacks = {
        "image": (towers.image_blocks, towers.image_head),
        "text": (towers.text_blocks, towers.text_head),
    }
    for name, (blocks, _) in stacks.items():
        if not blocks:
            raise ValueError(
                f"The {name} tower of this encoder is no stack of transformer blocks that can be trained in part. "
                "Leave it frozen, or use a ViT."
            )
        if not 1 <= count <= len(blocks):
            raise ValueError(
                f"{count} blocks of each tower should be trained, but the {name} tower has {len(blocks)}. Take 1 to "
                f"{min(len(towers.image_blocks), len(towers.text_blocks))}."
            )
    towers.model.requires_grad_(False)
    found: dict[nn.Parameter, None] = {}  # a dict keeps the order, and each parameter once
    for blocks, head in stacks.values():
        for part in (*blocks[len(blocks) - count :], *head):
            found.update(dict.fromkeys([part] if isinstance(part, nn.Parameter) else part.parameters()))
    for parameter in found:
        parameter.requires_grad_(True)
    return list(found)


class FrozenEncoder(ABC):
    """A frozen image-text encoder whose weights load at first use.

    A subclass says its ``label`` and ``embed_dim`` and loads its ``Towers``. Embeddings are not L2-normalised.

    Args:
        precision: ``32-true``, or autocast to ``16-mixed`` or ``bf16-mixed``. Embeddings are float32 in any case.
        compile: Run both towers through ``torch.compile``; worth its start-up for many thousand images.
        device: ``auto`` (the current GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ...
    """

    def __init__(self, precision: Precision = "32-true", compile: bool = False, device: str = "auto") -> None:
        if precision not in AUTOCAST:
            raise ValueError(f"precision is {precision!r}; known: {', '.join(AUTOCAST)}.")
        self.precision = precision
        self.compile = compile
        self.device_name = device
        self._towers: Towers | None = None
        self._transform: Callable[[Image.Image], Tensor] | None = None
        self._fingerprint: str | None = None

    @property
    @abstractmethod
    def label(self) -> str:
        """Model and weights in a few words."""

    @property
    @abstractmethod
    def embed_dim(self) -> int:
        """Length D of the embeddings of both towers."""

    @abstractmethod
    def load(self) -> Towers:
        """Build the model on the CPU and load its weights."""

    @property
    def name(self) -> str:
        """Model and weights, and the precision where it is not full."""
        return self.label if self.precision == "32-true" else f"{self.label} {self.precision}"

    @property
    def device(self) -> torch.device:
        """Where the towers run."""
        if self.device_name == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device_name)

    @property
    def towers(self) -> Towers:
        """The loaded model."""
        if self._towers is None:
            towers = self.load()
            towers.model.eval().requires_grad_(False).to(self.device)
            if self.compile:
                # Batch sizes vary (the last one is smaller): without `dynamic` each would be compiled anew.
                compiled = {key: torch.compile(getattr(towers, key), dynamic=True) for key in ("image", "text")}
                towers = Towers(**{**vars(towers), **compiled})
            self._towers, self._transform = towers, towers.transform
        return self._towers

    @property
    def preprocessing(self) -> str:
        """What happens to an image and to a text before the towers, in words."""
        return self.towers.preprocessing

    def fingerprint(self) -> str:
        """The sha256 of the weights, computed once."""
        if self._fingerprint is None:
            self._fingerprint = weights_fingerprint(self.towers.model)
        return self._fingerprint

    def preprocess(self, image: Image.Image) -> Tensor:
        """An RGB image as the pixels ``(3, H, W)`` that the image tower takes."""
        return (self._transform or self.towers.transform)(image)

    def normalise(self, images: Tensor) -> Tensor:
        """Pictures ``(B, 3, H, W)`` uint8 of any size as the pixels that the image tower takes, on their device."""
        values = (self.towers.mean, self.towers.std)
        mean, std = (torch.tensor(each, device=images.device).view(3, 1, 1) for each in values)
        return (images.float() / 255 - mean) / std

    def encode_image(self, images: Tensor) -> Tensor:
        """Image embeddings.

        Args:
            images: Preprocessed pixels ``(B, 3, H, W)``, any B, on any device.

        Returns:
            Float32 embeddings ``(B, D)`` on the encoder's device, not normalised.

        Raises:
            ValueError: ``images`` is not a batch of 3-channel images.
        """
        with torch.no_grad():
            return self.embed_images(images)

    def encode_text(self, texts: list[str]) -> Tensor:
        """Text embeddings.

        Args:
            texts: B texts, any B; longer ones than the text tower's context are cut.

        Returns:
            Float32 embeddings ``(B, D)`` on the encoder's device, not normalised.
        """
        with torch.no_grad():
            return self.embed_texts(texts)

    def embed_images(self, images: Tensor) -> Tensor:
        """``encode_image`` with gradients, for towers that :func:`unfreeze_blocks` made trainable in part.

        The encoder's own precision holds, whatever autocast stands around the call.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images have shape {tuple(images.shape)}; (B, 3, H, W) is needed, from preprocess().")
        return self._run(self.towers.image, images)

    def embed_texts(self, texts: list[str]) -> Tensor:
        """``encode_text`` with gradients; see ``embed_images``."""
        towers = self.towers
        tokens = towers.tokenize(list(texts)) if texts else torch.zeros(0, 1, dtype=torch.long)
        return self._run(towers.text, tokens)

    def _run(self, tower: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """``tower(batch)`` under the chosen autocast, where the weights are: a trainer may have moved them."""
        weights, dtype = next(self.towers.model.parameters()), AUTOCAST[self.precision]
        device = weights.device
        if not len(batch):
            return torch.zeros(0, self.embed_dim, device=device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            batch = batch.to(device, weights.dtype if batch.is_floating_point() else None, non_blocking=True)
            return tower(batch).float()

    def __getstate__(self) -> dict[str, Any]:
        # Loader workers that are spawned need `preprocess` only; the weights stay at home.
        return {**self.__dict__, "_towers": None}
