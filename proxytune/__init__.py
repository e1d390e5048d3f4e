"""Fuse the logits of small tuned models into a large untuned one, and measure what that gives."""

__version__ = "0.1.0"
