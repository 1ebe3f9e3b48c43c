"""Hands the open rows to CP-SAT, best bounds first, until the incumbent is proved; rows of one kind at once first."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from cost_models.chain import Chain
from cost_models.pipeline import Path
from planner.search.bounds import objective_of

if TYPE_CHECKING:
    from planner.search.certificate import Certificate, OpenRow
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
    groups = _groups(search)
    for at, group in enumerate(groups):
        if len(group) > 1 and group[0].comparable and _closed(search, group, paths, deadline):
            continue
        for k, kept in enumerate(group):
            if kept.bound >= search.value:
                continue
            rest = [other.bound for other in itertools.chain(group[k + 1 :], *groups[at + 1 :])]
            if time.monotonic() > deadline:
                return min(kept.bound, *rest, search.value), False
            answer = _certify(search, kept, search.value, paths, deadline)
            if answer is not None and not answer.proved:
                return min(answer.bound, *rest, search.value), False
    return search.value, True


def _groups(search: Search) -> list[list[Kept]]:
    """Rows that may still win, those of the same degrees together, best bounds first; the incumbent's row alone."""
    groups: dict[tuple, list[Kept]] = defaultdict(list)
    for kept in sorted((k for k in search.kept if k.virtual == 1 and k.bound < search.value), key=lambda k: k.bound):
        rows = kept.prices.rows
        schedule = (int(rows.micro_batch[0]), int(rows.etp[0]))
        groups[() if kept is search.best else (*kept.key, *schedule)].append(kept)
    return sorted(groups.values(), key=lambda group: group[0] is not search.best)


def _closed(search: Search, group: list[Kept], paths: Paths, deadline: float) -> bool:
    """Whether no row of a group beats the incumbent, shown by one that is as good as the best of them in everything."""
    from planner.search.certificate import open_row
    from planner.search.envelope import best_objective, envelope

    group = [kept for kept in group if kept.bound < search.value]
    if not group:
        return True
    prices = envelope([kept.prices for kept in group])
    objective = best_objective([objective_of(k.prices.rows, search.cluster, search.options) for k in group])
    chain, stage = Chain(search.model, prices, 0), int(prices.rows.stage_size[0])
    known, beat = paths[chain.pp, chain.micro_batches], search.value
    row = open_row(chain, objective, stage, group[0].bound, beat, search.limit, search.recompute, known)
    answer = _asked(search, row, beat, deadline, only_whether=True)
    return answer is None or (answer.proved and answer.best is None)


def _certify(search: Search, kept: Kept, beat: float, paths: Paths, deadline: float) -> Certificate | None:
    """CP-SAT's answer for one row, the incumbent if it is better; ``None`` when its columns show that it cannot be."""
    objective = objective_of(kept.prices.rows, search.cluster, search.options)
    rows = kept.prices.rows
    row = search.open_row(kept, objective, beat, paths[int(rows.pp[0]), int(rows.micro_batches[0])])
    answer = _asked(search, row, beat, deadline)
    if answer is not None and answer.best is not None:
        search.best = dataclasses.replace(kept, found=answer.best)
        search.kept.append(search.best)
    return answer


def _asked(
    search: Search, row: OpenRow | None, beat: float, deadline: float, *, only_whether: bool = False
) -> Certificate | None:
    from planner.search.certificate import ceiling, certify

    if row is None:
        return None
    answer = certify(
        row, min(beat, ceiling(row)), search.limit, deadline=deadline, only_whether=only_whether,
        report=lambda a, b: search.report("proving", a, b),
    )  # fmt: skip
    search.counts["rows_to_solver"] += 1
    search.counts["literals"] += len(row.columns)
    search.counts["solver_rounds"] += answer.rounds
    search.counts["solver_cuts"] += answer.cuts
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
