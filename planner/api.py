"""``plan()`` and ``estimate()``: from names and files to a proved plan, in one straight line."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from planner.changes import states_too_large
from planner.check import broken_rules
from planner.clocks import check_clocks
from planner.defaults import default_workload
from planner.errors import BadInput
from planner.infeasible import infeasible
from planner.jobs import planned_jobs, read_jobs
from planner.named import named_strategy
from planner.options import Options, parse_assignments, pins_of, read_options, tiers_of, watts
from planner.pins import check_pins
from planner.read_model import read_model
from planner.result import Plan
from planner.start import Start, start_from
from planner.stopping import gave_up, searched
from topologies.cluster import Cluster
from topologies.mixed import MixedCluster
from topologies.ready import read_any_cluster, read_cluster
from topologies.tiers import with_tiers

if TYPE_CHECKING:
    import torch

    from planner.mixed_result import MixedPlan

Progress = Callable[[str, float, float], None]


def plan(
    model: str | Path | dict | ModelGraph | torch.nn.Module,
    cluster: str | Path | Cluster,
    *,
    example_inputs: Any = None,
    seq_len: int | None = None,
    global_batch: int | None = None,
    precision: str | None = None,
    optimizer: str = "adam",
    objective: str = "time",
    power_cap: float | str | None = None,
    clocks: bool = False,
    tiers: str | tuple[str, ...] = (),
    headroom: float = 0.05,
    pins: dict[str, int | str] | str | None = None,
    time_limit_s: float = 60.0,
    deterministic_limit: float | None = None,
    alternatives: int = 5,
    solver: str = "default",
    start: Start | None = None,
    workers: int = 1,
    jobs: int | str = 1,
    progress: Progress = lambda stage, best, bound: None,
) -> Plan | MixedPlan:
    """The best strategy for training ``model`` on ``cluster``, with its estimate and its proof.

    ``model`` is a preset's name, a Hugging Face ``config.json`` or a directory with one, or a torch module with
    ``example_inputs`` to pass shapes through it (a tensor, positional or keyword arguments); ``cluster`` a name
    (``"dgx-h100:4"``), several joined by ``+`` (the answer is then a ``MixedPlan``) or a TOML file. ``objective`` is
    ``"time"``, ``"energy"`` or ``"money"``, all of one step.
    ``power_cap`` is watts at the facility's meter (or ``"700 kW"``), on average over a step, which waits where it must;
    with ``clocks`` every stage gets a clock too, so that it need not. ``tiers`` are memory tiers that tensors may be
    offloaded to: the host's (``"dram,nvme"``), any of the catalogue added to it (``"cxl-pool:2"``), or ``"all"`` that
    the cluster has. ``headroom`` is the part of device memory to
    leave free; ``pins`` what must hold (``{"tp": 4}`` or ``"tp=4,zero=1"``). ``solver="pure-cpsat"`` leaves a small
    space to CP-SAT alone, as a check. ``progress`` is called with what the
    search is at and how much of it is left, the incumbent's objective and the bound.

    ``time_limit_s`` covers everything, from reading to alternatives; ``deterministic_limit`` is in units of work
    (:mod:`planner.search.budget`), at which an unproved plan is the same on every machine. Past either, and after
    Ctrl-C, the best plan so far is returned with the gap that is proved, its status ``"feasible"``.

    ``jobs`` is how many equal jobs share the cluster, each with this batch, or ``"auto"`` for as many as train most.
    ``workers`` are the threads of CP-SAT; a proved plan does not depend on them (:mod:`planner.search.order`).
    ``start`` is a plan found earlier, for this or another question: where it is legal and fits, it is what the search
    has to beat from the beginning, which changes neither the result nor the proof; else a note says why not.

    Raises ``BadInput`` and ``UnknownName`` for what cannot be read, ``InfeasiblePlan`` with repairs when nothing
    fits, ``SearchGaveUp`` when a limit passes before any plan is found, ``KeyboardInterrupt`` for Ctrl-C before that.
    """
    began = time.monotonic()
    graph, machine = read_model(model, example_inputs), read_any_cluster(cluster)
    options = read_options(
        objective=objective, headroom=headroom, time_limit_s=time_limit_s, alternatives=alternatives,
        deterministic_limit=deterministic_limit, workers=workers,
        power_cap_w=watts(power_cap), clocks=clocks, tiers=tiers_of(tiers), pins=pins_of(pins), solver=solver,
    )  # fmt: skip
    asked = {"seq_len": seq_len, "global_batch": global_batch, "precision": precision, "optimizer": optimizer}
    source = str(cluster) if isinstance(cluster, str | Path) else machine.name
    if isinstance(machine, MixedCluster):
        from planner.mixed import plan_mixed

        return plan_mixed(graph, machine, options, asked, progress, source, start=start, jobs=jobs)
    return _planned(graph, machine, options, asked, progress, source, began, start, read_jobs(jobs))


def _planned(
    graph: ModelGraph, machine: Cluster, options: Options, asked: dict[str, Any], progress: Progress, source: str,
    began: float, start: Start | None, count: int | None,
) -> Plan:  # fmt: skip
    """The plan on a regular cluster, for all of it or for equal jobs side by side."""
    _check_weight(machine, options.objective)
    check_clocks(machine, options)
    check_tiers(options)
    machine = with_tiers(machine, options.tiers)
    workload, notes = default_workload(graph, machine, **asked)
    notes = [*graph.notes, *notes]
    deadline = began + options.time_limit_s

    def of_part(part: Cluster, parts: int, seconds: float) -> Plan:
        cap = None if options.power_cap_w is None else options.power_cap_w / parts
        mine = options.model_copy(update={"power_cap_w": cap})
        check_pins(graph, part, workload, options.pins)
        space = legal_space(graph, part, workload, options.pins)
        return _solved(space, mine, notes, progress, source, time.monotonic() + seconds, start)

    if count == 1:
        return of_part(machine, 1, deadline - time.monotonic())
    return planned_jobs(machine, count, deadline, of_part)


def _solved(
    space: Space, options: Options, notes: list[str], progress: Progress, source: str, deadline: float,
    start: Start | None,
) -> Plan:  # fmt: skip
    """Search a space until ``deadline``; the plan, or why there is none."""
    from planner.search.budget import Budget

    if options.solver == "pure-cpsat" and start is not None:
        raise BadInput("solver=pure-cpsat starts from nothing, being a check of the search; leave out start")
    if options.solver == "pure-cpsat":
        from planner.search.pure_cpsat import PureSearch as Search
    else:
        from planner.search.engine import Search

    fits, ticks = calibrate(space.cluster, space.workload.stack), Ticks.of(space.model, space.cluster, space.workload)
    if states_too_large(space, space.cluster.memory_bytes * (1 - options.headroom)):
        raise infeasible(space, options, fits, ticks, deadline)
    budget = Budget(deadline, options.deterministic_limit or math.inf)
    search = Search(space, options, fits, ticks, progress, budget)
    notes = notes if start is None else [*notes, *start_from(search, start)]
    found = searched(search)
    if found.best is None and found.proved:
        raise infeasible(space, options, fits, ticks, deadline)
    if found.best is None:
        raise gave_up(search, found)
    return assemble(search, found, notes, source=source)


def check_tiers(options: Options) -> None:
    """Raises ``BadInput`` where tensors may be offloaded and the solver does not choose that."""
    if options.tiers and options.solver != "default":
        raise BadInput(f"solver={options.solver} offloads nothing; leave out tiers, or take the default solver")


def _check_weight(cluster: Cluster, objective: str) -> None:
    """Raises ``BadInput`` where every plan would cost the same: money that weighs nothing."""
    price = price_per_device_hour(cluster)
    tariff = cluster.facility.figures.electricity_price.value
    if objective == "money" and (price == 0 or (price is None and tariff == 0)):
        what = "price_usd_per_device_hour" if price == 0 else "electricity_price"
        raise BadInput(f"objective money needs a price above 0, and the {what} of {cluster.name!r} is 0; set it")


def estimate(
    model: str | Path | dict | ModelGraph | torch.nn.Module,
    cluster: str | Path | Cluster,
    strategy: str | dict[str, int | str] | Strategy,
    *,
    example_inputs: Any = None,
    workload: Training | None = None,
    power_cap: float | str | None = None,
    **fields: Any,
) -> Estimate:
    """What one strategy costs, whether or not it fits: ``estimate(model, cluster, "tp=8,pp=4")``.

    ``fields`` are ``seq_len``, ``global_batch``, ``precision`` and ``optimizer`` as in :func:`plan`, unless a
    ``workload`` is given. Raises ``BadInput`` for a strategy that is not legal, with every rule it breaks.
    """
    graph, machine = read_model(model, example_inputs), read_cluster(cluster)
    if workload is None:
        given = {"seq_len": None, "global_batch": None, "precision": None, "optimizer": "adam"} | fields
        workload, _ = default_workload(graph, machine, **given)
    if not isinstance(strategy, Strategy):
        words = parse_assignments(strategy) if isinstance(strategy, str) else strategy
        strategy = named_strategy(graph, machine, workload, words)
    if complaints := broken_rules(graph, machine, workload, strategy):
        raise BadInput("not a legal strategy: " + "; ".join(complaints))
    return price_strategy(graph, machine, workload, strategy, power_cap_w=watts(power_cap))
