"""Why a plan takes as long as it does: where the time goes, what binds, and what one more unit of anything would buy.

What more would buy is found by planning again on the changed cluster, from the plan itself on, and never by
multiplying a share of the time: a plan that changes with its machine gains more than its terms say, and one that
meets the next limit gains less.

    gain = 1 - new / old        of the objective, with the bounds of both:
    1 - new / bound of old  <=  gain of the best plans  <=  1 - bound of new / old

Never below 0: what is bought can be left unused. Left out: what more would cost to buy, and what it would draw.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cost_models.intervals import told_apart_log
from planner.errors import BadInput, InfeasiblePlan, SearchGaveUp
from planner.explanations.again import Progress, Question, question_of
from planner.explanations.differences import decided_otherwise, degrees_otherwise
from planner.limits import LIMITS, amount
from planner.plan_text import SCHEMA_VERSION
from planner.result import Plan, StrategyRecord
from planner.summarised import Summarised
from topologies.cluster import Cluster
from topologies.enlarged import (
    with_more_memory,
    with_more_scale_out_bandwidth,
    with_more_scale_up_bandwidth,
    with_one_more_host,
)
from topologies.mixed import MixedCluster
from topologies.resized import resized
from topologies.units import quantity_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cost_models.model_graph import ModelGraph

ONE_MORE = 0.1
"""One more unit of what is not counted in pieces: so much of what is there."""
MOST_MORE = 100.0
SAME_FRACTION = 1e-9


@dataclass(frozen=True, slots=True)
class Unit:
    """One more of something: its name, how much, and the cluster or the options that have it."""

    name: str
    change: str
    cluster: Cluster | MixedCluster | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bought:
    """What one more unit buys: the plan found again with it, against the plan explained.

    ``gain_at_least`` and ``gain_at_most`` are proved; they meet where both plans are. ``status`` is ``"kept"`` where no
    better plan was found in time, or none at all: the plan explained still runs there. ``told_apart`` is false where
    the degrees change for a gain below what the models can tell two layouts apart by; one layout's errors cancel.
    """

    name: str
    change: str
    status: Literal["optimal", "feasible", "kept"]
    objective: float
    bound: float
    gap: float
    step_s: float
    step_interval_s: tuple[float, float]
    gain_fraction: float
    gain_at_least: float
    gain_at_most: float
    decided_otherwise: tuple[str, ...]
    told_apart: bool
    strategy: StrategyRecord
    search_s: float
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """The row as one JSON object."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "strategy": self.strategy.model_dump(mode="json")}


@dataclass(frozen=True, slots=True)
class Explanation(Summarised):
    """A plan explained: its terms and limits are the plan's own, ``bought`` has a row for every unit, as asked."""

    plan: Plan
    more: float
    bought: tuple[Bought, ...]
    left_out: tuple[str, ...]

    @property
    def best_buy(self) -> Bought | None:
        """The unit that buys most; ``None`` when none of them buys anything."""
        best = max(self.bought, key=lambda row: row.gain_fraction, default=None)
        return best if best is not None and best.gain_fraction > SAME_FRACTION else None

    def view(self) -> RenderableType:
        """The explanation for a terminal."""
        from planner.explanations.explain_report import explanation_view

        return explanation_view(self)

    def summary(self) -> str:
        """The explanation as text."""
        from planner.report import as_text

        return as_text(self.view())

    def as_json(self) -> dict[str, Any]:
        """The explanation as one JSON object."""
        it = self.plan
        return {
            "schema_version": SCHEMA_VERSION,
            "objective_name": it.objective_name, "objective": it.objective, "bound": it.bound, "gap": it.gap,
            "step_s": it.step_s, "step_interval_s": list(it.step_interval_s),
            "time": [{"name": t.name, "seconds": t.seconds, "share": t.seconds / it.step_s} for t in it.time],
            "binding": [limit.model_dump() for limit in it.binding],
            "goodput": None if it.goodput is None else it.goodput.model_dump(mode="json"),
            "more": self.more,
            "bought": [row.as_json() for row in self.bought],
            "left_out": list(self.left_out),
        }  # fmt: skip


