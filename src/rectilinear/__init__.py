"""Measure how linear each block of a transformer decoder is."""

__version__ = "0.1.0.dev0"
