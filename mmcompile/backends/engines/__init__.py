"""Engines: what TensorRT needs to build one, what it says, and what goes with the result.

`engine.build_engine` builds; `bundle` holds everything ready for a machine that can. All of
TensorRT's API is reached through `api`.
"""
