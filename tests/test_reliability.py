"""Failures and what they leave: published optima, a run event by event, hand-computed rates, spares and blasts."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from costs import make_rows
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from cost_models.reliability import (
    best_interval_s,
    daly_interval_s,
    enough_spares,
    failures_per_s,
    failures_per_unit_s,
    goodput_fraction,
    host_ports,
    hosts_away,
    mean_time_between_failures_s,
    predicted_failures,
    rate_factor,
    replicas_hit,
    restarting_fraction,
    spares_needed,
    spread_factor,
    states_survive,
    young_interval_s,
)
from topologies.catalogue import load, names
from topologies.ready import read_cluster

MINUTE, DAY = 60.0, 86400.0
LLAMA_3 = load("fleets", "llama-3")
seconds = st.floats(1e-3, 1e5)


@pytest.mark.parametrize(("between", "published"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_dalys_optima_in_minutes(between, published):
    """Daly (2006), figures: checkpoints of 5 minutes, a failure every 24 h, 6 h and 15 min."""
    shown = 1 if published < 10 else 0

    assert round(float(daly_interval_s(5 * MINUTE, between * MINUTE)) / MINUTE, shown) == published
    assert float(best_interval_s(5 * MINUTE, between * MINUTE)) / MINUTE == pytest.approx(published, rel=0.01)


def test_intervals_by_hand():
    """C = 8, M = 100: sqrt(1600) = 40; part = 0.04: 40 (1 + 0.2/3 + 0.04/9) - 8 = 34.8444..."""
    assert young_interval_s(8, 100) == 40
    assert daly_interval_s(8, 100) == pytest.approx(40 * (1 + 0.2 / 3 + 0.04 / 9) - 8)
    assert daly_interval_s(250, 100) == 100


@examples(120)
@given(seconds, st.floats(1e-7, 50), seconds, seconds)
def test_no_other_interval_keeps_more(mtbf, cost, restart, behind):
    """Against a grid from a thousandth to a thousand times it, and finely around it."""
    blocked = cost * mtbf
    best = float(best_interval_s(blocked, mtbf))
    grid = best * np.concatenate([np.geomspace(1e-3, 1e3, 401), 1 + np.linspace(-0.02, 0.02, 41)])

    kept = goodput_fraction(best, blocked, behind, restart, mtbf)
    assert np.all(goodput_fraction(grid, blocked, behind, restart, mtbf) <= kept * (1 + 1e-9) + 1e-300)


@examples(120)
@given(seconds, seconds, seconds, seconds, seconds, st.floats(1, 100))
def test_more_failures_never_raise_goodput(interval, blocked, behind, restart, mtbf, more):
    few, many = (goodput_fraction(interval, blocked, behind, restart, m) for m in (mtbf, mtbf / more))

    assert 0 <= many <= few * (1 + 1e-12) <= 1


@pytest.mark.parametrize("field", range(1, 4))
def test_nothing_that_takes_longer_raises_goodput(field):
    """More seconds blocked, behind or restarting; a cycle of 90 + 10 s by hand without failures: 0.9."""
    usual = [90.0, 10.0, 20.0, 30.0]
    slower = [value * (2 if k == field else 1) for k, value in enumerate(usual)]

    assert goodput_fraction(*usual, 1e12) == pytest.approx(0.9)
    assert goodput_fraction(*slower, 500.0) < goodput_fraction(*usual, 500.0)


def test_goodput_by_hand():
    """tau = 60, C = 40, W = 20, R = 30, M = 100: 0.6 exp(-0.5) / (e - 1)."""
    assert goodput_fraction(60, 40, 20, 30, 100) == pytest.approx(0.6 * math.exp(-0.5) / (math.e - 1))
    assert restarting_fraction(30, 100) == pytest.approx(1 - math.exp(-0.3))


def test_nothing_overflows_when_failures_are_quicker_than_anything():
    assert goodput_fraction(60, 40, 20, 1e6, 1.0) == 0


@pytest.mark.parametrize("behind", [0.0, 15.0])
def test_goodput_of_a_run_event_by_event(behind):
    """Work, snapshot, durable ``behind`` later; a failure goes back to the newest durable one and restarts."""
    interval, blocked, restart, mtbf = 30.0, 5.0, 12.0, 90.0
    kept = played(interval, blocked, behind, restart, mtbf, failures=60_000)

    assert goodput_fraction(interval, blocked, behind, restart, mtbf) == pytest.approx(kept, rel=0.02)


def played(interval, blocked, behind, restart, mtbf, failures):
    """Useful seconds over all seconds of a job that is played until it has failed so often."""
    rng, now, durable, pending = random.Random(7), 0.0, 0.0, []
    for _ in range(failures):
        fails_at = now + rng.expovariate(1 / mtbf)
        at, done, pending = now + restart, durable, []
        while at + interval + blocked <= fails_at:
            at, done = at + interval + blocked, done + interval
            pending.append((at + behind, done))
        durable = max([durable, *(work for ready, work in pending if ready <= fails_at)])
        now = fails_at
    return durable / now


def test_rates_of_llama_3_by_hand():
    """419 interruptions in 54 days: 268 of 16,384 devices, 53 + 63 of 2,048 hosts, 35 of 16,384 ports."""
    rates = failures_per_s(LLAMA_3, 16384, 2048, 16384)

    assert {cause: round(rate * 54 * DAY) for cause, rate in rates.items()} == {
        "device": 268, "host": 53, "network": 35, "software": 63,
    }  # fmt: skip
    assert sum(rates.values()) * 54 * DAY == pytest.approx(419)
    assert mean_time_between_failures_s(rates) / 3600 == pytest.approx(54 * 24 / 419)
    assert failures_per_unit_s(LLAMA_3, "device") == pytest.approx(268 / (16384 * 54 * DAY))


def test_rates_follow_the_units_of_the_job():
    rates = failures_per_s(LLAMA_3, 3 * 16384, 5 * 2048, 7 * 16384)

    assert {cause: round(rate * 54 * DAY) for cause, rate in rates.items()} == {
        "device": 3 * 268, "host": 5 * 53, "network": 7 * 35, "software": 5 * 63,
    }  # fmt: skip


def test_llama_3s_interruptions_from_other_fleets():
    """From Meta's research clusters alone: sqrt(6.50 x 2.34) = 3.90 a thousand node-days, 431 expected, 419 seen."""
    others = [load("fleets", name) for name in ("rsc-1", "rsc-2")]
    mean, low, high = predicted_failures(others, 16384, 2048, 16384, 54 * DAY)

    assert mean == pytest.approx(math.sqrt(6.50 * 2.34) / 1000 * 2048 * 54, rel=1e-3)
    assert abs(mean / 419 - 1) < 0.05
    spread = math.log(6.50 / 2.34) / math.sqrt(2)
    assert high / mean == pytest.approx(math.exp(1.645 * math.sqrt(1.5 * spread**2 + 1 / mean)), rel=1e-3)
    assert low < 419 < high and low * high == pytest.approx(mean**2)


