"""Stock baselines as graphs: the same model in FP16, FP8, MXFP8 or NVFP4 (docs/baselines.md).

Strongly typed TensorRT takes precision from the graph, so that what a MicroMix engine is compared
with has to be written into a graph, too. The same linears are quantized as for MicroMix; all else
is float16 in every baseline.
"""

from mmcompile.model.passes.baselines.kinds import KINDS, Kind
from mmcompile.model.passes.baselines.write import BaselineResult, write_baseline

__all__ = ["KINDS", "BaselineResult", "Kind", "write_baseline"]
