"""`compile_model`: the whole way from an ONNX model to a verified, packed one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import onnx

from mmcompile.calib.policy import make_plan
from mmcompile.errors import VerificationError
from mmcompile.graph import ModelWriter, load_model
from mmcompile.output import MODEL_FILE, StagedOutput, disk_errors
from mmcompile.pack import pack_group
from mmcompile.packed import PackedLinear
from mmcompile.passes.rewrite_linears import packed_names, rewrite_linears
from mmcompile.pipeline.calibrate import calibrated, open_inputs
from mmcompile.pipeline.decision import Decision
from mmcompile.pipeline.options import CompileOptions, CompileResult
from mmcompile.pipeline.prepare import Prepared, match_plan, prepare
from mmcompile.pipeline.reporting import LayerFigures, build_report
from mmcompile.pipeline.verification import Evidence, verify_models
from mmcompile.plan import GroupPlan, QuantPlan, dump_plan, load_plan
from mmcompile.progress import Progress, Silent
from mmcompile.report.html import render_html
from mmcompile.report.model import Report, VerificationReport, write_json
from mmcompile.sites import SiteGroup
from mmcompile.target import parse_target
from mmcompile.verify.nodes import layer_error

PLAN_FILE = "plan.json"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"


@dataclass
class Stopwatch:
    """Wall-clock seconds of named stages, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the block as one stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def compile_model(
    path: str | Path, options: CompileOptions | None = None, progress: Progress | None = None
) -> CompileResult:
    """Compiles a model.

    Args:
        path: the ONNX model.
        options: what to do; the defaults need `data.calibration` or `plan`.
        progress: told how far the stages are.

    Returns:
        The plan, the report and the files in `options.output`. With `dry_run` nothing is written.

    Raises:
        MMCompileError: with the code, the place, the reason and the remedy. Nothing is left half
            written, and earlier output is intact.
    """
    options = options or CompileOptions()
    progress = progress or Silent()
    target = parse_target(options.gpu)
    watch = Stopwatch()
    with watch.stage("load"):
        prepared = prepare(Path(path), options.selection)
    decision = _decide(prepared, options, progress, watch)
    if options.dry_run:
        report = build_report(prepared, decision, target, options, {}, None, watch.seconds, 0)
        return CompileResult(decision.plan, report, (), passed=True)
    with StagedOutput(options.output, protect=prepared.source.files) as stage:
        with watch.stage("rewrite"):
            rewritten = rewrite_linears(prepared.source.proto, decision.decided)
        with watch.stage("pack"):
            figures = _write(prepared, decision, rewritten, stage.folder, progress)
        verification = None
        if options.verify.enabled:
            with watch.stage("verify"):
                evidence = Evidence(
                    decision.inputs.held_back, decision.inputs.disjoint, decision.sampled_rows
                )
                compiled = load_model(stage.folder / MODEL_FILE)
                verification = verify_models(
                    prepared, compiled, evidence, options.verify, progress
                )
        size = sum(file.stat().st_size for file in stage.folder.iterdir())
        report = build_report(
            prepared, decision, target, options, figures, verification, watch.seconds, size
        )
        _write_documents(decision.plan, report, stage.folder, options.html)
        if verification is not None and not verification.passed:
            _refuse(stage, verification)
        files = stage.commit()
    return CompileResult(decision.plan, report, files, passed=True)


def _decide(
    prepared: Prepared, options: CompileOptions, progress: Progress, watch: Stopwatch
) -> Decision:
    """The plan that was given, or one made from calibration data."""
    inputs = open_inputs(prepared, options.data)
    if options.plan is not None:
        given = load_plan(options.plan)
        decided, unplanned = match_plan(given, prepared, options.plan)
        left = (*prepared.left_alone, *unplanned)
        plan = QuantPlan(
            given.version,
            prepared.source.path.name,
            given.policy,
            given.parameters,
            given.calibration,
            tuple(group for _, group in decided),
            left,
        )
        return Decision(plan, decided, inputs, None, cached=False)
    with watch.stage("calibrate"):
        stats, cached = calibrated(
            prepared, inputs.calibration, options.policy.ratios, options.data.seed, progress
        )
    with watch.stage("plan"):
        plan = make_plan(
            prepared.groups, stats, options.policy, prepared.source, prepared.left_alone
        )
    decided = tuple(zip(prepared.groups, plan.groups, strict=True))
    return Decision(plan, decided, inputs, stats, cached)


def _write(
    prepared: Prepared,
    decision: Decision,
    rewritten: onnx.ModelProto,
    folder: Path,
    progress: Progress,
) -> dict[str, LayerFigures]:
    """Packs group by group into the data file, copies what is unchanged, writes the graph."""
    figures = {}
    weights = prepared.source.weights
    with ModelWriter(folder) as writer:
        pairs = decision.decided
        for sites, plan in progress.track(pairs, "packing", len(pairs)):
            packed = pack_group(sites, plan, prepared.source)
            arrays = (packed.order, packed.weight, packed.scales, packed.bias)
            for name, array in zip(packed_names(plan.name), arrays, strict=True):
                writer.add(name, array)
            figures[plan.name] = _measure(prepared, decision, sites, plan, packed)
        packed_tensors = {name for _, plan in pairs for name in packed_names(plan.name)}
        for tensor in rewritten.graph.initializer:
            reference = weights.ref(tensor.name)
            if reference is not None and tensor.name not in packed_tensors:
                writer.copy(reference)
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
    )


def _write_documents(plan: QuantPlan, report: Report, folder: Path, html: bool) -> None:
    with disk_errors(folder):
        (folder / PLAN_FILE).write_text(dump_plan(plan), encoding="utf-8")
    write_json(report, folder / REPORT_JSON)
    if html:
        page = render_html(report)
        with disk_errors(folder):
            (folder / REPORT_HTML).write_text(page, encoding="utf-8")


def _refuse(stage: StagedOutput, verification: VerificationReport) -> NoReturn:
    """Keeps the report of a model that fails, but not the model.

    Raises:
        VerificationError: always.
    """
    for file in tuple(stage.folder.iterdir()):
        if file.name in (REPORT_JSON, REPORT_HTML):
            file.rename(file.with_name(f"failed-{file.name}"))
        else:
            file.unlink()
    kept = stage.commit()
    worst = min(verification.outputs, key=lambda o: -1.0 if o.cosine_mean is None else o.cosine_mean)
    where = f"output {worst.name}"
    reason = f"cosine similarity {worst.cosine_mean}, demanded was {verification.threshold}"
    if verification.first_bad_layer:
        reason += f"; first bad layer: {verification.first_bad_layer}"
    shown = kept[0] if kept else "the report"
    remedy = f"see {shown}; use more bits, exclude layers, or lower --fail-below"
    raise VerificationError("verification-failed", where, reason, remedy)
