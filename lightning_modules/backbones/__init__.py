"""Frozen foundation models behind one small protocol each; weights load at first use."""

from lightning_modules.backbones.clip import OpenClip
from lightning_modules.backbones.siglip import Siglip2
from lightning_modules.backbones.tiny import TinyClip

__all__ = ["OpenClip", "Siglip2", "TinyClip"]
