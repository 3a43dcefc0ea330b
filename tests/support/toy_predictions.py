"""Predictions of three models on a hold-out part, made by hand."""

from __future__ import annotations

import numpy as np

N, C, BITS, FOLDS = 120, 4, 16, 3
SCORES = (0.7, 0.9, 0.8)


def made_folds() -> list[dict[str, np.ndarray]]:
    """Predictions of three models whose bits are permuted and flipped copies, with errors of each."""
    rng = np.random.default_rng(0)
    labels = (rng.random((N, C)) < 0.3).astype(np.uint8)
    weight = rng.normal(size=(C, BITS)).astype(np.float32)
    truth = np.sign((labels * 2.0 - 1) @ weight + 0.1)
    folds = []
    for fold in range(FOLDS):
        flips = np.where(rng.random((N, BITS)) < 0.25, -1, 1)
        order, sign = rng.permutation(BITS), rng.choice([-1, 1], BITS)
        codes, own = (truth * flips)[:, order] * sign, weight[:, order] * sign
        binary = 1 / (1 + np.exp(-(codes @ own.T)))
        soft = np.clip(binary + rng.normal(scale=0.05, size=(N, C)), 0, 1)
        folds.append(
            {
                "test_ids": np.array([f"item{n}" for n in range(N)]),
                "test_labels": labels,
                "test_soft": soft.astype(np.float32),
                "test_binary": binary.astype(np.float32),
                "test_codes": np.packbits(codes > 0, axis=1),
                "soft_thresholds": np.full(C, 0.3 + 0.1 * fold, np.float32),
                "binary_thresholds": np.full(C, 0.4, np.float32),
                "classifier_weight": own.astype(np.float32),
                "classifier_bias": np.zeros(C, np.float32),
                "class_names": np.array(list("abcd")),
                "bits": np.array(BITS),
                "score": np.array(SCORES[fold]),
            }
        )
    return folds
