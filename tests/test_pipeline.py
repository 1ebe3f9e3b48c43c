"""Schedules against closed forms and against a simulation that shares no code with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from cost_models.critical_paths import critical_path, seed_paths
from cost_models.pipeline import ends, in_flight, schedule_graph, step_ticks


def work_of(pp, virtual, m, device):
    """``("F" or "B", turn, micro-batch)`` in order on one device, as Megatron-LM's schedules.py walks through them."""
    total = m * virtual
    below = pp - device - 1
    ahead = min(total, below if virtual == 1 else 2 * below + (virtual - 1) * pp)

    def at(k, forward):
        group, inside = divmod(k, pp * virtual) if virtual > 1 else (k, 0)
        turn = inside // pp
        batch = group * pp + inside % pp if virtual > 1 else k
        return ("F", turn, batch) if forward else ("B", virtual - 1 - turn, batch)

    order = [at(k, True) for k in range(ahead)]
    for k in range(total - ahead):
        order += [at(ahead + k, True), at(k, False)]
    return order + [at(k, False) for k in range(total - ahead, total)]


def simulate(pp, virtual, m, forward, backward, hop, tail):
    """The step by running every device until it must wait, over and over."""
    chunks, done = pp * virtual, {}
    queues, clock = [work_of(pp, virtual, m, s)[::-1] for s in range(pp)], [0] * pp

    def needs(kind, c, i):
        if kind == "F":
            return ("F", c - 1, i) if c else None
        return ("B", c + 1, i) if c < chunks - 1 else ("F", c, i)

    while any(queues):
        for s, queue in enumerate(queues):
            while queue:
                kind, turn, i = queue[-1]
                c = turn * pp + s
                source = needs(kind, c, i)
                if source is not None and source not in done:
                    break
                far = hop if source is not None and source[1] != c and pp > 1 else 0
                ready = 0 if source is None else done[source] + far
                clock[s] = max(clock[s], ready) + int((forward if kind == "F" else backward)[c])
                done[kind, c, i] = clock[s]
                queue.pop()
    return max(t + int(extra) for t, extra in zip(clock, tail, strict=True))


