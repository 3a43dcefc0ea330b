"""What happens during a run: schedules, results, pictures, reports, loggers."""

from callbacks.benchmark_table import BenchmarkTable
from callbacks.box_writer import BoxWriter
from callbacks.compile_networks import CompileNetworks
from callbacks.hard_negative_mining import HardNegativeMining
from callbacks.heatmap_pictures import HeatmapPictures
from callbacks.loggers import RunCSVLogger
from callbacks.media import RetrievalPanel
from callbacks.multilabel_predictions import MultilabelPredictions
from callbacks.multilabel_writer import MultilabelWriter
from callbacks.prediction_writer import CodeWriter
from callbacks.progressive_scale import ProgressiveScale
from callbacks.real_time_mining import RealTimeMining
from callbacks.report import Report
from callbacks.result_tables import ResultTables
from callbacks.results import Results
from callbacks.segmentation_pictures import SegmentationPictures
from callbacks.segmentation_writer import SegmentationWriter
from callbacks.weight_average import AverageWeights

__all__ = [
    "AverageWeights",
    "BenchmarkTable",
    "BoxWriter",
    "CodeWriter",
    "CompileNetworks",
    "HardNegativeMining",
    "HeatmapPictures",
    "MultilabelPredictions",
    "MultilabelWriter",
    "ProgressiveScale",
    "RealTimeMining",
    "Report",
    "ResultTables",
    "Results",
    "RetrievalPanel",
    "RunCSVLogger",
    "SegmentationPictures",
    "SegmentationWriter",
]
