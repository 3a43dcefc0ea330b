"""DataModules of the suite: datasets in their real layouts, the generated world, cached features."""

from datamodules.coco import COCO
from datamodules.features import FeatureCache
from datamodules.flickr import FlickrCaptions, MIRFlickr
from datamodules.paired_features import PairedFeatures
from datamodules.scenes import Scenes

__all__ = ["COCO", "FeatureCache", "FlickrCaptions", "MIRFlickr", "PairedFeatures", "Scenes"]
