"""Bounds of whole layers whose bytes have a price: no plan is below them, and they say most of what memory costs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Answer, Instance, best_of_all
from searching import options_of, rederiving_agrees, space_of
from strategies import examples, instances, with_memory
from test_activation_layers import planted
from test_search_tiers import tiered
from test_tier_bound import one_stage_each, with_another_tier

from cost_models.chain import Chain
from planner.checks import branching, whole_layers
from planner.checks.branching_points import _tiers_hold
from planner.checks.priced_bytes import Kept, telling_prices
from planner.checks.rederive import Problem, may_fit, rederive, values_by_schedule
from planner.checks.whole_layers import Filled, longest_stage, values_of_whole_layers

SEEDS = range(2)


def problem_of(it: Instance) -> Problem:
    return Problem(it.model, it.cluster, it.workload, options_of(it), it.fits, it.ticks)


def unlike(it: Instance, seed: int) -> Instance:
    """The instance with layers of several sorts in any order, some of which keep more and some less."""
    random, base = np.random.default_rng(seed), it.model.kinds[-1]
    kinds = list(it.model.kinds)
    for part in random.choice([0.2, 0.5, 1.4, 3.0], size=2).tolist():
        operators = tuple(dataclasses.replace(one, saved=part * one.saved) for one in base.operators)
        kinds.append(dataclasses.replace(base, kind=f"sort {len(kinds)}", operators=operators))
    order = tuple(random.integers(0, len(kinds), it.model.layers).tolist())
    return dataclasses.replace(it, model=dataclasses.replace(it.model, kinds=tuple(kinds), order=order, config=None))


def of_every_number_of_stages(it: Instance) -> list[tuple[Instance, Answer, int]]:
    """The instance with every number of virtual stages pinned, and all of its plans."""
    every = range(1, it.model.layers + 1)
    pinned = [
        (dataclasses.replace(it, pins=tuple({**dict(it.pins), "virtual_stages": v}.items())), v)
        for v in every
        if dict(it.pins).get("virtual_stages", v) == v
    ]
    answers = [(one, best_of_all(one), v) for one, v in pinned if space_of(one) is not None]
    return [(one, answer, v) for one, answer, v in answers if answer.rows is not None]


def no_plan_is_below(it: Instance) -> None:
    """Fails where a plan of a row is below the row's bound."""
    for one, answer, virtual in of_every_number_of_stages(it):
        problem, best = problem_of(one), np.array(answer.by_row)
        simple = values_by_schedule(problem, answer.prices).get(virtual, np.full(len(best), np.inf))
        rows = np.flatnonzero(np.isfinite(simple) & np.isfinite(best))
        if len(rows):
            bound = values_of_whole_layers(problem, answer.prices.take(rows), virtual)
            assert (bound <= best[rows] * (1 + 1e-12)).all(), virtual


@examples(12)
@given(instances(), st.one_of(st.none(), st.integers(0, 2**32 - 1)))
def test_no_plan_is_below_the_bound_of_its_row(it, seed):
    no_plan_is_below(it if seed is None else unlike(it, seed))


@pytest.mark.slow
@examples(4)
@given(tiered(most_layers=3, most_devices=3))
def test_no_plan_that_offloads_is_below_the_bound_of_its_row(it):
    no_plan_is_below(it)


@pytest.mark.slow
def test_no_plan_with_two_tiers_is_below_the_bound_of_its_row():
    it = with_another_tier(planted(4), 4)
    no_plan_is_below(dataclasses.replace(it, pins=(*it.pins, ("virtual_stages", 1))))


def test_the_bound_of_scarce_memory_is_nearer_the_best_plan():
    """Of rows whose layers have to recompute or to leave: the simple bound does not see what either costs."""
    simply, wholly = [], []
    for seed in range(3):
        it, answer = one_stage_each(seed)
        problem, best = problem_of(it), np.array(answer.by_row)
        rows = np.flatnonzero(np.isfinite(best))
        simple = values_by_schedule(problem, answer.prices)[1][rows]
        bound = values_of_whole_layers(problem, answer.prices.take(rows), 1)
        assert (bound <= best[rows]).all()
        simply += (simple / best[rows]).tolist()
        wholly += (np.maximum(simple, bound) / best[rows]).tolist()

    assert np.mean(wholly) > np.mean(simply) + 0.05
    assert np.quantile(np.divide(wholly, simply), 0.9) > 1.3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("factor", [1 - 1e-9, 1.001])
def test_rederiving_unlike_layers_equals_enumeration(seed, factor):
    rederiving_agrees(unlike(planted(seed), seed), factor)


def kept(ticks: list[float], held: list[float], room: float) -> Kept:
    """One row and one kind of layer that can be kept in ways of such ticks and bytes; ends take nothing."""
    table = np.array(ticks)[:, None, None], np.array(held)[None, :, None, None]
    return Kept(*table, np.zeros((2, 1)), np.zeros((1, 2, 1)), np.array([[room]]))


