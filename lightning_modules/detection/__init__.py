"""Trainable detectors, and the mining of the images that they find hard."""
