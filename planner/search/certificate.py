"""The last choice and its proof: CP-SAT over the columns of one row that the bounds left open.

    minimise    z
    stage       sum_k x[s,k] = 1                                       every stage s
    layers      sum_{s,k} n_k x[s,k] = L
    joined      sum_k x[s,k | ends at c] = sum_k x[s+1,k | begins at c]    every class c of boundary
    path        z >= w (f.x + b.x + hops + tail.x) + dynamic.x         every known path
    cap         z >= w pue dynamic.x / spare + dynamic.x               a power cap's wait
    better      z <= incumbent - 1

Each line is one ``_add_<name>`` below. A path bounds the schedule from below and is exact where it is the
longest. When CP-SAT's choice evaluates above its z, the longest path of that choice is added and CP-SAT is
asked again: cuts are linear, valid everywhere, and end at the true optimum. Infeasible means that nothing
beats the incumbent. A path holds for every row of the same pp and micro-batches, so rows learn from each other.

Objective values are whole grains, rounded down term by term, so z never exceeds the truth.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from cost_models.chain import Chain
from cost_models.estimate import Runs
from cost_models.pipeline import Path, critical_path, schedule_graph, seed_paths
from planner.errors import PlannerBug
from planner.search.bounds import Objective, fill_factor, whole_layers_bound
from planner.search.columns import Columns, stage_columns
from planner.search.incumbent import Found, judge
from planner.search.solver import cp_sat

Ints = NDArray[np.int64]
GRAINS = 2.0**44


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
    rate: Ints
    """Which of the row's chains prices a column."""

    def judge(self, picked: list[int], limit_bytes: int) -> Found | None:
        """The plan of these columns, evaluated."""
        return judge(self.chain, picked_runs(self.columns, picked), self.objective, self.stage_size, limit_bytes)

    def restrict(self, model: cp_model.CpModel, x: list[cp_model.IntVar]) -> None:
        """Add what else holds among the columns; nothing where all stages are alike."""

    @property
    def weight(self) -> float:
        """Objective a tick."""
        return float(self.objective.weight[0]) * self.chain.prices.ticks.second


