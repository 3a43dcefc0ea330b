"""torch.compile for the networks of any module, in place, so that checkpoints keep their names."""

from __future__ import annotations

from collections.abc import Iterator

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn


class CompileNetworks(Callback):
    """Compiles the trainable networks of a module when a run starts.

    The networks are compiled in place (``nn.Module.compile``): the names in the checkpoint do not change, and a
    checkpoint of a compiled run loads without compiling. The module's own step is left alone, as logging and
    ragged batches would break the graph at every call.
    """

    def __init__(self) -> None:
        self.compiled: list[str] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile before the first step; the networks exist and hold their weights by now."""
        for name, network in top_networks(pl_module):
            if name not in self.compiled:
                network.compile()
                self.compiled.append(name)


def top_networks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost networks of a module that have a forward of their own and something to train.

    Args:
        module: Where to look.
        prefix: What stands before the names.

    Yields:
        Name and network.

    Example:
        >>> parts = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.ModuleList([nn.ReLU(), nn.Linear(2, 1)])})
        >>> [name for name, _ in top_networks(parts)]
        ['a', 'b.1']
    """
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleDict | nn.ModuleList):
            yield from top_networks(child, f"{prefix}{name}.")
        elif any(parameter.requires_grad for parameter in child.parameters()):
            yield prefix + name, child
