"""Every check as a pytest test; see tests/gpu/__init__.py."""

import pytest

from mmcompile.cuda.layers import Place
from mmcompile.doctor.trial import Check, Skipped
from tests.gpu.checks import CHECKS
from tests.gpu.place import Unavailable, find_place


@pytest.fixture(scope="module")
def place() -> Place:
    try:
        return find_place()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("check", CHECKS, ids=[check.name for check in CHECKS])
def test_kernels(place: Place, check: Check) -> None:
    try:
        results = check.run(place)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert not [f"{result.name}: {result.detail}" for result in results if not result.passed]
