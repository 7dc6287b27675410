"""Weights: rounding to nearest and with error feedback, and packing into the kernels' layout."""
