"""All checks, in the order in which they run."""

from __future__ import annotations

from tests.gpu import (
    argument_checks,
    gemm_checks,
    linear_checks,
    quantize_checks,
    sanitizer_checks,
    stream_checks,
)

CHECKS = [
    *argument_checks.CHECKS,
    *quantize_checks.CHECKS,
    *gemm_checks.CHECKS,
    *linear_checks.CHECKS,
    *stream_checks.CHECKS,
    *sanitizer_checks.CHECKS,
    *quantize_checks.LAST_CHECKS,
]
