"""Limits against enumeration, by hand, and what is said about those that cannot hold."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Instance, best_of_all
from oracle_quantities import seats
from searching import options_of, search_of, value_of
from strategies import coarse_ticks, examples, instances, small_cluster, tiny_config

from cost_models.calibration import calibrate
from cost_models.chain import Chain
from cost_models.estimate import estimate
from cost_models.power_levels import groups
from cost_models.price import price
from cost_models.workload import Training
from planner import plan
from planner.checks.check import check_strategy
from planner.errors import BadInput, InfeasiblePlan
from planner.limits import LIMITS, limits_of, per_step, power_limits, tokens_of, training_steps
from planner.options import Options
from planner.read_model import read_config
from planner.search.bounds import objective_of
from planner.search.budget import Budget
from planner.search.certificate import Certificate, ceiling, certify, open_row
from planner.search.dominance import undominated
from topologies.ready import read_cluster

pytestmark = pytest.mark.usefixtures("steady")

QUANTITIES = {"step-time": 0, "step-money": 1, "step-energy": 2}


def close(a: float, b: float) -> bool:
    return a == b or abs(a - b) <= 1e-9 * abs(b)


def met_by(it: Instance) -> np.ndarray:
    """``[plans, (time, money, energy, devices)]`` of every plan within the limits."""
    met = best_of_all(it, keep=True).met
    return np.concatenate(met) if met else np.zeros((0, 4))


@st.composite
def limited(draw: st.DrawFn) -> Instance:
    """An instance with one or two limits on a step, each between the least and the most of all its plans, or below."""
    it = draw(instances(most_layers=4, most_devices=4))
    met = met_by(it)
    names = draw(st.lists(st.sampled_from(sorted(QUANTITIES)), min_size=1, max_size=2, unique=True))
    limits = {}
    for name in names:
        column = np.sort(met[:, QUANTITIES[name]]) if len(met) else np.ones(1)
        exact = bool(draw(st.booleans()))
        at = float(column[draw(st.integers(0, min(len(column) - 1, 20)))])
        limits[name] = max(at * (1.0 if exact else draw(st.floats(0.97, 1.3))), 1e-30)
    return dataclasses.replace(it, limits=tuple(limits.items()))


@examples(6)
@given(limited())
def test_search_within_limits_equals_enumeration(it):
    """The best plan within the limits, and none exactly where there is none."""
    everything, (value, result) = best_of_all(it).value, value_of(it)

    assert close(value, everything)
    if result is not None:
        assert result.proved
        assert close(result.bound, value)


@st.composite
def powered(draw: st.DrawFn) -> Instance:
    """An instance with limits on devices, hosts and racks, from below idling to what no step reaches."""
    it = draw(instances(most_layers=4, most_devices=6))
    domain = it.cluster.host.scale_up_devices // it.cluster.devices_per_host
    it = dataclasses.replace(
        it, cluster=dataclasses.replace(it.cluster, hosts_per_rack=domain * draw(st.integers(1, 3)))
    )
    figures, size = it.cluster.accelerator.figures, it.cluster.devices_per_host
    idle, board = figures.idle_power.value, figures.board_power.value
    host_w = size * idle + it.cluster.host.figures.power.value
    part, racks = st.floats(-0.05, 0.8), it.cluster.hosts_per_rack
    every = {
        "device-power": idle + draw(part) * (board - idle),
        "host-power": host_w + draw(part) * size * (board - idle),
        "rack-power": racks * (1.01 * host_w + draw(part) * size * (board - idle)),
    }
    names = draw(st.lists(st.sampled_from(sorted(every)), min_size=1, max_size=2, unique=True))
    return dataclasses.replace(it, limits=tuple((name, max(every[name], 1.0)) for name in names))


@examples(6)
@given(powered())
def test_waits_for_power_equal_enumeration(it):
    """Limits on devices, hosts and racks are met by the waits that going from device to device gives."""
    everything, (value, _) = best_of_all(it).value, value_of(it)

    assert close(value, everything)


@examples(6)
@given(powered(), st.sampled_from(["time", "energy"]))
def test_the_estimate_keeps_what_the_search_promised(it, objective):
    """The plan priced again draws what its limits allow, breaks no rule, and waits no longer than it must."""
    it = dataclasses.replace(it, objective=objective)
    search = search_of(it)
    if search is None or search.run().best is None:
        return
    strategy, options = search.strategy(search.best), options_of(it)
    assert not check_strategy(it.model, it.cluster, it.workload, strategy, headroom=it.headroom, fits=it.fits,
                              power_cap_w=it.power_cap_w, options=options)  # fmt: skip
    found = estimate(
        it.model, it.cluster, it.workload, strategy, fits=it.fits, ticks=it.ticks, limits=power_limits(options)
    )
    watts = {name: found.level_watts[name.removesuffix("-power")] / limit for name, limit in it.limits}
    assert max(watts.values()) <= 1 + 1e-9
    if it.power_cap_w is None and found.step_s > found.step_ticks * it.ticks.second * (1 + 1e-9):
        assert max(watts.values()) >= 1 - 1e-9


@examples(12)
@given(powered(), st.integers(0, 10**6))
def test_groups_are_those_of_every_rank(it, pick):
    """Hosts and racks hold the stages that going from rank to rank puts there."""
    answer = best_of_all(dataclasses.replace(it, pins=(), limits=(), model=it.model))
    if answer.rows is None:
        return
    r = pick % len(answer.rows)
    one = answer.rows.take(np.array([r]))
    for level in ("host", "rack"):
        size = it.cluster.hosts_per_rack if level == "rack" else 1
        counted: dict[int, list[int]] = {}
        for stage, host in seats(it, one):
            counted.setdefault(host // size, [0] * int(one.pp[0]))[stage] += 1
        found, _ = groups(level, answer.rows, r, it.cluster)
        assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in counted.values()}


def tight(limit: str, **fields: float) -> Instance:
    """A small problem on four hosts of two devices, a host of which may draw hardly more than it does idling."""
    model, cluster = read_config(tiny_config(num_hidden_layers=4, hidden_size=256), "small"), small_cluster(2, 4)
    work, figures = Training(seq_len=1024, global_batch=4), cluster.accelerator.figures
    host_w = 2 * figures.idle_power.value + cluster.host.figures.power.value
    it = Instance(
        model, cluster, work, calibrate(cluster), coarse_ticks(model, cluster, work), limits=((limit, 1.02 * host_w),)
    )
    return dataclasses.replace(it, **fields)


def test_a_limit_on_hosts_spreads_devices_over_more_of_them():
    """One device on each of four hosts has four hosts' watts to spare, side by side on two it has those of two."""
    it = tight("host-power", pins=(("devices", 4),))
    value, result = value_of(it)

    assert close(value, best_of_all(it).value)
    assert result.best.prices.rows.used().tolist() == [[1, 4]]


