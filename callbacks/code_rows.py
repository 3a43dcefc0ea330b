"""Codes that steps return, collected over batches and processes: each item once, in the order of its index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.hamming import pack_bits, unpack_bits

MODALITIES = ("image", "text")
ROLES = ("query", "database")  # of evaluation and predict loaders 0 and 1
Rows = dict[str, np.ndarray]


def has_codes(outputs: Any) -> bool:
    """Whether a step returned what the callbacks about codes read.

    That is a dict with ``index`` (B,), the position of each item in its split, and ``image_codes`` and ``text_codes``
    (B, bits), where bit = ``value > 0``.
    """
    return isinstance(outputs, Mapping) and {"index", "image_codes", "text_codes"} <= set(outputs)


def rows_of_batch(outputs: Mapping[str, Any], labels: Tensor | None = None) -> Rows:
    """One batch as arrays, codes packed.

    Args:
        outputs: What a step returned; see :func:`has_codes`.
        labels: (B, C) of 0 and 1.

    Returns:
        ``index`` (B,), ``image_codes`` and ``text_codes`` (B, ceil(bits / 8)) uint8, ``bits`` (B,), ``labels``
        (B, C) bool where given.

    >>> codes = torch.tensor([[1, -1, 1], [-1, -1, -1]])
    >>> outputs = {"index": torch.tensor([4, 2]), "image_codes": codes, "text_codes": codes}
    >>> rows_of_batch(outputs)["image_codes"].tolist()
    [[5], [0]]
    """
    index = outputs["index"].cpu().numpy().astype(np.int64)
    rows = {"index": index, "bits": np.full(len(index), outputs["image_codes"].shape[1])}
    for modality in MODALITIES:
        rows[f"{modality}_codes"] = pack_bits((outputs[f"{modality}_codes"].detach() > 0).cpu()).numpy()
    if labels is not None:
        rows["labels"] = labels.cpu().numpy() > 0
    return rows


def join_rows(parts: list[Rows]) -> Rows:
    """Batches as one, each index once (a sampler over several processes may repeat items), in ascending order.

    >>> a, b = {"index": np.array([3, 1])}, {"index": np.array([1, 0])}
    >>> join_rows([a, b])["index"].tolist()
    [0, 1, 3]
    """
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    _, first = np.unique(joined["index"], return_index=True)
    return {name: values[first] for name, values in joined.items()}


def gather_rows(parts: dict[str, list[Rows]]) -> dict[str, Rows]:
    """The rows of all processes by role; every process must call this.

    Args:
        parts: For each role the batches of this process.

    Returns:
        For each role that has any: the rows, joined.
    """
    everyone = [parts]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        everyone = [{} for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(everyone, parts)
    by_role = {role: [rows for one in everyone for rows in one.get(role, [])] for role in ROLES}
    return {role: join_rows(rows) for role, rows in by_role.items() if rows}


def unpacked(rows: Rows, modality: str) -> Tensor:
    """The codes of a modality as booleans ``(N, bits)``."""
    return unpack_bits(torch.from_numpy(rows[f"{modality}_codes"]), int(rows["bits"][0]))
