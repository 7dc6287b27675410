"""Sizes before anything is packed, and without data where the split would need some."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from onnx import TensorProto

from mmcompile.model import SourceModel
from mmcompile.model.passes.half_types import Rest
from mmcompile.model.passes.rewrite_linears import rewrite_linears
from mmcompile.model.sites import SiteGroup
from mmcompile.model.tensors import is_external, storage_bytes
from mmcompile.pipeline.options import CompileOptions
from mmcompile.pipeline.prepare import Prepared, prepare
from mmcompile.pipeline.rest import RestDone, RestPlan, halve_rest, plan_rest
from mmcompile.pipeline.uncalibrated import plan_without_data
from mmcompile.plan import GroupPlan, LeftAlone, QuantPlan, Segment, format_order
from mmcompile.policy.options import COST, UNIFORM, Policy
from mmcompile.policy.order import Order, channel_order
from mmcompile.targets.target import Target, parse_target

_MICROMIX_FORMATS = ("mxfp4", "mxfp6_e3m2", "mxfp8")


class FormatForecast(msgspec.Struct, frozen=True):
    """The model if all channels of its linears had one format.

    Attributes:
        format: name of the block format.
        model_bytes: size of the compiled model.
        weight_bits: mean bits per weight of the rewritten layers, scales and padding included.
        compute_limit: modelled speed over FP16 where the tensor cores bound.
    """

    format: str
    model_bytes: int
    weight_bits: float
    compute_limit: float


class Forecast(msgspec.Struct, frozen=True):
    """What a dry run says of a policy that needs data, without data.

    Attributes:
        model: the model file.
        target: name of the GPU.
        policy: name of the policy.
        model_bytes: size of the original.
        fp16_bytes: the same with two bytes per weight.
        groups: groups of linears that would be rewritten.
        linears: linears in them.
        weights: their weights.
        formats: one entry per format that the policy uses; the result lies between them, padding
            of segments aside.
        left_alone: the candidates that keep their precision.
        note: what is not known, and why.
    """

    model: str
    target: str
    policy: str
    model_bytes: int
    fp16_bytes: int
    groups: int
    linears: int
    weights: int
    formats: tuple[FormatForecast, ...]
    left_alone: tuple[LeftAlone, ...]
    note: str


def forecast(model: Path, options: CompileOptions) -> Forecast:
    """What is known of a compilation before its data is."""
    target = parse_target(options.gpu)
    prepared = prepare(model, options.selection)
    policy = options.policy
    names = _formats(policy)
    base = _padded(plan_without_data(prepared, Policy("mxfp8")), policy.channel_multiple)
    return Forecast(
        model=str(model),
        target=target.name,
        policy=policy.name,
        model_bytes=prepared.source.size_bytes,
        fp16_bytes=fp16_bytes(prepared.source),
        groups=len(prepared.groups),
        linears=sum(len(group.sites) for group in prepared.groups),
        weights=sum(group.in_channels * group.out_channels for group in prepared.groups),
        formats=tuple(_in_one_format(prepared, base, name, target, options.rest) for name in names),
        left_alone=prepared.left_alone,
        note=_note(policy),
    )


def _formats(policy: Policy) -> tuple[str, ...]:
    """The formats that a policy chooses from."""
    if policy.name in UNIFORM:
        return (UNIFORM[policy.name],)
    return policy.classes if policy.name == COST else _MICROMIX_FORMATS


def _note(policy: Policy) -> str:
    """What is not known without data, and what is all the same."""
    if policy.name in UNIFORM:
        return "The order and the tensor scales are not known without data (--calib); the size is."
    note = "The split is not known without data (--calib); the size lies between these."
    if policy.name != COST:
        return note
    if policy.max_error is not None:
        return f"{note} Nor is the budget, which --max-error {policy.max_error:g} asks to find."
    limits = []
    if policy.budget.speed is not None:
        limits.append(f"a mean tensor-core cost of {policy.budget.speed:g} (FP4 1, all else 2)")
    if policy.budget.bits is not None:
        limits.append(f"{policy.budget.bits:g} bits per weight")
    return f"{note} The budget is at most {' and '.join(limits)}."


def model_bytes(
    prepared: Prepared, decided: Sequence[tuple[SiteGroup, GroupPlan]], rest: RestPlan
) -> tuple[int, RestDone]:
    """Bytes of the compiled model: its graph and every weight in it; only alignment is left out.

    Also what became of all but the compiled linears.
    """
    proto = rewrite_linears(prepared.source.proto, decided)
    done = halve_rest(rest, prepared, proto, decided)
    weights = filter(is_external, proto.graph.initializer)
    graph: int = proto.ByteSize()
    return graph + sum(storage_bytes(t.data_type, tuple(t.dims)) for t in weights), done


def fp16_bytes(source: SourceModel) -> int:
    """Bytes of a model if none of its weights took more than two."""
    wider = {TensorProto.FLOAT: 2, TensorProto.DOUBLE: 6}
    saved = (wider.get(t.data_type, 0) * math.prod(t.dims) for t in source.proto.graph.initializer)
    return source.size_bytes - int(sum(saved))


def _padded(plan: QuantPlan, multiple: int) -> QuantPlan:
    """The plan with its channels, in their own order, padded to a multiple."""

    def order(group: GroupPlan) -> str:
        return format_order(channel_order(np.zeros(group.in_channels), Order.NATURAL, multiple))

    groups = tuple(msgspec.structs.replace(group, order=order(group)) for group in plan.groups)
    return msgspec.structs.replace(plan, groups=groups)


def _in_one_format(
    prepared: Prepared, base: QuantPlan, name: str, target: Target, rest: Rest | None
) -> FormatForecast:
    groups = tuple(
        msgspec.structs.replace(
            group, segments=(Segment(group.channel_order().size, name, name, 2.0, 2.0),)
        )
        for group in base.groups
    )
    decided = tuple(zip(prepared.groups, groups, strict=True))
    size, _ = model_bytes(prepared, decided, plan_rest(prepared, rest, decided))
    return FormatForecast(
        format=name,
        model_bytes=size,
        weight_bits=msgspec.structs.replace(base, groups=groups).mean_weight_bits(),
        compute_limit=target.compute_limit(groups),
    )
