"""Every check as a pytest test; see tests/gpu/__init__.py."""

import pytest

from tests.gpu.check import Check
from tests.gpu.checks import CHECKS
from tests.gpu.machine import Machine, Skipped, Unavailable, open_machine


@pytest.fixture(scope="module")
def machine() -> Machine:
    try:
        opened = open_machine()
    except Unavailable as reason:
        pytest.skip(str(reason))
    return opened


@pytest.mark.parametrize("check", CHECKS, ids=[check.name for check in CHECKS])
def test_kernels(machine: Machine, check: Check) -> None:
    try:
        check.run(machine)
    except Skipped as reason:
        pytest.skip(str(reason))
