"""Ensembles of multi-label models: means of probabilities, votes of decisions, votes of hash bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_probabilities(probabilities: Sequence[Tensor]) -> Tensor:
    """Mean over models.

    Args:
        probabilities: (N, C) a model, of the same items in the same order.

    Returns:
        (N, C), in the dtype of the first (float32 for half precision).

    Raises:
        ValueError: No model, or unequal shapes.

    >>> mean_probabilities([torch.tensor([[0.25]]), torch.tensor([[0.75]])])
    tensor([[0.5000]])
    """
    _check_shapes(probabilities, "probabilities", "(N, C)")
    dtype = torch.float64 if probabilities[0].dtype == torch.float64 else torch.float32
    return _sum(probabilities, torch.float64).div(len(probabilities)).to(dtype)


def vote_labels(decisions: Sequence[Tensor]) -> Tensor:
    """Share of the models that assign each class.

    Args:
        decisions: (N, C) of 0 and 1 a model, of the same items in the same order.

    Returns:
        (N, C) float32 between 0 and 1; ``> 0.5`` is the majority, ``== 0.5`` a tie.

    Raises:
        ValueError: No model, or unequal shapes.

    >>> vote_labels([torch.tensor([[1, 0]]), torch.tensor([[1, 1]])])
    tensor([[1.0000, 0.5000]])
    """
    _check_shapes(decisions, "decisions", "(N, C)")
    return _sum(decisions, torch.float32) / len(decisions)


def align_bits(weights: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Match the bits of independently trained hash layers to those of the first.

    Bit k of one model has nothing to do with bit k of another, and its sign is arbitrary. What a bit means shows in
    its column of the classifier: the weight it has for each class. Columns are matched one to one so that the sum of
    the absolute cosines is largest; a negative cosine flips the bit.

    Args:
        weights: (C, bits) classifier weight a model, as ``Linear(bits, C).weight``.

    Returns:
        For each model ``permutation`` (bits,) int64 and ``sign`` (bits,) of +-1, such that
        ``codes[:, permutation] * sign`` speaks of the bits of the first model, and so does
        ``weight[:, permutation] * sign``.

    Raises:
        ValueError: No model, or unequal shapes.

    Reference:
        Kuhn, "The Hungarian method for the assignment problem", 1955 (scipy's solver).

    >>> first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> permutation, sign = align_bits([first, torch.tensor([[0.0, 2.0], [-3.0, 0.0]])])[1]
    >>> permutation.tolist(), sign.tolist()
    ([1, 0], [1.0, -1.0])
    """
    from scipy.optimize import linear_sum_assignment

    _check_shapes(weights, "weights", "(C, bits)")
    reference = F.normalize(weights[0].detach().double().cpu(), dim=0)  # (C, bits)
    bits = reference.shape[1]
    matches = [(torch.arange(bits), torch.ones(bits))]
    for weight in weights[1:]:
        cosine = reference.T @ F.normalize(weight.detach().double().cpu(), dim=0)  # (bits of the first, bits)
        rows, columns = linear_sum_assignment(cosine.abs().numpy(), maximize=True)  # rows are 0 .. bits - 1
        permutation = torch.from_numpy(columns)
        matches.append((permutation, torch.where(cosine[torch.from_numpy(rows), permutation] < 0, -1.0, 1.0)))
    return matches


def vote_codes(codes: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Majority vote bit by bit after ``align_bits``, classified with the mean of the aligned classifiers.

    Args:
        codes: (N, bits) of +-1 a model, of the same items in the same order.
        weights: (C, bits) classifier weight a model.
        biases: (C,) classifier bias a model.

    Returns:
        Voted codes (N, bits) float32 of +-1, in the bits of the first model, which also decides an even vote; and
        probabilities (N, C) float32.

    Raises:
        ValueError: No model, unequal numbers of models, unequal shapes, or codes other than +-1.
    """
    if not len(codes) == len(weights) == len(biases):
        raise ValueError(
            f"{len(codes)} codes, {len(weights)} weights and {len(biases)} biases; each model needs one of each."
        )
    for parts, name, shape in ((codes, "codes", "(N, bits)"), (weights, "weights", "(C, bits)")):
        _check_shapes(parts, name, shape)
    _check_shapes(biases, "biases", "(C,)")
    if codes[0].shape[1] != weights[0].shape[1] or biases[0].shape != weights[0].shape[:1]:
        raise ValueError(
            f"codes {tuple(codes[0].shape)}, weights {tuple(weights[0].shape)} and biases {tuple(biases[0].shape)} do "
            "not fit; they must be (N, bits), (C, bits) and (C,)."
        )
    if any((code.abs() != 1).any() for code in codes):
        raise ValueError("codes must be +1 or -1; take 2 * bits - 1 of unpacked bits, or the sign of soft codes.")
    matches = align_bits(weights)
    votes = _sum([_aligned(code, match) for code, match in zip(codes, matches, strict=True)], torch.float32)
    voted = torch.where(votes == 0, codes[0].float(), votes.sign())
    weight = _sum([_aligned(weight, match) for weight, match in zip(weights, matches, strict=True)], torch.float32)
    bias = _sum(biases, torch.float32)
    return voted, torch.sigmoid(F.linear(voted, weight / len(codes), bias / len(codes)))


def _aligned(columns: Tensor, match: tuple[Tensor, Tensor]) -> Tensor:
    permutation, sign = (part.to(columns.device) for part in match)
    return columns.detach().float()[:, permutation] * sign


def _sum(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    total = torch.zeros_like(parts[0], dtype=dtype)
    for part in parts:
        total += part.detach()
    return total


def _check_shapes(parts: Sequence[Tensor], name: str, shape: str) -> None:
    if not parts:
        raise ValueError(f"There are no {name}: an ensemble needs at least one model.")
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1 or parts[0].ndim != shape.count(", ") + 1:
        found = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(f"{name} have shapes {found}; every model must give {shape} of the same size and order.")
