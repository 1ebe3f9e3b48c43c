"""When nothing fits: the arithmetic of the leanest plan, and the smallest changes that make something fit.

Every repair is tried before it is offered: a search with that change found a plan.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cost_models.calibration import Calibration
from cost_models.chain import Chain
from cost_models.estimate import memory_classes
from cost_models.power import static_power
from cost_models.price import Prices, Ticks, price
from cost_models.rows import Rows
from planner.candidates import Space, degree_table, legal_space, relaxed_rows
from planner.errors import BadInput, InfeasiblePlan
from planner.options import Options
from planner.pins import contradicting, has_strategy
from planner.search.bounds import fits_somehow, objective_of
from planner.search.expand import with_experts, with_placement, with_sharding
from planner.search.incumbent import quick
from planner.search.interleaved import even_cuts, point
from topologies.cluster import Cluster
from topologies.ready import resized
from topologies.units import quantity_text

REPAIR_SECONDS = 4.0
TRIAL_SECONDS = 1.3
LEANEST_DEGREES = 64
GROWTH = (1.0, 1.35, 1.75, 3.5, 8.0)
"""Of the hosts that the leanest plan's bytes alone would ask for."""


@dataclass(frozen=True)
class Problem:
    """A space without a plan, and what was asked of it."""

    space: Space
    options: Options
    fits: Calibration
    ticks: Ticks

    @property
    def limit(self) -> float:
        """Bytes that a device leaves."""
        return self.space.cluster.memory_bytes * (1 - self.options.headroom)

    def on(self, space: Space, **options: Any) -> Problem:
        """The same question about another space, with some options changed."""
        changed = self.options.model_copy(update={"pins": dict(space.pins), "alternatives": 0} | options)
        return replace(self, space=space, options=changed, ticks=Ticks.of(space.model, space.cluster, space.workload))


@dataclass(frozen=True)
class Lean:
    """A plan that needs little memory: its degrees as text, bytes by class of its fullest device."""

    degrees: str
    classes: dict[str, float]

    @property
    def need_bytes(self) -> float:
        """Bytes on the fullest device."""
        return sum(self.classes.values())


@dataclass(frozen=True)
class Change:
    """One change that may help: as text, what it sets to which value, and the question it leads to."""

    text: str
    knob: str
    to: float | int | str | None
    problem: Problem

    def repair(self) -> dict[str, Any]:
        """The change as an entry of ``repairs``."""
        return {"change": self.text, "knob": self.knob, "to": self.to}


def infeasible(space: Space, options: Options, fits: Calibration, ticks: Ticks) -> InfeasiblePlan:
    """The error for a space without a plan, with its repairs, the smallest first."""
    from planner.infeasible_limits import limits_too_low

    problem = Problem(space, options.model_copy(update={"objective": options.objective.split(",")[0]}), fits, ticks)
    if not has_strategy(space):
        return _contradiction(problem)
    if states_bytes(space) > problem.limit:
        return _error(problem, _states_text(problem), _memory_changes(problem, states_bytes(space)))
    lean = leanest(problem)
    if lean is not None and lean.need_bytes <= problem.limit:
        idle = _least_idle_w(problem)
        if options.power_cap_w is not None and (options.power_cap_w <= idle or not options.limits):
            return _cap_too_low(problem, idle)
        if options.limits:
            message, changes, too_long = limits_too_low(problem)
            changes += _more_hosts(problem, problem.limit * too_long) if too_long > 1 else []
            return _error(problem, message, [*changes, *_headroom(problem), *_unpinned(problem)])
    need = problem.limit if lean is None else lean.need_bytes
    return _error(problem, _memory_text(problem, lean), _memory_changes(problem, need))


def states_bytes(space: Space) -> float:
    """Bytes of weights, gradients and optimiser a device at least: all of them, spread evenly over every device."""
    recipe = space.workload.recipe
    each = recipe.weight_bytes + recipe.gradient_bytes + space.workload.optimizer_bytes
    return space.model.parameters * each / space.cluster.devices


