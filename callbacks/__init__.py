"""What happens during a run: schedules, results, pictures, reports, loggers."""

from callbacks.box_writer import BoxWriter
from callbacks.compile_networks import CompileNetworks
from callbacks.detection_tables import DetectionTables
from callbacks.heatmap_pictures import HeatmapPictures
from callbacks.loggers import RunCSVLogger
from callbacks.media import RetrievalPanel
from callbacks.multilabel_predictions import MultilabelPredictions
from callbacks.multilabel_writer import MultilabelWriter
from callbacks.prediction_writer import CodeWriter
from callbacks.progressive_scale import ProgressiveScale
from callbacks.report import Report
from callbacks.results import Results

__all__ = [
    "BoxWriter",
    "CodeWriter",
    "CompileNetworks",
    "DetectionTables",
    "HeatmapPictures",
    "MultilabelPredictions",
    "MultilabelWriter",
    "ProgressiveScale",
    "Report",
    "Results",
    "RetrievalPanel",
    "RunCSVLogger",
]
