"""A light adapter that raises the similarity of a class inside its boxes: on cached tokens, the model untouched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.backbones.vit import Block, Qkv, VisionTransformer
from lightning_modules.heatmap.dense import Path, path_tokens, trunk_tokens

AdapterName = Literal["none", "linear", "lora"]


class LinearAdapter(nn.Module):
    """``x + x A``, A zero at first: tokens ``(B, N, D)`` in the joint space, moved where the boxes say.

    Args:
        dim: Width D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.change = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.change.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``(B, 1 + HW, D)``, the image's embedding first, which stays as it is."""
        unit = F.normalize(tokens, dim=-1)
        return torch.cat([unit[:, :1], unit[:, 1:] + self.change(unit[:, 1:])], dim=1)


class LowRankBlock(nn.Module):
    """A low-rank change of a block's queries, keys and values, zero at first.

    Args:
        width: Width W of the tokens.
        rank: Rank of the change.

    Reference:
        Hu et al., LoRA, ICLR 2022.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, 3 * width, bias=False)
        nn.init.zeros_(self.up.weight)

    def around(self, block: Block) -> Block:
        """The block with the change."""

        def qkv(x: Tensor) -> Qkv:
            own = block.qkv(x)
            heads = own[0].shape[1]
            parts = self.up(self.down(x)).chunk(3, dim=-1)
            q, k, v = (a + b.unflatten(-1, (heads, -1)).transpose(1, 2) for a, b in zip(own, parts, strict=True))
            return q, k, v

        return replace(block, qkv=qkv)


class AdaptedPath(nn.Module):
    """Dense tokens in two steps, so that the frozen one can be cached.

    ``frozen`` gives what no gradient has to pass: with a linear adapter the dense tokens themselves, with LoRA the
    tokens before the path's blocks. ``forward`` goes on from there.

    Args:
        vit: The transformer, frozen.
        path: The path through its last blocks.
        fusion: ``last`` or ``mean``, see ``dense.path_tokens``.
        adapter: ``none``, ``linear`` (in the joint space) or ``lora`` (on the path's blocks).
        rank: Rank of LoRA.
        dim: Width of the joint space.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        path: Path,
        fusion: Literal["last", "mean"],
        adapter: AdapterName,
        rank: int,
        dim: int,
    ) -> None:
        super().__init__()
        self.vit, self.path, self.fusion = vit, path, fusion
        self.linear = LinearAdapter(dim) if adapter == "linear" else None
        self.lora = nn.ModuleList(LowRankBlock(vit.width, rank) for _ in range(path.num_layers * (adapter == "lora")))

    @torch.no_grad()
    def frozen(self, images: Tensor) -> Tensor:
        """Normalised pixels ``(B, 3, H, W)`` to the tokens ``(B, N, W or D)`` that may be cached."""
        trunk = trunk_tokens(self.vit, images, self.path.num_layers)
        return trunk if self.lora else path_tokens(self.vit, trunk, self.path, self.fusion)

    def forward(self, tokens: Tensor) -> Tensor:
        """What ``frozen`` gave, as dense tokens ``(B, 1 + HW, D)``."""
        if self.lora:
            count = len(self.vit.blocks) - len(self.lora)
            adapted = [
                cast(LowRankBlock, lora).around(block)
                for lora, block in zip(self.lora, self.vit.blocks[count:], strict=True)
            ]
            vit = replace(self.vit, blocks=[*self.vit.blocks[:count], *adapted])
            return path_tokens(vit, tokens, self.path, self.fusion)
        return tokens if self.linear is None else self.linear(tokens)


class TokenCache:
    """Frozen tokens of images by their index in the data set, in half precision in memory.

    Each process keeps the images that it meets; pictures must be the same in every epoch. One process has met all after
    the first epoch. Of several, each is handed others in each epoch, computes those that it lacks, and holds the whole
    training part in the end: 2 * N * W bytes an image, 0.2 MB for a linear adapter and 0.3 MB for LoRA at 224 pixels
    and ViT-B/16, four times that at 448.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Tensor] = {}

    def tokens(
        self, index: Sequence[int], compute: Callable[[list[int]], Tensor], device: torch.device, keep: bool
    ) -> Tensor:
        """Tokens ``(B, N, W)`` float32 of images.

        Args:
            index: Their B positions in the data set.
            compute: Makes the tokens of those at some places of the batch, where they are not kept.
            device: Where the tokens are needed.
            keep: Keep what was computed.
        """
        held = [place for place, row in enumerate(index) if row in self.rows]
        lacking = [place for place, row in enumerate(index) if row not in self.rows]
        parts = []
        if held:  # float before the stack: a CPU's autocast stacks no float16
            parts.append(torch.stack([self.rows[index[place]].float() for place in held]).to(device))
        if lacking:
            computed = compute(lacking).detach()
            parts.append(computed.float())
            if keep:
                rows = computed.to("cpu", torch.float16).unbind()
                self.rows.update(zip([index[place] for place in lacking], rows, strict=True))
        return torch.cat(parts)[torch.tensor(held + lacking, device=device).argsort()]


def inside_loss(similarity: Tensor, coverage: Tensor, scale: Tensor | float, bias: Tensor | float) -> Tensor:
    """Binary cross entropy of patches inside against outside the boxes, both sides weighing the same.

    Args:
        similarity: ``(B, HW, K)``.
        coverage: Share of each patch inside the boxes of each class, ``(B, HW, K)``.
        scale: Factor of the similarities.
        bias: Added to them.

    Returns:
        Scalar; a side without patches counts nothing.

    Example:
        >>> s, c = torch.tensor([[[0.0], [0.0]]]), torch.tensor([[[1.0], [0.0]]])
        >>> round(float(inside_loss(s, c, 1.0, 0.0)), 4)  # log 2
        0.6931
    """
    logits = scale * similarity + bias
    inside = (coverage * F.softplus(-logits)).sum() / coverage.sum().clamp(min=1e-6)
    outside = ((1 - coverage) * F.softplus(logits)).sum() / (1 - coverage).sum().clamp(min=1e-6)
    return (inside + outside) / 2
