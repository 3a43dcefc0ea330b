"""A web page that segments the pictures that are dropped on it, by the classes that are typed."""

from callbacks.segmentation_app.page import serve

__all__ = ["serve"]
