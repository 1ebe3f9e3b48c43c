"""``plan()`` and ``estimate()``: from names and files to a proved plan, in one straight line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cost_models.calibration import calibrate
from cost_models.estimate import Estimate
from cost_models.estimate import estimate as price_strategy
from cost_models.model_graph import ModelGraph
from cost_models.money import price_per_device_hour
from cost_models.price import Ticks
from cost_models.strategy import Strategy
from cost_models.workload import Training
from planner.assemble import assemble
from planner.candidates import Space, legal_space
from planner.check import broken_rules
from planner.defaults import default_workload
from planner.errors import BadInput, SearchGaveUp
from planner.infeasible import infeasible, states_bytes
from planner.named import named_strategy
from planner.options import Options, parse_assignments, pins_of, read_options, watts
from planner.pins import check_pins
from planner.read_model import read_model
from planner.result import Plan
from topologies.cluster import Cluster
from topologies.ready import read_cluster

Progress = Callable[[str, float, float], None]


def plan(
    model: str | Path | dict | ModelGraph,
    cluster: str | Path | Cluster,
    *,
    seq_len: int | None = None,
    global_batch: int | None = None,
    precision: str | None = None,
    optimizer: str = "adam",
    objective: str = "time",
    power_cap: float | str | None = None,
    headroom: float = 0.05,
    pins: dict[str, int | str] | str | None = None,
    time_limit_s: float = 60.0,
    alternatives: int = 5,
    progress: Progress = lambda stage, best, bound: None,
) -> Plan:
    """The best strategy for training ``model`` on ``cluster``, with its estimate and its proof.

    ``model`` is a preset's name, a Hugging Face ``config.json`` or a directory with one; ``cluster`` a name
    (``"dgx-h100:4"``) or a TOML file. ``objective`` is ``"time"``, ``"energy"`` or ``"money"``, all of one step.
    ``power_cap`` is watts at the facility's meter (or ``"700 kW"``); ``headroom`` the part of device memory to
    leave free; ``pins`` what must hold (``{"tp": 4}`` or ``"tp=4,zero=1"``). ``progress`` is called with the
    stage of the search, the incumbent and the bound.

    Raises ``BadInput`` and ``UnknownName`` for what cannot be read, ``InfeasiblePlan`` with repairs when nothing
    fits, ``SearchGaveUp`` when the time limit passes before any plan is found.
    """
    graph, machine = read_model(model), read_cluster(cluster)
    options = read_options(
        objective=objective, headroom=headroom, time_limit_s=time_limit_s, alternatives=alternatives,
        power_cap_w=watts(power_cap), pins=pins_of(pins),
    )  # fmt: skip
    _check_weight(machine, options.objective)
    workload, notes = default_workload(
        graph, machine, seq_len=seq_len, global_batch=global_batch, precision=precision, optimizer=optimizer
    )
    check_pins(graph, machine, workload, options.pins)
    space = legal_space(graph, machine, workload, options.pins)
    source = machine.name if isinstance(cluster, Cluster) else str(cluster)
    return _solved(space, options, notes, progress, source)


def _solved(space: Space, options: Options, notes: list[str], progress: Progress, source: str) -> Plan:
    """Search a space; the plan, or why there is none."""
    from planner.search.start import check_hosts_hold, search_of

    fits, ticks = calibrate(space.cluster, space.workload.stack), Ticks.of(space.model, space.cluster, space.workload)
    if states_bytes(space) > space.cluster.memory_bytes * (1 - options.headroom):
        raise infeasible(space, options, fits, ticks)
    search = search_of(space, options, fits, ticks, progress)
    found = search.run()
    if found.best is None and found.proved:
        check_hosts_hold(search)
        raise infeasible(space, options, fits, ticks)
    if found.best is None:
        raise SearchGaveUp(
            f"no plan found in {options.time_limit_s} s of {search.counts['degrees']} degree tuples; "
            "that does not say there is none: raise the time limit, or pin some axes"
        )
    return assemble(search, found, notes, source=source)


def _check_weight(cluster: Cluster, objective: str) -> None:
    """Raises ``BadInput`` where every plan would cost the same: money that weighs nothing."""
    price = price_per_device_hour(cluster)
    tariff = cluster.facility.figures.electricity_price.value
    if objective == "money" and (price == 0 or (price is None and tariff == 0)):
        what = "price_usd_per_device_hour" if price == 0 else "electricity_price"
        raise BadInput(f"objective money needs a price above 0, and the {what} of {cluster.name!r} is 0; set it")


def estimate(
    model: str | Path | dict | ModelGraph,
    cluster: str | Path | Cluster,
    strategy: str | dict[str, int | str] | Strategy,
    *,
    workload: Training | None = None,
    power_cap: float | str | None = None,
    **fields: Any,
) -> Estimate:
    """What one strategy costs, whether or not it fits: ``estimate(model, cluster, "tp=8,pp=4")``.

    ``fields`` are ``seq_len``, ``global_batch``, ``precision`` and ``optimizer`` as in :func:`plan`, unless a
    ``workload`` is given. Raises ``BadInput`` for a strategy that is not legal, with every rule it breaks.
    """
    graph, machine = read_model(model), read_cluster(cluster)
    if workload is None:
        given = {"seq_len": None, "global_batch": None, "precision": None, "optimizer": "adam"} | fields
        workload, _ = default_workload(graph, machine, **given)
    if not isinstance(strategy, Strategy):
        words = parse_assignments(strategy) if isinstance(strategy, str) else strategy
        strategy = named_strategy(graph, machine, workload, words)
    if complaints := broken_rules(graph, machine, workload, strategy):
        raise BadInput("not a legal strategy: " + "; ".join(complaints))
    return price_strategy(graph, machine, workload, strategy, power_cap_w=watts(power_cap))