@st.composite
def schedules(draw, most=40, deepest=8):
    """A shape with uneven durations, a hop and tails."""
    pp, virtual = draw(st.integers(1, deepest)), draw(st.integers(1, 4))
    m = draw(st.integers(1, most)) if virtual == 1 else pp * draw(st.integers(1, max(1, most // pp)))
    duration = st.lists(st.integers(0, 50), min_size=pp * virtual, max_size=pp * virtual)
    forward, backward = np.array(draw(duration)), np.array(draw(duration))
    tail = np.array(draw(st.lists(st.integers(0, 200), min_size=pp, max_size=pp)))
    return (pp, virtual, m), forward, backward, draw(st.integers(0, 30)), tail


def step(shape, forward, backward, hop, tail):
    return int(step_ticks(*shape, forward[None], backward[None], np.array([hop]), tail[None])[0])


SHAPES = [(1, 1, 1), (1, 1, 7), (4, 1, 1), (4, 1, 3), (5, 1, 23), (1, 3, 4), (2, 2, 2), (4, 3, 20), (3, 4, 90)]


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_stages_by_the_closed_form(shape):
    """1F1B: (m - 1) T + S. Interleaved: m t + (pp - 1) t / v with t a device's work for one micro-batch."""
    pp, virtual, m = shape
    forward, backward = np.full(pp * virtual, 7), np.full(pp * virtual, 13)

    expected = (m - 1) * 20 + pp * 20 if virtual == 1 else m * virtual * 20 + (pp - 1) * 20

    assert step(shape, forward, backward, 0, np.zeros(pp, int)) == expected
    assert step(shape, forward, backward, 0, np.full(pp, 11)) == expected + 11


def test_hops_of_one_micro_batch():
    """3 stages: down and up, 2 hops each way; the tail that counts is the last to end, which is stage 0's."""
    ones = np.ones(3, int)

    assert step((3, 1, 1), 10 * ones, 20 * ones, 5, np.array([2, 3, 100])) == 30 + 20 + 2 * 5 + 100
    assert step((3, 1, 1), 10 * ones, 20 * ones, 5, np.array([70, 3, 2])) == 30 + 60 + 4 * 5 + 70


def test_one_device_has_no_hops():
    assert step((1, 3, 2), np.array([1, 2, 3]), np.array([4, 5, 6]), 1000, np.array([7])) == 2 * 21 + 7


@examples(160)
@given(schedules())
def test_step_is_that_of_a_simulation(case):
    shape, forward, backward, hop, tail = case

    assert step(*case) == simulate(*shape, forward, backward, hop, tail)


@examples(120)
@given(schedules(), st.randoms(use_true_random=False))
def test_a_critical_path_is_exact_where_taken_and_a_bound_everywhere(case, random):
    shape, forward, backward, hop, tail = case
    path = critical_path(schedule_graph(*shape), forward, backward, hop, tail)
    shuffled = [np.array(random.sample(list(x), len(x))) for x in (forward, backward, tail)]

    assert path.ticks(forward, backward, hop, tail) == step(*case)
    for far in (0, hop, 2 * hop):
        assert path.ticks(*shuffled[:2], far, shuffled[2]) <= step(shape, *shuffled[:2], far, shuffled[2])


@examples(160)
@given(schedules())
def test_seed_paths_are_lower_bounds(case):
    shape, forward, backward, hop, tail = case

    assert max(path.ticks(forward, backward, hop, tail) for path in seed_paths(*shape)) <= step(*case)


@pytest.mark.parametrize("pp", [1, 2, 5])
def test_seed_paths_are_exact_for_equal_stages(pp):
    forward, backward, tail = np.full(pp, 7), np.full(pp, 13), np.full(pp, 3)
    best = max(path.ticks(forward, backward, 0, tail) for path in seed_paths(pp, 1, 17))

    assert best == step((pp, 1, 17), forward, backward, 0, tail) == 16 * 20 + pp * 20 + 3


@examples(80)
@given(schedules(most=150, deepest=4), st.booleans())
def test_long_steps_are_computed_as_if_in_full(case, even):
    """The shortcut through the steady state, in a batch of durations that settle and others that may not."""
    shape, forward, backward, hop, tail = case
    flat = np.full_like(forward, 5) if even else forward[::-1]
    many = np.stack([forward, flat, backward]), np.stack([backward, flat, forward])
    hops, tails = np.array([hop, 0, 2 * hop]), np.stack([tail, tail[::-1], tail])
    graph = schedule_graph(*shape)

    in_full = (ends(graph, *many, hops)[graph.last].T + tails).max(axis=1)

    assert step_ticks(*shape, *many, hops, tails).tolist() == in_full.tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_many_columns_end_as_each_by_itself(shape):
    """Node by node for one column, wave by wave for so many."""
    graph, random = schedule_graph(*shape), np.random.default_rng(0)
    forward, backward = random.integers(1, 99, (2, 40, graph.chunks))
    hop = random.integers(0, 9, 40)

    many = ends(graph, forward, backward, hop)

    alone = [ends(graph, forward[[k]], backward[[k]], hop[[k]]) for k in range(40)]
    assert (many == np.concatenate(alone, axis=1)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_node_runs_once(shape):
    pp, virtual, m = shape
    graph = schedule_graph(*shape)

    assert sorted(graph.node.tolist()) == list(range(2 * m * pp * virtual))
    assert graph.wave[0] == 0 and graph.wave[-1] == graph.node.size and (np.diff(graph.wave) > 0).all()


@pytest.mark.parametrize("shape", [*SHAPES, (8, 1, 64), (4, 2, 64), (8, 4, 16), (2, 3, 4)])
def test_in_flight_is_what_a_device_holds(shape):
    """Every moment lies under one of the worst moments, and each of those happens."""
    pp, virtual, _ = shape
    for device in range(pp):
        held, moments = np.zeros(virtual, int), set()
        for kind, turn, _ in work_of(*shape, device):
            held[turn] += 1 if kind == "F" else -1
            moments.add(tuple(held.tolist()))
        worst = in_flight(*shape, device)

        assert set(worst) <= moments
        assert all(any(all(a <= b for a, b in zip(one, top, strict=True)) for top in worst) for one in moments)


def test_first_stage_of_1f1b_holds_pp_micro_batches():
    assert [in_flight(4, 1, 9, s) for s in range(4)] == [((4,),), ((3,),), ((2,),), ((1,),)]
    assert in_flight(4, 1, 2, 0) == ((2,),)


@pytest.mark.parametrize("m", [5, 401])
def test_interleaving_needs_whole_groups(m):
    ones = np.ones((1, 8), int)

    with pytest.raises(ValueError, match=rf"micro_batches = {m} is not a multiple of pp = 4"):
        step_ticks(4, 2, m, ones, ones, np.zeros(1, int), np.zeros((1, 4), int))
    with pytest.raises(ValueError, match="multiple of pp"):
        schedule_graph(4, 2, m)
