"""The last choice of one row and its proof: what could still beat the incumbent, and CP-SAT's answer about it.

A path bounds the schedule from below and is exact where it is the longest. Any choice that the known paths let beat the
incumbent will do: it is evaluated, plans near it too (:mod:`planner.search.neighbours`), and either one is better or
their longest paths become known and CP-SAT is asked again: cuts are linear, valid everywhere, and end at the true
optimum. Infeasible means that nothing beats the incumbent. To have CP-SAT minimise in every round instead took 40 times
longer on 15 stages of 126 layers, whose many splits differ by so little. A path holds for every row of the same pp and
micro-batches, so rows learn from each other. The model itself stands in :mod:`planner.search.row_model`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.critical_paths import Path
from cost_models.estimate import Runs
from cost_models.offload import lightest
from planner.search.bounds import Objective, whole_layers_bound
from planner.search.budget import Budget
from planner.search.columns import Columns, column_joules, stage_columns
from planner.search.cut_sums import LEAST, column_places, least_total, return_ticks
from planner.search.incumbent import Found, weigh
from planner.search.neighbours import near, values_of
from planner.search.priced_out import least_fill, least_hops, price_out
from planner.search.rounds import longest_rounds
from planner.search.row_model import RowModel

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

Ints = NDArray[np.int64]
ROUNDS_TOGETHER = 2
"""Rounds of CP-SAT for rows together: they show that none comes near the incumbent; else each row is asked alone."""
MOST_FIRST, FIRST_TURNS = 3, 8
"""Plans that are moved on from before CP-SAT is asked, and how often, at most."""


@dataclass
class OpenRow:
    """A row whose bound is below the incumbent: its chain, columns, known paths and (one-row) objective."""

    chain: Chain
    objective: Objective
    stage_size: int
    bound: float
    columns: Columns
    paths: list[Path]
    dynamic: NDArray[np.float64]
    rates: NDArray[np.float64]
    speed: Ints
    """Which of the row's chains prices a column, fastest first: one, unless its stages lie on hosts that differ."""

    def judge(self, picked: list[int], limit_bytes: int) -> Found | None:
        """The plan of one column a stage, of infinite value above a limit."""
        runs, clocks = runs_of(self.columns, picked), tuple(self.columns.clock[picked].tolist())
        out = self.columns.leaving(picked)
        return weigh(self.chain, runs, self.objective, self.stage_size, limit_bytes, clocks, out)

    def restrict(self, model: cp_model.CpModel, x: list[cp_model.IntVar]) -> None:
        """Add what else holds among the columns; nothing where the stages' hosts are alike."""

    def keep(self, index: Ints) -> None:
        """Forget all columns but those at ``index``."""
        self.columns, self.speed, self.dynamic = self.columns.take(index), self.speed[index], self.dynamic[index]

    @property
    def weight(self) -> float:
        """Objective a tick."""
        return float(self.objective.weight[0]) * self.chain.prices.ticks.second


@dataclass
class Certificate:
    """What CP-SAT did with a row: the best plan it found, if better; the bound it proved; how hard it worked.

    ``columns`` are those that may be part of a better plan.
    """

    best: Found | None
    bound: float
    proved: bool
    rounds: int = 0
    cuts: int = 0
    columns: int = 0


def open_row(
    chain: Chain,
    objective: Objective,
    stage_size: int,
    bound: float,
    incumbent: float,
    limit_bytes: int,
    pinned: str | None,
    known: list[Path],
    slower: list[Chain] | None = None,
) -> OpenRow | None:
    """A row with every column that could be part of a plan better than ``incumbent``; ``None`` when there is none.

    ``slower`` price the row for stages on hosts with less than the bandwidth of ``chain``'s. ``known`` are paths
    learned from rows of the same pp and micro-batches; it grows as this row learns.
    """
    rates = objective.wait_rates(chain.prices.rows, chain.row)
    if np.isinf(rates).any():
        return None
    most = _most_ticks(chain, objective, incumbent)
    chains = [chain, *(slower or [])]
    tables = [_stage_table(it, most, limit_bytes, pinned, joules=objective.counts_joules) for it in chains]
    columns, speed = Columns.concat(tables), np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    if len(np.unique(columns.stage)) < chain.pp:
        return None
    dynamic = np.concatenate([column_joules(it, table) for it, table in zip(chains, tables, strict=True)]) * stage_size
    plain = chain.schedule.kind == "1f1b"
    bound = max(bound, _work_bound(chains, objective, columns)) if plain else bound
    if plain and objective.counts_joules and bound < incumbent:
        keep, weighed = price_out(chains, columns, dynamic, objective, incumbent)
        bound, columns, dynamic, speed = max(bound, weighed), columns.take(keep), dynamic[keep], speed[keep]
    if bound >= incumbent or len(np.unique(columns.stage)) < chain.pp:
        return None
    if not known:
        known.extend(chain.schedule.seed_paths())
    return OpenRow(chain, objective, stage_size, bound, columns, known, dynamic, rates, speed)


