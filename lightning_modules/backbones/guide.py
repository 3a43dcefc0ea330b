"""Guides of CorrCLIP: dense patch features of DINO's ViTs through timm, or of the CLIP itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.backbones.mask_weights import resolve_device
from lightning_modules.backbones.vit import resized_positions, vision_transformer
from lightning_modules.backbones.weights import nearest, quick_hub, tensor_shapes

Kind = Literal["qk", "x"]


def check_kind(kind: str) -> None:
    """Refuse an unknown kind of feature.

    Raises:
        ValueError: It is neither ``qk`` nor ``x``.
    """
    if kind not in ("qk", "x"):
        raise ValueError(f"kind is {kind!r}; known: qk (queries + keys of the last block), x (its final tokens).")


class Guide:
    """Patch features of a ViT of timm: DINO, DINOv2, DINOv3 and their like, frozen, loaded at first use.

    Positions are resized as DINO's code does, not as timm does, whose features differ by two per cent; models with
    rotary positions run as in timm.

    Args:
        name: timm's name of the model, such as ``vit_base_patch8_224.dino`` (CorrCLIP's own),
            ``vit_base_patch14_dinov2.lvd142m`` or ``vit_base_patch16_dinov3.lvd1689m``.
        pretrained: True loads the published weights, a path a local file with them, False starts from random ones.
        kind: ``qk``: queries plus keys of the last block, all heads side by side; ``x``: its final, normed tokens.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Reference:
        Zhang et al., CorrCLIP: Reconstructing Patch Correlations in CLIP for Open-Vocabulary Semantic Segmentation,
        ICCV 2025.
    """

    def __init__(
        self,
        name: str = "vit_base_patch8_224.dino",
        pretrained: bool | str = True,
        kind: Kind = "qk",
        device: str = "auto",
    ) -> None:
        check_kind(kind)
        self.name, self.pretrained, self.kind, self.device_name = name, pretrained, kind, device

    @cached_property
    def model(self) -> Any:
        """The model of timm, in evaluation mode.

        Raises:
            FileNotFoundError: The weights are not here and cannot be downloaded.
            ValueError: timm has no such model, it is no plain ViT, or the weights are damaged or do not fit.
        """
        model: Any = load_timm(self.name, self.pretrained)
        attention = getattr(model.blocks[-1], "attn", None) if hasattr(model, "blocks") else None
        if not hasattr(model, "_pos_embed") or not (hasattr(attention, "qkv") or hasattr(attention, "q_proj")):
            raise ValueError(f"{self.name} is no plain ViT, so it cannot be a guide. Take one of DINO, DINOv2, DINOv3.")
        return model.eval().requires_grad_(False).to(resolve_device(self.device_name))

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of the three channels in 0..1 that pixels are normalised with."""
        return tuple(self.model.pretrained_cfg["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """Their standard deviation."""
        return tuple(self.model.pretrained_cfg["std"])

    @property
    def patch_size(self) -> tuple[int, int]:
        """Rows and columns of a patch in pixels."""
        rows, columns = self.model.patch_embed.patch_size
        return rows, columns

    @torch.no_grad()
    def features(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch features of pictures of any size.

        Args:
            images: ``(B, 3, H, W)``, normalised with ``mean`` and ``std``; what is left over beside whole patches is
                not seen.

        Returns:
            ``(B, rows * columns, C)``, of length 1 each, and the grid: rows and columns of patches.
        """
        x, rope, grid = self._embed(images)
        blocks = self.model.blocks
        for number, block in enumerate(blocks[:-1]):
            x = _block(block, x, rope, number)
        x = (
            queries_plus_keys(blocks[-1].attn, blocks[-1].norm1(x))
            if self.kind == "qk"
            else self.model.norm(_block(blocks[-1], x, rope, len(blocks) - 1))
        )
        return F.normalize(x[:, self.model.num_prefix_tokens :], dim=-1), grid

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """Tokens before the first block, the angles of a model with rotary positions, and the grid."""
        model, embedding = self.model, self.model.patch_embed
        x = embedding.proj(images.to(embedding.proj.weight))  # (B, W, rows, columns)
        grid = (x.shape[-2], x.shape[-1])
        x = embedding.norm(x.flatten(2).transpose(1, 2))  # (B, N, W)
        if getattr(model, "rope", None) is not None:
            x, rope = model._pos_embed(x.unflatten(1, grid))  # as timm does them
            return model.norm_pre(x), rope, grid
        first = [token.expand(len(x), -1, -1) for token in (model.cls_token, model.reg_token) if token is not None]
        if model.pos_embed is not None:
            stored = model.pos_embed[0]
            count = 0 if model.no_embed_class else model.num_prefix_tokens
            patches = resized_positions(stored[count:], tuple(embedding.grid_size), grid, "bicubic")
            x = x + patches
            if count:
                first = [torch.cat(first, dim=1) + stored[:count]]
        return model.norm_pre(torch.cat([*first, x], dim=1)), None, grid


def _block(block: Any, x: Tensor, rope: Tensor | None, number: int) -> Tensor:
    if rope is None:
        return block(x)
    return block(x, rope=rope[number] if rope.ndim > 2 else rope)  # "mixed" angles differ between the blocks


def queries_plus_keys(attention: Any, x: Tensor) -> Tensor:
    """Queries plus keys of an attention of timm, before any rotation: what a patch is, not where.

    Args:
        attention: Of timm, with one projection for q, k and v or with three.
        x: Normed tokens ``(B, N, W)``.

    Returns:
        ``(B, N, C)``, all heads side by side.
    """
    if getattr(attention, "qkv", None) is not None:
        bias = attention.qkv.bias
        if getattr(attention, "q_bias", None) is not None:
            bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        width = attention.qkv.out_features // 3 * 2
        q, k = F.linear(x, attention.qkv.weight[:width], None if bias is None else bias[:width]).chunk(2, dim=-1)
    else:
        q, k = attention.q_proj(x), attention.k_proj(x)
    q, k = (part.unflatten(-1, (attention.num_heads, -1)) for part in (q, k))  # (B, N, heads, d)
    return (attention.q_norm(q) + attention.k_norm(k)).flatten(2)


def load_timm(name: str, pretrained: bool | str) -> nn.Module:
    """A ViT of timm without its classifier.

    Args:
        name: timm's name of the model, the tag of its weights after a dot.
        pretrained: True, a local file, or False for random weights.

    Raises:
        FileNotFoundError: The weights are not here and cannot be downloaded.
        ValueError: timm has no such model, or the weights are damaged or do not fit.
    """
    import timm

    if name.split(".")[0] not in timm.list_models():
        raise ValueError(f"timm has no model '{name}'. {nearest(name, timm.list_models(pretrained=True))}")
    try:
        with quick_hub():
            model = timm.create_model(name, pretrained=pretrained is True, num_classes=0, dynamic_img_size=True)
    except TypeError as error:
        raise ValueError(f"{name} is no ViT of timm that takes pictures of any size ({error}).") from error
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"The weights of {name} are not on this machine and could not be downloaded ({reason}). On a machine with "
            f"network get model.safetensors from https://huggingface.co/timm/{name}, copy it here, and set "
            f"pretrained: /path/to/{name}/model.safetensors"
        ) from error
    if isinstance(pretrained, str):
        _read_weights(model, name, Path(pretrained).expanduser())
    return model


def _read_weights(model: nn.Module, name: str, path: Path) -> None:
    """Weights of a file, in timm's names or in those of the family's own code, all of them or an error."""
    from timm.models import load_state_dict

    tensor_shapes(path)  # says what is wrong with the file
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        state = load_state_dict(str(path))
        lost = model.load_state_dict(state if convert is None else convert(state, model), strict=False).missing_keys
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"Weight file {path} does not fit {name}: {' '.join(str(error).split())[:200]}") from error
    if lost:  # timm itself leaves them random where the classifier is left out
        raise ValueError(f"Weight file {path} does not fit {name}: {len(lost)} weights are missing, such as {lost[0]}.")


