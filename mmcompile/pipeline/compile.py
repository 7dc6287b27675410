"""`compile_model`: the whole way from an ONNX model to a verified, packed one."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import onnx

from mmcompile.backends.engines.bundle import SCRIPT_FILE
from mmcompile.backends.engines.interface import check_model, model_interface
from mmcompile.backends.engines.meta import BUILD_FILE
from mmcompile.backends.engines.plugin import LIBRARY
from mmcompile.errors import VerificationError
from mmcompile.model.passes.pending import Pending, write_weights
from mmcompile.model.passes.rewrite_linears import packed_names, rewrite_linears
from mmcompile.model.rest import Rest
from mmcompile.model.sites import SiteGroup
from mmcompile.model.source import load_model
from mmcompile.model.writer import ModelWriter
from mmcompile.output import DATA_FILE, MODEL_FILE, StagedOutput, disk_errors
from mmcompile.packed import PackedLinear
from mmcompile.pipeline.decision import Decision, decide, take_plan
from mmcompile.pipeline.delivery import deliver, engine_files, finish_triton, prepare_delivery
from mmcompile.pipeline.files import FAILED, PLAN_FILE, REPORT_HTML, REPORT_JSON, check_name
from mmcompile.pipeline.forecast import model_bytes
from mmcompile.pipeline.options import CompileOptions, CompileResult
from mmcompile.pipeline.prepare import Prepared
from mmcompile.pipeline.reporting import LayerFigures, Outcome, build_report
from mmcompile.pipeline.rest import RestDone, check_rest, halve_rest, plan_rest, with_islands
from mmcompile.pipeline.run import Run, Settings, start_run
from mmcompile.pipeline.verification import Evidence, check_demands, shortfall, verify_models
from mmcompile.pipeline.weights import WeightInputs, weights_of
from mmcompile.plan import GroupPlan, QuantPlan, dump_plan, load_plan
from mmcompile.progress import Progress, Silent
from mmcompile.report.html import render_html
from mmcompile.report.model import Report, VerificationReport, write_json
from mmcompile.targets.names import parse_target
from mmcompile.verification.nodes import layer_error
from mmcompile.weights.pack import pack_group

Graph = tuple[onnx.ModelProto, Pending]
"""A graph, and those of its weights that are made when they are written."""


def compile_model(
    path: str | Path, options: CompileOptions | None = None, progress: Progress | None = None
) -> CompileResult:
    """Compiles a model.

    Args:
        path: the ONNX model.
        options: what to do; the default policy needs `data.calibration` or `plan`.
        progress: told how far the stages are.

    Returns:
        The plan, the report and the files in `options.output`. With `dry_run` nothing is written.

    Raises:
        MMCompileError: with the code, the place, the reason and the remedy. Nothing is left half
            written, and earlier output is intact.
    """
    options = options or CompileOptions()
    check_name(options.output)
    given = None if options.plan is None else load_plan(options.plan)
    settings = Settings(
        parse_target(options.gpu), options.selection, options.effort, progress or Silent()
    )
    run = start_run(Path(path), options.data, settings)
    prepared, inputs = run.prepared, run.inputs
    check_demands(prepared, inputs.held_back, options.verify)
    check_rest(prepared, options.rest)
    interface = model_interface(prepared.source.proto)
    handover = prepare_delivery(
        interface,
        options.build,
        inputs.calibration or inputs.held_back,
        run.target.name,
        prepared.source.path,
    )
    policy = options.policy.name if given is None else given.policy
    sampled = weights_of(run, options.weights, policy)
    rounding = (sampled.method, sampled.reason)
    if options.dry_run:
        with sampled:
            decision = _decide(run, options, given, sampled)
        size, rest = model_bytes(prepared, decision.decided, options.rest)
        outcome = Outcome(run.watch.seconds, size, rest.info(), weights=rounding)
        return CompileResult(decision.plan, build_report(run, decision, options, outcome), ())
    with StagedOutput(options.output, protect=prepared.source.files) as stage, sampled:
        decision = _decide(run, options, given, sampled)
        rest, graph = _rewrite(run, decision, options.rest)
        with run.watch.stage("pack"):
            figures = _write(run, decision, graph, stage.folder, sampled)
        written = onnx.load(stage.folder / MODEL_FILE, load_external_data=False)
        check_model(interface, model_interface(written), options.output / MODEL_FILE)
        verification = None
        if options.verify.enabled:
            with run.watch.stage("verify"):
                rows, alone = decision.sampled_rows, rest.plan.alone
                evidence = Evidence(inputs.held_back, inputs.disjoint, rows, alone)
                compiled = load_model(stage.folder / MODEL_FILE)
                verification = verify_models(
                    prepared, compiled, evidence, options.verify, run.progress
                )
        size = sum(file.stat().st_size for file in stage.folder.iterdir())
        _write_plan(decision.plan, stage.folder)
        delivery = None
        if verification is None or verification.passed:
            with run.watch.stage("build"):
                delivery = deliver(stage.folder, options.output, handover, options.build)
        outcome = Outcome(
            run.watch.seconds, size, rest.info(), figures, verification, delivery, rounding
        )
        report = build_report(run, decision, options, outcome)
        _write_report(report, stage.folder, options.html)
        if delivery is None:
            assert verification is not None
            _refuse(stage, verification)
        files = stage.commit()
        _remove_stale(options.output, files)
    files += finish_triton(options.output, delivery, options.build)
    name = None if delivery.engine is None else delivery.engine.engine.name
    engine = next((path for path in files if path.name == name), None)
    return CompileResult(decision.plan, report, files, engine)


def _decide(
    run: Run, options: CompileOptions, given: QuantPlan | None, sampled: WeightInputs
) -> Decision:
    """The plan that was given, or that of the policy."""
    if given is not None:
        assert options.plan is not None
        return take_plan(run, given, options.plan)
    return decide(run, options.policy, sampled, takes_rows=not options.dry_run)


def _rewrite(run: Run, decision: Decision, asked: Rest | None) -> tuple[RestDone, Graph]:
    """The graph of the compiled model, of whose weights none is written yet."""
    decided = decision.decided
    with run.watch.stage("rest"):
        rest = with_islands(plan_rest(run.prepared, asked, decided), run)
    with run.watch.stage("rewrite"):
        rewritten = rewrite_linears(run.prepared.source.proto, decided)
        done = halve_rest(rest, run.prepared, rewritten, decided)
    return done, (rewritten, done.pending)


def _write(
    run: Run,
    decision: Decision,
    graph: Graph,
    folder: Path,
    sampled: WeightInputs,
) -> dict[str, LayerFigures]:
    """Packs group by group into the data file, copies what is unchanged, writes the graph."""
    figures = {}
    prepared = run.prepared
    rewritten, pending = graph
    sampled.collect()
    with ModelWriter(folder) as writer:
        pairs = decision.decided
        for sites, plan in run.progress.track(pairs, "packing", len(pairs)):
            packed = pack_group(sites, plan, prepared.source, sampled(sites))
            for name, array in zip(packed_names(plan.name), packed.constants(), strict=True):
                writer.add(name, array)
            figures[plan.name] = _measure(prepared, decision, sites, plan, packed)
        write_weights(writer, rewritten, prepared.source, pending)
        writer.finish(rewritten)
    return figures


def _measure(
    prepared: Prepared,
    decision: Decision,
    sites: SiteGroup,
    plan: GroupPlan,
    packed: PackedLinear,
) -> LayerFigures:
    rows = decision.rows(sites)
    error = None if rows is None else layer_error(sites, plan, packed, rows, prepared.source)
    return LayerFigures(
        weight_sqnr_db=packed.weight_sqnr_db,
        output_sqnr_db=error.output_sqnr_db if error else None,
        output_cosine=error.output_cosine if error else None,
        rounding=packed.rounding,
    )


def _write_plan(plan: QuantPlan, folder: Path) -> None:
    with disk_errors(folder):
        (folder / PLAN_FILE).write_text(dump_plan(plan), encoding="utf-8")


def _write_report(report: Report, folder: Path, html: bool) -> None:
    write_json(report, folder / REPORT_JSON)
    if html:
        page = render_html(report)
        with disk_errors(folder):
            (folder / REPORT_HTML).write_text(page, encoding="utf-8")


def _remove_stale(folder: Path, written: tuple[Path, ...]) -> None:
    """Removes what an earlier run left and this one did not write: it speaks of another model."""
    own: tuple[str, ...] = (DATA_FILE, REPORT_HTML, FAILED + REPORT_JSON, FAILED + REPORT_HTML)
    own += (*engine_files(), BUILD_FILE, SCRIPT_FILE, LIBRARY)
    with disk_errors(folder):
        for path in {folder.absolute() / name for name in own}.difference(written):
            path.unlink(missing_ok=True)


def _refuse(stage: StagedOutput, verification: VerificationReport) -> NoReturn:
    """Keeps the report of a model that fails, but not the model.

    Raises:
        VerificationError: always.
    """
    with disk_errors(stage.folder):
        for file in tuple(stage.folder.iterdir()):
            if file.name in (REPORT_JSON, REPORT_HTML):
                file.rename(file.with_name(FAILED + file.name))
            else:
                file.unlink()
    kept = stage.commit()
    where, reason, remedy = shortfall(verification)
    raise VerificationError("verification-failed", where, reason, f"see {kept[0]}; {remedy}")