def _work_bound(chains: list[Chain], objective: Objective, columns: Columns) -> float:
    """The bounds ``S + (m - 1) S / pp`` and of whole layers, with the least ``S`` of any cut, its recompute included.

    And that of return paths. All are of paths that end with the first stage, so its tail is added to its work.
    Infinite where every stage has columns, and no cut is made of them.
    """
    chain, factor, places = chains[0], least_fill(chains[0], columns), column_places(chains[0], columns)
    ticks, tail = columns.forward + columns.backward, np.where(columns.stage == 0, columns.tail, 0)
    spread = least_total(chain, places, factor * ticks + tail) + least_hops(chains)
    work = least_total(chain, places, ticks)
    if np.isinf(work):
        return np.inf
    light = lightest(chain.prices.take(np.array([chain.row])))
    whole = float(whole_layers_bound(light, chain.model, np.full(1, work))[0]) - work
    whole += least_total(chain, places, ticks + tail)
    ticks = max(max(spread, whole) * LEAST, return_ticks(chain, columns, places))
    return float(objective.weight[0]) * chain.prices.ticks.second * ticks


def least_joules(row: OpenRow) -> float:
    """The least dynamic joules of a step over all devices, of any cut into the row's columns."""
    return least_total(row.chain, column_places(row.chain, row.columns), row.dynamic) * LEAST


def _most_ticks(chain: Chain, objective: Objective, incumbent: float) -> int:
    """Ticks of the longest step that could still beat the incumbent and stay within the limits."""
    longest_s = min(incumbent / float(objective.weight[0]), objective.most_step_s())
    return int(min(longest_s / chain.prices.ticks.second + 1, 2.0**60))


