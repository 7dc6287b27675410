"""Names of the array types that signatures speak of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]
