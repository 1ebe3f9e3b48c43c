"""Why a plan over several kinds of devices takes as long as it does, and what one more of anything would buy.

What more would buy is found by planning again on the changed cluster, as :mod:`planner.explanations.explain` does for
one kind of device, never by multiplying a share of the time. Units are each part's: memory, bandwidth inside its
scale-up domains and between its hosts, hosts; the bandwidth between parts; what the plan was limited to. The gain is of
what the plan minimises, time or rent, and has the range of that module.

Of a part's NICs only what its own stages send gets quicker with "scale-out"; what crosses parts, with "between parts".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cost_models.intervals import told_apart_log
from planner.checks.verify import options_of
from planner.errors import BadInput, InfeasiblePlan, SearchGaveUp
from planner.explanations.again import Progress
from planner.explanations.explain import MOST_MORE, ONE_MORE, SAME_FRACTION, Unit, more_watts, raised_limits
from planner.explanations.mixed_again import (
    MixedQuestion,
    layout,
    mixed_decided_otherwise,
    mixed_question_of,
    shape_text,
)
from planner.explanations.mixed_terms import StageTime, busiest, stage_times
from planner.limits import LIMITS, amount, training_steps
from planner.mixed.result import MixedPlan
from planner.plan_text import SCHEMA_VERSION
from planner.summarised import Summarised
from topologies.cluster import Cluster
from topologies.enlarged import (
    with_more_memory,
    with_more_scale_out_bandwidth,
    with_more_scale_up_bandwidth,
    with_one_more_host,
)
from topologies.mixed import MixedCluster
from topologies.units import quantity_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cost_models.model_graph import ModelGraph

UNITS = ("hosts", "memory", "scale-up bandwidth", "scale-out bandwidth", "between parts")
"""What there can be more of: the last of the cluster, the others of every part."""


@dataclass(frozen=True, slots=True)
class MixedBought:
    """What one more unit buys; fields as those of :class:`planner.explanations.explain.Bought`.

    ``plan`` is the one found with it, ``None`` where no better one was.
    """

    name: str
    change: str
    status: Literal["optimal", "feasible", "kept"]
    objective: float
    bound: float
    gain_fraction: float
    gain_at_least: float
    gain_at_most: float
    decided_otherwise: tuple[str, ...]
    told_apart: bool
    plan: MixedPlan | None
    search_s: float
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """The row as one JSON object."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "plan": None if self.plan is None else self.plan.model_dump(mode="json")}


@dataclass(frozen=True, slots=True)
class MixedLimit:
    """What holds a plan back: ``part`` where it is one part's."""

    limit: str
    detail: str
    part: str = ""


@dataclass(frozen=True, slots=True)
class MixedExplanation(Summarised):
    """A mixed plan explained: every stage's times, what binds, a row for every unit."""

    plan: MixedPlan
    more: float
    times: tuple[StageTime, ...]
    binding: tuple[MixedLimit, ...]
    bought: tuple[MixedBought, ...]
    left_out: tuple[str, ...]

    @property
    def best_buy(self) -> MixedBought | None:
        """The unit that buys most; ``None`` when none of them buys anything."""
        best = max(self.bought, key=lambda row: row.gain_fraction, default=None)
        return best if best is not None and best.gain_fraction > SAME_FRACTION else None

    def by_part(self) -> dict[str, dict[str, float]]:
        """Seconds of a step by cause on the mean device of every part, those left unused idle all the time."""
        found = {}
        for k, part in enumerate(self.plan.parts):
            mine = [it for it in self.times if it.part == k]
            sums = {n: math.fsum(it.devices * it.seconds.get(n, 0.0) for it in mine) for it in mine for n in it.seconds}
            idle = (part.devices - sum(it.devices for it in mine)) * self.plan.step_s
            found[part.name] = {name: value / part.devices for name, value in {**sums, "unused": idle}.items() if value}
        return found

    def view(self) -> RenderableType:
        """The explanation for a terminal."""
        from planner.explanations.mixed_report import mixed_explanation_view

        return mixed_explanation_view(self)

    def summary(self) -> str:
        """The explanation as text."""
        from planner.report import as_text

        return as_text(self.view())

    def as_json(self) -> dict[str, Any]:
        """The explanation as one JSON object."""
        it = self.plan
        return {
            "schema_version": SCHEMA_VERSION, "kind": "mixed",
            "objective_name": it.objective_name, "objective": it.objective, "bound": it.bound, "gap": it.gap,
            "step_s": it.step_s, "step_interval_s": list(it.step_interval_s),
            "stages": [dataclasses.asdict(one) for one in self.times], "parts": self.by_part(),
            "binding": [dataclasses.asdict(limit) for limit in self.binding], "more": self.more,
            "bought": [row.as_json() for row in self.bought], "left_out": list(self.left_out),
        }  # fmt: skip


