"""The bound of steps whose layers share memories and links: no plan is below it, and it is the programme's own."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from oracle import Answer, Instance, best_of_all
from scipy.optimize import linprog
from searching import options_of, space_of
from strategies import with_memory
from test_activation_layers import planted

from cost_models.power import static_power
from cost_models.price import Prices
from planner.checks.rederive import Problem, may_fit
from planner.search import tier_bound
from planner.search.bounds import fits_somehow, objective_of, stages_of
from planner.search.recompute_bound import longest_stage
from planner.search.screen import Screen
from planner.search.tier_bound import least_step, memories_hold

FEW = {"clocks": (1.0, 0.8)}
SEEDS = range(8)


def with_another_tier(it: Instance, seed: int) -> Instance:
    """Beside the tier one of another speed and room."""
    random, (tier,) = np.random.default_rng(seed), it.cluster.tiers
    rate, room = (float(10 ** random.uniform(-0.5, 0.5)) for _ in range(2))
    other = dataclasses.replace(
        tier, name="other", device_bytes_per_s=rate * tier.device_bytes_per_s, capacity_bytes=room * tier.capacity_bytes
    )
    return dataclasses.replace(it, cluster=dataclasses.replace(it.cluster, tiers=(tier, other)))


def within_a_cap(it: Instance, seed: int) -> Instance:
    """Under a limit on power that makes most plans wait."""
    rows = best_of_all(it).rows
    idle_w = float(static_power(rows, it.cluster).facility_w.max())
    return dataclasses.replace(it, power_cap_w=idle_w * (1 + np.random.default_rng(seed).uniform(0.02, 0.4)))


def over_two_replicas(it: Instance, seed: int) -> Instance:
    """One stage on each of two devices, whose gradients are added up."""
    return dataclasses.replace(it, pins=tuple({**dict(it.pins), "pp": 1, "dp": 2}.items()))


def as_planted(it: Instance, seed: int) -> Instance:
    return it


CASES = [
    *((seed, as_planted, {"objective": name}) for seed in range(2) for name in ("time", "energy")),
    *((seed, with_another_tier, {}) for seed in (3,)),
    *((seed, over_two_replicas, {}) for seed in (0, 1)),
    *((seed, as_planted, FEW) for seed in (1,)),
    *((seed, within_a_cap, {**FEW, "objective": name}) for seed, name in ((0, "time"), (1, "energy"))),
]


@pytest.mark.parametrize(("seed", "change", "fields"), CASES)
def test_no_plan_is_below_the_bound_of_its_row(seed, change, fields):
    it = change(planted(seed, **fields), seed)
    answer, screen = best_of_all(it), Screen(space_of(it), it.limit_bytes, it.ticks)
    objective = objective_of(answer.rows, it.cluster, options_of(it))
    bounds, may = screen.promising(answer.prices, objective, np.inf, buffers=True)

    assert (bounds <= np.array(answer.by_row)).all()
    assert np.isinf(np.array(answer.by_row)[~may]).all()


def steps_of(it: Instance, answer: Answer) -> np.ndarray:
    """The bound of every row as 1F1B, in seconds."""
    where = answer.prices, it.model, it.limit_bytes
    longest = longest_stage(*where, buffers=True)
    return least_step(*where, np.zeros_like(longest), longest, buffers=True) * it.ticks.second


@functools.cache
def one_stage_each(seed: int) -> tuple[Instance, Answer]:
    """An instance without virtual stages, and all of its plans."""
    it = planted(seed)
    it = dataclasses.replace(it, pins=tuple({**dict(it.pins), "virtual_stages": 1}.items()))
    return it, best_of_all(it)


@pytest.mark.slow
def test_many_rows_are_bounded_by_what_their_best_plan_takes():
    """Of whole layers there is one more at most than of parts of them; some rows have plans that lose nothing by it."""
    tight = []
    for seed in SEEDS:
        it, answer = one_stage_each(seed)
        best, bounds = np.array(answer.by_row), steps_of(it, answer)
        tight += (bounds[np.isfinite(best)] / best[np.isfinite(best)]).tolist()

    assert max(tight) <= 1 + 1e-9
    assert np.quantile(tight, 0.9) > 0.99


def test_rows_that_no_memory_holds_are_told_without_enumeration():
    """Most rows without a plan, and none with one."""
    told, without = 0, 0
    for seed in SEEDS:
        it, answer = one_stage_each(seed)
        holds = memories_hold(answer.prices, it.model, it.limit_bytes, buffers=True)
        none = np.isinf(answer.by_row)
        assert holds[~none].all()
        told, without = told + int((~holds & none).sum()), without + int(none.sum())
    assert told > 0.7 * without > 0


def test_verify_tells_rows_that_no_memory_holds_by_sums_of_its_own():
    """None with a plan, and many of those without one; with room in every tier for all fewer."""
    told, roomy, without = 0, 0, 0
    for seed in SEEDS:
        it, answer = one_stage_each(seed)
        problem = Problem(it.model, it.cluster, it.workload, options_of(it), it.fits, it.ticks)
        none, prices = np.isinf(answer.by_row), answer.prices
        fits = may_fit(problem, prices)
        assert fits[~none].all()
        room = {name: np.full_like(most, 10**15) for name, most in prices.tier_room.items()}
        told, without = told + int((~fits).sum()), without + int(none.sum())
        roomy += int((~may_fit(problem, dataclasses.replace(prices, tier_room=room))).sum())
    assert without > told > max(roomy, 0.5 * without)


def test_verify_asks_nothing_of_a_tier_that_a_row_leaves_empty():
    """However little room there is: layers that take no byte of it fit, any number of them."""
    it, answer = one_stage_each(2)
    problem = Problem(it.model, it.cluster, it.workload, options_of(it), it.fits, it.ticks)
    stays = answer.prices.take(np.flatnonzero(answer.prices.rows.offload.sum(axis=(1, 2)) == 0))
    stays = dataclasses.replace(stays, tier_room={name: 0 * room for name, room in stays.tier_room.items()})
    ample = dataclasses.replace(problem, cluster=with_memory(it.cluster, 1e12))

    assert len(stays.rows) and may_fit(ample, stays).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_layers_that_take_nothing_fit_where_their_ends_do(seed):
    """To the byte, by what the search asks and by what verify does."""
    it, answer = one_stage_each(seed)
    prices = without_layers(answer.prices.take(np.array([0])))
    ends = stages_of(prices, 0, buffers=True)
    need = -int(np.where(ends.exists, ends.room, 0).min())
    problem = Problem(it.model, with_memory(it.cluster, need), it.workload, options_of(it), it.fits, it.ticks)

    assert problem.limit_bytes == need
    assert may_fit(problem, prices).all()
    assert fits_somehow(prices, it.model, need, "full", buffers=True).all()
    assert not fits_somehow(prices, it.model, need - 1, "full", buffers=True).any()


def without_layers(prices: Prices) -> Prices:
    """The prices with nothing of any layer on the device or in a tier, whatever it lets go."""

    def none(table: np.ndarray) -> np.ndarray:
        return np.concatenate([0 * table[:, :-2], table[:, -2:]], axis=1)

    tables = {
        name: {key: none(table) for key, table in getattr(prices, name).items()}
        for name in ("states", "saved", "tier_states", "tier_saved")
    }
    return dataclasses.replace(prices, **tables, nearer=None, kept=None, alike=None)


@pytest.mark.parametrize("seed", range(8))
def test_duals_are_those_of_the_programme(seed):
    """Prices are at least 0, no choice is worth more than what it takes at them, and what is left the most work."""
    random = np.random.default_rng(seed)
    lines, choices = int(random.integers(2, 8)), int(random.integers(2, 12))
    taken = random.uniform(0, 1, (5, lines, choices)) * (random.random((5, lines, choices)) < 0.8)
    taken[:, 0] = np.maximum(taken[:, 0], 0.05)
    left, worth = random.uniform(0, 3, (5, lines)) * (random.random((5, lines)) < 0.9), random.uniform(0.5, 1, choices)
    price = tier_bound._duals(taken, left, np.broadcast_to(worth, (5, choices))) * worth.max()

    for k in range(5):
        best = linprog(-worth, A_ub=taken[k], b_ub=left[k])
        assert (price[k] >= 0).all() and (price[k] @ taken[k] >= worth * (1 - 1e-6)).all()
        assert price[k] @ left[k] == pytest.approx(-best.fun, rel=1e-6, abs=1e-9)


def test_prices_that_a_simplex_left_early_bound_less_and_not_wrongly(monkeypatch):
    it, answer = one_stage_each(2)
    whole = steps_of(it, answer)
    duals = tier_bound._duals

    def spoilt(taken, left, worth):
        price = duals(taken, left, worth)
        return price * np.random.default_rng(1).uniform(0.3, 3.0, price.shape)

    monkeypatch.setattr(tier_bound, "_duals", spoilt)
    some = steps_of(it, answer)
    finite = np.isfinite(whole)
    assert (some[finite] <= whole[finite] * (1 + 1e-9)).all() and (some[finite] < whole[finite] * 0.999).any()
