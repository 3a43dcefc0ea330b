"""Tests; a package, because other distributions install a ``tests`` of their own that would be found instead."""
