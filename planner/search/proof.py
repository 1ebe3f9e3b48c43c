"""Hands the open rows to CP-SAT one by one, best bounds first, until the incumbent is proved."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from cost_models.pipeline import Path

if TYPE_CHECKING:
    from planner.search.certificate import Certificate
    from planner.search.engine import Kept, Search

Paths = defaultdict[tuple[int, int], list[Path]]


def prove(search: Search, deadline: float) -> tuple[float, bool]:
    """The bound that holds for every row that was looked at, and whether it meets the incumbent.

    The incumbent's own row goes first, so that the last choice among its splits is CP-SAT's and a better one
    spares other rows; the rest follow best bound first.
    """
    paths: Paths = defaultdict(list)
    settled = search.best is not None or _first_plan(search, paths, deadline)
    if search.best is None:
        return np.inf, settled
    own = search.best
    waiting = sorted((k for k in search.kept if k.virtual == 1 and k.bound < search.value), key=lambda k: k.bound)
    waiting.sort(key=lambda k: k is not own)
    for k, kept in enumerate(waiting):
        if kept.bound >= search.value:
            continue
        if time.monotonic() > deadline:
            return min(other.bound for other in waiting[k:]), False
        answer = _certify(search, kept, search.value, paths, deadline)
        if answer is not None and not answer.proved:
            rest = (other.bound for other in waiting[k + 1 :])
            return min(answer.bound, search.value, *rest), False
    return search.value, True


def _certify(search: Search, kept: Kept, beat: float, paths: Paths, deadline: float) -> Certificate | None:
    """CP-SAT's answer for one row, ``None`` when its columns alone show that it cannot beat ``beat``."""
    from planner.search.certificate import ceiling, certify

    rows = kept.prices.rows
    row = search.open_row(kept, beat, paths[int(rows.pp[0]), int(rows.micro_batches[0])])
    if row is None:
        return None
    beat = min(beat, ceiling(row))
    answer = certify(row, beat, search.limit, deadline=deadline, report=lambda a, b: search.report("proving", a, b))
    search.counts["rows_to_solver"] += 1
    search.counts["literals"] += len(row.columns)
    search.counts["solver_rounds"] += answer.rounds
    search.counts["solver_cuts"] += answer.cuts
    if answer.best is not None:
        search.best = dataclasses.replace(kept, found=answer.best)
        search.kept.append(search.best)
    return answer


def _first_plan(search: Search, paths: Paths, deadline: float) -> bool:
    """When no balanced cut fitted anywhere: ask CP-SAT for any plan at all, row by row.

    True when a plan was found, or when every row was shown to have none.
    """
    settled = True
    for kept in sorted((k for k in search.kept if k.virtual == 1), key=lambda k: k.bound):
        if time.monotonic() > deadline:
            return False
        answer = _certify(search, kept, np.inf, paths, deadline)
        if search.best is not None:
            return True
        settled = settled and (answer is None or answer.proved)
    return settled
