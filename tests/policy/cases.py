"""What is known of a model, made of random numbers: statistics and sampled gradients."""

import numpy as np

from mmcompile.calib.gradient_rows import GradientSamples, GroupRows
from mmcompile.calib.instrument import watched_tensor
from mmcompile.calib.stats import ActivationStats, TensorStats
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.protocol import Evidence
from mmcompile.targets.names import parse_target
from tests import models
from tests.compiling import prepare

SM120 = parse_target("sm_120")


def evidence_of(prepared, stats, gradients=None, target=SM120, left_alone=()):
    """What a policy plans a prepared model from."""
    return Evidence(
        groups=prepared.groups,
        source=prepared.source,
        left_alone=tuple(left_alone),
        target=target,
        stats=stats,
        gradients=gradients,
    )


def stats_of(rows, ratios=()):
    magnitude = np.abs(rows)
    peak = magnitude.max(axis=1, keepdims=True)
    return TensorStats(
        samples=1,
        tokens=len(rows),
        mean_abs=magnitude.mean(axis=0, dtype=np.float64),
        abs_sum=magnitude.sum(axis=0, dtype=np.float64),
        abs_max=magnitude.max(axis=0),
        square_sum=(rows.astype(np.float64) ** 2).sum(axis=0),
        ratios=ratios,
        exceed=np.array([(magnitude > ratio * peak).sum() for ratio in ratios], np.int64),
        rows=rows,
        row_keys=np.arange(len(rows), dtype=np.float64),
    )


def activations(channels, rows=24, seed=0):
    """float32[rows, channels] of very different channels, some of them outliers."""
    random = np.random.default_rng(seed)
    sizes = np.exp(random.normal(0, 1.5, channels))
    return (random.standard_normal((rows, channels)) * sizes).astype(np.float32)


class Case:
    """A prepared model with statistics and gradients for all of its groups."""

    def __init__(self, folder, model=None, rows=24, directions=2, seed=0):
        self.prepared = prepare(model or models.shared_input(), folder)
        self.groups, self.source = self.prepared.groups, self.prepared.source
        random = np.random.default_rng(seed + 1)
        tensors, found = {}, {}
        for index, group in enumerate(self.groups):
            x = activations(group.in_channels, rows, seed + index)
            shape = (directions, rows, group.out_channels)
            gradient = random.standard_normal(shape).astype(np.float32)
            tensors[watched_tensor(group).key] = stats_of(x)
            found[group.name] = GroupRows(x, gradient)
        self.stats = ActivationStats(tensors, "random rows", True, 0)
        self.samples = GradientSamples(found, {})

    def evidence(self, target=SM120):
        """All that is known of the model."""
        return evidence_of(self.prepared, self.stats, self.samples, target)

    def changed(self, **attributes):
        """This one with other statistics or gradients."""
        other = Case.__new__(Case)
        vars(other).update({**vars(self), **attributes})
        return other

    def weight(self, index=0):
        """The weights of a group as float32[N, K]."""
        parts = []
        for site in self.groups[index].sites:
            weight = site.read_weight(self.source)
            parts.append(weight.T if site.channels_first else weight)
        return np.concatenate(parts)


def planned(case, **options):
    """The plan of the policy `cost`, in runs of 32 channels unless told otherwise."""
    return CostPolicy(**{"granularity": 32} | options).plan(case.evidence())
