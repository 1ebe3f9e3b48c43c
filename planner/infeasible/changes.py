"""What a user can change about a problem without a plan: a knob each, its changes from the smallest to the largest.

How much a change changes is counted in doublings, so that unlike things can be put in order: twice the hosts, half the
sequence, twice the power cap count 1; so does a pin that is let go, of which nothing says how much it matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cost_models.calibration import Calibration
from cost_models.ticks import Ticks
from planner.candidates import Space, legal_space
from planner.errors import BadInput
from planner.limits import LIMITS, amount
from planner.options import Options
from planner.pins import has_strategy
from topologies.cluster import Cluster
from topologies.enlarged import host_step
from topologies.resized import resized
from topologies.tiers import with_tiers
from topologies.units import quantity_text

SMALLER_HEADROOM = (0.5, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02, 0.0)
SHORTEST_SEQ_LEN = 512
HOSTS_GROW = (1.25, 1.5, 2.0)
NEED_GROWS = (1.0, 1.35, 1.75, 3.5, 8.0)
"""Of the hosts that the leanest plan's bytes alone would ask for."""
CAP_GROWS = (1.06, 1.5, 2.0, 4.0)
"""Of what the smallest plan that fits draws when idle."""
UNPINNED_SIZE = 1.0
TIER_SIZE = 2.5
"""What one memory tier of the hosts counts: it is there already, but takes software that offloads."""


@dataclass(frozen=True)
class Problem:
    """A space without a plan, and what was asked of it."""

    space: Space
    options: Options
    fits: Calibration
    ticks: Ticks
    deadline: float = math.inf

    @property
    def limit(self) -> float:
        """Bytes that a device leaves."""
        return self.space.cluster.memory_bytes * (1 - self.options.headroom)

    def on(self, space: Space, **options: Any) -> Problem:
        """The same question about another space, with some options changed."""
        changed = self.options.model_copy(update={"pins": dict(space.pins), "alternatives": 0} | options)
        return replace(self, space=space, options=changed, ticks=Ticks.of(space.model, space.cluster, space.workload))


def states_bytes(space: Space) -> float:
    """Bytes of weights, gradients and optimiser a device at least: all of them, spread evenly over every device."""
    recipe = space.workload.recipe
    each = recipe.weight_bytes + recipe.gradient_bytes + space.workload.optimizer_bytes
    return space.model.parameters * each / space.cluster.devices


def states_too_large(space: Space, limit_bytes: float) -> bool:
    """Whether no plan can hold the states in device memory, where nothing else may hold them."""
    return not space.cluster.tiers and states_bytes(space) > limit_bytes


@dataclass(frozen=True)
class Change:
    """One change that may help: as text, what it sets to which value, its size in doublings.

    ``applied`` makes the question it leads to of any other, or ``None`` where that is no legal question. A knob that
    can be turned two ways has both; more of one way never fits less.
    """

    text: str
    knob: str
    to: float | int | str | None
    size: float
    applied: Callable[[Problem], Problem | None]
    way: str = ""


def memory_changes(problem: Problem, need: float) -> list[Change]:
    """What may make a plan of ``need`` bytes a device fit."""
    return [
        *headroom_changes(problem), *unpinned(problem), *_tiers(problem), *_shorter(problem),
        *more_hosts(problem, need),
    ]  # fmt: skip


def _tiers(problem: Problem) -> list[Change]:
    """The host's own memory tiers, one more at a time, where tensors may not be offloaded yet."""
    cluster, found = problem.space.cluster, []
    if cluster.tiers:
        return []
    for count, tier in enumerate(cluster.present_tiers, 1):
        names = ",".join(it.name for it in cluster.present_tiers[:count])
        text = f"tiers {names} (offload to the hosts' {tier.kind})"
        found.append(Change(text, "tiers", names, count * TIER_SIZE, _with_tiers(tuple(names.split(",")))))
    return found


def _with_tiers(names: tuple[str, ...]) -> Callable[[Problem], Problem | None]:
    def applied(it: Problem) -> Problem | None:
        space = _legal(it.space, with_tiers(it.space.cluster, names), it.space.workload)
        return None if space is None else it.on(space, tiers=names)

    return applied


def headroom_changes(problem: Problem) -> list[Change]:
    """Less of the device memory left free."""
    now = problem.options.headroom
    return [_headroom(now, smaller) for smaller in SMALLER_HEADROOM if smaller < now]


def _headroom(now: float, smaller: float) -> Change:
    size = math.log2((1 - smaller) / (1 - now))
    return Change(f"headroom {smaller:.0%}", "headroom", smaller, size, lambda it: it.on(it.space, headroom=smaller))


