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
from datamodules.segmentation import SegmentationBenchmark, SegmentationFolder
from datamodules.voc import VOC

__all__ = [
    "COCO",
    "DIOR",
    "DOTA",
    "VOC",
    "CocoBoxes",
    "FeatureCache",
    "FlickrCaptions",
    "MIRFlickr",
    "MultilabelData",
    "PairedFeatures",
    "Scenes",
    "SegmentationBenchmark",
    "SegmentationFolder",
]
