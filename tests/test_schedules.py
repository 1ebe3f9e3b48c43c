"""Schedules by name: by hand where stages are alike, and against events written down another way."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from cost_models.calibration import calibrate
from cost_models.long_paths import longest_path
from cost_models.price import price
from cost_models.rows import Rows
from cost_models.schedules import BIDIRECTIONAL, EAGER, FURTHER, MIRRORED, OFFSETS, Schedule, virtual_stages_of
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner.checks.verify_schedule import run_order, work_order
from planner.named import named_strategy
from planner.read_model import read_model
from topologies.ready import read_cluster


def schedule(kind, pp=8, micro_batches=32, in_flight=None):
    first = (2 * pp - 1 if in_flight is None else in_flight) if kind == EAGER else 0
    return Schedule(kind, pp, virtual_stages_of(kind), micro_batches, first)


def alike(kind, pp=8, micro_batches=32, unit=1000, hop=0, **more):
    """A step whose stages take ``unit`` ticks for each of forward, input gradient and weight gradient."""
    it = schedule(kind, pp, micro_batches, **more)
    once = np.full((1, pp * it.virtual), unit // it.virtual)
    tail, hidden = np.zeros((1, pp), dtype=np.int64), (0 * once, 0 * once)
    return int(it.step_ticks(once, 2 * once, once, np.array([hop]), tail, hidden)[0])


@pytest.mark.parametrize("kind", BIDIRECTIONAL)
@pytest.mark.parametrize("stages", [4, 6, 8, 16])
def test_dualpipe_has_its_sources_bubble_and_memory(kind, stages):
    """(PP/2 - 1) (F&B + B - 3W) idle, PP + 1 micro-batches held; 80 micro-batches through PP stages of two devices."""
    virtual = virtual_stages_of(kind)
    it = Schedule(kind, stages // virtual, virtual, 80 // virtual)
    once, tail = np.full((1, stages), 1000), np.zeros((1, it.pp), dtype=np.int64)
    step = int(it.step_ticks(once, 2 * once, once, np.array([0]), tail, (0 * once, 0 * once))[0])

    assert step == 2 * 40 * 3000 + (stages // 2 - 1) * (3000 + 2000 - 3000)
    assert max(sum(held) for device in range(it.pp) for held in it.moments(device)) == stages + 1
    some = [
        it.step_ticks(once, 2 * once, once, np.array([0]), tail, (less * once // 1000,) * 2)[0] for less in (0, 200)
    ]
    forwards, backwards = it.beside()
    assert forwards.sum() == backwards.sum() == sum(40 - stages + d + 1 - (d + 1 == stages // 2) + 40 - stages // 2
                                                    for d in range(stages // 2))  # fmt: skip
    assert some[0] - some[1] > 200 * (forwards + backwards).reshape(2, -1).sum(axis=0).min()


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
    for what, stage, _ in itertools.chain.from_iterable(order):
        stage %= len(kept)
        held += kept[stage] * ((what == "F") - (what == gone))
        most = max(most, held)
    return most


@examples(60)
@given(st.data())
def test_events_recurrence_and_memory_agree(data):
    """Steps long and short, the bytes of every device, and paths: exact where taken, below everywhere."""
    kind, pp = data.draw(st.sampled_from(FURTHER)), data.draw(st.integers(2, 5))
    pp = 2 * pp if kind == MIRRORED else pp
    least = 2 * pp if kind in BIDIRECTIONAL else 1
    m = data.draw(st.one_of(st.integers(least, least + 11), st.integers(60, 150)))
    m += m % 2 if kind == MIRRORED else 0
    it = schedule(kind, pp, m, data.draw(st.integers(pp + 1, 2 * pp - 1)) if kind == EAGER else 0)
    most = data.draw(st.sampled_from([2, 30, 10**6]))

    def durations():
        forward, inputs, weights = (
            np.array(data.draw(st.lists(st.integers(1, most), min_size=pp * it.virtual, max_size=pp * it.virtual)))
            for _ in range(3)
        )
        tail = np.array(data.draw(st.lists(st.integers(0, most), min_size=pp, max_size=pp)))
        tail = np.maximum(tail, tail[::-1]) if it.mirrored else tail
        hidden = tuple(np.array([data.draw(st.integers(0, v)) for v in work]) for work in (forward, inputs))
        hop = data.draw(st.integers(0, 3 * most))
        return forward, inputs + weights, hop, tail, weights if it.split else None, hidden if it.paired else None

    first, other = durations(), durations()
    forward, backward, hop, tail, weights, hidden = first
    order = work_order(kind, pp, it.virtual, m, it.in_flight)
    split, less = None if weights is None else weights[None], None if hidden is None else tuple(h[None] for h in hidden)
    simulated = in_events(order, *first)
    assert it.step_ticks(forward[None], backward[None], split, np.array([hop]), tail[None], less)[0] == simulated
    path = longest_path(it, *first)
    assert path.ticks(*first) == simulated
    assert all(known.ticks(*first) <= simulated for known in it.seed_paths())
    if not it.paired:
        assert it.seed_table().longest(*first[:5]) == max(known.ticks(*first[:5]) for known in it.seed_paths())
    assert path.ticks(*other) <= in_events(order, *other)
    for device, work in enumerate(order):
        if not it.mirrored:
            ran = [("FBW"[which], stage, batch) for which, stage, batch in it.work(device)]
            assert ran == list(itertools.chain(*work))
        held = [np.dot(moment, forward[it.stages_of(device)]) for moment in it.moments(device)]
        assert max(held) == most_held(work, forward, it.split)
    if it.paired:
        counts = beside_in(order, pp * it.virtual)
        assert [count.tolist() for count in it.beside()] == counts


def in_events(order, forward, backward, hop, tail, weights, hidden):
    late = None if weights is None else weights.tolist()
    less = None if hidden is None else tuple(h.tolist() for h in hidden)
    return run_order(order, forward.tolist(), backward.tolist(), late, hop, tail.tolist(), less)


def beside_in(order, stages):
    """Forwards and backwards of every stage, on the first device that holds it, that share a piece with another."""
    found = [[0] * stages, [0] * stages]
    for piece in itertools.chain.from_iterable(order):
        kinds = [kind for kind, *_ in piece]
        for kind, stage, _ in piece if "F" in kinds and "B" in kinds else ():
            if kind != "W" and stage < stages:
                found["FB".index(kind)][stage] += 1
    return found


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


@pytest.mark.parametrize("slower", [1, 2000])
def test_exchange_hides_behind_the_other_pass(slower):
    """All of it but what overlap costs where compute is longer; where it is shorter, a forward's behind a backward."""
    model, cluster = read_model("mixtral-8x22b"), read_cluster("dgx-h100:8")
    work = Training(seq_len=4096, global_batch=64)
    fits, ticks = calibrate(cluster), Ticks.of(model, cluster, work)
    levels = (
        dataclasses.replace(level, bandwidth_bytes_per_s=level.bandwidth_bytes_per_s / slower)
        for level in cluster.levels
    )
    cluster = dataclasses.replace(cluster, levels=tuple(levels))
    it = named_strategy(model, cluster, work, {"pp": 2, "dp": 32, "ep": 8, "schedule": "dualpipev"})
    prices = price(model, cluster, work, Rows.of(it), fits, ticks)
    exchange = float(prices.parts["expert parallel"][0, 0])
    forward, backward = (float(prices.hidden[name][0, 0] * ticks.second) for name in ("forward", "backward"))

    if slower == 1:
        assert forward + backward == pytest.approx((1 - fits.interference) * exchange, rel=1e-6)
    else:
        assert forward + backward < 0.5 * exchange
        assert 1.5 * backward < forward < float(prices.parts["compute"][0, 0])
    assert all((prices.hidden[name] <= getattr(prices, name)).all() for name in ("forward", "backward"))
