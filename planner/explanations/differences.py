"""Two plans beside each other: what the one decides otherwise, and where it gains and loses."""

from __future__ import annotations

from dataclasses import dataclass

from planner.mixed.result import MixedPlan
from planner.report import clocks_text, offload_text
from planner.result import Plan, StrategyRecord

AXES = ("tp", "cp", "pp", "dp_shard", "dp_replicate", "ep", "etp", "zero", "micro_batch", "virtual_stages")


@dataclass(frozen=True, slots=True)
class Pair:
    """One quantity of two plans; ``name`` ends in its unit where the table it stands in has several."""

    name: str
    chosen: float
    other: float

    @property
    def difference(self) -> float:
        """How much more the other plan has."""
        return self.other - self.chosen

    def as_json(self) -> dict[str, float | str]:
        """Both and their difference."""
        return {"name": self.name, "chosen": self.chosen, "other": self.other, "difference": self.difference}


def degrees_otherwise(chosen: StrategyRecord, other: StrategyRecord) -> tuple[str, ...]:
    """Every degree that differs, as ``"pp 4 -> 2"``; empty for two plans of one layout."""
    pairs = {axis: (getattr(chosen, axis), getattr(other, axis)) for axis in AXES}
    return tuple(f"{name} {old} -> {new}" for name, (old, new) in pairs.items() if old != new)


def decided_otherwise(chosen: StrategyRecord, other: StrategyRecord) -> tuple[str, ...]:
    """Every decision that differs: degrees, layers that recompute, offloads, clocks, or else cuts or placement."""
    found = [*degrees_otherwise(chosen, other)]
    for kind in ("full", "selective"):
        old, new = (_recomputed(it, kind) for it in (chosen, other))
        if old != new:
            found.append(f"{kind} recompute {old} -> {new} layers")
    if offload_text(chosen) != offload_text(other):
        found.append(f"offload {offload_text(chosen)} -> {offload_text(other)}")
    if chosen.clocks != other.clocks:
        found.append(f"clocks {clocks_text(chosen.clocks)} -> {clocks_text(other.clocks)}")
    if not found and chosen.recompute != other.recompute:
        found.append("layers cut elsewhere or recomputed by other stages")
    if not found and chosen.placement != other.placement:
        found.append("placed otherwise")
    return tuple(found)


def _recomputed(it: StrategyRecord, kind: str) -> int:
    return sum(count for stage in it.recompute for count, choice in stage if choice == kind)


def time_pairs(chosen: Plan, other: Plan) -> tuple[Pair, ...]:
    """Seconds of every term of either plan, 0 where a plan has no such term: their differences sum to the steps'."""
    mine, theirs = ({term.name: term.seconds for term in it.time} for it in (chosen, other))
    return tuple(Pair(name, mine.get(name, 0.0), theirs.get(name, 0.0)) for name in dict.fromkeys([*mine, *theirs]))


def memory_pairs(chosen: Plan, other: Plan) -> tuple[Pair, ...]:
    """Bytes by tensor class on each plan's own fullest device."""
    mine, theirs = (max(it.memory, key=lambda stage: stage.need_bytes).classes for it in (chosen, other))
    return tuple(Pair(name, mine.get(name, 0.0), theirs.get(name, 0.0)) for name in dict.fromkeys([*mine, *theirs]))


def power_pairs(chosen: Plan | MixedPlan, other: Plan | MixedPlan) -> tuple[Pair, ...]:
    """Mean watts by consumer; their sum is ``facility``, which stands last."""
    names = dict.fromkeys([*chosen.watts, *other.watts])
    return tuple(Pair(name, chosen.watts.get(name, 0.0), other.watts.get(name, 0.0)) for name in names)


def spent_pairs(chosen: Plan | MixedPlan, other: Plan | MixedPlan) -> tuple[Pair, ...]:
    """Joules and USD a step, where both plans know them."""
    pairs = {name: [getattr(it, name) for it in (chosen, other)] for name in ("joules_per_step", "usd_per_step")}
    called = {"joules_per_step": "energy", "usd_per_step": "money"}
    return tuple(Pair(called[name], *pair) for name, pair in pairs.items() if None not in pair)
