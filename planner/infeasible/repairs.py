"""The minimal sets of changes that make something fit, ranked by how little they change.

    set        one change, or two of different knobs
    works      a search with the set found a plan
    minimal    nothing smaller works: no change of it alone, no smaller change of either knob that was tried

Of every knob the smallest change that works alone; of every two knobs, below those, one pair of changes that works
together and from which neither can step back. More of a knob never fits less, so two knobs whose largest changes do not
work together are left at that. Sets of three and more are not looked for.

Source: sets of that kind are minimal correction sets, Liffiton and Sakallah, "Algorithms for Computing Minimal
Unsatisfiable Subsets of Constraints", J. Autom. Reasoning 40 (2008), section 2.
"""

from __future__ import annotations

import itertools
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cost_models.estimate import estimate
from planner.infeasible.changes import Change, Problem, states_too_large
from planner.limits import power_limits
from planner.report import degrees_text
from planner.result import StrategyRecord
from planner.search.budget import Budget
from planner.search.deadline import in_time

REPAIR_UNITS = 5.0
"""Work (:mod:`planner.search.budget`) that all trials together may take: as much on every machine, so that a refusal
reads the same everywhere."""
TRIAL_UNITS = 1.0
BETTER_UNITS = 0.05
"""So much at most a trial goes on after its first plan, so that the time it tells is not that of any plan at all."""
REPAIR_SECONDS = 12.0
"""Past it the trials end on any machine, so that nobody waits; a quick one is done with its units long before."""
NEAR = 0.02
"""Gap at which a trial's plan is good enough to be told."""
MOST_REPAIRS = 8
Knob = tuple[str, str]
"""A knob and the way it is turned."""


@dataclass(frozen=True, slots=True)
class Repair:
    """A minimal set of changes, and the plan that was found with it: its degrees, bytes and seconds.

    ``need_bytes`` is its fullest device, which may hold ``limit_bytes``; ``step_s`` is what was found, not proved best.
    """

    changes: tuple[Change, ...]
    degrees: str
    need_bytes: float
    limit_bytes: float
    step_s: float
    tokens_per_s: float

    @property
    def size(self) -> float:
        """How much it changes, in doublings."""
        return sum(change.size for change in self.changes)

    @property
    def text(self) -> str:
        """The changes in words."""
        return " and ".join(change.text for change in self.changes)

    def as_json(self) -> dict[str, Any]:
        """The set as an entry of ``repairs``."""
        return {
            "change": self.text,
            "changes": [{"change": it.text, "knob": it.knob, "to": it.to} for it in self.changes],
            "size_doublings": self.size, "degrees": self.degrees, "need_bytes": self.need_bytes,
            "limit_bytes": self.limit_bytes, "step_s": self.step_s, "tokens_per_s": self.tokens_per_s,
        }  # fmt: skip


def minimal_repairs(problem: Problem, changes: list[Change]) -> tuple[list[Repair], bool]:
    """Minimal sets of ``changes`` after which something fits, the smallest first, and whether all were tried.

    Where they were not, the units or the seconds ended before.
    """
    search = _Repairing(problem, changes)
    deadline = min(problem.deadline, time.monotonic() + REPAIR_SECONDS)
    done = False
    with suppress(KeyboardInterrupt):
        done = in_time(deadline, search.run)
    found = sorted(search.found, key=lambda it: (len(it.changes), it.size, it.step_s))
    return found[:MOST_REPAIRS], done and search.left_units > 0


