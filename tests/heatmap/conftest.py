"""A small ViT and pictures for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_vit import small_vit


@pytest.fixture
def visual() -> nn.Module:
    return small_vit()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
