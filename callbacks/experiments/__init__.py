"""Experiments of many runs: cross-validation, ablation, and what is made of their result files.

Each run is a process of its own (``jobs``), so nothing can pass from one fold to the next. Nothing is imported here:
``--help`` imports this package.
"""