def test_rsc_1_at_two_sizes():
    """The authors project 1.8 h at 16,384 GPUs and 0.23 h at 131,072."""
    rsc = load("fleets", "rsc-1")
    for hosts, hours in ((2048, 1.8), (16384, 0.23)):
        rates = failures_per_s(rsc, 8 * hosts, hosts, 8 * hosts)
        assert mean_time_between_failures_s(rates) / 3600 == pytest.approx(hours, rel=0.03)


def test_fleets_differ_by_a_factor_of_two():
    fleets = [load("fleets", name) for name in names("fleets")]
    per_day = [419 / 2048 / 54, 6.50e-3, 2.34e-3]

    assert rate_factor() == spread_factor(fleets) == pytest.approx(2.3, abs=0.1)
    assert spread_factor(fleets) == pytest.approx(math.exp(1.645 * np.std(np.log(per_day), ddof=1)), rel=1e-3)


def test_a_single_domain_has_no_ports_to_fail():
    assert host_ports(read_cluster("dgx-h100:1")) == 0
    assert host_ports(read_cluster("dgx-h100:2")) == 8


def test_spares_by_hand():
    """Two hosts away on the mean: at most one is with (1 + 2) / e^2."""
    assert enough_spares(2.0, 1) == pytest.approx(3 / math.e**2)
    assert enough_spares(0.0, 0) == 1
    assert spares_needed(0.0) == 0
    assert spares_needed(2.0, part=0.4) == 1
    assert spares_needed(2.0, part=0.41) == 2


