"""Polygraphy's ONNX Runtime runner, for numpy arrays only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
from polygraphy import util
from polygraphy.backend.onnxrt import OnnxrtRunner


class ArrayRunner(OnnxrtRunner):  # type: ignore[misc]
    """An `OnnxrtRunner` that does not ask whether its inputs are PyTorch tensors.

    Asking imports PyTorch wherever it is installed: seconds and hundreds of megabytes.
    """

    @util.check_called_by("infer")  # type: ignore[untyped-decorator]
    def infer_impl(self, feed_dict: Mapping[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
        """Runs the session; returns its outputs by name."""
        names = [output.name for output in self.sess.get_outputs()]
        return OrderedDict(zip(names, self.sess.run(names, dict(feed_dict)), strict=True))