class _Repairing:
    """One search for minimal sets. ``found`` is true whenever it is cut short."""

    def __init__(self, problem: Problem, changes: list[Change]) -> None:
        self.problem, self.found, self.left_units = problem, list[Repair](), REPAIR_UNITS
        self.knobs = {
            knob: sorted(its, key=lambda change: change.size)
            for knob, its in itertools.groupby(sorted(changes, key=_turned), key=_turned)
        }
        self.works_alone = {knob: len(levels) for knob, levels in self.knobs.items()}
        """For each knob, the position of its first change that works by itself; past the end where none does."""

    def run(self) -> None:
        """Single changes of every knob, then pairs below them."""
        every = [(change.size, knob, at) for knob, its in self.knobs.items() for at, change in enumerate(its)]
        for _, knob, at in sorted(every):
            if self.works_alone[knob] == len(self.knobs[knob]) and self._try(self.knobs[knob][at]):
                self.works_alone[knob] = at
        for first, second in self._pairs():
            self._pair(first, second)

    def _pairs(self) -> list[tuple[Knob, Knob]]:
        """Pairs of knobs that have changes which do not work alone, those first whose smallest changes are smallest."""
        open_knobs = [knob for knob, at in self.works_alone.items() if at > 0]
        pairs = (pair for pair in itertools.combinations(open_knobs, 2) if pair[0][0] != pair[1][0])
        return sorted(pairs, key=lambda pair: sum(self.knobs[knob][0].size for knob in pair))

    def _pair(self, first: Knob, second: Knob) -> None:
        """From the largest changes that do not work alone, step back in the one and then in the other."""
        at = {knob: self.works_alone[knob] - 1 for knob in (first, second)}
        best = self._tried(at)
        if best is None:
            return
        for knob in (second, first):
            while at[knob] > 0 and (smaller := self._tried({**at, knob: at[knob] - 1})) is not None:
                at[knob], best = at[knob] - 1, smaller
        self.found.append(best)

    def _tried(self, at: dict[Knob, int]) -> Repair | None:
        return self._trial(tuple(self.knobs[knob][k] for knob, k in at.items()))

    def _try(self, change: Change) -> bool:
        repair = self._trial((change,))
        if repair is not None:
            self.found.append(repair)
        return repair is not None

    def _trial(self, changes: tuple[Change, ...]) -> Repair | None:
        """The plan of a trial; ``None`` where it finds none, or no work is left to spend."""
        if self.left_units <= 0:
            return None
        budget = Budget(units=min(TRIAL_UNITS, self.left_units))
        repair = tried(self.problem, changes, budget)
        self.left_units -= budget.spent
        return repair


def _turned(change: Change) -> Knob:
    return change.knob, change.way


class _GoodEnough(Exception):
    """Ends a trial at a plan that can be told."""


def tried(problem: Problem, changes: tuple[Change, ...], budget: Budget) -> Repair | None:
    """The plan that a search of that budget finds after these changes; ``None`` where it finds none."""
    from planner.search.start import search_of

    changed: Problem | None = problem
    for change in changes:
        changed = None if changed is None else change.applied(changed)
    if changed is None or states_too_large(changed.space, changed.limit):
        return None
    search = search_of(changed.space, changed.options, changed.fits, changed.ticks, _until_good(budget), budget)
    with suppress(_GoodEnough):
        search.run()
    return None if search.best is None else _told(changed, changes, search.strategy(search.best))


def _until_good(budget: Budget) -> Any:
    """A report that ends its search when the plan is near its bound, or has had some work to become better."""
    first = math.inf

    def report(stage: str, best: float, bound: float) -> None:
        nonlocal first
        if best < math.inf:
            first = min(first, budget.spent)
            if best - bound <= NEAR * best or budget.spent > first + BETTER_UNITS:
                raise _GoodEnough

    return report


def _told(problem: Problem, changes: tuple[Change, ...], strategy: Any) -> Repair:
    space = problem.space
    priced = estimate(
        space.model, space.cluster, space.workload, strategy,
        fits=problem.fits, ticks=problem.ticks, limits=power_limits(problem.options),
    )  # fmt: skip
    return Repair(
        changes, degrees_text(StrategyRecord.of(strategy)), max(priced.need_bytes), problem.limit, priced.step_s,
        space.workload.tokens / priced.step_s,
    )  # fmt: skip
