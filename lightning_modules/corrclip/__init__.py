"""CorrCLIP: open-vocabulary segmentation without training; patches of CLIP look at patches of their region."""
