"""Hands the open rows to CP-SAT, best bounds first, until the incumbent is proved; rows of one kind at once first."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cost_models.critical_paths import Path
from cost_models.rows import Rows
from planner.search.bounds import Objective, objective_of
from planner.search.budget import Budget
from planner.search.order import EQUAL, first_key

if TYPE_CHECKING:
    from planner.search.certificate import Certificate, OpenRow
    from planner.search.engine import Kept, Search

TIES_UNITS = 1.0
"""Work spent at most on which of equally good splits comes first."""
Paths = defaultdict[tuple[int, ...], list[Path]]


def prove(search: Search, unseen: float) -> tuple[float, bool]:
    """The bound that holds for every row that was looked at, and whether it meets the incumbent.

    The incumbent's own row goes first, so that the last choice among its splits is CP-SAT's and a better one
    spares other rows; the rest follow best bound first. ``unseen`` is the bound of rows that were not looked at.
    """
    paths: Paths = defaultdict(list)
    settled = search.best is not None or _first_plan(search, paths)
    if search.best is None:
        return (np.inf if settled else search.kept_floor), settled
    _narrow(search, paths, unseen)
    groups = _groups(search)
    for at, group in enumerate(groups):
        later = min((kept.bound for other in groups[at + 1 :] for kept in other), default=np.inf)
        left = sum(map(len, groups[at:]))
        answer = _prove_group(search, group, paths, min(later, unseen), left)
        if answer is not None:
            return min(answer, later, search.value), False
    _settle_ties(search, paths)
    return search.value, True


def _narrow(search: Search, paths: Paths, unseen: float) -> None:
    """Bound every open row by its columns and windows of stages, and take the plans that this finds.

    The gap is then of all rows, however long CP-SAT takes over one. A row that is alone is asked at once. ``unseen`` is
    the bound of rows that were not looked at.
    """
    groups = [group for group in _groups(search) if group[0].comparable]
    left = sum(map(len, groups))
    if left < 2:
        return
    for group in sorted(groups, key=lambda group: group[0].bound):
        if search.budget.over:
            return
        search.report(_left(left))
        _narrow_group(search, group, paths)
        left -= len(group)
        search.raise_floor(min(unseen, search.value, *(k.bound for k in search.kept if not k.point)))


def _narrow_group(search: Search, group: list[Kept], paths: Paths) -> None:
    """Rows of one kind: together first, and no further where CP-SAT is as quick; each alone if clocks are chosen."""
    if len(group[0].prices.clocks) == 1:
        question = dataclasses.replace(_together(search, group), only_bound=True)
        answer = _asked(search, question, paths, lambda answer: None)
        for kept in group:
            kept.bound = max(kept.bound, question.below if answer is None else answer.bound)
            kept.closed = _shown_by(answer)
        if len(group) == 1 and answer is not None:
            _keep(search, group[0], answer)
        if answer is None or not _alone_too(len(group), answer, question):
            return
    for kept in group:
        if kept.bound < search.value and not search.budget.over:
            _narrow_one(search, kept, paths)


def _alone_too(rows: int, answer: Certificate, question: Question) -> bool:
    """Whether rows may say more than as many together did: in time of many columns, else if plans seem better."""
    from planner.search.windows import MANY

    if question.objective.counts_joules:
        return rows > 1 and answer.best is not None
    return answer.columns > MANY


def _narrow_one(search: Search, kept: Kept, paths: Paths) -> None:
    objective = objective_of(kept.prices.rows, search.cluster, search.options)
    question = Question(kept, objective, search.value, _precedes(search, kept), only_bound=True)
    answer = _asked(search, question, paths, lambda answer: None)
    kept.bound = max(kept.bound, question.below if answer is None else answer.bound)
    if answer is None:
        kept.closed = "columns"
    elif answer.best is not None:
        kept.found, search.best = answer.best, kept


def _groups(search: Search) -> list[list[Kept]]:
    """Rows that may still win, those alike in degrees and packing together, best first; the incumbent's row alone."""
    groups: dict[tuple, list[Kept]] = defaultdict(list)
    for kept in sorted((k for k in search.kept if not k.point and k.bound < search.value), key=lambda k: k.bound):
        rows = kept.prices.rows
        schedule = (int(rows.micro_batch[0]), int(rows.etp[0]), rows.in_flight)
        groups[() if kept is search.best else (*kept.key, *schedule, kept.packing)].append(kept)
    return sorted(groups.values(), key=lambda group: group[0] is not search.best)