def _states_text(problem: Problem) -> str:
    space = problem.space
    each = states_bytes(space) * space.cluster.devices / space.model.parameters
    return (
        f"no plan fits: weights, gradients and optimiser of {space.model.parameters:,} parameters at {each:g} bytes, "
        f"spread evenly over {space.cluster.devices} devices, are {_gb(states_bytes(space))} GB each, but "
        f"{_left_text(problem)}"
    )


def _memory_changes(problem: Problem, need: float) -> list[Change]:
    changes = [*_headroom(problem), *_unpinned(problem)]
    if states_bytes(problem.space) <= problem.limit:
        changes += _shorter(problem)
    return [*changes, *_more_hosts(problem, need)]


def _error(problem: Problem, message: str, changes: list[Change]) -> InfeasiblePlan:
    """The error with those of the changes that help, or what was tried."""
    helping = _that_help(changes)
    if helping:
        message += f". Any one of these gives a plan: {'; '.join(change.text for change in helping)}"
    elif changes:
        message += f". In {REPAIR_SECONDS:g} s no single change gave a plan, of: {'; '.join(c.text for c in changes)}"
    return InfeasiblePlan(message, [change.repair() for change in helping], problem.space.described())


def _contradiction(problem: Problem) -> InfeasiblePlan:
    """The error when no strategy obeys the pins, whatever it costs."""
    space = problem.space
    wrong = contradicting(space)
    pins = ", ".join(f"{name}={value}" for name, value in wrong.items())
    message = (
        f"no plan: no legal strategy has {pins} on the {space.cluster.devices} devices of {space.cluster.name!r} "
        f"({' x '.join(map(str, space.cluster.group_capacity))} by level, {space.cluster.devices_per_host} a host) "
        f"with {space.model.layers} layers and a global batch of {space.workload.global_batch}"
    )
    nearest = [_change_of_devices(problem, count) for count in _near_devices(problem)] if "devices" in wrong else []
    changes = [*nearest, *(change for change in _unpinned(problem) if change.knob in wrong)]
    return _error(problem, message, changes)


def _near_devices(problem: Problem) -> list[int]:
    """The nearest numbers of devices below and above the pinned one that some strategy uses."""
    asked, most = int(problem.space.pins["devices"]), problem.space.cluster.devices
    near = (range(asked - 1, max(0, asked - 64), -1), range(asked + 1, min(most, asked + 64) + 1))
    found = (next((d for d in way if has_strategy(_pinned(problem.space, devices=d))), None) for way in near)
    return [count for count in found if count is not None]


def _change_of_devices(problem: Problem, count: int) -> Change:
    return Change(f"devices={count}", "devices", count, problem.on(_pinned(problem.space, devices=count)))


def _pinned(space: Space, **pins: int | str | None) -> Space:
    """The space with some pins changed; ``None`` takes one away."""
    every = {name: value for name, value in {**space.pins, **pins}.items() if value is not None}
    return legal_space(space.model, space.cluster, space.workload, every)


def _that_help(changes: list[Change]) -> list[Change]:
    """The first change of each knob that a search with it found a plan for, while there is time."""
    deadline, helping = time.monotonic() + REPAIR_SECONDS, []
    for change in changes:
        left = deadline - time.monotonic()
        known = any(change.knob == other.knob for other in helping)
        if left > 0 and not known and plans(change.problem, min(left, TRIAL_SECONDS)):
            helping.append(change)
    return helping


class _FoundOne(Exception):
    """Ends a search at its first plan."""


def plans(problem: Problem, seconds: float) -> bool:
    """Whether a search finds any plan in that time."""
    from planner.search.engine import Search

    def stop_at_first(stage: str, best: float, bound: float) -> None:
        if best < math.inf:
            raise _FoundOne

    if states_bytes(problem.space) > problem.limit:
        return False
    options = problem.options.model_copy(update={"time_limit_s": seconds})
    try:
        return Search(problem.space, options, problem.fits, problem.ticks, stop_at_first).run().best is not None
    except _FoundOne:
        return True


