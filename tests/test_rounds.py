"""Paths that go round stages: below every step, counted with their hops, and in the bounds that are made of them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import all_rows, rows_of
from strategies import examples, instances
from test_cut_sums import all_columns, every_plan
from test_pipeline import step

from cost_models.chain import Chain
from cost_models.critical_paths import round_path, seed_paths
from cost_models.estimate import evaluate
from cost_models.price import price
from planner.search.bounds import hop_ticks, rounds_of, step_bound
from planner.search.certificate import runs_of
from planner.search.cut_sums import column_places, return_ticks
from planner.search.dealing import dealt_ticks
from planner.search.rounds import longest_rounds


@st.composite
def pipelines(draw):
    """``(pp, m)`` with ``m > pp``, uneven durations in some, and a hop as long as they are."""
    pp = draw(st.integers(2, 7))
    times = st.lists(st.integers(0, 50), min_size=pp, max_size=pp) | st.integers(1, 50).map(lambda t: [t] * pp)
    forward, backward, tail = (np.array(draw(times)) for _ in range(3))
    return (pp, 1, draw(st.integers(pp + 1, 45))), forward, backward, draw(st.integers(0, 60)), tail


@examples(200)
@given(pipelines(), st.data())
def test_a_path_round_stages_is_no_longer_than_the_step(case, data):
    (pp, _, m), forward, backward, hop, tail = case
    first = data.draw(st.integers(0, pp - 1))
    last = data.draw(st.integers(first, pp - 1))
    path = round_path(pp, m, first, last, data.draw(st.integers(first, last)))

    assert path.ticks(forward, backward, hop, tail) <= step(*case)


def test_rounds_and_hops_are_counted():
    """Three stages of 20 ticks and hops of 5: down and up 60 + 20, two rounds of two micro-batches past two stages of
    40 + 10 each, and the other two of seven at the last stage.
    """
    forward, backward, tail = np.full(3, 7), np.full(3, 13), np.zeros(3, int)

    assert round_path(3, 7, 1, 2, 2).ticks(forward, backward, 5, tail) == 80 + 2 * 50 + 2 * 20


@examples(100)
@given(pipelines())
def test_every_stage_has_the_longest_path_from_it(case):
    """Against all windows that begin at the stage and stay at their last slowest one."""
    (pp, _, m), forward, backward, hop, tail = case
    chain = SimpleNamespace(pp=pp, micro_batches=m, hop=hop, schedule=SimpleNamespace(kind="1f1b"))
    time, wanted = forward + backward, set()
    for a in range(pp - 1):
        stays = [(b, max(range(a, b + 1), key=lambda s: (time[s], s))) for b in range(a + 1, pp)]
        lengths = [round_path(pp, m, a, b, s).ticks(forward, backward, hop, tail) for b, s in stays]
        wanted |= {max(lengths)}
    found = longest_rounds(chain, forward, backward, tail, beyond=-1)

    assert {path.ticks(forward, backward, hop, tail) for path in found} == (wanted if hop else set())
    assert len(longest_rounds(chain, forward, backward, tail, beyond=max(wanted))) == 0


@pytest.mark.parametrize(("pp", "m", "rounds"), [(4, 4, -1), (4, 5, 0), (4, 8, 0), (4, 9, 1), (4, 17, 3), (1, 9, 7)])
def test_every_return_path_has_room_for_so_many_rounds(pp, m, rounds):
    assert rounds_of(pp, m) == rounds


@examples(80)
@given(instances(most_layers=6, most_devices=4), st.integers(0, 10**6), st.integers(2, 12), st.floats(0, 2))
def test_bounds_hold_where_hops_are_as_long_as_layers(it, pick, more, share):
    """Of rows with many micro-batches, against every cut; the hop is that share of a layer's pass."""
    found = list(all_rows(it))
    if not found:
        return
    rows = rows_of(it, [found[pick % len(found)]])
    rows = dataclasses.replace(rows, micro_batches=rows.micro_batches * more)
    prices = price(it.model, it.cluster, it.workload, rows, it.fits, it.ticks)
    layer = int((prices.forward + prices.backward)[0, :-2].max())
    prices = dataclasses.replace(prices, hop=np.full_like(prices.hop, int(share * layer)))
    chain = Chain(it.model, prices, 0)
    columns = all_columns(chain, it.limit_bytes)
    steps = [evaluate(chain, runs_of(columns, picked)).step for picked in every_plan(chain, columns)]
    if not steps:
        return

    row = SimpleNamespace(chain=chain, columns=columns, speed=np.zeros(len(columns), dtype=np.int64))
    assert return_ticks(chain, columns, column_places(chain, columns)) <= min(steps)
    assert dealt_ticks(row, [chain.pp]) <= min(steps)
    assert step_bound(prices, it.model, np.ones(1, dtype=np.int64))[0] * (1 - 1e-12) <= min(steps)


def test_seeds_know_the_rounds_past_all_stages():
    """Eight stages alike and hops as long as they: the longest seed is the step but for what leaves no whole round."""
    forward, backward, tail = np.full(8, 10), np.full(8, 20), np.zeros(8, int)
    exact = step((8, 1, 81), forward, backward, 30, tail)
    best = max(path.ticks(forward, backward, 30, tail) for path in seed_paths(8, 1, 81))
    plain = 8 * 30 + 80 * 30 + 2 * 7 * 30

    assert plain < 0.7 * exact
    assert 0.99 * exact <= best <= exact
    assert best >= 8 * 30 + 80 * 30 + int(hop_ticks(_alone(8, 81, 30))[0])


def _alone(pp, m, hop):
    rows = SimpleNamespace(pp=np.array([pp]), micro_batches=np.array([m]))
    return SimpleNamespace(rows=rows, hop=np.array([hop]))