def _prove_group(search: Search, group: list[Kept], paths: Paths, rest: float, left: int) -> float | None:
    """``None`` once no row of the group can win; else the bound at which the budget was spent.

    ``rest`` is the bound of all other rows; ``left`` rows wait, these among them.
    """
    group = _left_open(search, [kept for kept in group if kept.bound < search.value], paths, rest, left)
    for k, kept in enumerate(group):
        least = min(other.bound for other in group[k:])
        if kept.bound >= search.value:
            continue
        search.raise_floor(min(least, rest))
        if search.budget.over:
            return least
        after = min((other.bound for other in group[k + 1 :]), default=np.inf)
        answer = _certify(search, kept, search.value, paths, min(after, rest), left - k)
        if not kept.closed:
            return min(answer.bound, after)
    return None


def _left_open(search: Search, group: list[Kept], paths: Paths, rest: float, left: int) -> list[Kept]:
    """Rows that are closed neither with all of their group nor with the others of their ZeRO stage, best bounds first.

    One row that holds as little as the most sharded and takes as long as the least sharded is often too good to close.
    """
    if len(group) < 2 or not group[0].comparable or search.budget.over:
        return group
    _close(search, group, paths, rest, left)
    if group[0].closed:
        return []
    by_zero = [[kept for kept in group if kept.prices.rows.zero[0] == zero] for zero in range(4)]
    if group in by_zero:
        return group
    alone = [_left_open(search, part, paths, rest, left) for part in by_zero]
    return sorted(itertools.chain(*alone), key=lambda kept: kept.bound)


def _close(search: Search, group: list[Kept], paths: Paths, rest: float, left: int) -> None:
    """Close a group if none of it beats the incumbent, shown by a row as good as the best of them in everything."""
    search.raise_floor(min(group[0].bound, rest))
    search.report(_left(left))
    answer = _asked(search, _together(search, group), paths, lambda answer: None)
    if answer is None or (answer.proved and answer.best is None):
        for kept in group:
            kept.closed = _shown_by(answer)


def _shown_by(answer: Certificate | None) -> str:
    """What closes the rows that were asked about; nothing where CP-SAT has not ended."""
    return "columns" if answer is None else "cp-sat" if answer.proved else ""


@dataclass(frozen=True)
class Question:
    """Whether a row beats ``beat``, or with ``ties`` equals it.

    ``only_whether`` where any answer will do, ``only_bound`` where CP-SAT is not asked.
    """

    kept: Kept
    objective: Objective
    beat: float
    ties: bool
    only_whether: bool = False
    only_bound: bool = False

    @property
    def below(self) -> float:
        """What the objective of every plan asked for is below."""
        return self.beat * (1 + 2 * EQUAL) if self.ties else self.beat


def _together(search: Search, group: list[Kept]) -> Question:
    """Whether a row that is as good as the best of a group in everything beats the incumbent."""
    from planner.search.envelope import best_objective

    objective = objective_of(Rows.concat([kept.prices.rows for kept in group]), search.cluster, search.options)
    ties = any(_precedes(search, kept) for kept in group)
    if len(group) == 1:
        return Question(group[0], objective, search.value, ties, only_whether=True)
    kept = group[0].with_the_best_of(group)
    return Question(kept, best_objective(objective), search.value, ties, only_whether=True)


def _precedes(search: Search, kept: Kept) -> bool:
    """Whether the plans of a row stand before the incumbent's, were they equally good."""
    mine, best = first_key(kept.prices.rows), first_key(search.best.prices.rows)
    return mine < best or (mine == best and search.row_key(kept) < search.row_key(search.best))