def test_rows_that_share_hosts_otherwise_do_not_dominate_each_other():
    """Equal prices, the stages on the same hosts or not: one stays alone, unless hosts have a limit."""
    it = tight("host-power", pins=(("pp", 2), ("dp", 2), ("devices", 4)))
    rows = best_of_all(it).rows
    inside, across = (np.flatnonzero(rows.factors["pp"][:, level] == 2)[0] for level in (0, 1))
    prices = price(it.model, it.cluster, it.workload, rows.take(np.array([inside, inside])), it.fits, it.ticks)
    both = dataclasses.replace(prices, rows=rows.take(np.array([inside, across])))
    for limits, kept in (((), 1), (it.limits, 2)):
        objective = objective_of(prices.rows, it.cluster, options_of(dataclasses.replace(it, limits=limits)))
        assert len(undominated(both, np.arange(2), objective)) == kept


def test_limits_are_lines_of_the_certificate():
    """Where no cut is quick enough, the paths say so at once; nothing is tried cut by cut."""
    model, cluster = read_config(tiny_config(num_hidden_layers=12, hidden_size=256), "deep"), small_cluster(3)
    work = Training(seq_len=1024, global_batch=6)
    it = Instance(model, cluster, work, calibrate(cluster), coarse_ticks(model, cluster, work),
                  pins=(("pp", 3), ("micro_batch", 1), ("virtual_stages", 1)))  # fmt: skip
    answer = best_of_all(it)
    at = int(np.argmin(answer.by_row))
    prices, seconds = answer.prices.take(np.array([at])), answer.by_row[at]
    it = dataclasses.replace(it, objective="energy", limits=(("step-time", seconds * (1 - 1e-4)),))
    objective = objective_of(prices.rows, cluster, options_of(it))
    row = open_row(Chain(model, prices, 0), objective, 1, 0.0, np.inf, it.limit_bytes, None, [])
    found = Certificate(None, row.bound, False)
    certify(row, ceiling(row), it.limit_bytes, found, budget=Budget(time.monotonic() + 30))

    assert (found.best, found.proved) == (None, True)
    assert found.rounds <= 3


def test_waits_are_lines_of_the_certificate():
    """A device limit that only an even cut keeps short is found at once, and proved by the lines of the waits."""
    it = tight("host-power", pins=(("pp", 2), ("dp", 2), ("micro_batch", 1), ("virtual_stages", 1)))
    value, result = value_of(it)
    assert close(value, best_of_all(it).value)
    assert result.counts["solver_rounds"] <= 4 * max(1, result.counts["rows_to_solver"])


def test_a_limit_just_met_is_kept_and_a_hair_less_is_not():
    free = plan("llama-3.1-8b", "dgx-h100", alternatives=0)
    same = plan("llama-3.1-8b", "dgx-h100", alternatives=0, limits={"step-time": free.step_s})
    assert same.strategy == free.strategy
    with pytest.raises(InfeasiblePlan, match="step-time"):
        plan("llama-3.1-8b", "dgx-h100", alternatives=0, limits={"step-time": free.step_s * (1 - 1e-6)})


