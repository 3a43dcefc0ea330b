"""Binary codes and label sets: checks of what users hand in, and bit packing.

A code is any row of numbers; its bits are ``value > 0``, so that {-1, +1}, {0, 1}, booleans and real-valued network
outputs all mean the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def check_bits(bits: int) -> int:
    """The code length, once it is known to be a whole number of at least 1.

    Args:
        bits: Code length.

    Returns:
        ``bits``.

    Raises:
        ValueError: ``bits`` is below 1 or not a whole number.
    """
    if isinstance(bits, bool) or int(bits) != bits or bits < 1:
        raise ValueError(f"bits is {bits!r}; a code needs at least 1 bit, such as 16, 32, 64 or 128.")
    return int(bits)


def check_codes(codes: Tensor, name: str = "codes") -> Tensor:
    """Codes as a tensor of rows, refused when they cannot be turned into bits.

    Args:
        codes: (N, bits) numbers or booleans; bit = ``value > 0``.
        name: What to call them in an error.

    Returns:
        (N, bits) tensor, not copied when it already is one.

    Raises:
        ValueError: Not a matrix, no row, no bit, or a value is NaN or infinite.
    """
    codes = torch.as_tensor(codes)
    if codes.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(codes.shape)}; it must be a matrix (N, bits), one row an item.")
    if codes.shape[0] == 0:
        raise ValueError(f"{name} is empty: there is nothing to rank. Check the split that it comes from.")
    check_bits(codes.shape[1])
    if codes.is_floating_point() and not codes.sum().isfinite():  # the sum finds out in one pass whether to look closer
        bad = ~torch.isfinite(codes).all(dim=1)
        if bad.any():
            raise ValueError(
                f"{name} holds NaN or infinite values in {int(bad.sum())} of {len(codes)} rows, first in row "
                f"{int(bad.nonzero()[0])}. Check the features and the learning rate of the model that made them."
            )
    return codes


def check_labels(labels: Tensor, name: str = "labels") -> Tensor:
    """Multi-hot labels as booleans, refused when a value is neither 0 nor 1.

    Args:
        labels: (N, C) of 0 and 1, any dtype.
        name: What to call them in an error.

    Returns:
        (N, C) bool.

    Raises:
        ValueError: Not a matrix, no class, or a value other than 0 and 1.
    """
    labels = torch.as_tensor(labels)
    if labels.ndim != 2 or labels.shape[1] < 1:
        raise ValueError(
            f"{name} has shape {tuple(labels.shape)}; it must be (N, C) with one column a class. "
            "Turn class numbers into columns with torch.nn.functional.one_hot."
        )
    if labels.dtype == torch.bool:
        return labels
    ones = labels == 1
    bad = ~(ones | (labels == 0))
    if bad.any():
        row, column = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"{name} must hold only 0 and 1, but row {row}, column {column} is {labels[row, column].item()}. "
            "Threshold scores, or turn class numbers into columns with torch.nn.functional.one_hot."
        )
    return ones


def pack_bits(bits: Tensor) -> Tensor:
    """Eight booleans a byte, the first in the lowest bit, zeros at the end.

    Args:
        bits: (N, B) bool.

    Returns:
        (N, ceil(B / 8)) uint8 on the same device.

    >>> pack_bits(torch.tensor([[True, False, False, True, False, False, False, False, True]]))
    tensor([[9, 1]], dtype=torch.uint8)
    """
    if bits.device.type == "cpu":
        return torch.from_numpy(np.packbits(bits.numpy(), axis=1, bitorder="little"))
    return pack_bits_torch(bits)


def pack_bits_torch(bits: Tensor) -> Tensor:
    """:func:`pack_bits` in torch operations, for tensors on a GPU.

    Args:
        bits: (N, B) bool.

    Returns:
        (N, ceil(B / 8)) uint8 on the same device.
    """
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.shape[1] % 8))
    shifts = torch.arange(8, device=bits.device, dtype=torch.uint8)
    return (padded.unflatten(1, (-1, 8)) << shifts).sum(dim=-1, dtype=torch.uint8)  # (N, bytes, 8) -> (N, bytes)


def unpack_bits(packed: Tensor, width: int) -> Tensor:
    """The inverse of :func:`pack_bits`.

    Args:
        packed: (N, ceil(width / 8)) uint8.
        width: Number of columns that were packed.

    Returns:
        (N, width) bool.

    >>> unpack_bits(torch.tensor([[9, 1]], dtype=torch.uint8), 9).int().tolist()
    [[1, 0, 0, 1, 0, 0, 0, 0, 1]]
    """
    shifts = torch.arange(8, device=packed.device, dtype=torch.uint8)
    return ((packed[..., None] >> shifts) & 1).flatten(1)[:, :width].bool()  # (N, bytes, 8) -> (N, width)


@dataclass(frozen=True)
class PackedPairs:
    """Queries and a database, packed, all on one device.

    Args:
        query_codes: (Q, ceil(bits / 8)) uint8.
        database_codes: (N, ceil(bits / 8)) uint8.
        query_labels: (Q, ceil(C / 8)) uint8.
        database_labels: (N, ceil(C / 8)) uint8.
        bits: Code length.
    """

    query_codes: Tensor
    database_codes: Tensor
    query_labels: Tensor
    database_labels: Tensor
    bits: int

    @property
    def n_query(self) -> int:
        """Number of queries."""
        return len(self.query_codes)

    @property
    def n_database(self) -> int:
        """Number of database items."""
        return len(self.database_codes)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.query_codes.device


def pack_pairs(
    query_codes: Tensor, database_codes: Tensor, query_labels: Tensor, database_labels: Tensor
) -> PackedPairs:
    """Check and pack what a retrieval measure needs.

    Args:
        query_codes: (Q, bits) numbers or booleans; bit = ``value > 0``.
        database_codes: (N, bits).
        query_labels: (Q, C) of 0 and 1.
        database_labels: (N, C) of 0 and 1.

    Returns:
        The packed pairs.

    Raises:
        ValueError: A matrix is malformed, or rows, widths or devices do not match.
    """
    codes = {
        "query": check_codes(query_codes, "query_codes"),
        "database": check_codes(database_codes, "database_codes"),
    }
    labels = {
        "query": check_labels(query_labels, "query_labels"),
        "database": check_labels(database_labels, "database_labels"),
    }
    for role in codes:
        if len(codes[role]) != len(labels[role]):
            raise ValueError(
                f"{role}_codes has {len(codes[role])} rows but {role}_labels has {len(labels[role])}; "
                "each item needs one row in both."
            )
    for name, parts in (("codes", codes), ("labels", labels)):
        widths = parts["query"].shape[1], parts["database"].shape[1]
        if widths[0] != widths[1]:
            raise ValueError(
                f"query_{name} is {widths[0]} wide but database_{name} is {widths[1]} wide; "
                f"both must come from the same {'hash layer' if name == 'codes' else 'list of classes'}."
            )
    devices = {str(tensor.device) for tensor in (*codes.values(), *labels.values())}
    if len(devices) > 1:
        raise ValueError(f"codes and labels are on different devices ({', '.join(sorted(devices))}); move them to one.")
    return PackedPairs(
        pack_bits(codes["query"] > 0),
        pack_bits(codes["database"] > 0),
        pack_bits(labels["query"]),
        pack_bits(labels["database"]),
        codes["query"].shape[1],
    )
