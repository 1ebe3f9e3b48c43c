"""The best plan of several searches: those whose plans launch targets can express, one under each schedule, one for
each number of ranks that divide embedding and head.

Every search is proved by itself; the plan's proof is that of its own, whose space names its pins, and a note says
what the others found. The bound that the plan tells is the least of theirs.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from cost_models.model_graph import ModelGraph
from cost_models.schedules import FURTHER, virtual_stages_of
from cost_models.workload import Training
from planner.errors import BadInput, InfeasiblePlan, PlannerError, SearchGaveUp, Unsupported
from planner.pins import Pins
from planner.result import Plan
from topologies.cluster import Cluster
from topologies.mixed import MixedCluster

AnyCluster = Cluster | MixedCluster
SCHEDULES = ("1f1b", *FURTHER)
Search = Callable[[Pins, float], Plan]
"""The best plan under these pins, within so many seconds."""


@dataclass(frozen=True)
class Tried:
    """One search: its own pins, and what it found; ``error`` says why that is nothing, or nothing that is of use."""

    pins: Pins
    plan: Plan | None
    error: PlannerError | None

    @property
    def usable(self) -> bool:
        """Whether every target can express the plan."""
        return self.error is None

    def __str__(self) -> str:
        if self.plan is not None:
            so_far = "" if self.plan.status == "optimal" else " so far"
            return f"{_text(self.pins)} {self.plan.objective:.6g}{so_far}{'' if self.usable else ' (refused)'}"
        why = {InfeasiblePlan: "does not fit", SearchGaveUp: "has none so far"}
        return f"{_text(self.pins)} {why.get(type(self.error), 'is not legal')}"


def schedules_of(schedules: str | tuple[str, ...]) -> tuple[str, ...]:
    """Schedules to search, from one text or several words; ``1f1b`` stands for interleaved too, ``all`` for every one.

    Raises ``BadInput`` for words that are no schedules.
    """
    words = schedules.split(",") if isinstance(schedules, str) else schedules
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise BadInput(f"schedules={str(schedules)[:80]!r} are names of schedules, like '1f1b,zbv', or 'all'")
    named = tuple(dict.fromkeys(word.strip() for word in words if word.strip()))
    if "all" in named:
        return SCHEDULES
    if unknown := [word for word in named if word not in SCHEDULES]:
        raise BadInput(
            f"schedules={unknown[0][:80]!r} is no schedule; legal: all, {', '.join(SCHEDULES)} "
            "(1f1b searches interleaved too)"
        )
    return named


@dataclass(frozen=True)
class Among:
    """What the best plan is looked for among, a search for each: what ``targets`` can express, ``schedules``, and
    numbers of ranks that divide embedding and head, 0 being as many as tp. Empty where nothing is named."""

    targets: tuple[str, ...] = ()
    schedules: tuple[str, ...] = ()
    vocab_tp: tuple[int, ...] = ()

    @property
    def several(self) -> bool:
        """Whether anything is named."""
        return bool(self.targets or self.schedules or self.vocab_tp)


def vocab_tp_of(asked: str | tuple[int | str, ...], cluster: AnyCluster) -> tuple[int, ...]:
    """Ranks to divide embedding and head over, from one text or several words: as many as tp always, which is 0 here.

    ``all`` is every power of two up to the devices of a scale-up domain. Raises ``BadInput`` for what is no number.
    """
    words = asked.split(",") if isinstance(asked, str) else [str(word) for word in asked]
    named = [word.strip() for word in words if word.strip()]
    if wrong := [word for word in named if word != "all" and not (word.isdecimal() and 0 < int(word[:9]) <= 2**21)]:
        raise BadInput(
            f"vocab_tp={wrong[0][:80]!r} is no number of ranks that divide embedding and head; give whole numbers from "
            "1, like '2,4', or 'all'"
        )
    most = max(part.domain_devices for part in getattr(cluster, "parts", (cluster,)))
    every = [2**k for k in range(most.bit_length())] if "all" in named else []
    return (0, *sorted({*every, *(int(word) for word in named if word != "all")})) if named else ()


def ways_of(among: Among, model: ModelGraph, workload: Training, pins: Pins) -> list[Pins]:
    """Sets of pins, one a search. Raises ``BadInput`` where the pins rule out all of them."""
    from planner.export.within import pins_within_all

    targets, schedules = among.targets, among.schedules
    bases = [_under(schedule, pins) for schedule in schedules] if schedules else [pins]
    bases = [_divided(base, ends) for base in bases if base is not None for ends in among.vocab_tp or (0,)]
    ways = [way for base in bases if base is not None for way in pins_within_all(targets, model, workload, base)]
    if not ways:
        given = [f"be expressed by {', '.join(targets)}"] if targets else []
        given += [f"have vocab_tp={', '.join(map(str, among.vocab_tp[1:]))}"] if among.vocab_tp else []
        given += [f"have the schedules {', '.join(schedules)}"] if schedules else []
        raise BadInput(f"no plan with the pins {_text(pins)} can {' and '.join(given)}; take a pin away, or "
                       + ("a target" if targets else "name another schedule"))  # fmt: skip
    return ways


def _divided(pins: Pins, vocab_tp: int) -> Pins | None:
    """The pins with so many ranks that divide embedding and head; ``None`` where they contradict it."""
    if not vocab_tp:
        return pins
    contradicted = pins.get("vocab_tp", vocab_tp) != vocab_tp or vocab_tp % int(pins.get("tp", 1))
    return None if contradicted else {**pins, "vocab_tp": vocab_tp}


def _under(schedule: str, pins: Pins) -> Pins | None:
    """The pins with the schedule; ``None`` where they contradict it."""
    if schedule == "1f1b":
        return None if "schedule" in pins else pins
    virtual = virtual_stages_of(schedule)
    if pins.get("schedule", schedule) != schedule or pins.get("virtual_stages", virtual) != virtual:
        return None
    return {**{name: value for name, value in pins.items() if name != "virtual_stages"}, "schedule": schedule}


def best_of_searches(
    ways: list[Pins], targets: tuple[str, ...], pins: Pins, search: Search, seconds: float
) -> Plan:  # fmt: skip
    """The best plan of a search under each of ``ways`` that every target can express, with a note on all of them.

    After Ctrl-C the best of those that had one. Raises ``InfeasiblePlan`` where nothing fits, ``Unsupported`` where
    what was found can after all not be expressed.
    """
    deadline, tried = time.monotonic() + seconds, list[Tried]()
    for i, way in enumerate(ways):
        try:
            tried.append(_tried(way, pins, targets, search, (deadline - time.monotonic()) / (len(ways) - i)))
        except KeyboardInterrupt:
            if not any(one.usable for one in tried):
                raise
            tried += [_untried(left, pins) for left in ways[i:]]
            break
    found = [one for one in tried if one.usable]
    if not found:
        raise _nothing(targets, tried)
    best = min(found, key=lambda one: one.plan.objective).plan
    notes = [*best.notes, _note(targets, tried, best)]
    return best.model_copy(update={"notes": notes, **_bounded(best, tried)})


def _bounded(best: Plan, tried: list[Tried]) -> dict[str, object]:
    """Status, bound and gap of the best plan, where another search was cut short before its bound reached it.

    Of one that ended without any plan no bound is known.
    """
    bound = min(one.plan.bound for one in tried if one.usable)
    bound = 0.0 if any(isinstance(one.error, SearchGaveUp) for one in tried) else bound
    if bound >= best.bound:
        return {}
    return {"status": "feasible", "bound": bound, "gap": (best.objective - bound) / best.objective}


def _note(targets: tuple[str, ...], tried: list[Tried], best: Plan) -> str:
    """What was searched: the pins that all searches share, and for each its own with what it found."""
    shared = dict(set.intersection(*(set(one.pins.items()) for one in tried)))
    own = [dataclasses.replace(one, pins={k: v for k, v in one.pins.items() if k not in shared}) for one in tried]
    if any("schedule" in one.pins for one in own):
        own = [dataclasses.replace(one, pins={"schedule": "1f1b or interleaved"} | one.pins) for one in own]
    if any("vocab_tp" in one.pins for one in own):
        own = [dataclasses.replace(one, pins={"vocab_tp": "tp"} | one.pins) for one in own]
    with_pins = f" with {_text(dict(sorted(shared.items())))}" if shared else ""
    doubt = "; a better one may be among those that were refused or cut short" if _any_open(tried, best) else ""
    said, able = "; ".join(map(str, own)), f" that {', '.join(targets)} can express" if targets else ""
    return f"the best{able}{with_pins}, of {len(tried)} searches: {said}{doubt}"


def _any_open(tried: list[Tried], best: Plan) -> bool:
    """Whether some search could still hide a better plan: its bound is lower, or it gave up without one."""
    lower = [one for one in tried if one.plan is not None and one.plan is not best and one.plan.bound < best.objective]
    return bool(lower) or any(isinstance(one.error, SearchGaveUp) for one in tried)


def _untried(way: Pins, pins: Pins) -> Tried:
    """What is known of a search that Ctrl-C ended before it had a plan, or kept from beginning."""
    own = {name: value for name, value in way.items() if name not in pins}
    return Tried(own, None, SearchGaveUp("interrupted before it had a plan"))


def _tried(way: Pins, pins: Pins, targets: tuple[str, ...], search: Search, seconds: float) -> Tried:
    from planner.export import export

    own = {name: value for name, value in way.items() if name not in pins}
    plan = None
    try:
        plan = search(way, max(seconds, 0.01))
        export(plan, targets)
    except (InfeasiblePlan, BadInput, SearchGaveUp, Unsupported) as error:
        return Tried(own, plan, error)
    return Tried(own, plan, None)


def _nothing(targets: tuple[str, ...], tried: list[Tried]) -> PlannerError:
    """The error of searches that all failed: the first refusal or limit, and where there is none, that nothing fits."""
    for kind in (Unsupported, SearchGaveUp):
        errors = [one.error for one in tried if isinstance(one.error, kind)]
        if errors:
            return errors[0]
    misfits = [one.error for one in tried if isinstance(one.error, InfeasiblePlan)]
    if not misfits:
        return tried[0].error or BadInput("nothing was searched")
    many = f"{len(tried)} searches"
    what = f"what {', '.join(targets)} can express ({many})" if targets else many
    text = f"of {what}: {misfits[0]}"
    return InfeasiblePlan(text, misfits[0].repairs, misfits[0].space, misfits[0].leanest)


def _text(pins: Pins) -> str:
    return ",".join(f"{name}={value}" for name, value in pins.items()) or "no more pins"
