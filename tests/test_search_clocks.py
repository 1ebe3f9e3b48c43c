"""The search with a clock for every stage, against enumeration of every plan and every clock."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance, best_of_all
from searching import close, options_of, rederiving_agrees, search_agrees, search_of, value_of
from strategies import coarse_ticks, examples, instances, small_cluster, tiny_config

from cost_models.calibration import calibrate
from cost_models.clocks import STEPS
from cost_models.estimate import estimate
from cost_models.workload import Training
from planner.checks.check import check_strategy
from planner.read_model import read_config

CURVES = st.sampled_from([(3.06, 0.78), (3.06, 0.9), (1.3, 0.78), (6.0, 0.5)])
"""Exponents and floors. Few devices draw little above idle: one that saves a lot makes the clock worth choosing."""


def at_any_clock(it: Instance, curve: tuple[float, float]) -> Instance:
    """The problem with a clock for every stage, of a curve with that exponent and floor."""
    exponent, floor = curve
    clock = dataclasses.replace(it.fits.clock, exponent=exponent, floor=floor)
    return dataclasses.replace(it, fits=dataclasses.replace(it.fits, clock=clock), clocks=STEPS)


@st.composite
def clocked(draw: st.DrawFn, *, most_layers: int = 4) -> Instance:
    """A problem whose joules count: energy, or any objective under a cap, that lets every stage choose its clock."""
    it = draw(instances(most_layers=most_layers, most_devices=4))
    if it.power_cap_w is None:
        it = dataclasses.replace(it, objective="energy")
    return at_any_clock(it, draw(CURVES))


@examples(12)
@given(clocked())
def test_search_equals_enumeration_with_clocks(it):
    search_agrees(it)


def pipeline(objective: str, cap_part: float | None, layers: int = 5, **pins: int) -> Instance:
    """A few layers on three stages with enough work to need its power: stages differ, so clocks may."""
    config = tiny_config(num_hidden_layers=layers, hidden_size=2048, intermediate_size=8192, num_attention_heads=16)
    model, cluster = read_config(config, "wide"), small_cluster(3)
    workload = Training(seq_len=4096, global_batch=6)
    figures, host = cluster.accelerator.figures, cluster.host.figures.power.value
    watts = cluster.facility.figures.pue.value * (host + 3 * figures.board_power.value)
    return Instance(
        model, cluster, workload, calibrate(cluster), coarse_ticks(model, cluster, workload), objective=objective,
        power_cap_w=None if cap_part is None else cap_part * watts, clocks=STEPS, headroom=0.0,
        pins=tuple(({"pp": 3, "micro_batch": 1, "virtual_stages": 1} | pins).items()),
    )  # fmt: skip


@pytest.mark.parametrize(("objective", "cap"), [("energy", None), ("time", 0.77), ("time", 0.8), ("energy", 0.75)])
def test_stages_choose_different_clocks(objective, cap):
    it = pipeline(objective, cap)
    search = search_of(it)
    result = search.run()
    strategy = search.strategy(result.best)

    assert close(search.value, best_of_all(it).value)
    assert len(set(strategy.clocks)) > 1
    assert check_strategy(it.model, it.cluster, it.workload, strategy) == []
    priced = estimate(it.model, it.cluster, it.workload, strategy, ticks=it.ticks, power_cap_w=it.power_cap_w)
    assert close(priced.step_s if objective == "time" else priced.joules, search.value)


def limited(it: Instance, level: str, part: float) -> Instance:
    """The pipeline with a limit on a device or host between idling and full power, or on a step's joules."""
    figures, host = it.cluster.accelerator.figures, it.cluster.host.figures.power.value
    idle, board = figures.idle_power.value, figures.board_power.value
    device = idle + part * (board - idle)
    watts = {"device-power": device, "host-power": host + it.cluster.devices_per_host * device}
    if level in watts:
        return dataclasses.replace(it, limits=((level, watts[level]),))
    least, free = (value_of(dataclasses.replace(it, objective=name, clocks=c))[0] for name, c in
                   (("energy", STEPS), ("energy", (1.0,))))  # fmt: skip
    return dataclasses.replace(it, limits=(("step-energy", least + part * (free - least)),))


@pytest.mark.parametrize(
    ("level", "part"), [("device-power", 0.6), ("host-power", 0.4), ("step-energy", 0.5), ("step-energy", 1e-9)]
)
def test_limits_with_clocks_equal_enumeration(level, part):
    """A limit on joules or on watts of a device or host is kept by lower clocks, as well as any clocks keep it."""
    it = limited(pipeline("time", None), level, part)
    search = search_of(it)
    result = search.run()
    strategy = search.strategy(result.best)
    limits = options_of(it)

    assert close(search.value, best_of_all(it).value)
    assert result.proved
    assert min(strategy.clocks) < 1
    broken = check_strategy(it.model, it.cluster, it.workload, strategy, fits=it.fits, options=limits)
    assert broken == []
    if level == "step-energy":
        # Without clocks there is no plan at all.
        assert value_of(dataclasses.replace(it, clocks=(1.0,)))[0] == np.inf
    else:
        assert search.value < value_of(dataclasses.replace(it, clocks=(1.0,)))[0]


@examples(4)
@given(clocked(most_layers=3), st.sampled_from(["device-power", "host-power"]), st.floats(0.0, 0.9))
def test_search_and_rederiving_equal_enumeration_with_clocks_and_limits(it, level, part):
    it = limited(it, level, part)
    search_agrees(it)
    rederiving_agrees(it, 1.01)


@pytest.mark.parametrize(("objective", "cap"), [("energy", None), ("time", 0.6)])
def test_interleaved_devices_choose_one_clock(objective, cap):
    it = pipeline(objective, cap, layers=6, virtual_stages=2)
    search = search_of(it)
    clocks = search.strategy(search.run().best).clocks

    assert close(search.value, best_of_all(it).value)
    assert len(clocks) == 3
    assert len(set(clocks)) == 1
    assert clocks[0] < 1


def test_a_clock_for_every_stage_beats_waiting_and_one_clock_for_all():
    it = pipeline("time", 0.77)
    chosen = value_of(it)[0]
    alike = [value_of(dataclasses.replace(it, clocks=(1.0,)))[0]]
    search = search_of(it)
    search.run()
    strategy = search.strategy(search.best)
    for clock in STEPS:
        stages = tuple(dataclasses.replace(stage, clock=clock) for stage in strategy.stages)
        one = dataclasses.replace(strategy, stages=stages)
        alike.append(
            estimate(it.model, it.cluster, it.workload, one, ticks=it.ticks, power_cap_w=it.power_cap_w).step_s
        )

    assert chosen < 0.99 * alike[0]
    assert chosen < min(alike)


def test_full_clocks_are_what_there_was_before():
    """Where a lower clock saves nothing, the plan is the one without the choice."""
    it = pipeline("energy", None)
    curve = dataclasses.replace(it.fits.clock, exponent=1.0)
    it = dataclasses.replace(it, fits=dataclasses.replace(it.fits, clock=curve))
    search = search_of(it)
    result = search.run()

    assert search.value == value_of(dataclasses.replace(it, clocks=(1.0,)))[0]
    assert set(search.strategy(result.best).clocks) == {1.0}
    assert np.isclose(result.bound, search.value, rtol=1e-9)