def test_what_does_not_fit_is_recomputed_as_cheaply_as_can_be():
    """Ten layers of 8 bytes in 50: 6 ticks free 30, of two ways to free 4 a layer for 1 tick and 6 for 2."""
    it, counts, ends = kept([10.0, 11.0, 12.5], [8.0, 4.0, 2.0], 50.0), np.array([10.0]), (False, False)
    ticks = it.charged(telling_prices(it, counts, ends)).of(counts, ends).max()

    assert ticks == pytest.approx(100 + 30 / 4)


def test_what_does_not_fit_at_all_takes_as_long_as_you_like():
    it, counts, ends = kept([10.0, 11.0], [8.0, 4.0], 35.0), np.array([10.0]), (False, False)
    assert it.charged(telling_prices(it, counts, ends)).of(counts, ends).max() > 200


def stages(layers: list[float], number: int) -> list[Filled]:
    """Stages on devices with room for everything, one row."""
    sums = np.concatenate([[0.0], np.cumsum(layers)])[None, None]
    return [Filled(sums, np.zeros((1, 1))) for _ in range(number)]


@pytest.mark.parametrize(
    ("layers", "number", "longest"),
    [([3, 3, 3, 3], 3, 6), ([1, 1, 1, 9], 2, 9), ([5, 1, 5, 1, 5], 3, 6), ([2] * 7, 3, 6), ([4], 1, 4)],
)
def test_a_stage_holds_whole_layers(layers, number, longest):
    found = longest_stage(stages(layers, number), np.array([float(sum(layers))]))
    assert found[0] == pytest.approx(longest, rel=1e-6)
    assert found[0] <= longest


def test_stages_that_nothing_makes_short_enough_are_none():
    assert np.isinf(longest_stage(stages([3, 3], 1), np.array([5.0])))[0]


@pytest.mark.slow
def test_segments_that_no_price_leaves_open_are_not_written_out(monkeypatch):
    """Of unlike layers in scarce memory: few of all, and the answer is the same."""
    it = unlike(planted(1), 1)
    best, written = best_of_all(it).value, []
    real = branching._choices

    def counted(*asked):
        written.append(len(asked[4][0]))
        return real(*asked)

    monkeypatch.setattr(branching, "_choices", counted)
    assert rederive(problem_of(it), best).complete
    few = sum(written)
    monkeypatch.setattr(whole_layers.Filled, "ticks", lambda self, i, j, rows=None: np.zeros(len(i)))
    assert rederive(problem_of(it), best).complete

    assert 0 < few < 0.8 * (sum(written) - few)


@pytest.mark.slow
def test_layers_that_fill_a_tier_to_its_last_byte_fit_and_no_more():
    """Of one stage, by what its plans with the fewest bytes in the tier take there, layer by layer."""
    filled = 0
    for it, answer in (one_stage_each(seed) for seed in range(4)):
        ample = dataclasses.replace(problem_of(it), cluster=with_memory(it.cluster, 1e15))
        for row in np.flatnonzero(answer.rows.pp == 1):
            one = answer.prices.take(np.array([row]))
            least = least_in_the_tier(Chain(it.model, one, 0))
            if least > 0:
                exactly, less = ({"slow": np.array([least - short])} for short in (0, 1))
                filled += 1
                assert may_fit(ample, dataclasses.replace(one, tier_room=exactly)).all()
                assert not may_fit(ample, dataclasses.replace(one, tier_room=less)).any()
    assert filled > 10


def least_in_the_tier(chain: Chain) -> int:
    """Bytes in the tier of the plan of one stage that keeps the fewest there."""
    every = np.arange(chain.layers + 1)
    x, y = (one.ravel() for one in np.meshgrid(every, every))
    return int(chain.tier_bytes("slow", np.zeros_like(x), np.full_like(x, chain.layers), 1, x, y).min())


@pytest.mark.parametrize("seed", range(4))
def test_virtual_stages_that_fill_a_tier_to_its_last_byte_fit_and_no_more(seed):
    """At the moment of a device at which it holds the most there."""
    it, answer = one_stage_each(seed)
    prices = answer.prices
    rows = np.flatnonzero((prices.rows.pp == 2) & (prices.rows.micro_batches % 2 == 0))
    for row in rows.tolist():
        chain = Chain(it.model, prices.take(np.array([row])).with_virtual(2), 0)
        spans = [(0, 1), (1, chain.layers)]
        for moments in (np.array([[2, 1], [1, 3]]), np.array([[1, 1]])):
            held = [
                sum(int(chain.tier_states("slow", i, j)) + n * int(chain.tier_saved("slow", i, j))
                    for n, (i, j) in zip(moment, spans, strict=True))
                for moment in moments.tolist()
            ]  # fmt: skip
            for room, fits in ((max(held), True), (max(held) - 1, False)):
                chain.prices.tier_room["slow"] = np.array([room])
                assert _tiers_hold(chain, spans, moments) == fits