def _stage_table(chain: Chain, most: int, limit_bytes: int, pinned: str | None, *, joules: bool) -> Columns:
    """Fitting columns of every stage that has any, segments that alone exceed ``most`` ticks left out."""
    pp, layers, m = chain.pp, chain.layers, chain.micro_batches
    least = int(chain.least_passes[chain.row, np.unique(chain.order)].min())
    longest = max(1, min(layers - pp + 1, most // max(1, m * least)))
    stage, i, j = _segments(chain, longest)
    near = m * chain.total(chain.least_passes, i, j) <= most
    columns = stage_columns(chain, stage[near], i[near], j[near], limit_bytes, pinned, joules=joules)
    return columns.take(m * (columns.forward + columns.backward) + columns.tail <= most)


def _segments(chain: Chain, longest: int) -> tuple[Ints, Ints, Ints]:
    """Stage, begin and end of one segment of every length for every class of boundary that a stage may begin at."""
    pp, layers = chain.pp, chain.layers
    if pp == 1:
        return np.array([0]), np.array([0]), np.array([layers])
    n = np.arange(1, longest + 1)
    _, first = np.unique(chain.places[1:], return_index=True)
    stage, i, length = (a.ravel() for a in np.meshgrid(np.arange(1, pp - 1), first + 1, n, indexing="ij"))
    inside = i + length < layers
    return (
        np.concatenate([np.zeros_like(n), stage[inside], np.full_like(n, pp - 1)]),
        np.concatenate([np.zeros_like(n), i[inside], layers - n]),
        np.concatenate([n, (i + length)[inside], np.full_like(n, layers)]),
    )


def ceiling(row: OpenRow) -> float:
    """An objective that every plan of the row stays below: all its work one after the other, with every hop.

    Its bound does too: that of rows asked about together may be above plans of the row that is as good as each of them.
    """
    columns, chain = row.columns, row.chain
    worst = np.zeros(chain.pp, dtype=np.int64)
    np.maximum.at(worst, columns.stage, columns.forward + columns.backward)
    ticks = chain.micro_batches * (int(worst.sum()) + 2 * chain.pp * chain.hop) + int(columns.tail.max())
    dynamic = chain.pp * float(row.dynamic.max())
    waits = row.rates.sum(axis=1) * dynamic / row.stage_size
    step_s = max(ticks * chain.prices.ticks.second, float(waits.max(initial=0.0)))
    return 2 * max(row.bound, float(row.objective.cost(np.array([step_s]), np.array([dynamic]))[0]))


def look_near(row: OpenRow, plans: Ints, incumbent: float, limit_bytes: int, result: Certificate) -> None:
    """Let ``result`` hold the best plan below ``incumbent`` among some and those that moves from the best of them find.

    ``plans`` are ``[plans, pp]`` positions of columns; CP-SAT is not asked.
    """
    if not len(plans):
        return
    for at in np.argsort(values_of(row, plans), kind="stable")[:MOST_FIRST]:
        around = near(row, plans[at].tolist(), incumbent, FIRST_TURNS)
        for picked in (plans[at].tolist(), around.picked):
            found = None if picked is None else row.judge(picked, limit_bytes)
            if found is not None and found.value < incumbent:
                incumbent, result.best = found.value, found


def certify(
    row: OpenRow,
    incumbent: float,
    limit_bytes: int,
    result: Certificate,
    *,
    budget: Budget,
    workers: int = 1,
    ties: bool = False,
    only_whether: bool = False,
    heard: Callable[[Certificate], None] = lambda result: None,
) -> None:
    """Prove that ``row`` does not beat ``incumbent``, or find what does and prove that; ``result`` tells how far it is.

    With ``ties`` a plan as good as ``incumbent`` counts as better, once; with ``only_whether`` the first better one
    ends it, or ``ROUNDS_TOGETHER``. When the budget is spent first, the best known bound stands there unproved.
    ``heard`` is called whenever the best plan may have moved.
    """
    problem, best = RowModel(row, incumbent), incumbent

    def consider(picked: list[int]) -> Found | None:
        nonlocal best, ties
        found = row.judge(picked, limit_bytes)
        if found is not None and (found.value < best or (ties and found.value == best)):
            best, result.best, ties = found.value, found, False
            heard(result)
        return found

    rounds = ROUNDS_TOGETHER if only_whether else np.inf
    while not budget.over and result.rounds < rounds:
        result.rounds += 1
        answer = problem.ask(problem.most(best, equal=ties), budget, workers)
        if answer.status == "infeasible":
            result.bound, result.proved = best, True
        if answer.picked is None:
            return
        result.cuts += problem.learn(answer.picked, consider(answer.picked))
        if only_whether and result.best is not None:
            return
        result.cuts += sum(problem.add(path) for path in _paths_round(row, answer.picked, best))
        around = near(row, answer.picked, best)
        if around.picked is not None:
            consider(around.picked)
        result.cuts += sum(problem.add(path) for path in around.paths)


def _paths_round(row: OpenRow, picked: list[int], beat: float) -> list[Path]:
    """Paths round windows of stages by which the columns ``picked``, one a stage, are no better than ``beat``."""
    work = (getattr(row.columns, name)[picked] for name in ("forward", "backward", "tail"))
    joules = row.objective.per_joule * float(row.dynamic[picked].sum())
    return longest_rounds(row.chain, *work, beyond=(beat - joules) / row.weight)


def runs_of(columns: Columns, picked: list[int]) -> Runs:
    """The picked columns' runs of layers, each column moved to where the one before it ends."""
    at, runs = 0, []
    for k in picked:
        shift = at - int(columns.i[k])
        runs.append([(choice, i + shift, j + shift) for choice, i, j in columns.runs(k)])
        at = runs[-1][-1][2]
    return runs
