"""Sizes before anything is packed, and without data where the split would need some."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from onnx import TensorProto

from mmcompile.data.options import DataOptions
from mmcompile.formats import MXFP8 as WIDEST
from mmcompile.model.passes.rewrite_linears import rewrite_linears
from mmcompile.model.rest import Rest
from mmcompile.model.sites import SiteGroup
from mmcompile.model.source import SourceModel
from mmcompile.model.tensors import is_external, storage_bytes
from mmcompile.pipeline.evidence import gather
from mmcompile.pipeline.options import CompileOptions
from mmcompile.pipeline.prepare import Prepared
from mmcompile.pipeline.rest import RestDone, halve_rest, plan_rest
from mmcompile.pipeline.run import Run, Settings, start_run
from mmcompile.plan import GroupPlan, LeftAlone, QuantPlan, Segment, format_order
from mmcompile.policy.choices import Order
from mmcompile.policy.order import channel_order
from mmcompile.policy.protocol import Policy
from mmcompile.policy.uniform import UniformPolicy
from mmcompile.targets.names import parse_target


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
    run = start_run(model, DataOptions(), Settings(parse_target(options.gpu), options.selection))
    prepared, policy = run.prepared, options.policy
    widest = UniformPolicy(name=WIDEST.name)
    base = _padded(widest.plan(gather(run, widest).evidence), policy.channel_multiple)
    return Forecast(
        model=str(model),
        target=run.target.name,
        policy=policy.name,
        model_bytes=prepared.source.size_bytes,
        fp16_bytes=fp16_bytes(prepared.source),
        groups=len(prepared.groups),
        linears=sum(len(group.sites) for group in prepared.groups),
        weights=sum(group.in_channels * group.out_channels for group in prepared.groups),
        formats=tuple(_in_one_format(run, base, name, options.rest) for name in policy.formats),
        left_alone=prepared.left_alone,
        note=_note(policy),
    )


def _note(policy: Policy) -> str:
    """What is not known without data, and what is all the same."""
    if len(policy.formats) == 1:
        return "The order and the tensor scales are not known without data (--calib); the size is."
    note = "The split is not known without data (--calib); the size lies between these."
    return f"{note} The budget is {policy.limits}." if policy.limits else note


def model_bytes(
    prepared: Prepared, decided: Sequence[tuple[SiteGroup, GroupPlan]], rest: Rest | None
) -> tuple[int, RestDone]:
    """Bytes of the compiled model: its graph and every weight in it; only alignment is left out.

    Also what became of all but the compiled linears.
    """
    proto = rewrite_linears(prepared.source.proto, decided)
    done = halve_rest(plan_rest(prepared, rest, decided), prepared, proto, decided)
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


def _in_one_format(run: Run, base: QuantPlan, name: str, rest: Rest | None) -> FormatForecast:
    groups = tuple(
        msgspec.structs.replace(
            group, segments=(Segment(group.channel_order().size, name, name, 2.0, 2.0),)
        )
        for group in base.groups
    )
    decided = tuple(zip(run.prepared.groups, groups, strict=True))
    return FormatForecast(
        format=name,
        model_bytes=model_bytes(run.prepared, decided, rest)[0],
        weight_bits=msgspec.structs.replace(base, groups=groups).mean_weight_bits(),
        compute_limit=run.target.compute_limit(groups),
    )
