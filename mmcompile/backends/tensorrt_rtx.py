"""The back end `tensorrt-rtx`: engines by TensorRT for RTX, ahead of time where no GPU is here."""

from __future__ import annotations

from mmcompile.backends.engines.backend import EngineBackend
from mmcompile.backends.engines.product import Product

PRODUCT = Product(
    backend="tensorrt-rtx",
    title="TensorRT-RTX",
    module="tensorrt_rtx",
    runtimes=("tensorrt_rtx",),
    registries=("tensorrt_rtx",),
    distributions=("tensorrt_rtx", "tensorrt_rtx_cu13", "tensorrt_rtx_cu12"),
    install="pip install 'mmcompile[rtx]'",
    # Its parser takes plugin nodes from 1.7 on.
    oldest=(1, 7),
    newest_major=1,
    targets=("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121"),
    ahead_of_time=True,
    isolated=True,
)


BACKEND = EngineBackend(PRODUCT)
