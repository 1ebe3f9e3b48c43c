"""Hands the open rows to CP-SAT one by one, best bounds first, until the incumbent is proved."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from cost_models.chain import Chain
from cost_models.pipeline import Path
from planner.search.bounds import objective_of
from planner.search.deadline import held
from planner.search.order import EQUAL

if TYPE_CHECKING:
    from planner.search.certificate import Certificate, OpenRow
    from planner.search.engine import Kept, Search

Paths = defaultdict[tuple[int, int], list[Path]]


def prove(search: Search, unseen: float) -> tuple[float, bool]:
    """The bound that holds for every row that was looked at, and whether it meets the incumbent.

    The incumbent's own row goes first, so that the last choice among its splits is CP-SAT's and a better one
    spares other rows; the rest follow best bound first. ``unseen`` is the bound of rows that were not looked at.
    """
    paths: Paths = defaultdict(list)
    settled = search.best is not None or _first_plan(search, paths)
    if search.best is None:
        return (np.inf if settled else search.kept_floor), settled
    own = search.best
    waiting = sorted((k for k in search.kept if k.virtual == 1 and k.bound < search.value), key=lambda k: k.bound)
    waiting.sort(key=lambda k: k is not own)
    least = np.minimum.accumulate([np.inf, *(k.bound for k in waiting[::-1])])[::-1]
    for k, kept in enumerate(waiting):
        if kept.bound >= search.value:
            search.ledger.exclude("evaluated", "bound", [kept.bound])
            continue
        search.raise_floor(min(least[k], unseen))
        if search.budget.over:
            search.ledger.exclude("evaluated", "open", [other.bound for other in waiting[k:]])
            return float(least[k]), False
        search.report(_left(len(waiting) - k))
        answer = _certify(search, kept, search.value, paths, min(least[k + 1], unseen), len(waiting) - k)
        proved = answer is None or answer.proved
        reason = "columns" if answer is None else "cp-sat" if proved else "open"
        search.ledger.exclude("evaluated", reason, [search.value if proved else answer.bound])
        if not proved:
            search.ledger.exclude("evaluated", "open", [other.bound for other in waiting[k + 1 :]])
            return min(answer.bound, search.value, float(least[k + 1])), False
    _settle_ties(search, paths)
    return search.value, True


def _settle_ties(search: Search, paths: Paths) -> None:
    """Of the proved row's equally good splits take the first."""
    with held():
        from planner.search.ties import first_of_equals

    best = search.best
    if best.virtual > 1:
        return
    above = search.value * (1 + 2 * EQUAL)
    row = _opened(search, best, 0.0, above, paths)
    found = None if row is None else first_of_equals(
        row, best.found, search.limit, search.budget, search.options.workers
    )  # fmt: skip
    if found is None:
        search.counts["ties_unsettled"] = 1
    elif found is not best.found:
        search.best = dataclasses.replace(best, found=found)


def _certify(search: Search, kept: Kept, beat: float, paths: Paths, rest: float, left: int) -> Certificate | None:
    """CP-SAT's answer for one row, ``None`` when its columns alone show that it cannot beat ``beat``.

    ``rest`` is the bound of all rows but this one, of which ``left`` wait, this one among them.
    """
    with held():
        from planner.search.certificate import Certificate, ceiling, certify

    ties = search.best is not None and search.row_key(kept) < search.row_key(search.best)
    row = _opened(search, kept, kept.bound, beat * (1 + 2 * EQUAL) if ties else beat, paths)
    if row is None:
        return None
    search.counts["rows_to_solver"] += 1
    search.counts["literals"] += len(row.columns)
    answer = Certificate(None, row.bound, False)

    def heard(answer: Certificate) -> None:
        _keep(search, kept, answer)
        search.report(_left(left), min(answer.bound, rest))

    options = {"budget": search.budget, "workers": search.options.workers, "ties": ties, "heard": heard}
    certify(row, min(beat, ceiling(row)), search.limit, answer, **options)
    _keep(search, kept, answer)
    search.counts["solver_rounds"] += answer.rounds
    search.counts["solver_cuts"] += answer.cuts
    return answer


def _left(rows: int) -> str:
    return f"proving {rows} open row{'s' if rows > 1 else ''}"


def _keep(search: Search, kept: Kept, answer: Certificate) -> None:
    """Take over a better plan as soon as it is known."""
    if answer.best is None or answer.best.value > search.value or (search.best and search.best.found is answer.best):
        return
    search.best = dataclasses.replace(kept, found=answer.best)
    search.kept.append(search.best)


def _opened(search: Search, kept: Kept, bound: float, below: float, paths: Paths) -> OpenRow | None:
    """The row with every column of plans below that objective; ``None`` when there is none."""
    with held():
        from planner.search.certificate import open_row

    chain = Chain(search.model, kept.prices, 0)
    objective = objective_of(kept.prices.rows, search.cluster, search.options)
    known, stage = paths[chain.pp, chain.micro_batches], int(kept.prices.rows.stage_size[0])
    return open_row(chain, objective, stage, bound, below, search.limit, search.recompute, known)


def _first_plan(search: Search, paths: Paths) -> bool:
    """When no balanced cut fitted anywhere: ask CP-SAT for any plan at all, row by row.

    True when a plan was found, or when every row was shown to have none.
    """
    settled = True
    rows = sorted((k for k in search.kept if k.virtual == 1), key=lambda k: k.bound)
    for k, kept in enumerate(rows):
        if search.budget.over:
            return False
        answer = _certify(search, kept, np.inf, paths, kept.bound, len(rows) - k)
        if search.best is not None:
            return True
        settled = settled and (answer is None or answer.proved)
    return settled
