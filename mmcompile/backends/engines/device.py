"""The GPU of this machine, as engines are bound to it."""

from __future__ import annotations

import msgspec

from mmcompile.cuda.driver import Driver


class Device(msgspec.Struct, frozen=True):
    """A GPU.

    Attributes:
        name: as the driver calls it.
        architecture: compute capability as in `sm_120`.
        memory_bytes: its memory.
        cuda: newest CUDA version that the driver supports, e.g. `13.0`.
    """

    name: str
    architecture: str
    memory_bytes: int
    cuda: str


def read_device(ordinal: int = 0) -> Device:
    """The GPU of that ordinal, as CUDA_VISIBLE_DEVICES numbers them.

    Raises:
        EnvironmentProblem: there is no driver, or no such GPU.
    """
    facts = Driver(ordinal).facts()
    return Device(
        name=facts.name,
        architecture=f"sm_{facts.architecture}",
        memory_bytes=facts.memory_bytes,
        cuda=facts.driver,
    )
