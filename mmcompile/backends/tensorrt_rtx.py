"""The back end `tensorrt-rtx`: engines by TensorRT for RTX, built without their GPU.

Three things tell it from TensorRT besides data. It builds for a GPU by its compute capability, and
measures nothing. Its parser opens a library by a name that NVIDIA's packages lack, and ends the
process where that is not found: the plugin library provides the name, and the process is one of
its own. And an engine can only be loaded where there is a driver: elsewhere that is a fault of
memory, so that inputs and outputs are compared in the network that the engine is built of.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from mmcompile.backends.engines.backend import EngineBackend
from mmcompile.backends.engines.meta import BundleMeta
from mmcompile.backends.engines.plugin import LIBRARY
from mmcompile.backends.engines.product import Product
from mmcompile.backends.engines.shapes import polygraphy_shapes
from mmcompile.backends.protocol import Step
from mmcompile.finding import Finding, looked_for
from mmcompile.output import MODEL_FILE

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
    capabilities=(75, 80, 86, 89, 120, 121),
    ahead_of_time=True,
    isolated=True,
)
LIBRARIES = "tensorrt_rtx_libs"
"""The package of its libraries."""
NAME = "libtensorrt_rtx.so"
"""What its parser opens."""


class TensorRTRTXBackend(EngineBackend):
    """TensorRT-RTX, with polygraphy for a tool."""

    def steps(self, bundle: BundleMeta) -> Sequence[Step]:
        """polygraphy, which can build without a GPU but not run."""
        if not self.product.serves(bundle.target):
            return ()
        return (
            Step(
                "polygraphy-rtx", "an engine by TensorRT-RTX: needs no GPU", (_polygraphy(bundle),)
            ),
        )

    def examine(self) -> Sequence[Finding]:
        """Besides the package, whether its libraries have the name that its parser opens."""
        found = importlib.util.find_spec(LIBRARIES)
        folders = found.submodule_search_locations if found is not None else None
        names = [_name(Path(folder)) for folder in folders or ()]
        return (*super().examine(), *names)


BACKEND = TensorRTRTXBackend(PRODUCT)


def _name(folder: Path) -> Finding:
    """Whether the name that the parser opens stands for the library in a folder."""
    library = next(iter(sorted(folder.glob(f"{NAME}.*"))), folder / f"{NAME}.1")
    here, missing = looked_for(
        NAME,
        "other plugins end the process that builds; ours brings the name itself",
        f"ln -s {library.name} {folder / NAME}",
    )
    link = folder / NAME
    # A copy would be a second TensorRT-RTX in the process, which it refuses.
    if link.exists() and library.exists() and link.samefile(library):
        return here(str(link))
    return missing(f"a copy of {library}" if link.exists() else f"not beside {library}")


def _polygraphy(bundle: BundleMeta) -> str:
    choices = bundle.choices
    number = int(bundle.target.removeprefix("sm_"))
    parts = ["POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy convert", MODEL_FILE, "--convert-to trt"]
    parts.append(f"--plugins ./{LIBRARY}")
    parts.append(f"--compute-capabilities {number // 10}.{number % 10}")
    for profile in choices.profiles:
        parts += polygraphy_shapes(profile)
    if choices.optimization_level is not None:
        parts.append(f"--builder-optimization-level {choices.optimization_level}")
    if choices.workspace_bytes is not None:
        parts.append(f"--pool-limit workspace:{choices.workspace_bytes}")
    if choices.weight_streaming:
        parts.append("--weight-streaming")
    return " ".join([*parts, "-o polygraphy-rtx.plan"])
