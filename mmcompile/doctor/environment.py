"""What of the environment is here, what is missing and what that costs.

Works where nearly everything is missing: it imports nothing that it looks for.
"""

from __future__ import annotations

from mmcompile.backends.registry import BACKENDS
from mmcompile.doctor import libraries, machine, packages
from mmcompile.finding import Finding


def examine() -> tuple[Finding, ...]:
    """Looks at packages, compilers, the GPU, the compiled libraries, back ends and the caches."""
    gpu, facts = machine.gpu()
    return (
        *packages.examine(),
        *machine.compilers(),
        machine.driver(facts),
        gpu,
        machine.clocks(facts),
        libraries.kernels(facts),
        libraries.plugin(),
        *(finding for backend in BACKENDS.values() for finding in backend.examine()),
        machine.cache(),
    )