@dataclass
class Certificate:
    """What CP-SAT did with a row: the best plan it found, if better; the bound it proved; how hard it worked."""

    best: Found | None
    bound: float
    proved: bool
    rounds: int = 0
    cuts: int = 0


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

    ``slower`` price the row for stages on hosts with less than the bandwidth of ``chain``'s.
    ``known`` are paths learned from rows of the same pp and micro-batches; it grows as this row learns.
    """
    most = _most_ticks(chain, objective, incumbent)
    chains = [chain, *(slower or [])]
    tables = [_stage_table(it, most, limit_bytes, pinned, joules=objective.counts_joules) for it in chains]
    columns = Columns.concat(tables)
    if len(np.unique(columns.stage)) < chain.pp:
        return None
    bound = max(bound, _work_bound(chain, objective, columns))
    if bound >= incumbent:
        return None
    if not known:
        known.extend(seed_paths(chain.pp, 1, chain.micro_batches))
    dynamic = np.concatenate([_column_joules(it, table) for it, table in zip(chains, tables, strict=True)])
    rate = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    return OpenRow(chain, objective, stage_size, bound, columns, known, dynamic * stage_size, rate)


def _work_bound(chain: Chain, objective: Objective, columns: Columns) -> float:
    """The bounds ``S + (m - 1) S / pp`` and of whole layers, with the least ``S`` of any cut, its recompute included.

    Both are of paths that end with the first stage, so its tail is added to its work.
    """
    factor = float(fill_factor(chain.prices)[chain.row])
    spread = _least_total(chain, columns, factor) + 2 * (chain.pp - 1) * chain.hop
    whole = float(whole_layers_bound(chain.prices, chain.model, np.zeros(1))[chain.row])
    ticks = max(spread, _least_total(chain, columns, 1.0) + whole) * (1 - 1e-12)
    return float(objective.weight[0]) * chain.prices.ticks.second * ticks


def _least_total(chain: Chain, columns: Columns, factor: float) -> float:
    """The least ``sum_s factor t_s + tail_0`` of any cut."""
    total = np.full(chain.layers + 1, np.inf)
    total[0] = 0.0
    for stage in range(chain.pp):
        mine = columns.take(columns.stage == stage)
        cost = factor * (mine.forward + mine.backward) + (mine.tail if stage == 0 else 0)
        total = _least_work(chain, total, mine, cost)
    return float(total[-1])


def _least_work(chain: Chain, work: NDArray, mine: Columns, ticks: NDArray) -> NDArray:
    """Least work of all stages so far, by the layers they hold, one stage further."""
    further, boundary = np.full(chain.layers + 1, np.inf), np.arange(chain.layers + 1)
    for i, n, t in zip(mine.i.tolist(), (mine.j - mine.i).tolist(), ticks.tolist(), strict=True):
        here = boundary[: chain.layers + 1 - n][chain.places[: chain.layers + 1 - n] == chain.places[i]]
        further[here + n] = np.minimum(further[here + n], work[here] + t)
    return further


def _most_ticks(chain: Chain, objective: Objective, incumbent: float) -> int:
    """Ticks of the longest step that could still beat the incumbent."""
    tick = chain.prices.ticks.second
    return int(min(incumbent / (float(objective.weight[0]) * tick) + 1, 2.0**60))


def _stage_table(chain: Chain, most: int, limit_bytes: int, pinned: str | None, *, joules: bool) -> Columns:
    """Fitting columns of every stage that has any, segments that alone exceed ``most`` ticks left out."""
    pp, layers, m = chain.pp, chain.layers, chain.micro_batches
    least = int((chain.prices.forward + chain.prices.backward)[chain.row, np.unique(chain.order)].min())
    longest = max(1, min(layers - pp + 1, most // max(1, m * least)))
    stage, i, j = _segments(chain, longest)
    near = m * (chain.forward(i, j) + chain.backward(i, j)) <= most
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


def _column_joules(chain: Chain, columns: Columns) -> NDArray[np.float64]:
    """Dynamic joules of each column on one device."""
    prices, i, j = chain.prices, columns.i, columns.j
    a, b = i + columns.full, i + columns.full + columns.selective
    passes = chain.total(prices.joules_pass, i, j)
    passes = passes + chain.total(prices.joules_extra["full"], i, a, ends=False)
    passes = passes + chain.total(prices.joules_extra["selective"], a, b, ends=False)
    return chain.micro_batches * passes + chain.total(prices.joules_step, i, j)


def ceiling(row: OpenRow) -> float:
    """An objective that every plan of the row stays below: all its work one after the other, with every hop."""
    columns, chain = row.columns, row.chain
    worst = np.zeros(chain.pp, dtype=np.int64)
    np.maximum.at(worst, columns.stage, columns.forward + columns.backward)
    ticks = chain.micro_batches * (int(worst.sum()) + 2 * chain.pp * chain.hop) + int(columns.tail.max())
    dynamic = np.array([chain.pp * row.dynamic.max()])
    return 2 * float(row.objective.value(np.array([ticks * chain.prices.ticks.second]), dynamic)[0])


def certify(
    row: OpenRow,
    incumbent: float,
    limit_bytes: int,
    *,
    deadline: float,
    workers: int = 1,
    only_whether: bool = False,
    report: Callable[[float, float], None] = lambda best, bound: None,
) -> Certificate:
    """Prove that ``row`` does not beat ``incumbent``, or find what does and prove that.

    ``deadline`` is a ``time.monotonic()`` moment; past it the best known bound is returned unproved. With
    ``only_whether`` the first better plan ends it.
    """
    result, best = Certificate(None, row.bound, False), incumbent
    problem = _Model(row, incumbent / GRAINS)
    while time.monotonic() < deadline:
        result.rounds += 1
        answer = problem.ask(best, deadline - time.monotonic(), workers)
        if answer.status == "infeasible":
            result.bound, result.proved = best, True
            return result
        result.bound = max(result.bound, min(best, answer.bound))
        report(best, result.bound)
        if answer.picked is None:
            return result
        found = row.judge(answer.picked, limit_bytes)
        if found is not None and found.value < best * (1 - 1e-12):
            best, result.best = found.value, found
            if only_whether:
                return result
        result.cuts += problem.learn(answer.picked, found)
    return result


def picked_runs(columns: Columns, picked: list[int]) -> Runs:
    """The picked columns' runs of layers, each column moved to where the one before it ends."""
    at, runs = 0, []
    for k in picked:
        shift = at - int(columns.i[k])
        runs.append([(choice, i + shift, j + shift) for choice, i, j in columns.runs(k)])
        at = runs[-1][-1][2]
    return runs


@dataclass(frozen=True)
class _Answer:
    status: str
    bound: float
    picked: list[int] | None


