"""Statistics, rotation, graphs and what happens where none can be had."""

import numpy as np
import pytest

from mmcompile.cuda.timing import REPLAYS, Timing, copies_for, time_calls
from tests.bench.machine import STREAM, FakeMachine


def test_median_and_spread_are_those_of_numpy():
    values = np.random.default_rng(0).exponential(1e-3, 41)
    timing = Timing(tuple(values))
    low, middle, high = np.percentile(values, (25, 50, 75))
    assert timing.median == pytest.approx(middle)
    assert timing.spread == pytest.approx((high - low) / 2 / middle)
    assert timing.least == values.min()
    assert Timing((1.0, 9.0)).spread == 0.0


def test_one_slow_replay_moves_neither_median_nor_spread():
    assert Timing((1.0,) * 20 + (50.0,)).median == 1.0
    assert Timing((1.0,) * 20 + (50.0,)).spread == 0.0


def counted(machine, seconds):
    """Calls that take so long each, and note their turns."""
    turns = []

    def call(number, duration):
        def enqueue(stream):
            assert stream == STREAM
            machine.pass_time(duration)
            turns.append(number)

        return enqueue

    return [call(i, duration) for i, duration in enumerate(seconds)], turns


def test_a_graph_of_all_calls_is_replayed_and_time_is_per_call():
    machine = FakeMachine()
    calls, turns = counted(machine, (1e-3, 3e-3))
    timing = time_calls(machine, calls)
    assert timing.graph and timing.note == ""
    assert timing.calls == 2
    assert timing.median == pytest.approx(2e-3)
    assert REPLAYS[0] <= len(timing.seconds) <= REPLAYS[1]
    assert turns == [0, 1] * (len(turns) // 2)  # every round takes all copies in turn
    assert machine.log.count("captured") == 1


def test_nothing_is_waited_for_between_warming_up_and_the_last_replay():
    machine = FakeMachine()
    calls, _ = counted(machine, (1e-3,))
    timing = time_calls(machine, calls)
    end = len(machine.log) - 1
    assert machine.log[end] == "synchronize"
    before = end - machine.log[:end][::-1].index("synchronize")
    assert machine.log[before:end].count("timed") == len(timing.seconds)
    assert machine.log[before:end].count("replay") > len(timing.seconds)  # those that warm up


def test_without_graphs_the_calls_are_launched_and_the_result_says_so():
    machine = FakeMachine(captures=False)
    calls, _ = counted(machine, (2e-3, 2e-3))
    timing = time_calls(machine, calls)
    assert not timing.graph
    assert "no CUDA graph" in timing.note and "not permitted" in timing.note
    assert timing.median == pytest.approx(2e-3)


def test_clocks_are_read_while_the_replays_run():
    machine = FakeMachine()
    calls, _ = counted(machine, (1e-3,))
    time_calls(machine, calls, during=lambda: machine.log.append("clocks"))
    assert machine.log[-2:] == ["clocks", "synchronize"]


def test_what_runs_ahead_of_a_replay_is_not_timed():
    machine = FakeMachine()
    calls, _ = counted(machine, (1e-3,))
    before, turns = counted(machine, (5e-3,))
    assert time_calls(machine, calls, before=before).median == pytest.approx(1e-3)
    assert len(turns) == 1 + machine.log.count("replay")


@pytest.mark.parametrize("seconds", [1e-7, 1e-4, 0.5])
def test_the_number_of_replays_follows_their_length(seconds):
    machine = FakeMachine()
    calls, turns = counted(machine, (seconds,))
    timing = time_calls(machine, calls)
    assert len(timing.seconds) == (REPLAYS[0] if seconds == 0.5 else REPLAYS[1])
    assert len(turns) < 300


def test_copies_outgrow_the_cache():
    assert copies_for(96 * 2**20, 2**20) == 64
    assert copies_for(96 * 2**20, 32 * 2**20) == 12
    assert copies_for(96 * 2**20, 2**30) == 2
    assert copies_for(0, 100) == 2