def explain_mixed(
    plan: MixedPlan, *, model: ModelGraph | None = None, cluster: MixedCluster | str | None = None,
    more: float = ONE_MORE, units: tuple[str, ...] = UNITS, time_limit_s: float = 20.0,
    progress: Progress | None = None,
) -> MixedExplanation:  # fmt: skip
    """Where the time of ``plan`` goes, what binds it, and what one more unit of each thing would buy.

    ``more`` is the fraction by which memory and bandwidths grow; hosts come one at a time, or as many as make a
    scale-up domain. ``units`` are those to try, ``time_limit_s`` is for each plan that is found again. ``model`` and
    ``cluster`` are needed where the plan was made from objects, or the cluster's file has moved.

    Raises ``BadInput`` for inputs that are not the plan's, ``more`` out of range and units that there are not.
    """
    if not 0 < more <= MOST_MORE:
        raise BadInput(f"more={more!r} is the fraction to add, above 0 and at most {MOST_MORE:g}; 0.1 is 10 % more")
    if wrong := [name for name in units if name not in UNITS]:
        raise BadInput(f"no unit {wrong[0]!r:.80} to have more of; there are {', '.join(UNITS)}")
    question = mixed_question_of(plan, model, cluster)
    times, bought, left_out = stage_times(plan, question.machine), [], []
    for unit in _units(question, more, units):
        if isinstance(unit, str):
            left_out.append(unit)
        else:
            bought.append(_bought(question, unit, time_limit_s, progress))
    bought += [_bought(question, unit, time_limit_s, progress) for unit in raised_limits(question.limits, more)]
    if isinstance(cap := more_watts(plan.options.get("power_cap_w"), more), Unit):
        bought.append(_bought(question, cap, time_limit_s, progress))
    binding = (*_binding(plan, times), *_held(question))
    return MixedExplanation(plan, more, times, binding, tuple(bought), tuple(left_out))


def _units(question: MixedQuestion, more: float, names: tuple[str, ...]) -> Iterator[Unit | str]:
    """Every unit, or why there is none."""
    cluster = question.cluster
    for k, part in enumerate(cluster.parts):
        for name in (name for name in UNITS[:-1] if name in names):
            try:
                larger = _larger(part, name, 1 + more)
            except BadInput as error:
                yield f"{name} of {part.name}: {error}"
                continue
            yield Unit(f"{name} of {part.name}", _change(part, larger, name), cluster.with_part(k, larger))
    if UNITS[-1] in names:
        wider = cluster.with_wider_join(1 + more)
        pair = (it.join.bandwidth_bytes_per_s for it in (cluster, wider))
        yield Unit(UNITS[-1], " -> ".join(quantity_text(value, "B/s") for value in pair) + " a device", wider)


def _larger(part: Cluster, name: str, factor: float) -> Cluster:
    """A part with more of one thing. Raises ``BadInput`` where there is none of it."""
    if name == "hosts":
        return with_one_more_host(part)
    if name == "memory":
        return with_more_memory(part, factor)
    if name == "scale-out bandwidth":
        return with_more_scale_out_bandwidth(part, factor)
    if part.domain_devices == 1:
        raise BadInput("a scale-up domain there is one device")
    return with_more_scale_up_bandwidth(part, factor)


def _change(part: Cluster, larger: Cluster, name: str) -> str:
    if name == "hosts":
        return f"{part.hosts} -> {larger.hosts} hosts, {part.devices} -> {larger.devices} devices"
    if name == "memory":
        pair, unit = (part.memory_bytes, larger.memory_bytes), "B"
    else:
        level = part.domain_levels - (name == "scale-up bandwidth")
        pair, unit = tuple(it.levels[level].bandwidth_bytes_per_s for it in (part, larger)), "B/s"
    return " -> ".join(quantity_text(value, unit) for value in pair) + " a device"