def _settle_ties(search: Search, paths: Paths) -> None:
    """Of the proved row's equally good splits take the first."""
    from planner.search.ties import first_of_equals
    from planner.search.windows import narrowed_by_windows

    best = search.best
    if best.point:
        return
    above = search.value * (1 + 2 * EQUAL)
    objective = objective_of(best.prices.rows, search.cluster, search.options)
    row = _opened(search, dataclasses.replace(best, bound=0.0), objective, above, paths)
    if row is not None:
        narrowed_by_windows(row, above, search.budget)
    budget = Budget(search.budget.deadline, min(search.budget.left_units, TIES_UNITS))
    found = None if row is None else first_of_equals(row, best.found, search.limit, budget, search.options.workers)
    search.budget.solved(budget.spent)
    if found is None:
        search.counts["ties_unsettled"] = 1
    elif found is not best.found:
        search.best = dataclasses.replace(best, found=found)


def _certify(search: Search, kept: Kept, beat: float, paths: Paths, rest: float, left: int) -> Certificate | None:
    """CP-SAT's answer for one row, ``None`` when its columns alone show that it cannot beat ``beat``.

    ``rest`` is the bound of all rows but this one, of which ``left`` wait, this one among them.
    """
    search.report(_left(left), min(kept.bound, rest))
    ties = search.best is not None and _precedes(search, kept)
    objective = objective_of(kept.prices.rows, search.cluster, search.options)

    def heard(answer: Certificate) -> None:
        _keep(search, kept, answer)
        search.report(_left(left), min(answer.bound, rest))

    answer = _asked(search, Question(kept, objective, beat, ties), paths, heard)
    kept.closed = _shown_by(answer)
    if answer is not None:
        _keep(search, kept, answer)
        kept.bound = max(kept.bound, answer.bound)
    return answer


def _asked(
    search: Search, question: Question, paths: Paths, heard: Callable[[Certificate], None]
) -> Certificate | None:  # fmt: skip
    from planner.search.certificate import Certificate, ceiling, certify, look_near
    from planner.search.windows import narrowed_by_windows

    row, good = _opened(search, question.kept, question.objective, question.below, paths), ()
    if row is not None and (question.objective.counts_joules or not question.only_whether):
        good = narrowed_by_windows(row, question.below, search.budget)
    if row is None or row.bound >= question.below:
        return None
    answer = Certificate(None, row.bound, False, columns=len(row.columns))
    look_near(row, good, question.beat, search.limit, answer)
    heard(answer)
    if question.only_bound or (question.only_whether and answer.best is not None):
        return answer
    beat, ties = question.beat if answer.best is None else answer.best.value, question.ties and answer.best is None
    search.counts["rows_to_solver"] += 1
    search.counts["literals"] += len(row.columns)
    certify(
        row, min(beat, ceiling(row)), search.limit, answer, budget=search.budget,
        workers=search.options.workers, ties=ties, only_whether=question.only_whether, heard=heard,
    )  # fmt: skip
    search.counts["solver_rounds"] += answer.rounds
    search.counts["solver_cuts"] += answer.cuts
    return answer


def _left(rows: int) -> str:
    return f"proving {rows} open row{'s' if rows > 1 else ''}"


def _keep(search: Search, kept: Kept, answer: Certificate) -> None:
    """Take over a better plan as soon as it is known."""
    if answer.best is None or answer.best.value > search.value or (search.best and search.best.found is answer.best):
        return
    kept.found, search.best = answer.best, kept


def _opened(search: Search, kept: Kept, objective: Objective, below: float, paths: Paths) -> OpenRow | None:
    """The row with every column of plans below that objective; ``None`` when there is none."""
    rows = kept.prices.rows
    return search.open_row(kept, objective, below, paths[int(rows.pp[0]), int(rows.micro_batches[0]), rows.in_flight])


def _first_plan(search: Search, paths: Paths) -> bool:
    """When no balanced cut fitted anywhere: ask CP-SAT for any plan at all, row by row.

    True when a plan was found, or when every row was shown to have none.
    """
    settled = True
    rows = sorted((k for k in search.kept if not k.point), key=lambda k: k.bound)
    for k, kept in enumerate(rows):
        if search.budget.over:
            return False
        answer = _certify(search, kept, np.inf, paths, kept.bound, len(rows) - k)
        if search.best is not None:
            return True
        settled = settled and (answer is None or answer.proved)
    return settled
