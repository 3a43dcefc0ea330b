"""DataModules of the suite: datasets in their real layouts, the generated world, cached features."""

from datamodules.coco import COCO
from datamodules.coco_boxes import CocoBoxes
from datamodules.dior import DIOR
from datamodules.dota import DOTA
from datamodules.features import FeatureCache
from datamodules.flickr import FlickrCaptions, MIRFlickr
from datamodules.multilabel import MultilabelData
from datamodules.paired_features import PairedFeatures
from datamodules.scenes import Scenes
from datamodules.segmentation import SegmentationBenchmark
from datamodules.segmentation_cub import Cub200
from datamodules.segmentation_folder import SegmentationFolder
from datamodules.segmentation_sets import SegmentationBenchmarks
from datamodules.voc import VOC

__all__ = [
    "COCO",
    "DIOR",
    "DOTA",
    "VOC",
    "CocoBoxes",
    "Cub200",
    "FeatureCache",
    "FlickrCaptions",
    "MIRFlickr",
    "MultilabelData",
    "PairedFeatures",
    "Scenes",
    "SegmentationBenchmark",
    "SegmentationBenchmarks",
    "SegmentationFolder",
]