def leanest(problem: Problem) -> Lean | None:
    """The plan that needs least of those with the most promising degrees; ``None`` when none of them can be cut."""
    rows = _complete(problem, _leanest_degrees(problem))
    if not len(rows):
        return None
    space, options = problem.space, problem.options
    prices = price(space.model, space.cluster, space.workload, rows, problem.fits, problem.ticks)
    kept, least = _least_limit(problem, prices, buffers=True)
    for row in kept[:4]:
        one = prices.take(np.array([row]))
        for factor in (1.001, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 4.0):
            if (classes := _classes(problem, one, int(least * factor))) is not None:
                return Lean(_degrees_text(rows, int(row), options.pins), classes)
    return None


def _leanest_degrees(problem: Problem) -> Rows:
    """Degrees that may need least, everything left open at its best."""
    space = problem.space
    rows = relaxed_rows(space, degree_table(space))
    prices = price(space.model, space.cluster, space.workload, rows, problem.fits, problem.ticks, relaxed=True)
    kept, _ = _least_limit(problem, prices, buffers=False)
    return rows.take(kept[:LEANEST_DEGREES])


def _complete(problem: Problem, rows: Rows) -> Rows:
    for step in (with_experts, with_placement, with_sharding):
        rows = step(problem.space, rows) if len(rows) else rows
    return rows


def _least_limit(problem: Problem, prices: Prices, *, buffers: bool) -> tuple[np.ndarray, float]:
    """Rows in the order of the memory that they may do with, about, and the least such memory, by bisection."""
    model, recompute = problem.space.model, str(problem.options.pins.get("recompute", "full"))
    left, order = np.arange(len(prices.rows)), []
    low, high = 2.0**20, 2.0**50
    while high / low > 1.002:
        middle = math.sqrt(low * high)
        fits = fits_somehow(prices.take(left), model, middle, recompute, buffers=buffers)
        if fits.any():
            order.append(left[~fits])
            left, high = left[fits], middle
        else:
            low = middle
    return np.concatenate([left, *order[::-1]]), high


def _classes(problem: Problem, one: Prices, limit: int) -> dict[str, float] | None:
    """Bytes by class on the fullest device of a plan of that row under that limit."""
    space, options = problem.space, problem.options
    objective = objective_of(one.rows, space.cluster, options.model_copy(update={"power_cap_w": None, "limits": {}}))
    stage, pinned = int(one.rows.stage_size[0]), options.pins.get("recompute", "full")
    virtual = int(options.pins.get("virtual_stages", 1))
    chain = Chain(space.model, one if virtual == 1 else one.with_virtual(virtual), 0)
    if virtual == 1:
        found = quick(chain, objective, stage, limit, pinned)
    else:
        cuts = even_cuts(space.model.layers, chain.pp, virtual)
        tried = (point(chain, np.array(cut), objective, stage, limit, pinned, math.inf) for cut in cuts)
        found = next((plan for plan in tried if plan is not None), None)
    return None if found is None else max(memory_classes(chain, found.runs), key=lambda classes: sum(classes.values()))


def _degrees_text(rows: Rows, at: int, pins: dict[str, int | str]) -> str:
    names = ("tp", "cp", "pp", "dp_shard", "dp_replicate", "ep", "zero", "micro_batch")
    parts = [f"{name} {int(getattr(rows, name)[at])}" for name in names if int(getattr(rows, name)[at]) > 1]
    return ", ".join([*parts, f"{pins.get('recompute', 'full')} recompute"])


def _memory_text(problem: Problem, lean: Lean | None) -> str:
    left = _left_text(problem)
    if lean is None:
        states = _gb(states_bytes(problem.space))
        return f"no plan fits: states alone are {states} GB a device, activations come on top; {left}"
    parts = sorted(
        ((size, name) for name, size in lean.classes.items() if size > 0.005 * lean.need_bytes), reverse=True
    )
    sums = " + ".join(f"{name} {_gb(size)}" for size, name in parts)
    return f"no plan fits: the leanest ({lean.degrees}) needs {_gb(lean.need_bytes)} GB a device ({sums}), but {left}"


def _left_text(problem: Problem) -> str:
    cluster = problem.space.cluster
    return (
        f"{cluster.accelerator.name} leaves {_gb(problem.limit)} GB "
        f"({_gb(cluster.memory_bytes)} GB less {problem.options.headroom:.0%} headroom)"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}" if size >= 1e9 else f"{size / 1e9:.3g}"


