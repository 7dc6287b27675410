"""Groups with statistics and sampled gradients, made of random numbers."""

import numpy as np

from mmcompile.calib.gradient_rows import GradientSamples, GroupRows
from mmcompile.calib.stats import ActivationStats
from mmcompile.policy.cost import measure_damage, plan_cost
from mmcompile.policy.options import COST, Policy, watched_tensor
from mmcompile.progress import Silent
from tests import models
from tests.compiling import prepare
from tests.policy.test_policy import stats_of


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

    def weight(self, index=0):
        """The weights of a group as float32[N, K]."""
        parts = []
        for site in self.groups[index].sites:
            weight = site.read_weight(self.source)
            parts.append(weight.T if site.channels_first else weight)
        return np.concatenate(parts)


def planned(case, **options):
    """The plan of the policy `cost`, in runs of 32 channels unless told otherwise."""
    policy = Policy(COST, **{"granularity": 32} | options)
    damage = measure_damage(case.groups, case.stats, case.samples, policy, case.source, Silent())
    return plan_cost(case.groups, case.stats, case.samples, damage, policy, case.source, ())
