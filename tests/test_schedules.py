"""Schedules by name: by hand where stages are alike, and against events written down another way."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from cost_models.long_paths import longest_path
from cost_models.schedules import EAGER, FURTHER, OFFSETS, Schedule, virtual_stages_of
from planner.checks.verify_schedule import run_order, work_order


def schedule(kind, pp=8, micro_batches=32, in_flight=None):
    first = (2 * pp - 1 if in_flight is None else in_flight) if kind == EAGER else 0
    return Schedule(kind, pp, virtual_stages_of(kind), micro_batches, first)


def alike(kind, pp=8, micro_batches=32, unit=1000, hop=0, **more):
    """A step whose stages take ``unit`` ticks for each of forward, input gradient and weight gradient."""
    it = schedule(kind, pp, micro_batches, **more)
    once = np.full((1, pp * it.virtual), unit // it.virtual)
    return int(it.step_ticks(once, 2 * once, once, np.array([hop]), np.zeros((1, pp), dtype=np.int64))[0])


def test_zb_h1_by_hand():
    """(p - 1)(F + B - W) is idle: 96 units of work and 7 of waiting."""
    assert alike("zb-h1") == 103_000


@pytest.mark.parametrize("kind", FURTHER)
def test_between_no_bubble_and_1f1b(kind):
    """32 micro-batches of 3 units; 1F1B adds 7 times 3."""
    assert 96_000 <= alike(kind) <= 117_000


def test_eager_hides_what_is_on_its_way():
    """1F1B waits for two hops of every micro-batch; with as many more in flight as the way takes, for none."""
    plain = Schedule("1f1b", 4, 1, 64)
    once, hop, tail = np.full((1, 4), 1000), np.array([500]), np.zeros((1, 4), dtype=np.int64)
    usual = int(plain.step_ticks(once, 2 * once, None, hop, tail)[0])
    eager = [int(schedule(EAGER, 4, 64, held).step_ticks(once, 2 * once, None, hop, tail)[0]) for held in (5, 6, 7)]

    assert usual > 64 * (3000 + 500)
    assert usual > eager[0] > eager[1] >= eager[2]
    assert eager[2] < 64 * 3000 + 3 * (3000 + 2 * 500) + 1


def test_less_memory_costs_time():
    held = {kind: max(map(sum, schedule(kind, micro_batches=64).moments(0))) for kind in OFFSETS}
    steps = {kind: alike(kind) for kind in OFFSETS}

    assert held["v-min"] < held["v-half"] < held["zbv"]
    assert steps["v-min"] >= steps["v-half"] >= steps["zbv"]


def most_held(order, kept, split):
    """The largest sum of what a device's stages keep, by going through its work."""
    gone, held, most = "W" if split else "B", 0, 0
    for what, stage, _ in order:
        held += kept[stage] * ((what == "F") - (what == gone))
        most = max(most, held)
    return most


@examples(60)
@given(st.data())
def test_events_recurrence_and_memory_agree(data):
    """Steps long and short, the bytes of every device, and paths: exact where taken, below everywhere."""
    kind, pp = data.draw(st.sampled_from(FURTHER)), data.draw(st.integers(2, 5))
    m = data.draw(st.one_of(st.integers(1, 12), st.integers(60, 150)))
    it = schedule(kind, pp, m, data.draw(st.integers(pp + 1, 2 * pp - 1)) if kind == EAGER else 0)
    most = data.draw(st.sampled_from([2, 30, 10**6]))

    def durations():
        forward, inputs, weights = (
            np.array(data.draw(st.lists(st.integers(1, most), min_size=pp * it.virtual, max_size=pp * it.virtual)))
            for _ in range(3)
        )
        tail = np.array(data.draw(st.lists(st.integers(0, most), min_size=pp, max_size=pp)))
        return forward, inputs + weights, data.draw(st.integers(0, 3 * most)), tail, weights if it.split else None

    forward, backward, hop, tail, weights = first = durations()
    order = work_order(kind, pp, it.virtual, m, it.in_flight)
    late = None if weights is None else weights.tolist()
    simulated = run_order(order, forward.tolist(), backward.tolist(), late, hop, tail.tolist())
    split = None if weights is None else weights[None]
    assert it.step_ticks(forward[None], backward[None], split, np.array([hop]), tail[None])[0] == simulated
    path = longest_path(it, forward, backward, hop, tail, weights)
    assert path.ticks(*first) == simulated
    assert all(known.ticks(*first) <= simulated for known in it.seed_paths())
    other = durations()
    assert path.ticks(*other) <= run_order(
        order, other[0].tolist(), other[1].tolist(), None if other[4] is None else other[4].tolist(), other[2],
        other[3].tolist(),
    )  # fmt: skip
    for device, work in enumerate(order):
        assert [("FBW"[which], stage, batch) for which, stage, batch in it.work(device)] == work
        held = [np.dot(moment, forward[it.stages_of(device)]) for moment in it.moments(device)]
        assert max(held) == most_held(work, forward, it.split)


@pytest.mark.parametrize("kind", OFFSETS)
def test_every_number_of_stages_runs(kind):
    assert all(alike(kind, pp=pp, micro_batches=4) > 0 for pp in (2, 3, 4, 6, 16))


def test_values_by_device():
    """Under a V the second virtual stages run back."""
    values = np.arange(6)

    assert Schedule("zbv", 3, 2, 4).by_device(values).tolist() == [[0, 1, 2], [5, 4, 3]]
    assert Schedule("interleaved", 3, 2, 6).by_device(values).tolist() == [[0, 1, 2], [3, 4, 5]]
    for it, device in itertools.product((Schedule("zbv", 3, 2, 4), Schedule("interleaved", 3, 2, 6)), range(3)):
        assert it.by_device(values)[:, device].tolist() == it.stages_of(device).tolist()
        assert [c for c, holder in enumerate(it.devices) if holder == device] == it.stages_of(device).tolist()
