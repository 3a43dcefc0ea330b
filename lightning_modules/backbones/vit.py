"""A vision transformer of any library as functions of its parts, so that methods can take other paths through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Qkv = tuple[Tensor, Tensor, Tensor]
Resize = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Block:
    """A pre-norm transformer block: ``x + out(attention(qkv(norm(x))))``, then ``x + ffn(x)``.

    Args:
        norm: First layer norm, ``(B, N, W)`` to ``(B, N, W)``.
        qkv: Queries, keys and values of normed tokens, each ``(B, heads, N, d)``.
        out: Heads ``(B, heads, N, d)`` to tokens ``(B, N, W)``: output projection and layer scale.
        ffn: Second norm, feed-forward network and layer scale, without the residual.
    """

    norm: Callable[[Tensor], Tensor]
    qkv: Callable[[Tensor], Qkv]
    out: Callable[[Tensor], Tensor]
    ffn: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class VisionTransformer:
    """A ViT as functions; nothing of the model is changed.

    Args:
        embed: Pixels ``(B, 3, H, W)`` to tokens ``(B, prefix + HW / patch^2, W)``, for any H and W.
        blocks: The transformer blocks, first to last.
        project: Tokens ``(B, N, W)`` after the last block to the joint space ``(B, N, D)``, each by itself.
        pool: All tokens after the last block to the image's embedding ``(B, D)``.
        prefix: Tokens in front of the patches: 1 with a class token, else 0.
        pools_class_token: Whether ``pool`` reads the class token alone.
        patch_size: Rows and columns of a patch in pixels.
        width: Width W of the tokens.
    """

    embed: Callable[[Tensor], Tensor]
    blocks: Sequence[Block]
    project: Callable[[Tensor], Tensor]
    pool: Callable[[Tensor], Tensor]
    prefix: int
    pools_class_token: bool
    patch_size: tuple[int, int]
    width: int

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of a batch of pixels."""
        return images.shape[-2] // self.patch_size[0], images.shape[-1] // self.patch_size[1]


def vision_transformer(visual: Any, positions: Resize = "bilinear") -> VisionTransformer:
    """The functions of an image tower.

    Args:
        visual: open_clip's own ``VisionTransformer``, the vision model of a SigLIP or SigLIP2 checkpoint of
            transformers, or what this function returned, which stays as it is.
        positions: How positions are brought to another grid; see :func:`resized_positions`.

    Raises:
        ValueError: A tower of another kind, such as a ResNet, or one whose tokens have no place in the joint space.
    """
    if isinstance(visual, VisionTransformer):
        return visual
    if hasattr(visual, "class_embedding") and hasattr(getattr(visual, "transformer", None), "resblocks"):
        return _open_clip_vit(visual, positions)
    if hasattr(visual, "embeddings") and hasattr(getattr(visual, "head", None), "probe"):
        return _siglip_vit(visual, positions)
    hint = "Take the same weights through the Siglip2 backbone." if hasattr(visual, "trunk") else "Take a ViT."
    raise ValueError(
        f"The image tower {type(visual).__name__} is no vision transformer of open_clip or SigLIP, so it has no patch "
        f"tokens in the space of the texts. {hint}"
    )


def resized_positions(
    positions: Tensor, stored: tuple[int, int], grid: tuple[int, int], mode: Resize = "bilinear"
) -> Tensor:
    """Position embeddings of patches for another grid, without antialiasing.

    Args:
        positions: ``(rows * columns, W)``.
        stored: Their rows and columns.
        grid: The rows and columns that are needed.
        mode: ``bilinear``, as CLIP Surgery has it, or ``bicubic``, as DINO and CorrCLIP have it: with steps of
            ``stored / (grid + 0.1)`` in place of ``stored / grid``, which moves features by a few percent.

    Returns:
        ``(grid rows * grid columns, W)``; the same tensor where nothing changes.
    """
    if stored == grid:
        return positions
    plane = positions.reshape(1, *stored, -1).permute(0, 3, 1, 2)  # (1, W, rows, columns)
    if mode == "bicubic":
        factors = [(new + 0.1) / old for new, old in zip(grid, stored, strict=True)]
        larger = F.interpolate(plane.float(), scale_factor=factors, mode="bicubic", align_corners=False)
    else:
        larger = F.interpolate(plane.float(), size=grid, mode="bilinear", align_corners=False)
    return larger.to(positions.dtype).flatten(2).transpose(1, 2)[0]


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, N, d)


