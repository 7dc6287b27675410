"""Section `layers`: which layers and which channels carry the error of the chosen plan."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmcompile.analysis.figures import channel_pairs, format_shares
from mmcompile.analysis.ground import UNCHANGED, Ground
from mmcompile.plan import GroupPlan
from mmcompile.policy.plan_damage import GroupHarm, channel_damage_of
from mmcompile.report.analysis import (
    ChannelDamage,
    DamageProfile,
    LayerFigures,
    Layers,
    ProfileSegment,
)
from mmcompile.verification.nodes import layer_error

NAMED_CHANNELS = 10
"""Channels that are named per layer."""
PROFILES = 6
"""Layers whose channels are drawn."""
PROFILE_POINTS = 160
"""Most entries of a class in a profile."""


def layers_section(ground: Ground, error: float | None) -> Layers:
    """Measures every group of the chosen plan alone; `error` is that of the whole plan."""
    observed, plan, trials = ground.observed, ground.chosen.plan, ground.trials
    harms = list(channel_damage_of(observed.evidence, plan))
    ranked = sorted(range(len(harms)), key=lambda index: -harms[index].total)
    alone = {}
    # Those with the most predicted damage first.
    measured = ranked[: ground.options.layers]
    for index in ground.progress.track(measured, "measuring layers alone", len(measured)):
        alone[index] = trials.error_alone(plan, index, UNCHANGED)
    total = sum(harm.total for harm in harms) or 1.0
    sqnr = _output_sqnr(ground)
    layers = tuple(
        LayerFigures(
            name=group.name,
            nodes=group.nodes,
            in_channels=group.in_channels,
            out_channels=group.out_channels,
            shares=format_shares([group]),
            damage=harm.total,
            damage_share=harm.total / total,
            gradient_measured=group.name in observed.gradients.groups,
            error_alone=alone.get(index),
            output_sqnr_db=sqnr[index],
            channels=worst_channels(group, harm),
        )
        for index, (group, harm) in enumerate(zip(plan.groups, harms, strict=True))
    )
    return Layers(
        layers=layers,
        measured=len(measured),
        sum_of_errors_alone=sum(value for value in alone.values() if value is not None),
        error=error,
        profiles=tuple(
            damage_profile(plan.groups[index], harms[index]) for index in ranked[:PROFILES]
        ),
    )


def worst_channels(group: GroupPlan, harm: GroupHarm) -> tuple[ChannelDamage, ...]:
    """The channels with the largest damage, the largest first; channels without any are none."""
    pairs = channel_pairs(group)
    ranked = np.argsort(-harm.channels, kind="stable")[:NAMED_CHANNELS].tolist()
    return tuple(
        ChannelDamage(
            channel=channel,
            act_format=pairs[channel][0],
            weight_format=pairs[channel][1],
            damage=float(harm.channels[channel]),
        )
        for channel in ranked
        if harm.channels[channel] > 0
    )


def damage_profile(group: GroupPlan, harm: GroupHarm) -> DamageProfile:
    """The sorted damage of a group's channels, class by class in the plan's order."""
    pairs = channel_pairs(group)
    order = dict.fromkeys((s.act_format, s.weight_format) for s in group.segments)
    segments = []
    for pair in order:
        members = np.sort(harm.channels[[p == pair for p in pairs]])
        if members.size:
            segments.append(ProfileSegment(*pair, int(members.size), _thinned(members)))
    return DamageProfile(group.name, tuple(segments))


def _thinned(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """At most `PROFILE_POINTS` evenly spread entries, the first and last among them."""
    count = min(values.size, PROFILE_POINTS)
    places = np.linspace(0, values.size - 1, count).round().astype(int)
    return tuple(float(f"{value:.4g}") for value in values[places].tolist())


def _output_sqnr(ground: Ground) -> list[float | None]:
    """Output SQNR in dB of every group on calibration rows; None without rows."""
    evidence, plan = ground.observed.evidence, ground.chosen.plan
    groups = evidence.groups
    found = []
    for index, sites in enumerate(ground.progress.track(groups, "output of layers", len(groups))):
        packed = ground.trials.packed(plan, index)
        rows = evidence.tensor(sites).rows
        error = layer_error(sites, plan.groups[index], packed, rows, evidence.source)
        found.append(None if error is None else error.output_sqnr_db)
    return found
