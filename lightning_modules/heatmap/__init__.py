"""CLIP similarity maps as detectors: dense paths, surgery, thresholds, boxes, diagnosis."""