def test_a_host_limit_slows_the_step_until_hosts_draw_it():
    free = plan("llama-3.1-8b", "dgx-h100:2", alternatives=0)
    slow = plan("llama-3.1-8b", "dgx-h100:2", alternatives=0, limits="host-power=6 kW")
    assert free.level_watts["host"] > 6000 > 0
    assert slow.level_watts["host"] <= 6000 * (1 + 1e-9)
    assert slow.step_s > free.step_s
    assert slow.status == "optimal"


def test_a_site_limit_is_the_power_cap_and_one_on_memory_the_headroom():
    one = plan("tiny-llama", "cpu-local:2", alternatives=0, limits=["site-power=250 W", "memory-headroom=10%"])
    other = plan("tiny-llama", "cpu-local:2", alternatives=0, power_cap="250 W", headroom=0.1)
    assert one.options == other.options
    assert one.strategy == other.strategy


def test_limits_on_training_are_those_of_its_steps():
    """15 tokens in steps of 4 are 4 steps, so 30 days are 7.5 days a step; the lower of two limits stays."""
    work = Training(seq_len=2, global_batch=2)
    options = Options(tokens=15.0, limits={"train-time": 30 * 86400.0, "step-time": 1e6, "money": 8.0})
    assert training_steps(options, work) == 4
    assert per_step(options, work).limits == {"step-time": 648000.0, "step-money": 2.0}
    assert per_step(per_step(options, work), work) == per_step(options, work)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("site-power=700 kW", 7e5), ("money=2 M USD", 2e6), ("money=2 MUSD", 2e6), ("train-time=30 d", 2592000.0),
        ("step-time=250 ms", 0.25), ("train-energy=4 GWh", 1.44e13), ("step-money=0.5 USD", 0.5),
        ("train-time=90 min", 5400.0),
    ],
)  # fmt: skip
def test_limits_are_read_with_their_units(text, value):
    assert list(limits_of([text]).values()) == [pytest.approx(value)]


@pytest.mark.parametrize(("text", "value"), [("15T", 1.5e13), ("300B", 3e11), ("1.5e12", 1.5e12), ("2 G tokens", 2e9)])
def test_tokens_are_read_as_people_write_them(text, value):
    assert tokens_of(text) == pytest.approx(value)


CHEAP = {"alternatives": 0}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"limits": "site-powr=1 kW"}, ("site-powr", "nearest: site-power", "train-time")),
        ({"limits": "site-power=1"}, ("site-power", "1", "700 kW")),
        ({"limits": "site-power=1 s"}, ("'s'", "'W'")),
        ({"limits": {"step-time": -1.0}}, ("step-time=-1", "above 0")),
        ({"limits": {"step-time": float("nan")}}, ("step-time=nan",)),
        ({"limits": ["step-time=1 s", "step-time=2 s"]}, ("step-time", "twice")),
        ({"limits": "step-time"}, ("NAME=VALUE",)),
        ({"limits": 3}, ("neither a dictionary",)),
        ({"limits": "train-time=30 d"}, ("train-time", "--tokens")),
        ({"limits": "money=3 MUSD"}, ("money", "--tokens")),
        ({"limits": "device-power=60 W"}, ("device-power is 60", "draws 7", "idling", "raise")),
        ({"limits": "host-power=2 kW"}, ("host-power is 2", "idling")),
        ({"limits": "rack-power=40 kW"}, ("rack-power", "hosts_per_rack")),
        ({"limits": "site-power=40 kW", "power_cap": "30 kW"}, ("one limit", "40000", "30000")),
        ({"limits": "memory-headroom=10%", "headroom": 0.2}, ("one limit", "0.1", "0.2")),
        ({"limits": "memory-headroom=much"}, ("memory-headroom=much", "10%")),
        ({"limits": "step-time=1 h", "solver": "pure-cpsat"}, ("limit step-time", "pure-cpsat")),
        ({"limits": "step-time=1 h", "clocks": True}, ("weighs no joules",)),
        ({"tokens": "many"}, ("tokens='many'", "15T")),
        ({"tokens": 0}, ("tokens=0",)),
    ],
)
def test_bad_limits_are_refused_with_what_to_write(fields, words):
    with pytest.raises(BadInput) as error:
        plan("llama-3.1-8b", "dgx-h100", **CHEAP, **fields)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_every_limit_has_an_example_that_reads():
    for name, kind in LIMITS.items():
        assert limits_of([f"{name}={kind.example}"])[name] > 0


def test_hosts_of_a_rack_come_from_the_cluster_file(tmp_path):
    file = tmp_path / "mine.toml"
    text = 'name = "mine"\nhost = "{host}"\nfabric = "ndr-infiniband"\nfacility = "air"\nhosts = 36\n'
    text += "hosts_per_rack = {n}\n"
    file.write_text(text.format(host="dgx-h100", n=4))
    assert read_cluster(file).hosts_per_rack == 4
    assert read_cluster(file).digest != dataclasses.replace(read_cluster(file), hosts_per_rack=None).digest
    file.write_text(text.format(host="gb200-nvl72", n=5))
    with pytest.raises(BadInput, match=r"hosts_per_rack = 5, but a domain .* is 18 hosts"):
        read_cluster(file)
