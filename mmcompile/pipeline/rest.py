"""All but the compiled linears, in half precision: in which type, and what stays in float32."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from mmcompile.calib.magnitudes import largest_magnitudes
from mmcompile.data.dataset import trim_padding
from mmcompile.errors import UnsupportedModelError
from mmcompile.model.passes.half import main_type, to_half
from mmcompile.model.passes.half_rules import REASONS, Halving
from mmcompile.model.passes.half_types import BF16, FP16, HALF_TYPES
from mmcompile.model.passes.pending import Pending
from mmcompile.model.passes.rest_only import RestOnly, rest_only
from mmcompile.model.passes.rewrite_linears import inner_names
from mmcompile.model.rest import Rest
from mmcompile.model.sites import LinearSite, SiteGroup
from mmcompile.pipeline.prepare import Prepared
from mmcompile.pipeline.run import Run
from mmcompile.plan import GroupPlan
from mmcompile.report.model import Island, RestInfo

Decided = Sequence[tuple[SiteGroup, GroupPlan]]
SAMPLES = 8
"""Samples that magnitudes are taken from. Numbers beyond float16's range come from a few channels
of a few tokens, as the first of a text, and are there in every sample."""
HEADROOM = 2.0
"""A tensor whose largest number was within this factor of the range's end stays in float32."""


@dataclass(frozen=True)
class RestPlan:
    """What is to become of all but the compiled linears.

    Attributes:
        halving: the type, what becomes it, and the tensors that stay in float32 for their numbers;
            None keeps the graph as it is.
        dtype: the type that most of it computes in afterwards, by numpy's name.
        reason: why.
        sites: the linears that are compiled.
        alone: the original with this step alone; None where nothing changes.
        samples: how many samples such numbers were looked for in.
        notes: what the reader of the report should know.
    """

    halving: Halving | None
    dtype: str
    reason: str
    sites: tuple[LinearSite, ...] = ()
    alone: RestOnly | None = None
    samples: int = 0
    notes: tuple[str, ...] = ()


def plan_rest(prepared: Prepared, asked: Rest | None, decided: Decided) -> RestPlan:
    """Chooses the type: float16, or bfloat16 for a model that computes in it, unless asked for.

    Args:
        prepared: the model.
        asked: by the user; None leaves it open.
        decided: what is compiled.

    Raises:
        UnsupportedModelError: a type was asked for that the model cannot be turned into.
    """
    main = main_type(site for group in prepared.groups for site in group.sites)
    before = onnx.helper.tensor_dtype_to_np_dtype(main).name
    if asked is Rest.KEEP:
        return RestPlan(None, before, "kept as it was, as asked for")
    half = HALF_TYPES[asked] if asked else (BF16 if main == BF16.elem_type else FP16)
    if main == half.elem_type:
        return RestPlan(None, before, f"the model computes in {before}, and was left as it is")
    sites = tuple(site for group, _ in decided for site in group.sites)
    try:
        alone = rest_only(prepared.source, sites, Halving(half, main))
    except UnsupportedModelError as error:
        if asked:
            raise
        return RestPlan(None, before, f"kept as it was: {error.where}: {error.reason}")
    reason = "asked for" if asked else "the default"
    unseen = ("whether all numbers fit float16 was not measured",) if half is FP16 else ()
    return RestPlan(Halving(half, main), half.dtype, reason, sites, alone, notes=unseen)


def check_rest(prepared: Prepared, asked: Rest | None) -> None:
    """Refuses, before any work is done, a type that the model cannot be turned into.

    Raises:
        UnsupportedModelError: it was asked for.
    """
    if asked is not None:
        plan_rest(prepared, asked, ())


def with_islands(plan: RestPlan, run: Run) -> RestPlan:
    """The plan with the tensors that half precision could not hold, by runs of the model.

    bfloat16 has float32's range and needs none.

    Raises:
        UsageError: a sample does not fit the model.
        UnsupportedModelError: the model cannot run.
    """
    halving, prepared = plan.halving, run.prepared
    data = run.inputs.calibration or run.inputs.held_back
    if plan.alone is None or halving is None or halving.half is not FP16 or data is None:
        return plan
    specs = run.execution.specs
    samples = [trim_padding(sample, specs) for sample in itertools.islice(data, SAMPLES)]
    names = plan.alone.halved.tensors
    found = largest_magnitudes(
        plan.alone.in_float32(rounded=False),
        prepared.source.folder,
        list(names.values()),
        run.progress.track(samples, "measuring magnitudes"),
    )
    limit = FP16.largest / HEADROOM
    beyond = frozenset(name for name, version in names.items() if found[version] > limit)
    if not beyond:
        return dataclasses.replace(plan, samples=len(samples), notes=())
    largest = max(beyond, key=lambda name: found[names[name]])
    note = (
        f"{len(beyond)} tensors hold numbers that float16 cannot, or nearly so "
        f"({largest}: {found[names[largest]]:.3g}), and stay in float32; bfloat16 has the range "
        "(--rest bf16)"
    )
    halving = dataclasses.replace(halving, beyond=beyond)
    alone = rest_only(prepared.source, plan.sites, halving)
    return dataclasses.replace(
        plan, halving=halving, alone=alone, samples=len(samples), notes=(note,)
    )


@dataclass(frozen=True)
class RestDone:
    """What became of the rest of a compiled graph.

    Attributes:
        plan: what was planned.
        pending: the weights that are to be converted, and notes; more come when they are.
        nodes: nodes of the rest that compute on floats.
        islands: how many of them stay in float32, by reason.
    """

    plan: RestPlan
    pending: Pending
    nodes: int = 0
    islands: Counter[str] = dataclasses.field(default_factory=Counter)

    def info(self) -> RestInfo:
        """For the report."""
        return RestInfo(
            dtype=self.plan.dtype,
            reason=self.plan.reason,
            nodes=self.nodes,
            islands=tuple(
                Island(code=code, reason=REASONS[code], nodes=count)
                for code, count in self.islands.most_common()
            ),
            beyond=tuple(sorted(self.plan.halving.beyond)) if self.plan.halving else (),
            samples=self.plan.samples,
            notes=(*self.plan.notes, *self.pending.notes),
        )


def halve_rest(
    plan: RestPlan, prepared: Prepared, rewritten: onnx.ModelProto, decided: Decided
) -> RestDone:
    """Carries out the plan on a rewritten graph, in place."""
    pending = Pending()
    if plan.halving is None:
        return RestDone(plan, pending)
    beyond = set(plan.halving.beyond)
    for sites, group in decided:
        upright, merged = inner_names(group.name)
        if sites.input in beyond:
            beyond.add(upright)
        if not beyond.isdisjoint(site.output for site in sites.sites):
            beyond.add(merged)
    halving = dataclasses.replace(plan.halving, beyond=frozenset(beyond))
    halved = to_half(rewritten, prepared.source, halving, pending)
    return RestDone(plan, pending, halved.nodes, halved.islands)