def test_spares_for_hosts_that_go_together():
    """One outage of two hosts on the mean, none alone: 0, 2, 4 away with 1, 1, 1/2 over e; by counting with others."""
    pair = ((2, 1.0, 99),)
    assert enough_spares(0.0, 1, pair) == pytest.approx(1 / math.e)
    assert enough_spares(0.0, 4, pair) == pytest.approx(2.5 / math.e)
    assert spares_needed(0.0, part=0.5, together=pair) == 2
    draws = np.random.default_rng(0)
    away = draws.poisson(1.5, 200_000) + 3 * draws.poisson(0.4, 200_000) + 5 * draws.poisson(0.1, 200_000)
    assert enough_spares(1.5, 4, ((3, 0.4, 99), (5, 0.1, 99))) == pytest.approx(float((away <= 4).mean()), abs=0.005)


def test_no_more_goes_out_than_there_is():
    """All hosts on one feed that is out for most of the time, however often it failed; of two units four hosts."""
    assert spares_needed(0.0, together=((8192, 50.0, 1),)) == 8192
    assert enough_spares(0.0, 8191, ((8192, 3.0, 1),)) == pytest.approx(math.exp(-3))
    assert enough_spares(0.0, 3, ((2, 1.0, 2),)) == pytest.approx(2 / math.e)


@pytest.mark.parametrize("away", [1e-9, 0.5, 6.05, 1e4])
def test_spares_are_as_few_as_do(away):
    spares = spares_needed(away)

    assert enough_spares(away, spares) >= 0.999
    assert spares == 0 or enough_spares(away, spares - 1) < 0.999


def test_hosts_away_of_llama_3():
    """7.76 failures a day, 78 % of them take a host out for a day."""
    assert hosts_away(failures_per_s(LLAMA_3, 16384, 2048, 16384), LLAMA_3) == pytest.approx(419 / 54 * 0.78)


BLASTS = [
    # rows, devices lost, replicas hit, survives
    (make_rows("pp", tp=8, pp=3), 8, 1, False),
    (make_rows("pp dp_replicate", tp=8, dp_replicate=5, pp=3), 8, 1, True),
    (make_rows("pp", tp=2, dp_shard=3, pp=3, zero=1), 1, 1, False),
    (make_rows("pp", tp=2, dp_shard=3, pp=3), 6, 3, False),
    (make_rows("pp", tp=2, dp_shard=3, pp=3), 4, 2, True),
    (make_rows("pp", tp=2, cp=2, dp_replicate=3, pp=3, zero=1), 8, 2, True),
    (make_rows("pp", tp=2, cp=2, dp_replicate=3, pp=3, zero=1), 12, 3, False),
    (make_rows("cp", tp=4, cp=2), 4, 1, True),
    (make_rows("cp", tp=4, cp=2, zero=1), 4, 1, False),
]


@pytest.mark.parametrize(("rows", "lost", "hit", "survives"), BLASTS)
def test_what_a_failure_takes(rows, lost, hit, survives):
    assert replicas_hit(rows, lost).tolist() == [hit]
    assert states_survive(rows, lost).tolist() == [survives]
