"""The commands, each in a file of its own: a thin layer over the API."""

from __future__ import annotations

import click

from mmcompile import __version__
from mmcompile.cli.analyze import analyze_command
from mmcompile.cli.bench import bench_command
from mmcompile.cli.build import build_command
from mmcompile.cli.calibrate import calibrate_command
from mmcompile.cli.compile import compile_command
from mmcompile.cli.diff import diff_command
from mmcompile.cli.doctor import doctor_command
from mmcompile.cli.export import export_command
from mmcompile.cli.help import DefaultGroup
from mmcompile.cli.inspect import inspect_command
from mmcompile.cli.report import report_command
from mmcompile.cli.verify import verify_command


@click.group(
    cls=DefaultGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="mmcompile %(version)s")
def cli() -> None:
    """Compiles the linear layers of an ONNX model to mixed NVFP4, MXFP4, MXFP6 and MXFP8.

    The result is an ONNX model with the same inputs and outputs, its plan and a report. It runs in
    ONNX Runtime as it is. `mmcompile COMMAND --help` tells more about a command.
    """


for _command in (
    compile_command,
    build_command,
    export_command,
    inspect_command,
    calibrate_command,
    diff_command,
    verify_command,
    report_command,
    analyze_command,
    bench_command,
    doctor_command,
):
    cli.add_command(_command)