def _bought(question: MixedQuestion, unit: Unit, time_limit_s: float, progress: Progress | None) -> MixedBought:
    """The plan found again with the unit, or the old one where nothing better was found."""
    old = question.plan
    try:
        new = question.again(cluster=unit.cluster, progress=progress, time_limit_s=time_limit_s, **unit.options)
    except (SearchGaveUp, InfeasiblePlan) as error:
        return _kept(old, unit, 0.0, str(error), time_limit_s if isinstance(error, SearchGaveUp) else 0.0)
    if new.objective > old.objective:
        best = "the best plan with it" if new.status == "optimal" else "the best plan found with it"
        value = f"has {old.objective_name} {new.objective:.6g}"
        worse = f"{best} {value} ({shape_text(new)}): the plan explained is better"
        return _kept(old, unit, min(new.bound, old.objective), worse, new.search_s)
    same = layout(old) == layout(new)
    return MixedBought(
        unit.name, unit.change, new.status, objective=new.objective, bound=new.bound,
        **_gain(old, new.objective, new.bound), decided_otherwise=mixed_decided_otherwise(old, new),
        told_apart=same or math.log(old.objective / new.objective) >= told_apart_log(),
        plan=new, search_s=new.search_s,
    )  # fmt: skip


def _kept(old: MixedPlan, unit: Unit, bound: float, reason: str, search_s: float) -> MixedBought:
    return MixedBought(
        unit.name, unit.change, "kept", objective=old.objective, bound=bound, **_gain(old, old.objective, bound),
        decided_otherwise=(), told_apart=True, plan=None, search_s=search_s, reason=reason,
    )  # fmt: skip


def _gain(old: MixedPlan, objective: float, bound: float) -> dict[str, float]:
    return {
        "gain_fraction": max(0.0, 1 - objective / old.objective),
        "gain_at_least": max(0.0, 1 - objective / old.bound) if old.bound > 0 else 0.0,
        "gain_at_most": max(0.0, 1 - bound / old.objective),
    }


def _binding(plan: MixedPlan, times: tuple[StageTime, ...]) -> Iterator[MixedLimit]:
    """What holds the plan back: memory of every part, the stage that works longest, what it waits, what it does."""
    if plan.alone is not None:
        yield from (MixedLimit(limit.limit, limit.detail) for limit in plan.alone.binding)
        return
    for k, part in enumerate(plan.parts):
        yield from _memory(plan, k, part.name)
    longest = busiest(times)
    yield MixedLimit(
        "slowest stage", f"stage {longest.stage} works {longest.busy_s / plan.step_s:.0%} of the step, the others "
        + ", ".join(f"{it.busy_s / plan.step_s:.0%}" for it in times if it is not longest),
        plan.parts[longest.part].name,
    )  # fmt: skip
    hops = 2 * math.fsum(stage.hop_s for stage in plan.stages)
    yield MixedLimit(
        "between stages", f"a micro-batch is on its way there and back for {hops / plan.step_s:.1%} of the step"
    )
    terms = sorted(longest.seconds.items(), key=lambda it: -it[1])
    for name, value in terms:
        if value > 0.03 * plan.step_s:
            yield MixedLimit(name, f"{value / plan.step_s:.0%} of the step on stage {longest.stage}")


def _held(question: MixedQuestion) -> Iterator[MixedLimit]:
    """What the plan takes of everything that it was limited to."""
    plan = question.plan
    steps = training_steps(options_of(plan), plan.workload) or 1
    taken = {"time": plan.step_s, "money": plan.usd_per_step or 0.0, "energy": plan.joules_per_step or 0.0}
    taken |= plan.level_watts
    cap = plan.options.get("power_cap_w")
    for name, most in {**question.limits, **({} if cap is None else {"site-power": cap})}.items():
        kind = LIMITS[name]
        value = (steps if kind.of_training else 1) * taken[kind.quantity]
        yield MixedLimit(f"limit {name}", f"the plan takes {amount(value, kind)} of {amount(most, kind)}")


def _memory(plan: MixedPlan, k: int, name: str) -> Iterator[MixedLimit]:
    """How full a part's fullest stage is, and what its layers do for want of memory."""
    mine = [(s, stage) for s, stage in enumerate(plan.stages) if stage.part == k]
    if not mine:
        yield MixedLimit("unused", "no stage runs there", name)
        return
    s, it = max(mine, key=lambda pair: pair[1].need_bytes / pair[1].limit_bytes)
    again = sum(count for _, stage in mine for count, kind in stage.recompute if kind != "none")
    said = f"; {again} layers recompute" if again else ""
    yield MixedLimit(
        "memory", f"stage {s} needs {it.need_bytes / 1e9:.1f} of {it.limit_bytes / 1e9:.1f} GB{said}", name
    )