def unpinned(problem: Problem, only: dict[str, Any] | None = None) -> list[Change]:
    """Each pin let go, or each of ``only``."""
    pins = problem.space.pins if only is None else only
    return [
        # Letting the devices go allows all that fewer of them do.
        Change(
            f"{name}={value} not pinned",
            name,
            None,
            UNPINNED_SIZE,
            _with_pin(name, None),
            "fewer" if name == "devices" else "",
        )
        for name, value in pins.items()
    ]


def near_devices(problem: Problem) -> list[Change]:
    """The nearest numbers of devices below and above the pinned one that some strategy uses."""
    asked, most = int(problem.space.pins["devices"]), problem.space.cluster.devices
    near = (range(asked - 1, max(0, asked - 64), -1), range(asked + 1, min(most, asked + 64) + 1))
    found = (next((d for d in way if has_strategy(pinned(problem.space, devices=d))), None) for way in near)
    return [
        Change(f"devices={d}", "devices", d, abs(math.log2(d / asked)), _with_pin("devices", d), way)
        for d, way in zip(found, ("fewer", "more"), strict=True)
        if d is not None
    ]


def _with_pin(name: str, value: int | None) -> Callable[[Problem], Problem]:
    return lambda it: it.on(pinned(it.space, **{name: value}))


def pinned(space: Space, **pins: int | str | None) -> Space:
    """The space with some pins changed; ``None`` takes one away."""
    every = {name: value for name, value in {**space.pins, **pins}.items() if value is not None}
    return legal_space(space.model, space.cluster, space.workload, every)


def _shorter(problem: Problem) -> list[Change]:
    """Sequences of half the length, of a quarter, and so on."""
    now, found = problem.space.workload.seq_len, []
    seq_len = now
    while seq_len % 2 == 0 and seq_len > SHORTEST_SEQ_LEN:
        seq_len //= 2
        found.append(Change(f"seq_len {seq_len}", "seq_len", seq_len, math.log2(now / seq_len), _with_seq_len(seq_len)))
    return found


def _with_seq_len(seq_len: int) -> Callable[[Problem], Problem | None]:
    def applied(it: Problem) -> Problem | None:
        space = _legal(it.space, it.space.cluster, it.space.workload.model_copy(update={"seq_len": seq_len}))
        return None if space is None else it.on(space)

    return applied


def more_hosts(problem: Problem, need: float) -> list[Change]:
    """More hosts, up to and past the number that the bytes alone ask for; whole scale-up domains where a domain has
    several."""
    cluster, ratio = problem.space.cluster, max(1.0, need / problem.limit)
    step, now = host_step(cluster), cluster.hosts
    wanted = [now + step, *(now * grown for grown in HOSTS_GROW), *(now * ratio * grown for grown in NEED_GROWS)]
    counts = sorted({max(now + step, step * math.ceil(count / step)) for count in wanted})
    return [_hosts(cluster, count) for count in counts if _resized(cluster, count) is not None]


def _hosts(cluster: Cluster, count: int) -> Change:
    text = f"{count} hosts ({count * cluster.devices_per_host} devices) instead of {cluster.hosts}"

    def applied(it: Problem) -> Problem | None:
        larger = _resized(it.space.cluster, count)
        space = None if larger is None else _legal(it.space, larger, it.space.workload)
        return None if space is None else it.on(space)

    return Change(text, "hosts", count, math.log2(count / cluster.hosts), applied)


def _resized(cluster: Cluster, hosts: int) -> Cluster | None:
    try:
        return resized(cluster, hosts)
    except BadInput:
        return None


def _legal(space: Space, cluster: Cluster, workload: Any) -> Space | None:
    try:
        return legal_space(space.model, cluster, workload, space.pins)
    except BadInput:
        return None


def higher_caps(problem: Problem, idle_w: float) -> list[Change]:
    """Power caps above what the smallest plan that fits draws when idle."""
    now = float(problem.options.power_cap_w or 0.0)
    higher = (float(f"{idle_w * grown:.2g}") for grown in CAP_GROWS)
    return [cap_change(now, watts) for watts in higher if watts > now]


def cap_change(now: float, watts: float) -> Change:
    """The power cap raised."""
    text, size = f"power cap {quantity_text(watts, 'W')}", math.log2(watts / now)
    return Change(text, "power_cap", watts, size, lambda it: it.on(it.space, power_cap_w=watts))


def limit_change(name: str, now: float, to: float) -> Change:
    """One limit raised."""
    kind = LIMITS[name]
    text = f"{name} {amount(to, kind)} instead of {amount(now, kind)}"

    def applied(it: Problem) -> Problem:
        return it.on(it.space, limits={**it.options.limits, name: to})

    return Change(text, name, to, math.log2(to / now), applied)
