"""`mmcompile doctor`: what this machine has and lacks, and the self-test."""

from __future__ import annotations

from pathlib import Path

import click

from mmcompile.cli.generated import FILE
from mmcompile.cli.help import SectionedCommand
from mmcompile.cli.options import json_option, make_progress


@click.command(
    "doctor",
    cls=SectionedCommand,
    short_help="Say what this machine has, lacks, and what that costs.",
)
@click.option(
    "--selftest",
    is_flag=True,
    help="Run every kernel against the CPU tables: on the GPU, else in the emulator.",
)
@click.option("--quick", is_flag=True, help="With --selftest: leave out the rates.")
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    help="With --selftest: write the results as JSON, to send in.",
)
@json_option
def doctor_command(selftest: bool, quick: bool, output: Path | None, as_json: bool) -> int:
    """Say what this machine has and lacks, what that costs and what to do about it.

    The exit code is 4 if something is missing that nothing works without. With --selftest it is 5
    if a kernel disagrees with the CPU tables, 4 if nothing could be run.
    """
    from mmcompile.cli.console import print_json
    from mmcompile.cli.diagnosis import print_findings
    from mmcompile.doctor.environment import examine
    from mmcompile.errors import ExitCode

    if selftest:
        return _self_test(as_json, output, quick)
    if output is not None or quick:
        option = "--output" if output is not None else "--quick"
        raise click.UsageError(f"{option} needs --selftest")
    findings = examine()
    if as_json:
        print_json(findings)
    else:
        print_findings(findings)
    complete = all(finding.present or not finding.required for finding in findings)
    return ExitCode.OK if complete else ExitCode.ENVIRONMENT


def _self_test(as_json: bool, output: Path | None, quick: bool) -> int:
    import msgspec

    from mmcompile.cli.console import print_json
    from mmcompile.cli.selftest import print_self_test
    from mmcompile.doctor.selftest import self_test
    from mmcompile.errors import ExitCode
    from mmcompile.pipeline.files import check_target, write_text

    if output is not None:
        check_target(output)
    result = self_test(make_progress(as_json), quick=quick)
    if output is not None:
        packed = msgspec.json.format(msgspec.json.encode(result), indent=1)
        write_text(output, packed.decode() + "\n")
    if as_json:
        print_json(result)
    else:
        print_self_test(result)
    if output is not None:
        click.echo(f"wrote {output}", err=as_json)
    if result.passed:
        return ExitCode.OK
    ran = any(part.checks for part in result.parts)
    return ExitCode.VERIFICATION_FAILED if ran else ExitCode.ENVIRONMENT