def explain(
    plan: Plan,
    *,
    model: ModelGraph | None = None,
    cluster: Cluster | str | None = None,
    more: float = ONE_MORE,
    time_limit_s: float = 20.0,
    progress: Progress | None = None,
) -> Explanation:
    """Where the time of ``plan`` goes, what binds it, and what one more unit of each thing would buy.

    ``more`` is the fraction by which memory, bandwidths, a power cap and other limits grow; hosts come one at a time,
    or as many as make a scale-up domain. ``time_limit_s`` is for each plan that is found again. ``model`` and
    ``cluster`` are needed where the plan was made from objects, or the cluster's file has moved.

    Raises ``BadInput`` for a plan that was not searched for, inputs that are not the plan's, or ``more`` out of range.
    """
    if not 0 < more <= MOST_MORE:
        raise BadInput(f"more={more!r} is the fraction to add, above 0 and at most {MOST_MORE:g}; 0.1 is 10 % more")
    question = question_of(plan, model, cluster)
    bought, left_out = [], []
    for name, unit_of in UNITS.items():
        unit = unit_of(question, more)
        if isinstance(unit, str):
            left_out.append(f"{name}: {unit}")
        else:
            bought.append(_bought(question, unit, time_limit_s, progress))
    bought += [_bought(question, unit, time_limit_s, progress) for unit in raised_limits(question.limits, more)]
    bought += _twice_the_hosts(question, bought, time_limit_s, progress)
    return Explanation(plan, more, tuple(bought), tuple(left_out))


def _memory(question: Question, more: float) -> Unit:
    cluster = question.cluster
    larger = with_more_memory(cluster, 1 + more)
    return Unit("memory", f"{_from_to(cluster.memory_bytes, larger.memory_bytes, 'B')} a device", larger)


def _scale_up(question: Question, more: float) -> Unit | str:
    cluster = question.cluster
    if cluster.domain_devices == 1:
        return f"a scale-up domain of {cluster.name!r} is one device"
    wider = with_more_scale_up_bandwidth(cluster, 1 + more)
    return Unit("scale-up bandwidth", _bandwidth(cluster, wider, cluster.domain_levels - 1), wider)


def _scale_out(question: Question, more: float) -> Unit | str:
    try:
        wider = with_more_scale_out_bandwidth(question.cluster, 1 + more)
    except BadInput as error:
        return str(error)
    return Unit("scale-out bandwidth", _bandwidth(question.cluster, wider, question.cluster.domain_levels), wider)


def _hosts(question: Question, more: float) -> Unit | str:
    if "devices" in question.plan.options.get("pins", {}):
        return f"devices={question.plan.options['pins']['devices']} is pinned"
    return _with_hosts(question.cluster, lambda: with_one_more_host(question.cluster))


def _with_hosts(cluster: Cluster, enlarged: Callable[[], Cluster]) -> Unit | str:
    try:
        larger = enlarged()
    except BadInput as error:
        return str(error)
    text = f"{cluster.hosts} -> {larger.hosts} hosts, {cluster.devices} -> {larger.devices} devices"
    return Unit("devices", text, larger)


def _watts(question: Question, more: float) -> Unit | str:
    return more_watts(question.plan.options.get("power_cap_w"), more)


def more_watts(cap: float | None, more: float) -> Unit | str:
    """The power cap raised by a fraction, or why it is not."""
    if cap is None:
        return "no power cap is given"
    return Unit("power cap", _from_to(cap, cap * (1 + more), "W"), options={"power_cap_w": cap * (1 + more)})


