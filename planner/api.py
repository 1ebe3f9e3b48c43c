"""``plan()`` and ``estimate()``: from names and files to a proved plan, in one straight line."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cost_models.calibration import calibrate
from cost_models.estimate import Estimate
from cost_models.estimate import estimate as price_strategy
from cost_models.model_graph import ModelGraph
from cost_models.money import price_per_device_hour
from cost_models.power import host_power
from cost_models.strategy import Strategy
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner.apart import refuse_replicas, with_numbered_hosts
from planner.assemble import assemble
from planner.candidates import Space, legal_space
from planner.checks.check import broken_rules
from planner.checks.check_hosts import check_differing
from planner.clocks import check_clocks, weighs_joules
from planner.defaults import default_workload
from planner.errors import BadInput
from planner.expressible import Among, best_of_searches, schedules_of, vocab_tp_of, ways_of
from planner.infeasible.changes import states_too_large
from planner.infeasible.refusal import infeasible
from planner.jobs import planned_jobs, read_jobs, with_thin_note
from planner.limits import LIMITS, check_limits, limits_of, share_of, tokens_of
from planner.named import named_strategy
from planner.objectives import minimised, slack_of
from planner.options import Options, parse_assignments, pins_of, read_options, tiers_of, watts
from planner.pins import check_pins
from planner.read_model import read_model
from planner.result import Plan
from planner.start import Start
from planner.stopping import gave_up
from topologies.calibrated import calibrated
from topologies.cluster import Cluster
from topologies.mixed import MixedCluster
from topologies.ready import read_any_cluster, read_cluster
from topologies.tiers import with_tiers

if TYPE_CHECKING:
    import torch

    from planner.mixed.result import MixedPlan

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
    slack: float | str | None = None,
    tokens: float | str | None = None,
    limits: dict[str, float | str] | list[str] | str | None = None,
    power_cap: float | str | None = None,
    clocks: bool = False,
    tiers: str | tuple[str, ...] = (),
    calibration: str | Path | None = None,
    headroom: float = 0.05,
    pins: dict[str, int | str] | str | None = None,
    time_limit_s: float = 60.0,
    deterministic_limit: float | None = None,
    alternatives: int = 5,
    solver: str = "default",
    start: Start | None = None,
    workers: int = 1,
    jobs: int | str = 1,
    targets: tuple[str, ...] = (),
    schedules: str | tuple[str, ...] = (),
    vocab_tp: str | tuple[int, ...] = (),
    progress: Progress = lambda stage, best, bound: None,
) -> Plan | MixedPlan:
    """The best strategy for training ``model`` on ``cluster``, with its estimate and its proof.

    ``model`` is a preset's name, a Hugging Face ``config.json`` or a directory with one, or a torch module with
    ``example_inputs`` to pass shapes through it (a tensor, positional or keyword arguments); ``cluster`` a name
    (``"dgx-h100:4"``), several joined by ``+`` (the answer is then a ``MixedPlan``) or a TOML file. ``objective`` is
    ``"time"``, ``"energy"``, ``"money"`` or ``"tokens-per-joule"``, or several in order (``"time,energy"``), each of
    which may take ``slack`` (``"2%"``) more than its best for the sake of the next. ``tokens`` (``"15T"``) are what to
    train on; ``limits`` are what the plan may take at most (``{"train-time": "30 d", "host-power": "8 kW"}``, names in
    :mod:`planner.limits`). ``power_cap`` is the limit on the site: watts at the facility's meter (or ``"700 kW"``), on
    average over a step, which waits where it must; with ``clocks`` every stage gets a clock too, so that it need not.
    ``tiers`` are memory tiers that tensors may be offloaded to: the host's (``"dram,nvme"``), any of the catalogue
    added to it (``"cxl-pool:2"``), or ``"all"`` that the cluster has. ``calibration`` is a file of constants measured
    on such machines (``meshwright calibrate``), in place of the cluster's own. ``headroom`` is the part of device
    memory to leave free; ``pins`` what must hold (``{"tp": 4}`` or ``"tp=4,zero=1"``). ``solver="pure-cpsat"`` leaves
    a small space to CP-SAT alone, as a check. ``progress`` is called with what the search is at and how much of it is
    left, the incumbent's objective and the bound.

    ``time_limit_s`` covers everything, from reading to alternatives; ``deterministic_limit`` is in units of work
    (:mod:`planner.search.budget`), at which an unproved plan is the same on every machine. Past either, and after
    Ctrl-C, the best plan so far is returned with the gap that is proved, its status ``"feasible"``.

    ``jobs`` is how many equal jobs share the cluster, each with this batch, or ``"auto"`` for as many as train most.
    ``workers`` are the threads of CP-SAT; a proved plan does not depend on them (:mod:`planner.search.order`).
    ``targets`` are launch targets, of which only what all can express is searched (:mod:`planner.expressible`).
    ``schedules`` are the pipeline schedules to choose among (``"1f1b,zbv"``, ``"all"``), a search for each; 1F1B and
    interleaved 1F1B where none is named. Their names are pins too: ``pins="schedule=zbv"``.
    ``vocab_tp`` are numbers of ranks that divide embedding and head (``"2,4"``, ``"all"``), tp and cp together, a
    search for each beside that of as many as tp; a pin too. No launch target has it, such plans are advisory.
    ``start`` is a plan found earlier, for this or another question: where it is legal and fits, it is what the search
    has to beat from the beginning, which changes neither the result nor the proof; else a note says why not.

    Raises ``BadInput`` and ``UnknownName`` for what cannot be read, ``InfeasiblePlan`` with repairs when nothing
    fits, ``SearchGaveUp`` when a limit passes before any plan is found, ``KeyboardInterrupt`` for Ctrl-C before that.
    """
    began = time.monotonic()
    graph, machine = read_model(model, example_inputs), calibrated(read_any_cluster(cluster), calibration)
    options = read_options(
        objective=objective, headroom=headroom, time_limit_s=time_limit_s, alternatives=alternatives,
        deterministic_limit=deterministic_limit, workers=workers, slack=slack_of(slack), tokens=tokens_of(tokens),
        limits=limits_of(limits), power_cap_w=watts(power_cap), clocks=clocks, tiers=tiers_of(tiers),
        pins=pins_of(pins), solver=solver, calibration=None if calibration is None else str(calibration),
    )  # fmt: skip
    asked = {"seq_len": seq_len, "global_batch": global_batch, "precision": precision, "optimizer": optimizer}
    source = str(cluster) if isinstance(cluster, str | Path) else machine.name
    among = Among(targets, schedules_of(schedules), vocab_tp_of(vocab_tp, machine))
    check_among(among, options, mixed=isinstance(machine, MixedCluster))
    if isinstance(machine, MixedCluster):
        from planner.mixed.plan import plan_mixed

        return plan_mixed(graph, machine, options, asked, progress, source, start=start, jobs=jobs)
    return _planned(graph, machine, options, asked, progress, source, began, start, read_jobs(jobs), among)


def _planned(
    graph: ModelGraph, machine: Cluster, options: Options, asked: dict[str, Any], progress: Progress, source: str,
    began: float, start: Start | None, count: int | None, among: Among,
) -> Plan:  # fmt: skip
    """The plan on a regular cluster, for all of it or for equal jobs side by side; the best ``among`` (targets,
    schedules) where any are named."""
    check_weight(machine, options)
    check_limits(machine, options)
    machine = with_numbered_hosts(machine, options, count)
    check_clocks(options, weighs=weighs_joules(machine, options))
    check_tiers(options)
    machine = with_tiers(machine, options.tiers)
    check_differing(machine, options, count)
    check_solver(options, start)
    workload, notes = default_workload(graph, machine, **asked)
    notes = [*graph.notes, *notes]
    deadline = began + options.time_limit_s

    def of_part(part: Cluster, parts: int, seconds: float) -> Plan:
        share = share_of(options, parts)

        def under(pins: dict[str, int | str], within_s: float) -> Plan:
            mine = share.model_copy(update={"pins": pins})
            check_pins(graph, part, workload, pins)
            space = legal_space(graph, part, workload, pins)
            return _solved(
                space, mine, notes, progress, source, time.monotonic() + within_s, start, repairs=not among.several
            )

        if among.several:
            ways = ways_of(among, graph, workload, options.pins)
            return best_of_searches(ways, among.targets, options.pins, under, seconds)
        return under(options.pins, seconds)

    if count == 1:
        return with_thin_note(of_part(machine, 1, deadline - time.monotonic()))
    return planned_jobs(machine, count, deadline, of_part)


def _solved(
    space: Space, options: Options, notes: list[str], progress: Progress, source: str, deadline: float,
    start: Start | None, repairs: bool,
) -> Plan:  # fmt: skip
    """Search a space until ``deadline``; the plan, or why there is none, with ``repairs`` if they are wanted."""
    from planner.search.budget import Budget
    from planner.stages import solved_in_stages, staged_plan

    fits, ticks = calibrate(space.cluster, space.workload.stack), Ticks.of(space.model, space.cluster, space.workload)
    if states_too_large(space, space.cluster.memory_bytes * (1 - options.headroom)):
        raise infeasible(space, options, fits, ticks, deadline, repairs)
    budget = Budget(deadline, options.deterministic_limit or math.inf)
    stages, said = solved_in_stages(space, options, fits, ticks, progress, budget, start)
    search, found = stages[-1].search, stages[-1].found
    if found.best is None and found.proved:
        raise infeasible(space, options, fits, ticks, deadline, repairs)
    if found.best is None:
        raise gave_up(search, found)
    return staged_plan(assemble(search, found, [*notes, *said], source=source), stages, options)


def check_among(among: Among, options: Options, *, mixed: bool) -> None:
    """Raises ``BadInput`` where targets or schedules are named beside what they are not searched with."""
    targets, kinds = among.targets, among.schedules
    if kinds or "schedule" in options.pins:
        refuse_replicas(options, "of the schedules only 1f1b and interleaved are searched there")
    if among.several and "," in options.objective:
        raise BadInput(
            "targets, schedules and vocab_tp are searched for one objective, and "
            f"{options.objective!r} names several; name one"
        )
    if mixed and targets:
        raise BadInput(
            "what launch targets can express is not searched for on mixed clusters; leave the targets out: torchrun "
            "starts most plans, and others say why not"
        )
    if mixed and kinds:
        raise BadInput("stages of different devices are searched under 1F1B alone; leave the schedules out")
    if mixed and among.vocab_tp:
        raise BadInput("stages of different devices divide embedding and head as their layers; leave vocab_tp out")


def check_tiers(options: Options) -> None:
    """Raises ``BadInput`` where tensors may be offloaded and the solver does not choose that."""
    if options.tiers and options.solver != "default":
        raise BadInput(f"solver={options.solver} offloads nothing; leave out tiers, or take the default solver")


def check_weight(cluster: Cluster, options: Options) -> None:
    """Raises ``BadInput`` where every plan would cost the same, money that weighs nothing, or a longer step no more."""
    price = price_per_device_hour(cluster)
    tariff = cluster.facility.figures.electricity_price.value
    asked = ["objective money"] if "money" in options.objective.split(",") else []
    asked += [f"limit {name}" for name in options.limits if LIMITS[name].quantity == "money"]
    if asked and (price == 0 or (price is None and tariff == 0)):
        what = "price_usd_per_device_hour" if price == 0 else "electricity_price"
        raise BadInput(f"{asked[0]} needs a price above 0, and the {what} of {cluster.name!r} is 0; set it")
    names = [name for name in options.objective.split(",") if minimised(name) == "energy" or name == "money"]
    if names and (names != ["money"] or price is None) and not host_power(np.ones(1), cluster).facility_w[0]:
        raise BadInput(
            f"objective {names[0]} counts what hosts draw idle, and those of {cluster.name!r} draw 0 W, so that a "
            "longer step would cost nothing; give the accelerator an idle_power or the host a power, as measured"
        )


def check_solver(options: Options, start: Start | None) -> None:
    """Raises ``BadInput`` for what the solver that is no search does not take."""
    if options.solver == "default":
        return
    given = {"start": start is not None, "several objectives": "," in options.objective}
    given |= {f"limit {name}": True for name in options.limits}
    given |= {f"schedule={options.pins['schedule']}": True} if "schedule" in options.pins else {}
    if unknown := [name for name, said in given.items() if said]:
        raise BadInput(
            f"{', '.join(unknown)}: not for solver={options.solver}, a check of the search from nothing, for one "
            "objective under memory and a power cap; leave it out, or take the default solver"
        )


def estimate(
    model: str | Path | dict | ModelGraph | torch.nn.Module,
    cluster: str | Path | Cluster,
    strategy: str | dict[str, int | str] | Strategy,
    *,
    example_inputs: Any = None,
    workload: Training | None = None,
    power_cap: float | str | None = None,
    calibration: str | Path | None = None,
    **fields: Any,
) -> Estimate:
    """What one strategy costs, whether or not it fits: ``estimate(model, cluster, "tp=8,pp=4")``.

    ``fields`` are ``seq_len``, ``global_batch``, ``precision`` and ``optimizer`` as in :func:`plan`, unless a
    ``workload`` is given. Raises ``BadInput`` for a strategy that is not legal, with every rule it breaks.
    """
    graph, machine = read_model(model, example_inputs), calibrated(read_cluster(cluster), calibration)
    if workload is None:
        given = {"seq_len": None, "global_batch": None, "precision": None, "optimizer": "adam"} | fields
        workload, _ = default_workload(graph, machine, **given)
    if not isinstance(strategy, Strategy):
        words = parse_assignments(strategy) if isinstance(strategy, str) else strategy
        strategy = named_strategy(graph, machine, workload, words)
    if complaints := broken_rules(graph, machine, workload, strategy):
        raise BadInput("not a legal strategy: " + "; ".join(complaints))
    return price_strategy(graph, machine, workload, strategy, power_cap_w=watts(power_cap))
