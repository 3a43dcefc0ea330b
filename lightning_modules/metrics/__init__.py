"""Metrics: exact, tested against naive versions, and carrying their conventions."""

from lightning_modules.metrics.boxes import box_iou
from lightning_modules.metrics.detection import DetectionScores
from lightning_modules.metrics.detection_curves import average_precisions, class_means, recalls
from lightning_modules.metrics.detection_intervals import (
    Interval,
    average_precision_difference,
    bootstrap_average_precision,
)
from lightning_modules.metrics.detection_matching import (
    DetectionSet,
    Matches,
    flatten_detections,
    match_detections,
    match_flat,
)
from lightning_modules.metrics.ensembles import align_bits, mean_probabilities, vote_codes, vote_labels
from lightning_modules.metrics.hamming_index import HammingIndex
from lightning_modules.metrics.intervals import t_interval
from lightning_modules.metrics.localisation import (
    PixelAveragePrecision,
    max_box_accuracy,
    pixel_average_precision,
)
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
from lightning_modules.metrics.segmentation import SegmentationScores
from lightning_modules.metrics.segmentation_controls import majority_class, oracle_map
from lightning_modules.metrics.segmentation_counts import SegmentationCounts
from lightning_modules.metrics.segmentation_intervals import bootstrap_mean_iou, mean_iou_difference
from lightning_modules.metrics.tide import TIDE, tide_errors, tide_gains

__all__ = [
    "TIDE",
    "DetectionScores",
    "DetectionSet",
    "HammingIndex",
    "HammingMeanAveragePrecision",
    "HammingRetrieval",
    "Interval",
    "Matches",
    "MultilabelScores",
    "PixelAveragePrecision",
    "PrecisionRecallCurve",
    "SegmentationCounts",
    "SegmentationScores",
    "align_bits",
    "average_precision",
    "average_precision_difference",
    "average_precision_intervals",
    "average_precisions",
    "bootstrap_average_precision",
    "bootstrap_interval",
    "bootstrap_mean_iou",
    "box_iou",
    "class_means",
    "class_table",
    "confused_with",
    "cooccurrence_confusion",
    "fit_thresholds",
    "flatten_detections",
    "hamming_average_precision",
    "hamming_mean_average_precision",
    "hamming_precision_at_k",
    "hamming_precision_recall_curve",
    "hamming_precision_within_radius",
    "hamming_recall_at_k",
    "macro_interval",
    "majority_class",
    "match_detections",
    "match_flat",
    "max_box_accuracy",
    "mean_iou_difference",
    "mean_probabilities",
    "misses_by_area",
    "multilabel_scores",
    "oracle_map",
    "paired_difference",
    "pixel_average_precision",
    "prior_scores",
    "random_average_precision",
    "recalls",
    "t_interval",
    "threshold_scores",
    "tide_errors",
    "tide_gains",
    "vote_codes",
    "vote_labels",
    "worst_items",
]
