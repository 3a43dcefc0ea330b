"""Where an open_clip model keeps the transformer blocks of its towers, and what follows them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

Parts = Sequence[nn.Module | nn.Parameter]
# Names, in open_clip and timm, of what may follow the blocks; most towers have two or three of them.
VIT_HEAD = ("attn_pool", "attn_pool_contrastive", "ln_post", "proj")
TIMM_HEAD = ("norm", "attn_pool", "fc_norm", "head")
TEXT_HEAD = ("ln_final", "text_projection")


def _named(owner: nn.Module, names: Sequence[str]) -> tuple[nn.Module | nn.Parameter, ...]:
    """Those of the named parts that there are."""
    found = (getattr(owner, name, None) for name in names)
    return tuple(part for part in found if isinstance(part, nn.Module | nn.Parameter))


def open_clip_image_parts(visual: nn.Module) -> tuple[tuple[nn.Module, ...], Parts]:
    """Blocks of an open_clip image tower, and what follows them.

    Args:
        visual: open_clip's own ViT, or its wrapper around one of timm.

    Returns:
        The blocks, first to last, and the parts behind them; both empty for a ResNet, ConvNeXt or other tower.
    """
    stack = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if stack is not None:
        return tuple(stack), _named(visual, VIT_HEAD)
    trunk = getattr(visual, "trunk", None)
    # Other trunks of timm have `blocks` too, which are stages of convolutions there; only the ViTs can do this.
    if trunk is not None and hasattr(trunk, "blocks") and hasattr(trunk, "fc_norm"):
        return tuple(trunk.blocks), (*_named(trunk, TIMM_HEAD), *_named(visual, ("head",)))
    return (), ()


def open_clip_text_parts(model: nn.Module) -> tuple[tuple[nn.Module, ...], Parts]:
    """Blocks of the text tower of an open_clip model, and what follows them.

    Args:
        model: ``CLIP``, which keeps the parts itself, or ``CustomTextCLIP``, which has them in ``model.text``.

    Returns:
        The blocks, first to last, and the parts behind them; both empty for a text tower of transformers.
    """
    text = getattr(model, "text", model)
    stack = getattr(getattr(text, "transformer", None), "resblocks", None)
    return ((), ()) if stack is None else (tuple(stack), _named(text, TEXT_HEAD))
