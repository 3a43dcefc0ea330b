"""Metrics: exact, tested against naive versions, and carrying their conventions."""

from lightning_modules.metrics.ensembles import align_bits, mean_probabilities, vote_codes, vote_labels
from lightning_modules.metrics.hamming_index import HammingIndex
from lightning_modules.metrics.intervals import t_interval
from lightning_modules.metrics.multilabel import MultilabelScores, multilabel_scores, threshold_scores
from lightning_modules.metrics.multilabel_curves import average_precision
from lightning_modules.metrics.multilabel_errors import (
    class_table,
    confused_with,
    cooccurrence_confusion,
    misses_by_area,
    worst_items,
)
from lightning_modules.metrics.multilabel_floors import prior_scores
from lightning_modules.metrics.multilabel_intervals import (
    average_precision_intervals,
    macro_interval,
    paired_difference,
)
from lightning_modules.metrics.multilabel_thresholds import fit_thresholds
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
    "MultilabelScores",
    "PrecisionRecallCurve",
    "align_bits",
    "average_precision",
    "average_precision_intervals",
    "bootstrap_interval",
    "class_table",
    "confused_with",
    "cooccurrence_confusion",
    "fit_thresholds",
    "hamming_average_precision",
    "hamming_mean_average_precision",
    "hamming_precision_at_k",
    "hamming_precision_recall_curve",
    "hamming_precision_within_radius",
    "hamming_recall_at_k",
    "macro_interval",
    "mean_probabilities",
    "misses_by_area",
    "multilabel_scores",
    "paired_difference",
    "prior_scores",
    "random_average_precision",
    "t_interval",
    "threshold_scores",
    "vote_codes",
    "vote_labels",
    "worst_items",
]