class _Model:
    """The CP-SAT model of one row; grows by one path a round."""

    def __init__(self, row: OpenRow, grain: float) -> None:
        self.row, self.grain = row, grain
        self.model = cp_model.CpModel()
        self.z = self.model.new_int_var(max(0, int(row.bound / grain * (1 - 1e-12))), int(GRAINS * 1.01), "z")
        self.x = [self.model.new_bool_var("") for _ in range(len(row.columns))]
        self._add_stage()
        self._add_layers()
        self._add_joined()
        for path in row.paths:
            self._add_path(path)
        self._add_cap()
        row.restrict(self.model, self.x)

    def ask(self, best: float, limit_s: float, workers: int) -> _Answer:
        """One solve for a plan at least a grain better than ``best``."""
        model = self.model.clone()
        z = model.get_int_var_from_proto_index(self.z.index)
        model.add(z <= int(best / self.grain * (1 - 1e-12)) - 1)
        model.minimize(z)
        solver = cp_sat(limit_s, workers)
        status = solver.solve(model)
        if status == cp_model.INFEASIBLE:
            return _Answer("infeasible", best, None)
        if status == cp_model.MODEL_INVALID:
            raise PlannerBug(f"CP-SAT refuses the model of a row: {model.validate()[:200]}")
        bound = max(0.0, solver.best_objective_bound - 1) * self.grain
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return _Answer("unknown", bound, None)
        picked = [k for k, literal in enumerate(self.x) if solver.boolean_value(literal)]
        return _Answer("found", bound, sorted(picked, key=lambda k: int(self.row.columns.stage[k])))

    def learn(self, picked: list[int], found: Found | None) -> int:
        """Cut the choice off: by its longest path, and by name should that path be known already."""
        row = self.row
        if found is not None:
            e = found.evaluation
            graph = schedule_graph(row.chain.pp, 1, row.chain.micro_batches)
            path = critical_path(graph, e.forward, e.backward, row.chain.hop, e.tail)
            if not any(_same(path, known) for known in row.paths):
                row.paths.append(path)
                self._add_path(path)
                return 1
        self.model.add_bool_or([self.x[k].negated() for k in picked])
        return 0

    def _grains(self, values: NDArray | float) -> NDArray:
        return np.floor(np.asarray(values, dtype=np.float64) / self.grain * (1 - 1e-12)).astype(np.int64)

    def _sum(self, coefficients: NDArray) -> cp_model.LinearExpr:
        return cp_model.LinearExpr.weighted_sum(self.x, coefficients.tolist())

    def _add_stage(self) -> None:
        for s in range(self.row.chain.pp):
            self.model.add_exactly_one(self.x[k] for k in np.flatnonzero(self.row.columns.stage == s))

    def _add_layers(self) -> None:
        columns = self.row.columns
        self.model.add(self._sum(columns.j - columns.i) == self.row.chain.layers)

    def _add_joined(self) -> None:
        chain, columns = self.row.chain, self.row.columns
        begins, ends, classes = chain.places[columns.i], chain.places[columns.j], np.unique(chain.places)
        if len(classes) == 1:
            return
        for s in range(chain.pp - 1):
            for c in classes:
                ending = [self.x[k] for k in np.flatnonzero((columns.stage == s) & (ends == c))]
                beginning = [self.x[k] for k in np.flatnonzero((columns.stage == s + 1) & (begins == c))]
                self.model.add(sum(ending) == sum(beginning))

    def _add_path(self, path: Path) -> None:
        row, columns = self.row, self.row.columns
        ticks = path.forward[columns.stage] * columns.forward + path.backward[columns.stage] * columns.backward
        ticks = ticks + np.where(columns.stage == path.device, columns.tail, 0)
        coefficients = self._grains(row.weight * ticks + row.objective.per_joule * row.dynamic)
        self.model.add(self.z >= self._sum(coefficients) + int(self._grains(row.weight * path.hops * row.chain.hop)))

    def _add_cap(self) -> None:
        """The wait that a power cap forces; rows whose idling exceeds the cap never come here."""
        row = self.row
        if row.objective.cap_w is None:
            return
        spare = row.objective.cap_w - float(row.objective.static.facility_w[0])
        per_joule = float(row.objective.weight[0]) * row.objective.static.pue / spare + row.objective.per_joule
        self.model.add(self.z >= self._sum(self._grains(per_joule * row.dynamic)))


def _same(one: Path, other: Path) -> bool:
    return (
        one.hops == other.hops
        and one.device == other.device
        and np.array_equal(one.forward, other.forward)
        and np.array_equal(one.backward, other.backward)
    )