def raised_limits(limits: dict[str, float], more: float) -> Iterator[Unit]:
    """Every limit but the power cap and those on replicas, raised by a fraction."""
    for name, value in limits.items():
        kind = LIMITS[name]
        if kind.quantity == "replicas":
            continue
        text = f"{amount(value, kind)} -> {amount(value * (1 + more), kind)}"
        yield Unit(f"limit {name}", text, options={"limits": {**limits, name: value * (1 + more)}})


UNITS: dict[str, Callable[[Question, float], Unit | str]] = {
    "memory": _memory, "scale-up bandwidth": _scale_up, "scale-out bandwidth": _scale_out, "devices": _hosts,
    "power cap": _watts,
}  # fmt: skip
"""What there can be more of: a unit, or why there is none to add."""


def _bandwidth(old: Cluster, new: Cluster, level: int) -> str:
    pair = (cluster.levels[level].bandwidth_bytes_per_s for cluster in (old, new))
    return f"{_from_to(*pair, 'B/s')} a device"


def _from_to(old: float, new: float, unit: str) -> str:
    return f"{quantity_text(old, unit)} -> {quantity_text(new, unit)}"


def _twice_the_hosts(
    question: Question, bought: list[Bought], time_limit_s: float, progress: Progress | None
) -> Iterator[Bought]:
    """Where one more host stays idle, because no degrees divide over it, what twice the hosts buy."""
    idle = any(row.name == "devices" and row.gain_at_least <= 0 for row in bought)
    cluster = question.cluster
    unit = _with_hosts(cluster, lambda: resized(cluster, 2 * cluster.hosts)) if idle else ""
    if isinstance(unit, Unit) and unit.cluster != with_one_more_host(cluster):
        yield _bought(question, unit, time_limit_s, progress)


def _bought(question: Question, unit: Unit, time_limit_s: float, progress: Progress | None) -> Bought:
    """The plan found again with the unit, or the old one where nothing better was found."""
    old = question.plan
    try:
        new = question.again(
            cluster=unit.cluster, start=old, progress=progress, time_limit_s=time_limit_s, **unit.options
        )
    except (SearchGaveUp, InfeasiblePlan) as error:
        return _kept(old, unit, 0.0, str(error), search_s=time_limit_s if isinstance(error, SearchGaveUp) else 0.0)
    if new.objective > old.objective:
        return _kept(old, unit, min(new.bound, old.objective), _worse(old, new), new.search_s)
    same = not degrees_otherwise(old.strategy, new.strategy)
    return Bought(
        unit.name, unit.change, new.status if new.status == "optimal" else "feasible",
        objective=new.objective, bound=new.bound, gap=new.gap, step_s=new.step_s, step_interval_s=new.step_interval_s,
        **_gain(old, new.objective, new.bound),
        decided_otherwise=decided_otherwise(old.strategy, new.strategy),
        told_apart=same or math.log(old.objective / new.objective) >= told_apart_log(),
        strategy=new.strategy, search_s=new.search_s,
    )  # fmt: skip


def _gain(old: Plan, objective: float, bound: float) -> dict[str, float]:
    """The gain as found and the range that is proved; nothing below 0."""
    return {
        "gain_fraction": max(0.0, 1 - objective / old.objective),
        "gain_at_least": max(0.0, 1 - objective / old.bound) if old.bound > 0 else 0.0,
        "gain_at_most": max(0.0, 1 - bound / old.objective),
    }


def _kept(old: Plan, unit: Unit, bound: float, reason: str, search_s: float) -> Bought:
    return Bought(
        unit.name, unit.change, "kept",
        objective=old.objective, bound=bound, gap=1 - bound / old.objective, step_s=old.step_s,
        step_interval_s=old.step_interval_s, **_gain(old, old.objective, bound), decided_otherwise=(), told_apart=True,
        strategy=old.strategy, search_s=search_s, reason=reason,
    )  # fmt: skip


def _worse(old: Plan, new: Plan) -> str:
    best = "the best plan with it" if new.status == "optimal" else "the best plan found with it"
    return f"{best} has {old.objective_name} {new.objective:.6g}: the plan explained is better, left as it is"
