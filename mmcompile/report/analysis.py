"""The analysis' data types, and how they are written to and read from `analysis.json`.

As in `report.json`, a figure that is None was not measured or is not finite, and figures carry
their units in their names. An *error* is 1 − mean cosine similarity of the worst output, between 0
and 2, on inputs that calibration did not see. docs/analyze.md documents every field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from mmcompile.documents import Document
from mmcompile.report.model import StageTime, _Record, figures_text

ANALYSIS_VERSION = 1


class FormatShare(_Record, frozen=True):
    """The part of all multiplications that is in one pair of formats, padding left out.

    Attributes:
        act_format: format of the activations.
        weight_format: format of the weights.
        share: 0 to 1.
    """

    act_format: str
    weight_format: str
    share: float


class PlanFigures(_Record, frozen=True):
    """A plan, what it costs and how far its model is from the original.

    Attributes:
        name: what it is, in words.
        family: `cost`, `micromix` or `uniform`.
        speed_cost: mean tensor-core cost, padding included: 1 all FP4, 2 no FP4.
        weight_bits: mean bits per weight, block scales and padding included.
        act_bits: mean bits per activation element, each layer's input weighted by its weights.
        shares: the formats.
        predicted_damage: D, the predicted mean squared change of the output per token.
        error: 1 − mean cosine similarity of the worst output.
        error_of_worst_sample: the same of the worst sample.
        worst_output: the output that `error` is of.
        kl_divergence_nats: mean KL divergence of the logits, the worst output's; None without.
        top1_agreement: share of rows of logits with the same largest entry; None without.
        note: why there is no error.
    """

    name: str
    family: str
    speed_cost: float
    weight_bits: float
    act_bits: float
    shares: tuple[FormatShare, ...]
    predicted_damage: float | None = None
    error: float | None = None
    error_of_worst_sample: float | None = None
    worst_output: str | None = None
    kl_divergence_nats: float | None = None
    top1_agreement: float | None = None
    note: str | None = None


class ParetoPoint(_Record, frozen=True):
    """A plan among others.

    Attributes:
        plan: the plan.
        chosen: whether it is the plan that the options ask for.
        on_speed_front: no other point has at most its tensor-core cost and less error, or less
            cost and at most its error.
        on_bits_front: the same with bits per weight.
    """

    plan: PlanFigures
    chosen: bool
    on_speed_front: bool
    on_bits_front: bool


class Pareto(_Record, frozen=True):
    """Error against cost.

    Attributes:
        points: the plans, by family and cost.
        rank_correlation: Spearman's ρ of predicted damage and error over all points; None for
            fewer than three.
        rank_correlation_of_cost: the same over the plans of the policy `cost`.
    """

    points: tuple[ParetoPoint, ...]
    rank_correlation: float | None
    rank_correlation_of_cost: float | None


class Variant(_Record, frozen=True):
    """The plan that the same policy makes from other calibration data.

    Attributes:
        name: the data, in a few words.
        description: the data, as plans describe it.
        fit: False where it cannot represent real use.
        samples: number of samples.
        tokens: number of activation rows that counted.
        agreement: share of the multiplications whose pair of formats is the chosen plan's.
        agreement_by_chance: what it would be if channels had been dealt out at random in the same
            shares.
        plan: the plan and its error, on the same inputs as the chosen plan's.
    """

    name: str
    description: str
    fit: bool
    samples: int
    tokens: int
    agreement: float
    agreement_by_chance: float
    plan: PlanFigures


class Stability(_Record, frozen=True):
    """How much the plan depends on the calibration data.

    Attributes:
        chosen: the plan from all calibration data.
        variants: plans from parts of it and from other data.
    """

    chosen: PlanFigures
    variants: tuple[Variant, ...]


class StressInput(_Record, frozen=True):
    """Inputs that the models are run on.

    Attributes:
        name: short name.
        kind: `held back`, `changed` (held-back inputs that were changed) or `other` (other data).
        description: how they came about.
        samples: number of samples.
    """

    name: str
    kind: Literal["held back", "changed", "other"]
    description: str
    samples: int


class StressErrors(_Record, frozen=True):
    """Errors of one plan on all stress inputs.

    Attributes:
        plan: name of the plan.
        family: `cost`, `micromix` or `uniform`.
        chosen: whether it is the chosen plan.
        errors: one per `Stress.inputs`.
    """

    plan: str
    family: str
    chosen: bool
    errors: tuple[float | None, ...]


class LayerStress(_Record, frozen=True):
    """Errors of the layers alone under one plan, on changed activation rows.

    Attributes:
        plan: name of the plan.
        case: how the rows were changed.
        median_sqnr_db: median over layers of the output SQNR.
        worst_sqnr_db: the lowest output SQNR of a layer.
        worst_layer: the layer that has it.
        median_loss_db: median over layers of how much SQNR the change costs.
        worst_loss_db: the most that it costs a layer.
    """

    plan: str
    case: str
    median_sqnr_db: float | None
    worst_sqnr_db: float | None
    worst_layer: str | None
    median_loss_db: float | None
    worst_loss_db: float | None


class Stress(_Record, frozen=True):
    """How errors grow on inputs far from calibration.

    Attributes:
        inputs: the inputs; the first are the held-back ones, unchanged.
        plans: errors of whole models, by plan.
        layers: errors of layers alone, by plan and case.
    """

    inputs: tuple[StressInput, ...]
    plans: tuple[StressErrors, ...]
    layers: tuple[LayerStress, ...]


class ChannelDamage(_Record, frozen=True):
    """One input channel of a layer.

    Attributes:
        channel: its index in the original model.
        act_format: format of its activations in the chosen plan.
        weight_format: format of its weights.
        damage: D of this channel alone.
    """

    channel: int
    act_format: str
    weight_format: str
    damage: float


class LayerFigures(_Record, frozen=True):
    """What one group of layers that read the same tensor does to the model, under the chosen plan.

    Attributes:
        name: name of its `MicroMixLinear` node.
        nodes: names of the nodes it replaces.
        in_channels: K.
        out_channels: N of each node.
        shares: its formats.
        damage: its predicted damage.
        damage_share: its share of the plan's predicted damage.
        gradient_measured: False where the damage rests on the layer's output alone.
        error_alone: error of the model in which only this group is compiled; None where that was
            not measured.
        output_sqnr_db: SQNR of the group's own output on calibration rows.
        channels: the channels with the largest damage, the largest first.
    """

    name: str
    nodes: tuple[str, ...]
    in_channels: int
    out_channels: tuple[int, ...]
    shares: tuple[FormatShare, ...]
    damage: float
    damage_share: float
    gradient_measured: bool
    error_alone: float | None
    output_sqnr_db: float | None
    channels: tuple[ChannelDamage, ...]


class ProfileSegment(_Record, frozen=True):
    """The channels of one pair of formats of one layer.

    Attributes:
        act_format: format of the activations.
        weight_format: format of the weights.
        channels: their number, padding left out.
        damage: their damage in ascending order, thinned to at most 160 entries that are evenly
            spread over the channels.
    """

    act_format: str
    weight_format: str
    channels: int
    damage: tuple[float, ...]


class DamageProfile(_Record, frozen=True):
    """The damage of all channels of one layer, by class.

    Attributes:
        layer: name of the layer.
        segments: its classes in the plan's order, the cheapest first.
    """

    layer: str
    segments: tuple[ProfileSegment, ...]


class Layers(_Record, frozen=True):
    """Which layers and channels carry the error.

    Attributes:
        layers: all groups in graph order.
        measured: number of groups that were compiled alone.
        sum_of_errors_alone: sum of their errors.
        error: the chosen plan's error, all groups compiled.
        profiles: channels of the layers with the largest predicted damage.
    """

    layers: tuple[LayerFigures, ...]
    measured: int
    sum_of_errors_alone: float
    error: float | None
    profiles: tuple[DamageProfile, ...]


class AnalysisData(_Record, frozen=True):
    """The data that an analysis rests on.

    Attributes:
        calibration: description of the calibration data.
        fit: False where it cannot represent real use.
        samples: number of its samples.
        tokens: number of its activation rows.
        held_back: description of the inputs that errors are measured on.
        held_back_samples: their number.
        disjoint: False where calibration saw them.
    """

    calibration: str
    fit: bool
    samples: int
    tokens: int
    held_back: str
    held_back_samples: int
    disjoint: bool


class Analysis(_Record, frozen=True):
    """Everything that one run of `mmcompile analyze` found out.

    Attributes:
        version: `ANALYSIS_VERSION`.
        created: date and time, ISO 8601 with time zone.
        command: the command line.
        versions: versions of mmcompile and of what it used, by name.
        model: the model file as it was given.
        linears: number of linear layers analysed.
        groups: number of groups that read one tensor each.
        groups_without_gradient: groups whose damage rests on their own output alone.
        objective: what the policy `cost` saves: `prefill`, `decode` or `memory`.
        policy: name of the policy of the chosen plan.
        parameters: its parameters.
        weights: how its weights are rounded: `nearest`, or `gptq` with error feedback.
        data: the data.
        chosen: the plan that the options ask for.
        pareto: error against cost, or None where it was not asked for; so the others.
        stability: how the plan depends on the data.
        stress: inputs far from calibration.
        layers: which layers carry the error.
        stages: times of the stages, in order.
        peak_memory_bytes: largest resident memory of the process.
    """

    version: int
    created: str
    command: str
    versions: dict[str, str]
    model: str
    linears: int
    groups: int
    groups_without_gradient: int
    objective: Literal["prefill", "decode", "memory"]
    policy: str
    parameters: dict[str, str | float | int]
    weights: str
    data: AnalysisData
    chosen: PlanFigures
    pareto: Pareto | None = None
    stability: Stability | None = None
    stress: Stress | None = None
    layers: Layers | None = None
    stages: tuple[StageTime, ...] = ()
    peak_memory_bytes: int | None = None


def dump_analysis(analysis: Analysis) -> str:
    """The analysis as indented JSON, lists of figures on one line."""
    return figures_text(analysis)


def load_analysis(path: Path) -> Analysis:
    """Reads and checks an `analysis.json`.

    Raises:
        UsageError: the file is missing, is no analysis, or has another version.
    """
    return _DOCUMENT.read(path)


_DOCUMENT = Document(
    "analysis",
    Analysis,
    ANALYSIS_VERSION,
    remedy="give an analysis.json that mmcompile analyze wrote",
    renewal="use the mmcompile that wrote it",
)


def analysis_schema() -> dict[str, Any]:
    """The JSON Schema of `analysis.json`."""
    return msgspec.json.schema(Analysis)
