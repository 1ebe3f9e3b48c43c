"""The power curve: by hand, against the measured joules it was fitted to, and in the prices of a layer."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from costs import make_rows

from cost_models.calibration import calibrate
from cost_models.clocks import STEPS, ClockCurve
from cost_models.price import price
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner.read_model import read_model
from topologies.ready import read_cluster

MEASURED = Path(__file__).parents[1] / "cost_models" / "calibration" / "data" / "clocks.csv"
A100 = read_cluster("dgx-a100:2")
FULL_MHZ, THROTTLED = 1410, 0.97
RESIDUAL = 0.011
"""Root mean square of the relative errors of all four curves together, as power.toml says."""


def test_the_curve_by_hand():
    curve = ClockCurve(exponent=3.0, floor=0.8)

    assert curve.power(1.0) == 1.0
    assert curve.power(0.9) == pytest.approx(0.9**3)
    assert curve.power(0.5) == pytest.approx(0.5 * 0.8**2)
    assert curve.voltage_squared(0.5) == curve.voltage_squared(0.8)


def test_the_last_step_is_above_the_floor_and_the_next_would_not_be():
    floor = calibrate(A100).clock.floor

    assert STEPS[0] == 1.0
    assert list(STEPS) == sorted(STEPS, reverse=True)
    assert floor <= STEPS[-1]
    assert STEPS[-1] - (STEPS[0] - STEPS[1]) < floor


def curves():
    """``(clock, seconds, joules)`` of every measured curve below the clocks at which the board throttled itself."""
    lines = [line for line in MEASURED.read_text().splitlines() if not line.startswith("#")]
    rows = list(csv.DictReader(lines))
    for _, group in itertools.groupby(rows, key=lambda row: (row["model"], row["instruction"])):
        table = np.array([[float(row[name]) for name in ("clock_mhz", "seconds", "joules")] for row in group])
        table[:, 0] /= FULL_MHZ
        yield table[table[:, 0] < THROTTLED].T


def test_measured_joules_follow_the_curve():
    """One number a curve (its dynamic joules at full clock) is fitted here; exponent and floor are the file's.

    The part that does not follow the clock is read off the times, and its watts off power.toml.
    """
    fits, idle_w = calibrate(A100), A100.accelerator.figures.idle_power.value
    errors, slowest = [], []
    for clock, seconds, joules in curves():
        scaled, fixed = np.linalg.lstsq(np.stack([1 / clock, np.ones_like(clock)], axis=1), seconds, rcond=None)[0]
        share = scaled / (scaled + fixed)
        spent = np.array([share * fits.power_fraction["matmul"], (1 - share) * fits.power_fraction["memory"]])
        follows = spent[0] / spent.sum()
        shape = follows * np.array([fits.clock.voltage_squared(s) for s in clock]) + 1 - follows
        dynamic = joules - idle_w * seconds
        scale = (dynamic * shape / joules**2).sum() / (shape**2 / joules**2).sum()
        errors.append((idle_w * seconds + scale * shape) / joules - 1)
        slowest.append(share)

    assert len(errors) == 4
    assert np.sqrt(np.mean(np.concatenate(errors) ** 2)) <= RESIDUAL
    assert min(slowest) > 0.8


def priced(clocks=STEPS, model="llama-3.1-8b", cluster=A100, **rows):
    graph, workload = read_model(model), Training(seq_len=4096, global_batch=64)
    rows = make_rows(**{"tp": 2, "micro_batches": 4} | rows)
    return price(graph, cluster, workload, rows, calibrate(cluster), Ticks(2.0**-50), clocks=clocks)


def test_a_lower_clock_is_slower_and_thriftier_and_changes_no_byte():
    prices = priced()
    before = prices
    for clock in STEPS[1:]:
        slow = prices.at(clock)
        longer = (slow.forward + slow.backward) / (before.forward + before.backward)
        assert (longer[:, 0] > 1).all()
        assert (slow.joules_pass < before.joules_pass)[:, 0].all()
        assert (slow.forward >= before.forward).all()
        assert slow.state_bytes.tolist() == prices.state_bytes.tolist()
        assert slow.update.tolist() == prices.update.tolist()
        before = slow
    assert (prices.least_joules_pass <= prices.joules_pass).all()
    assert (prices.least_joules_pass[:, 0] == prices.at(STEPS[-1]).joules_pass[:, 0]).all()


def test_a_layer_slows_down_about_as_measured():
    """0.84 to 0.93 of the measured stages' time follows the clock; a large layer without communication is like them."""
    prices = priced(tp=1, micro_batch=4)
    longer = float(prices.at(0.8).forward[0, 0] / prices.forward[0, 0])

    assert 1 + 0.8 * (1 / 0.8 - 1) < longer < 1 / 0.8


def test_one_clock_costs_no_more_than_none():
    prices, alone = priced(), priced(clocks=(1.0,))

    assert alone.slower == {}
    assert prices.forward.tolist() == alone.forward.tolist()
    assert prices.only(0.9).clocks == (1.0,)
    assert prices.take(np.array([0])).at(0.9).forward.tolist() == prices.at(0.9).forward.tolist()
    assert (prices.with_virtual(2).at(0.9).rows.virtual == 2).all()
