"""Hands the open rows to CP-SAT in batches of bounded size, best bounds first."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import numpy as np

from cost_models.chain import Chain
from planner.search.bounds import objective_of

if TYPE_CHECKING:
    from planner.search.certificate import OpenRow
    from planner.search.engine import Kept, Search

MAX_LITERALS = 20_000


def prove(search: Search, deadline: float) -> tuple[float, bool]:
    """The bound that holds for every row that was looked at, and whether it meets the incumbent.

    The incumbent's own row always goes to CP-SAT, so the last choice among its splits is CP-SAT's.
    """
    if search.best is None:
        return _without_incumbent(search, deadline)
    waiting = sorted((k for k in search.kept if k.virtual == 1 and k.bound < search.value), key=lambda k: k.bound)
    at, bound = 0, search.value
    while at < len(waiting) and waiting[at].bound < search.value:
        if time.monotonic() > deadline:
            return waiting[at].bound, False
        at, opened = _batch(search, waiting, at)
        proved, floor = _solve(search, opened, deadline)
        if not proved:
            return min(floor, waiting[at].bound if at < len(waiting) else np.inf), False
        bound = search.value
    return bound, True


def _batch(search: Search, waiting: list[Kept], at: int) -> tuple[int, list[tuple[Kept, OpenRow]]]:
    opened, literals = [], 0
    while at < len(waiting) and waiting[at].bound < search.value and literals < MAX_LITERALS:
        row = _open(search, waiting[at])
        if row is not None:
            opened.append((waiting[at], row))
            literals += len(row.columns)
        at += 1
    return at, opened


def _open(search: Search, kept: Kept) -> OpenRow | None:
    from planner.search.certificate import open_row

    chain = Chain(search.model, kept.prices, 0)
    objective = objective_of(kept.prices.rows, search.cluster, search.options)
    stage = int(kept.prices.rows.stage_size[0])
    return open_row(chain, objective, stage, kept.bound, search.value, search.limit, search.recompute)


def _solve(search: Search, opened: list[tuple[Kept, OpenRow]], deadline: float) -> tuple[bool, float]:
    from planner.search.certificate import certify

    def progress(best: float, bound: float) -> None:
        search.report("proving", best, bound)

    answer = certify([row for _, row in opened], search.value, search.limit, deadline=deadline, report=progress)
    search.counts["rows_to_solver"] += answer.rows
    search.counts["literals"] += answer.literals
    search.counts["solver_rounds"] += answer.rounds
    search.counts["solver_cuts"] += answer.cuts
    if answer.best is not None:
        row, found = answer.best
        kept = next(k for k, r in opened if r is row)
        search.best = dataclasses.replace(kept, found=found)
        search.kept.append(search.best)
    return answer.proved, answer.bound


def _without_incumbent(search: Search, deadline: float) -> tuple[float, bool]:
    """No balanced cut fitted anywhere: ask CP-SAT for any plan at all, row by row, then prove as usual."""
    from planner.search.certificate import certify, open_row

    for kept in sorted((k for k in search.kept if k.virtual == 1), key=lambda k: k.bound):
        if time.monotonic() > deadline:
            return kept.bound, False
        chain = Chain(search.model, kept.prices, 0)
        objective = objective_of(kept.prices.rows, search.cluster, search.options)
        stage = int(kept.prices.rows.stage_size[0])
        ceiling = max(kept.bound * 64, 1e-12)
        row = open_row(chain, objective, stage, kept.bound, ceiling, search.limit, search.recompute)
        answer = None if row is None else certify([row], ceiling, search.limit, deadline=deadline)
        if answer is not None and answer.best is not None:
            search.best = dataclasses.replace(kept, found=answer.best[1])
            return prove(search, deadline)
    return np.inf, True
