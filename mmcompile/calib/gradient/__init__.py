"""Gradients of a bare ONNX model, without a training framework.

`differentiate` turns a model into one whose outputs are gradients; `collect_gradients` runs that
over samples and keeps the token rows that are asked for. The rules by which operators are
differentiated are in `table` and the modules that it lists.
"""

from mmcompile.calib.gradient.collect import Draw, GradientRows, collect_gradients
from mmcompile.calib.gradient.differentiate import GradientGraph, differentiate

__all__ = ["Draw", "GradientGraph", "GradientRows", "collect_gradients", "differentiate"]
