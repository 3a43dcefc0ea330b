"""Patch embeddings in the space of the texts: the paths of training-free methods through the last blocks of a ViT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.backbones.vit import VisionTransformer, vision_transformer

PathName = Literal["vanilla", "maskclip", "vv", "surgery", "gem", "sclip", "qq", "qkv_sum"]


@dataclass(frozen=True)
class Path:
    """A second path beside the model's own, through its last blocks.

    Each block adds ``out(attention(qkv(norm(x))))`` of the model's own tokens x to it, and ``ffn`` of itself if asked.

    Args:
        attention: Pairs of q, k, v whose softmax attends to v, their results summed; ``identity`` = every patch attends
            to itself alone; ``gem`` = GEM's self-self attention.
        num_layers: Blocks of the path, from the last.
        residual: Start from the tokens before these blocks, instead of from zero.
        ffn: Pass the feed-forward networks too.
    """

    attention: tuple[str, ...]
    num_layers: int
    residual: bool
    ffn: bool


PATHS: dict[str, Path] = {
    "vanilla": Path(("qk",), 1, True, True),  # the model itself
    "maskclip": Path(("identity",), 1, True, True),
    "vv": Path(("vv",), 1, False, False),
    "surgery": Path(("vv",), 6, True, False),
    "gem": Path(("gem",), 6, True, False),
    "sclip": Path(("qq", "kk"), 1, True, True),
    "qq": Path(("qq",), 1, False, False),  # ClearCLIP
    "qkv_sum": Path(("qq", "kk", "vv"), 1, False, False),  # SegEarth-OV
}


def resolve_path(
    name: str, num_layers: int | None = None, residual: bool | None = None, ffn: bool | None = None
) -> Path:
    """A path by name; arguments that are not None replace its own.

    Raises:
        ValueError: Unknown name, a number of layers below 1, or settings that the model's own path cannot have.

    Example:
        >>> resolve_path("surgery"), resolve_path("maskclip", residual=False, ffn=False).residual
        (Path(attention=('vv',), num_layers=6, residual=True, ffn=False), False)
    """
    if name not in PATHS:
        raise ValueError(f"There is no path '{name}' through the ViT; known: {', '.join(PATHS)}.")
    base = PATHS[name]
    if name == "vanilla" and (residual is False or ffn is False):
        raise ValueError("Path vanilla is the model itself, with residual and ffn. To leave them out take qq or vv.")
    if num_layers is not None and num_layers < 1:
        raise ValueError(f"num_layers is {num_layers}; a path has at least one block.")
    return Path(
        base.attention,
        base.num_layers if num_layers is None else num_layers,
        base.residual if residual is None else residual,
        base.ffn if ffn is None else ffn,
    )


def self_self_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, iterations: int = 1) -> Tensor:
    """GEM's attention: the values averaged over the similarity of q, k and v each with itself.

    Args:
        q: Queries ``(B, heads, N, d)``.
        k: Keys, the same shape.
        v: Values, the same shape.
        temperature: Factor of the cosine similarities, ``(B,)``.
        iterations: How often the projections are first smoothed by their own similarity.

    Returns:
        ``(B, heads, N, d)``.

    Reference:
        Bousselham et al., Grounding Everything, CVPR 2024, section 3.2.
    """
    factor = temperature[:, None, None, None]
    total = torch.zeros_like(v)
    for part in (v, k, q):
        unit = F.normalize(part, dim=-1)
        for _ in range(iterations):
            unit = F.normalize(F.scaled_dot_product_attention(unit * factor, unit, unit, scale=1.0), dim=-1)
        total = total + F.scaled_dot_product_attention(unit * factor, unit, v, scale=1.0)
    return total / 3


def path_attention(path: Path, normed: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What the heads of a block hand on along a path, ``(B, heads, N, d)``; ``normed`` are its tokens ``(B, N, W)``."""
    if path.attention == ("identity",):
        return v
    if path.attention == ("gem",):
        temperature = normed.norm(dim=-1).mean(dim=-1) * q.shape[-1] ** -0.5  # (B,)
        return self_self_attention(q, k, v, temperature.to(v.dtype))
    parts = {"q": q, "k": k, "v": v}
    total = torch.zeros_like(v)
    for pair in path.attention:
        total = total + F.scaled_dot_product_attention(parts[pair[0]], parts[pair[1]], v)
    return total


def check_pictures(images: Any, patch: tuple[int, int]) -> None:
    """Refuse pictures that whole patches do not cover: the rest would be left out, and the map stretched over it.

    Args:
        images: Pictures ``(B, 3, H, W)``, or a list where they differ in size.
        patch: Rows and columns of a patch in pixels.

    Raises:
        ValueError: A list, or a side that is no multiple of the patch's.
    """
    if not isinstance(images, Tensor):
        raise ValueError(
            "Heatmaps are made of pictures of one size, and these come as they are. Set data.init_args.image_size to a "
            f"multiple of {patch[0]}, the side of a patch."
        )
    for side, step in zip(images.shape[-2:], patch, strict=True):
        if side % step:
            below = side // step * step
            near = f"{below} or {below + step}" if below else f"{step}"
            raise ValueError(
                f"Pictures of {images.shape[-2]} x {images.shape[-1]} pixels are no whole number of patches of "
                f"{patch[0]} x {patch[1]}. Set data.init_args.image_size to {near}."
            )


