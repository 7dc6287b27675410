"""`mmcompile verify`: a compiled model or engine against the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mmcompile.cli.generated import FILE
from mmcompile.cli.help import SectionedCommand
from mmcompile.cli.options import (
    json_option,
    make_data,
    make_progress,
    make_verify,
    text_options,
    verify_options,
)


@click.command(
    "verify", cls=SectionedCommand, short_help="Compare a compiled model with its original."
)
@click.argument("original", type=FILE)
@click.argument("compiled", type=FILE)
@click.option(
    "--data", "verify_data", metavar="DATA", required=True, help="Inputs, like compile's --calib."
)
@click.option(
    "--against",
    type=FILE,
    metavar="ENGINE",
    help="Also run this engine.plan on the GPU and compare it with both models.",
)
@text_options
@verify_options
@json_option
def verify_command(
    original: Path, compiled: Path, against: Path | None, as_json: bool, **values: Any
) -> int:
    """Compare COMPILED with ORIGINAL in ONNX Runtime; exit code 5 if --fail-below is missed.

    With --against, an engine is compared with both, on the GPU that it was built for; --layers
    then builds a second engine that gives out every layer.
    """
    from mmcompile.cli.console import print_json
    from mmcompile.cli.tables import print_verification
    from mmcompile.errors import ExitCode
    from mmcompile.pipeline.verification import verify_files

    data = make_data(values, samples=values["verify_samples"])
    options, progress = make_verify(values), make_progress(as_json)
    if against is None:
        reports = [verify_files(original, compiled, data, options, progress)]
    else:
        from mmcompile.pipeline.against import verify_engine

        reports = list(verify_engine(original, compiled, against, data, options, progress))
    if as_json:
        print_json(reports[0] if against is None else reports)
    else:
        for report in reports:
            print_verification(report)
    passed = all(report.passed for report in reports)
    return ExitCode.OK if passed else ExitCode.VERIFICATION_FAILED
