"""The methods of the suite; each is exported here so that a config can name it without its path."""

from lightning_modules.contrastive.module import ContrastivePretraining
from lightning_modules.corrclip.module import CorrClipSegmentation
from lightning_modules.detection.module import ConvDetection, DetectionTransformer, OnnxDetection
from lightning_modules.hashing.module import CrossModalHashing
from lightning_modules.heatmap.module import HeatmapDetection
from lightning_modules.multilabel.module import MultilabelHashing

__all__ = [
    "ContrastivePretraining",
    "ConvDetection",
    "CorrClipSegmentation",
    "CrossModalHashing",
    "DetectionTransformer",
    "HeatmapDetection",
    "MultilabelHashing",
    "OnnxDetection",
]
