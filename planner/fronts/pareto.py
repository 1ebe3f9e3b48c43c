"""``pareto()``: the trade-offs between time, money, energy and devices, and what is proved about each of them.

The front is of ``(time, money, energy, devices)`` of one step. Devices are those of the hosts in use, since whole hosts
are paid and powered; money is rent, proportional to devices times time, or tariff, proportional to energy, so what
covers time, energy and devices covers money as well. The method is one pass over bound vectors
(:mod:`planner.search.front`), exact to within ``tolerance``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cost_models.calibration import calibrate
from cost_models.estimate import estimate
from cost_models.model_graph import ModelGraph
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner import __version__
from planner.apart import refuse_replicas
from planner.api import Progress, check_weight
from planner.candidates import legal_space
from planner.checks.check import check_strategy
from planner.checks.check_hosts import check_front
from planner.clocks import described, weighs_joules_of_rented
from planner.defaults import default_workload
from planner.errors import BadInput, PlannerBug, SearchGaveUp
from planner.fronts.mixed import MixedFront, mixed_front
from planner.fronts.record import FrontRecord
from planner.infeasible.changes import states_too_large
from planner.infeasible.refusal import infeasible
from planner.limits import check_limits, limits_of, power_limits, tokens_of, training_steps
from planner.options import Options, pins_of, read_options, tiers_of, watts
from planner.pins import check_pins
from planner.read_model import read_model
from planner.result import Record, StrategyRecord
from topologies.cluster import Cluster
from topologies.mixed import MixedCluster
from topologies.ready import read_any_cluster
from topologies.tiers import with_tiers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import RenderableType

    from planner.search.front import FrontSearch, Point

RELATIVE = 1e-9


class FrontPoint(Record):
    """One plan of the front: what a step takes, and of training where tokens were given."""

    strategy: StrategyRecord
    step_s: float
    usd_per_step: float | None
    joules_per_step: float
    devices: int
    devices_used: int
    site_w: float
    train_s: float | None = None
    train_usd: float | None = None


class Front(FrontRecord):
    """Plans of which none is better than another in everything, fastest first, and what is proved about them.

    Every plan of the space has a point within ``tolerance`` of it or better in time, money and energy, on no more
    devices. So no plan on as many devices as a point or fewer is better than it by more than ``tolerance`` in both
    time and energy.
    """

    cost_model_digest: str
    points: list[FrontPoint]
    space: dict[str, Any]
    rows: dict[str, int]

    @property
    def statement(self) -> str:
        """What is proved, in one sentence."""
        if self.tolerance is None:
            return "the time limit came first: nothing is proved about plans that were not looked at"
        early = "" if self.proved else f" (the time limit came before the {self.tolerance_asked:.3g} asked for)"
        return (
            f"every plan of the space has a point here that takes at most {self.tolerance:.3%} more time, money and "
            f"energy on no more devices{early}; so no plan on as many devices as a point, or fewer, is better by more "
            "than that in both time and energy"
        )

    def view(self) -> RenderableType:
        """The front for a terminal."""
        from planner.fronts.report import front_view

        return front_view(self)

    def summary(self) -> str:
        """The points as a table, and what is proved."""
        from planner.report import as_text

        return as_text(self.view())

    def plot(self, axes: Axes | None = None) -> Axes:
        """Step time against energy, one colour a number of devices; needs ``meshwright[plots]``."""
        from planner.fronts.plot import front_axes

        return front_axes(self, axes)


def pareto(
    model: str | Path | dict | ModelGraph,
    cluster: str | Path | Cluster | MixedCluster,
    *,
    seq_len: int | None = None,
    global_batch: int | None = None,
    precision: str | None = None,
    optimizer: str = "adam",
    tolerance: float = 0.01,
    tokens: float | str | None = None,
    limits: dict[str, float | str] | list[str] | str | None = None,
    power_cap: float | str | None = None,
    clocks: bool = False,
    tiers: str | tuple[str, ...] = (),
    headroom: float = 0.05,
    pins: dict[str, int | str] | str | None = None,
    time_limit_s: float = 120.0,
    progress: Progress = lambda stage, best, bound: None,
) -> Front | MixedFront:
    """The front of (time, money, energy, devices) for training ``model`` on ``cluster`` or on a part of it.

    On a mixed cluster it is of time and rent, and its points are plans (:mod:`planner.fronts.mixed`).

    ``tolerance`` is the part by which a plan may be better than the point that stands for it; the other arguments are
    those of :func:`planner.plan`. ``progress`` is called with the points found and the rows still open.

    Raises what :func:`planner.plan` raises.
    """
    deadline = time.monotonic() + time_limit_s
    graph, machine = read_model(model), read_any_cluster(cluster)
    source = machine.name if isinstance(cluster, Cluster | MixedCluster) else str(cluster)
    work = {"seq_len": seq_len, "global_batch": global_batch, "precision": precision, "optimizer": optimizer}
    _check_tolerance(tolerance)
    if isinstance(machine, MixedCluster):
        _refuse_idle_clocks(read_options(power_cap_w=watts(power_cap), limits=limits_of(limits), clocks=clocks))
        return mixed_front(
            graph, machine, source, tolerance=tolerance, time_limit_s=time_limit_s, limits=limits, progress=progress,
            tokens=tokens, power_cap=power_cap, clocks=clocks, tiers=tiers, headroom=headroom, pins=pins, **work,
        )  # fmt: skip
    options = read_options(
        headroom=headroom, time_limit_s=time_limit_s, power_cap_w=watts(power_cap), pins=pins_of(pins),
        tokens=tokens_of(tokens), limits=limits_of(limits), tiers=tiers_of(tiers), clocks=clocks,
    )  # fmt: skip
    _check_asked(machine, options)
    machine = with_tiers(machine, options.tiers)
    workload, _ = default_workload(graph, machine, **work)
    check_pins(graph, machine, workload, options.pins)
    search = _swept(graph, machine, workload, options, tolerance, progress, deadline)
    return _front(search, options, tolerance, source)


def _check_asked(machine: Cluster, options: Options) -> None:
    """Raises ``BadInput`` for what no front is searched for."""
    check_weight(machine, options)
    check_limits(machine, options)
    check_front(machine)
    refuse_replicas(options, "a front of plans names no hosts")
    if "schedule" in options.pins:
        raise BadInput(
            f"schedule={options.pins['schedule']} is searched by plan(), and a front holds 1f1b and interleaved plans; "
            "leave the pin out"
        )


def _refuse_idle_clocks(options: Options) -> None:
    """Raises ``BadInput`` for clocks on a mixed cluster where no limit lets a lower one in."""
    if options.clocks and not weighs_joules_of_rented(options):
        raise BadInput(
            "clocks=True, but a front on a mixed cluster weighs time against rent, and no lower clock is quicker or "
            "rents for less; give a power cap or another limit on power or energy, leave out clocks, or ask for a "
            "front on one kind of devices"
        )


def _check_tolerance(tolerance: object) -> None:
    good = isinstance(tolerance, int | float) and not isinstance(tolerance, bool) and 1e-6 <= tolerance <= 1
    if not good:
        raise BadInput(f"tolerance={str(tolerance)[:80]} is not a part from 0.000001 to 1; for example 0.01")


def _swept(
    graph: ModelGraph, machine: Cluster, workload: Training, options: Options, tolerance: float, progress: Progress,
    deadline: float,
) -> FrontSearch:  # fmt: skip
    """The search when it is over. Raises ``InfeasiblePlan`` or ``SearchGaveUp`` where it found nothing."""
    from planner.search.budget import Budget
    from planner.search.front import FrontSearch

    space = legal_space(graph, machine, workload, options.pins)
    fits, ticks = calibrate(machine, workload.stack), Ticks.of(graph, machine, workload)
    if states_too_large(space, machine.memory_bytes * (1 - options.headroom)):
        raise infeasible(space, options, fits, ticks, deadline)
    search = FrontSearch(space, options, fits, ticks, progress, Budget(deadline), eps=tolerance)
    complete = search.sweep()
    if not search.points and complete:
        raise infeasible(space, options, fits, ticks, deadline)
    if not search.points:
        raise SearchGaveUp(f"no plan found in {options.time_limit_s:.3g} s; raise the time limit, or pin some axes")
    return search


def _front(search: FrontSearch, options: Options, tolerance: float, source: str) -> Front:
    reached = search.reached if search.reached < float("inf") else None
    return Front(
        meshwright_version=__version__, model=search.model.name, model_digest=search.model.digest, cluster=source,
        cluster_digest=search.cluster.digest, cost_model_digest=search.fits.digest, workload=search.workload,
        options=options.model_dump(mode="json"), tolerance_asked=tolerance, tolerance=reached,
        proved=reached is not None and reached <= tolerance, space=described(search.space, options), rows=search.counts,
        search_s=search.seconds,
        points=[_point(search, it, options) for it in sorted(search.points, key=lambda it: it.vector)],
    )  # fmt: skip


def _point(search: FrontSearch, it: Point, options: Options) -> FrontPoint:
    """A point priced and checked outside the search. Raises ``PlannerBug`` when these disagree."""
    strategy, work = search.strategy(it.kept), search.workload
    priced = estimate(
        search.model, search.cluster, work, strategy, fits=search.fits, ticks=search.ticks, limits=power_limits(options)
    )
    complaints = check_strategy(
        search.model, search.cluster, work, strategy, headroom=options.headroom, power_cap_w=options.power_cap_w,
        fits=search.fits, options=options,
    )  # fmt: skip
    devices = priced.hosts_used * search.cluster.devices_per_host
    for name, mine, right in (
        ("step", it.step_s, priced.step_s), ("joules", it.joules, priced.joules), ("devices", it.devices, devices),
    ):  # fmt: skip
        if abs(mine - right) > RELATIVE * abs(right):
            complaints.append(f"{name} is {mine:.12g} in the search and {right:.12g} in the estimate")
    if complaints:
        raise PlannerBug("the search chose a point that its checks refuse: " + "; ".join(complaints))
    steps = training_steps(options, work)
    return FrontPoint(
        strategy=StrategyRecord.of(strategy), step_s=priced.step_s, usd_per_step=priced.usd,
        joules_per_step=priced.joules, devices=devices, devices_used=priced.devices_used,
        site_w=priced.watts["facility"], train_s=None if steps is None else steps * priced.step_s,
        train_usd=None if steps is None or priced.usd is None else steps * priced.usd,
    )  # fmt: skip
