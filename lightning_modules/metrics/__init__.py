"""Metrics: exact, tested against naive versions, and carrying their conventions."""

from lightning_modules.metrics.hamming_index import HammingIndex
from lightning_modules.metrics.retrieval import (
    HammingMeanAveragePrecision,
    HammingRetrieval,
    PrecisionRecallCurve,
    bootstrap_interval,
    hamming_average_precision,
    hamming_mean_average_precision,
    hamming_precision_at_k,
    hamming_precision_recall_curve,
    hamming_precision_within_radius,
    hamming_recall_at_k,
    random_average_precision,
)

__all__ = [
    "HammingIndex",
    "HammingMeanAveragePrecision",
    "HammingRetrieval",
    "PrecisionRecallCurve",
    "bootstrap_interval",
    "hamming_average_precision",
    "hamming_mean_average_precision",
    "hamming_precision_at_k",
    "hamming_precision_recall_curve",
    "hamming_precision_within_radius",
    "hamming_recall_at_k",
    "random_average_precision",
]