class ClipGuide:
    """Patch features of the CLIP image tower itself, for runs without another model.

    Args:
        visual: Image tower, whose positions are resized as CorrCLIP does; or the ``VisionTransformer`` of one, which
            resizes them its own way.
        mean: Mean of the three channels in 0..1 that its pixels are normalised with.
        std: Their standard deviation.
        kind: ``qk``: queries plus keys of the last block, all heads side by side; ``x``: its final tokens.
    """

    def __init__(self, visual: Any, mean: Sequence[float], std: Sequence[float], kind: Kind = "qk") -> None:
        check_kind(kind)
        self.vit, self.kind = vision_transformer(visual, "bicubic"), kind
        self.mean, self.std = tuple(mean), tuple(std)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Rows and columns of a patch in pixels."""
        return self.vit.patch_size

    @torch.no_grad()
    def features(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch features of pictures of any size, see :meth:`Guide.features`."""
        vit = self.vit
        x = vit.embed(images)
        for block in vit.blocks if self.kind == "x" else vit.blocks[:-1]:
            x = x + block.out(F.scaled_dot_product_attention(*block.qkv(block.norm(x))))
            x = x + block.ffn(x)
        if self.kind == "qk":
            q, k, _ = vit.blocks[-1].qkv(vit.blocks[-1].norm(x))
            x = (q + k).transpose(1, 2).flatten(2)  # (B, N, W)
        return F.normalize(x[:, vit.prefix :], dim=-1), vit.grid(images)
