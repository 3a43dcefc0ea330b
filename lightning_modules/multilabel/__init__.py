"""Multi-label hashing of image-text pairs: fusion, hash layer, and a classifier or the votes of neighbours."""
