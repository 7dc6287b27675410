"""Cuts padding tokens off the ends of a sample, so that they never enter the runtime.

Padding would be counted in the statistics like real tokens and can dominate them. Where the
sequence is dynamic it need not be there at all. What cannot be cut (fixed shapes, holes in the
middle) stays, and the collector leaves the rows of masked tokens out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmcompile.data.sample import InputSpec, Sample

MASK = "attention_mask"


def trim_padding(sample: Sample, specs: Sequence[InputSpec]) -> Sample:
    """The sample without the masked positions at the left and right end of the sequence.

    The mask is the input `attention_mask` of shape [1, S], ones (keep) and zeros (padding). The
    sequence axis of another input is one that is dynamic, of size S, and has the mask's symbol or
    stands at index 1. The sample comes back as it is wherever an axis could be the sequence
    without being known to be it: then cutting would feed inputs that do not belong together.

    Args:
        sample: one feed of batch 1.
        specs: the model's inputs.

    Returns:
        A sample of views, or `sample` itself where there is nothing to cut.
    """
    spec = next((spec for spec in specs if spec.name == MASK), None)
    if spec is None or len(spec.shape) != 2 or sample[MASK].shape[0] != 1:
        return sample
    mask = sample[MASK][0]
    kept = np.flatnonzero(mask != 0)
    zeros_and_ones = bool(np.all((mask == 0) | (mask == 1)))
    if not zeros_and_ones or kept.size == 0 or kept[-1] - kept[0] + 1 == mask.size:
        return sample
    axes: dict[str, list[int]] = {}
    for other in specs:
        found = _sequence_axes(sample[other.name].shape, other, spec.shape[1], mask.size)
        if found is None:
            return sample
        axes[other.name] = found
    keep = slice(int(kept[0]), int(kept[-1]) + 1)
    trimmed: Sample = {}
    for name, array in sample.items():
        index = tuple(keep if axis in axes[name] else slice(None) for axis in range(array.ndim))
        trimmed[name] = array[index]
    return trimmed


def _sequence_axes(
    shape: tuple[int, ...], spec: InputSpec, symbol: int | str | None, length: int
) -> list[int] | None:
    """The axes to cut, or None where the input forbids the cut.

    A fixed second axis of that size may be the sequence. So may any dynamic axis of that size
    under another name. A dynamic second axis of another size in a [1, x] input says that the mask
    covers more than these tokens (a cache's past).
    """
    axes = []
    for axis, (size, dim) in enumerate(zip(shape, spec.shape, strict=True)):
        dynamic = not isinstance(dim, int)
        if size == length:
            if dynamic and (axis == 1 or (dim is not None and dim == symbol)):
                axes.append(axis)
            elif dynamic or axis == 1:
                return None
        elif dynamic and axis == 1 and len(shape) == 2:
            return None
    return axes
