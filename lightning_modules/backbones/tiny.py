"""The suite's tiny CLIP: a ViT of 12 layers at 96 px and a small text tower, shipped with its weights."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.backbones.clip import open_clip_towers
from lightning_modules.backbones.encoder import FrozenEncoder, Precision, Towers

WEIGHTS = Path(__file__).parent / "weights" / "tiny_clip.safetensors"
CONTEXT_LENGTH = 64
CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"layers": 12, "width": 128, "head_width": 64, "patch_size": 8, "image_size": 96},
    "text_cfg": {"context_length": CONTEXT_LENGTH, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, as all open_clip models use
STD = (0.26862954, 0.26130258, 0.27577711)


def build_tiny_clip(patch_dropout: float = 0.0) -> nn.Module:
    """An untrained open_clip ``CLIP`` of the tiny architecture.

    Args:
        patch_dropout: Share of the patches dropped in training mode.
    """
    from open_clip.model import CLIP

    return CLIP(CONFIG["embed_dim"], {**CONFIG["vision_cfg"], "patch_dropout": patch_dropout}, dict(CONFIG["text_cfg"]))


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=CONTEXT_LENGTH)


def tokenize(texts: list[str]) -> Tensor:
    """Token ids ``(B, 64)`` of open_clip's byte-pair encoding; longer texts are cut."""
    return _tokenizer()(texts)


def normalise_images(images: Tensor) -> Tensor:
    """Pixels ``(B, 3, H, W)`` uint8 to the range that the image tower was trained on."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def encode_phrases(clip: nn.Module, concepts: list[list[str]], device: torch.device) -> Tensor:
    """One unit vector for each concept: the mean over the ways to name it, ``(K, D)``."""
    rows = [clip.encode_text(tokenize(names).to(device), normalize=True).float().mean(0) for names in concepts]
    return F.normalize(torch.stack(rows), dim=-1)


def save_weights(clip: nn.Module, path: str | Path) -> None:
    """Write the weights as safetensors in half precision."""
    from safetensors.torch import save_file

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().half().contiguous() for name, tensor in clip.state_dict().items()}, path)


def load_tiny_clip(path: str | Path = WEIGHTS) -> nn.Module:
    """The trained tiny CLIP in evaluation mode, float32.

    Args:
        path: Weights as ``save_weights`` writes them.

    Raises:
        FileNotFoundError: There is no such file.
    """
    from open_clip import set_model_preprocess_cfg
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileNotFoundError(
            f"The tiny CLIP's weights {path} do not exist. Train them: "
            "python cli.py fit -c configs/contrastive/tiny_clip.yaml"
        )
    clip = build_tiny_clip()
    clip.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    size = CONFIG["vision_cfg"]["image_size"]
    set_model_preprocess_cfg(clip, {"size": size, "mean": MEAN, "std": STD, "resize_mode": "squash"})
    return clip.eval()


class TinyClip(FrozenEncoder):
    """The suite's tiny CLIP, frozen: 96 px, 128 dimensions, trained on generated scenes; needs no download.

    It knows the twelve classes and six backgrounds of the generated world and nothing else: on photographs its
    embeddings mean little. It is there so that every method runs offline.

    Args:
        weights: Weight file; the shipped one if None.
        precision: ``32-true``, ``16-mixed`` or ``bf16-mixed``.
        device: ``auto``, ``cpu``, ``cuda``, ...
    """

    def __init__(self, weights: str | None = None, precision: Precision = "32-true", device: str = "auto") -> None:
        super().__init__(precision, device=device)
        self.weights = weights

    @property
    def label(self) -> str:
        """Name of the weights."""
        return "tiny-clip" if self.weights is None else f"tiny-clip {Path(self.weights).name}"

    @property
    def embed_dim(self) -> int:
        """Length of the embeddings."""
        return int(CONFIG["embed_dim"])

    def load(self) -> Towers:
        """Build the model and load its weights."""
        return open_clip_towers(load_tiny_clip(self.weights or WEIGHTS), _tokenizer())