def _least_idle_w(problem: Problem) -> float:
    """Watts that the smallest plan which may fit draws idling, at the facility's meter."""
    rows = _complete(problem, _fewest_devices(problem))
    return float(static_power(rows, problem.space.cluster).facility_w.min())


def _cap_too_low(problem: Problem, idle: float) -> InfeasiblePlan:
    """The error when plans fit the memory, but idle above the power cap."""
    space, cap = problem.space, float(problem.options.power_cap_w or 0.0)
    asked, least = quantity_text(cap, "W"), quantity_text(idle, "W")
    message = (
        f"no plan: the power cap is {asked}, but the smallest plan that fits draws {least} at {space.cluster.name!r} "
        "when idle, cooling included"
    )
    higher = (float(f"{idle * factor:.2g}") for factor in (1.06, 1.5, 2.0, 4.0))
    changes = [_cap(problem, watts) for watts in higher if watts > cap] + _headroom(problem)
    return _error(problem, message, changes)


def _cap(problem: Problem, watts: float) -> Change:
    text = f"power cap {quantity_text(watts, 'W')}"
    return Change(text, "power_cap", watts, problem.on(problem.space, power_cap_w=watts))


def _fewest_devices(problem: Problem) -> Rows:
    """Rows of the fewest devices that may fit."""
    space = problem.space
    rows = relaxed_rows(space, degree_table(space))
    prices = price(space.model, space.cluster, space.workload, rows, problem.fits, problem.ticks, relaxed=True)
    recompute = str(problem.options.pins.get("recompute", "full"))
    fitting = rows.take(np.flatnonzero(fits_somehow(prices, space.model, problem.limit, recompute, buffers=False)))
    return fitting.take(np.argsort(fitting.world_size, kind="stable")[:LEANEST_DEGREES])


def _headroom(problem: Problem) -> list[Change]:
    smaller = [h for h in (0.05, 0.02, 0.0) if h < problem.options.headroom]
    return [Change(f"headroom {h:.0%}", "headroom", h, problem.on(problem.space, headroom=h)) for h in smaller]


def _unpinned(problem: Problem) -> list[Change]:
    return [
        Change(f"{name}={value} not pinned", name, None, problem.on(_pinned(problem.space, **{name: None})))
        for name, value in problem.space.pins.items()
    ]


def _shorter(problem: Problem) -> Iterator[Change]:
    seq_len = problem.space.workload.seq_len
    while seq_len % 2 == 0 and seq_len > 512:
        seq_len //= 2
        workload = problem.space.workload.model_copy(update={"seq_len": seq_len})
        space = _legal(problem.space, problem.space.cluster, workload)
        if space is not None:
            yield Change(f"seq_len {seq_len}", "seq_len", seq_len, problem.on(space))


def _more_hosts(problem: Problem, need: float) -> Iterator[Change]:
    """More hosts, from the number that the bytes alone ask for; whole scale-up domains where a domain has several."""
    cluster, ratio = problem.space.cluster, need / problem.limit
    domain = max(1, cluster.host.scale_up_devices // cluster.devices_per_host)
    step = 1 if cluster.hosts < domain else domain
    counts = (step * math.ceil(cluster.hosts * max(1.0, ratio) * growth / step) for growth in GROWTH)
    for hosts in dict.fromkeys(max(count, cluster.hosts + step) for count in counts):
        space = _resized(problem.space, cluster, hosts)
        if space is not None:
            text = f"{hosts} hosts ({space.cluster.devices} devices) instead of {cluster.hosts}"
            yield Change(text, "hosts", hosts, problem.on(space))


def _resized(space: Space, cluster: Cluster, hosts: int) -> Space | None:
    try:
        return _legal(space, resized(cluster, hosts), space.workload)
    except BadInput:
        return None


def _legal(space: Space, cluster: Cluster, workload: Any) -> Space | None:
    try:
        return legal_space(space.model, cluster, workload, space.pins)
    except BadInput:
        return None