def _join_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(-2)  # (B, N, W)


def _open_clip_block(block: Any) -> Block:
    attention = block.attn

    def qkv(x: Tensor) -> Qkv:
        parts = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (_split_heads(part, attention.num_heads) for part in parts)
        return q, k, v

    return Block(
        norm=block.ln_1,
        qkv=qkv,
        out=lambda heads: block.ls_1(attention.out_proj(_join_heads(heads))),
        ffn=lambda x: block.ls_2(block.mlp(block.ln_2(x))),
    )


def _open_clip_vit(visual: Any, mode: Resize) -> VisionTransformer:
    if visual.attn_pool is not None:
        raise ValueError("This ViT pools with attention (CoCa): its patches have no place in the space of the texts.")
    if any(not isinstance(block.attn, nn.MultiheadAttention) for block in visual.transformer.resblocks):
        raise ValueError("This ViT has attention of another kind (cosine or scaled heads); take a plain ViT.")

    def embed(images: Tensor) -> Tensor:
        x = visual.conv1(images)
        grid = (x.shape[-2], x.shape[-1])
        x = x.flatten(2).transpose(1, 2)  # (B, HW, W)
        positions = visual.positional_embedding
        patches = resized_positions(positions[1:], visual.grid_size, grid, mode)
        x = x + patches.to(x.dtype)
        first = (visual.class_embedding + positions[0]).to(x.dtype).expand(len(x), 1, -1)
        return visual.ln_pre(torch.cat([first, x], dim=1))

    def matrix(x: Tensor) -> Tensor:
        return x if visual.proj is None else x @ visual.proj

    def pool(x: Tensor) -> Tensor:
        if visual.pool_type == "tok":
            return matrix(visual.ln_post(x[:, 0]))
        if visual.final_ln_after_pool:
            return matrix(visual.ln_post(x[:, 1:].mean(1)))
        return matrix(visual.ln_post(x)[:, 1:].mean(1))

    return VisionTransformer(
        embed=embed,
        blocks=[_open_clip_block(block) for block in visual.transformer.resblocks],
        project=lambda x: matrix(visual.ln_post(x)),
        pool=pool,
        prefix=1,
        pools_class_token=visual.pool_type == "tok",
        patch_size=tuple(visual.patch_size),
        width=visual.conv1.out_channels,
    )


def _siglip_block(layer: Any) -> Block:
    attention = layer.self_attn

    def qkv(x: Tensor) -> Qkv:
        parts = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
        q, k, v = (_split_heads(part, attention.num_heads) for part in parts)
        return q, k, v

    return Block(
        norm=layer.layer_norm1,
        qkv=qkv,
        out=lambda heads: attention.out_proj(_join_heads(heads)),
        ffn=lambda x: layer.mlp(layer.layer_norm2(x)),
    )


def _siglip_vit(vision: Any, mode: Resize) -> VisionTransformer:
    """SigLIP has no class token: its head attends to all patches; a patch by itself passes as if it were alone."""
    head, side = vision.head, vision.config.image_size // vision.config.patch_size
    pooling = head.attention
    width = pooling.embed_dim

    def embed(images: Tensor) -> Tensor:
        x = vision.embeddings.patch_embedding(images)
        grid = (x.shape[-2], x.shape[-1])
        positions = resized_positions(vision.embeddings.position_embedding.weight, (side, side), grid, mode)
        return x.flatten(2).transpose(1, 2) + positions.to(x.dtype)

    def project(x: Tensor) -> Tensor:
        weight, bias = pooling.in_proj_weight[2 * width :], pooling.in_proj_bias[2 * width :]
        values = pooling.out_proj(F.linear(vision.post_layernorm(x), weight, bias))
        return values + head.mlp(head.layernorm(values))

    return VisionTransformer(
        embed=embed,
        blocks=[_siglip_block(layer) for layer in vision.encoder.layers],
        project=project,
        pool=lambda x: head(vision.post_layernorm(x)),
        prefix=0,
        pools_class_token=False,
        patch_size=(vision.config.patch_size,) * 2,
        width=width,
    )