def trunk_tokens(vit: VisionTransformer, images: Tensor, num_layers: int) -> Tensor:
    """Tokens ``(B, N, W)`` before the last ``num_layers`` blocks: what a path starts from, and what can be cached.

    Raises:
        ValueError: The ViT has fewer blocks, or the images are smaller than a patch.
    """
    if num_layers > len(vit.blocks):
        raise ValueError(f"num_layers is {num_layers}, but the ViT has {len(vit.blocks)} blocks.")
    if images.ndim != 4 or min(vit.grid(images)) < 1:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; pixels (B, 3, H, W) of at least one patch "
            f"{vit.patch_size[0]} x {vit.patch_size[1]} are needed."
        )
    x = vit.embed(images)
    for block in vit.blocks[: len(vit.blocks) - num_layers]:
        q, k, v = block.qkv(block.norm(x))
        x = x + block.out(F.scaled_dot_product_attention(q, k, v))
        x = x + block.ffn(x)
    return x


def path_tokens(vit: VisionTransformer, trunk: Tensor, path: Path, fusion: Literal["last", "mean"] = "last") -> Tensor:
    """From the tokens before the path's blocks to the joint space.

    Args:
        vit: The transformer.
        trunk: ``(B, prefix + HW, W)``, from :func:`trunk_tokens` with the path's number of layers.
        path: The path.
        fusion: ``last``: as they leave the last block; ``mean``: unit vectors after each block of the path, averaged.

    Returns:
        ``(B, 1 + HW, D)``: the image's embedding, then its patches.
    """
    own = path.attention == ("qk",)
    x = trunk
    new = trunk if path.residual else torch.zeros_like(trunk)
    layers = []
    blocks = vit.blocks[len(vit.blocks) - path.num_layers :]
    for number, block in enumerate(blocks, 1):
        last = number == len(blocks)
        normed = block.norm(x)
        q, k, v = block.qkv(normed)
        if not own:
            new = new + block.out(path_attention(path, normed, q, k, v))
            if path.ffn:
                new = new + block.ffn(new)
        if last and not own and vit.pools_class_token:  # of the model's own path only this token is still needed
            x, q = x[:, :1], q[:, :, :1]
        x = x + block.out(F.scaled_dot_product_attention(q, k, v))
        x = x + block.ffn(x)
        if last or fusion == "mean":
            layers.append(vit.project((x if own else new)[:, vit.prefix :]))
    patches = layers[-1] if fusion == "last" else torch.stack([F.normalize(t, dim=-1) for t in layers]).mean(0)
    return torch.cat([vit.pool(x)[:, None], patches], dim=1)  # (B, 1 + HW, D)


def dense_tokens(
    visual: Any,
    images: Tensor,
    path: PathName = "surgery",
    num_layers: int | None = None,
    residual: bool | None = None,
    ffn: bool | None = None,
    fusion: Literal["last", "mean"] = "last",
) -> Tensor:
    """Embeddings of an image and of its patches in the space of the texts.

    The model is not changed, gradients flow, any batch and any resolution will do; positions of another grid are
    interpolated bilinearly.

    Args:
        visual: An open_clip ViT or the vision model of a SigLIP checkpoint; see ``backbones.vit.vision_transformer``.
        images: Normalised pixels ``(B, 3, H, W)``.
        path: ``vanilla`` (the model itself), ``maskclip``, ``vv``, ``surgery`` (CLIP Surgery's dual path), ``gem``,
            ``sclip``, ``qq`` (ClearCLIP) or ``qkv_sum`` (SegEarth-OV).
        num_layers: Blocks of the path, from the last; None = as published (6 for ``surgery`` and ``gem``, else 1).
        residual: Start from the tokens before these blocks; None = as published.
        ffn: Pass the feed-forward networks; None = as published.
        fusion: ``last``, or ``mean`` over the unit tokens after each of these blocks.

    Returns:
        ``(B, 1 + HW, D)``, not normalised with ``fusion="last"``. The first token is the image's embedding, as
        ``encode_image`` has it.

    Raises:
        ValueError: Unknown path, more layers than blocks, images below one patch, or a tower that is no ViT.

    Reference:
        Zhou et al., MaskCLIP, ECCV 2022; Li et al., CLIP Surgery, Pattern Recognition 2025; Bousselham et al., GEM,
        CVPR 2024; Wang et al., SCLIP, ECCV 2024; Lan et al., ClearCLIP, ECCV 2024; Li et al., SegEarth-OV, CVPR 2025.
    """
    chosen = resolve_path(path, num_layers, residual, ffn)
    vit = vision_transformer(visual)
    return path_tokens(vit, trunk_tokens(vit, images, chosen.num_layers), chosen, fusion)
