"""The last choice and its proof: CP-SAT over all rows that the bounds left, with their columns.

    minimise    z
    row         sum_g y[g] = 1
    stage       sum_k x[g,s,k] = y[g]                                every row g and stage s
    layers      sum_{s,k} n_k x[g,s,k] = L y[g]                      one kind of layer
    joined      sum_k x[g,s,k | j = b] = sum_k x[g,s+1,k | i = b]    several kinds: segments join at every b
    path        z >= w_g (f.x + b.x + hops y + tail) + dynamic_g.x   every known path of every row
    cap         z >= w_g pue dynamic_g.x / spare_g + dynamic_g.x     a power cap's wait
    better      z <= incumbent - 1

Each line is one ``_add_<name>`` below. A path bounds the schedule from below and is exact where it is the
longest. When CP-SAT's choice evaluates above its z, the longest path of that choice is added and CP-SAT is
asked again: cuts are linear, valid everywhere, and end at the true optimum. Infeasible means that nothing
beats the incumbent.

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
from cost_models.pipeline import Path, critical_path, schedule_graph, seed_paths
from planner.search.bounds import Objective
from planner.search.columns import Columns, stage_columns
from planner.search.incumbent import Found, judge

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

    @property
    def weight(self) -> float:
        """Objective a tick."""
        return float(self.objective.weight[0]) * self.chain.prices.ticks.second


@dataclass
class Certificate:
    """What CP-SAT did: the best plan it found (if better), the bound it proved, how hard it worked."""

    best: tuple[OpenRow, Found] | None
    bound: float
    proved: bool
    rows: int = 0
    literals: int = 0
    rounds: int = 0
    cuts: int = 0


def open_row(
    chain: Chain, objective: Objective, stage_size: int, bound: float, incumbent: float, limit_bytes: int, pinned: str | None
) -> OpenRow | None:
    """A row with every column that could be part of a plan better than ``incumbent``; ``None`` when there is none."""
    most = _most_ticks(chain, objective, incumbent)
    columns = _stage_table(chain, most, limit_bytes, pinned)
    if columns is None:
        return None
    bound = max(bound, _work_bound(chain, objective, columns))
    if bound >= incumbent:
        return None
    paths = list(seed_paths(chain.pp, 1, chain.micro_batches))
    return OpenRow(chain, objective, stage_size, bound, columns, paths, _column_joules(chain, columns) * stage_size)


def _work_bound(chain: Chain, objective: Objective, columns: Columns) -> float:
    """``S + (m - 1) S / pp + 2 (pp - 1) hop`` with the least work ``S`` of any cut, its recompute included."""
    work = np.full(chain.layers + 1, np.inf)
    work[0] = 0.0
    for stage in range(chain.pp):
        mine = columns.take(columns.stage == stage)
        work = _least_work(chain, work, mine, mine.forward + mine.backward)
    m, pp = chain.micro_batches, chain.pp
    factor = 1 + (m - 1) / pp if m > pp else 1.0
    ticks = work[-1] * factor * (1 - 1e-12) + 2 * (pp - 1) * chain.hop
    return float(objective.weight[0]) * chain.prices.ticks.second * ticks


def _least_work(chain: Chain, work: NDArray, mine: Columns, ticks: Ints) -> NDArray:
    """Least work of all stages so far, by the layers they hold, one stage further."""
    further = np.full(chain.layers + 1, np.inf)
    if chain.alike:
        for n, t in zip((mine.j - mine.i).tolist(), ticks.tolist(), strict=True):
            further[n:] = np.minimum(further[n:], work[: chain.layers + 1 - n] + t)
    else:
        np.minimum.at(further, mine.j, work[mine.i] + ticks)
    return further


def _most_ticks(chain: Chain, objective: Objective, incumbent: float) -> int:
    """Ticks of the longest step that could still beat the incumbent."""
    tick = chain.prices.ticks.second
    return int(min(incumbent / (float(objective.weight[0]) * tick) + 1, 2.0**60))


def _stage_table(chain: Chain, most: int, limit_bytes: int, pinned: str | None) -> Columns | None:
    """Fitting columns of every stage, segments that alone exceed ``most`` ticks left out."""
    pp, layers, m = chain.pp, chain.layers, chain.micro_batches
    least = int((chain.prices.forward + chain.prices.backward)[chain.row, np.unique(chain.order)].min())
    longest = max(1, min(layers - pp + 1, most // max(1, m * least)))
    parts = []
    for stage in range(pp):
        i, j = _segments(stage, pp, layers, longest, chain.alike)
        alone = m * (chain.forward(i, j) + chain.backward(i, j))
        i, j = i[alone <= most], j[alone <= most]
        columns = stage_columns(chain, np.full_like(i, stage), i, j, limit_bytes, pinned)
        columns = columns.take(m * (columns.forward + columns.backward) + columns.tail <= most)
        if not len(columns):
            return None
        parts.append(columns)
    return Columns.concat(parts)


def _segments(stage: int, pp: int, layers: int, longest: int, uniform: bool) -> tuple[Ints, Ints]:
    """Every segment a stage may hold: by length where layers are alike, by both ends where they are not."""
    if pp == 1:
        return np.array([0]), np.array([layers])
    first, last = stage == 0, stage == pp - 1
    n = np.arange(1, longest + 1)
    if uniform or first or last:
        i = np.zeros_like(n) if first else (layers - n if last else np.ones_like(n))
        return i, i + n
    low, high = max(stage, layers - (pp - stage) * longest), min(layers - (pp - stage), stage * longest)
    i, n = (a.ravel() for a in np.meshgrid(np.arange(low, high + 1), n, indexing="ij"))
    keep = i + n <= layers - (pp - 1 - stage)
    return i[keep], (i + n)[keep]


def _column_joules(chain: Chain, columns: Columns) -> NDArray[np.float64]:
    """Dynamic joules of each column on one device."""
    prices, i, j = chain.prices, columns.i, columns.j
    a, b = i + columns.full, i + columns.full + columns.selective
    passes = chain.total(prices.joules_pass, i, j)
    passes = passes + chain.total(prices.joules_extra["full"], i, a, ends=False)
    passes = passes + chain.total(prices.joules_extra["selective"], a, b, ends=False)
    return chain.micro_batches * passes + chain.total(prices.joules_step, i, j)


def certify(
    rows: list[OpenRow], incumbent: float, limit_bytes: int, *, deadline: float, workers: int = 1,
    report: Callable[[float, float], None] = lambda best, bound: None,
) -> Certificate:
    """Prove that no open row beats ``incumbent``, or find what does and prove that.

    ``deadline`` is a ``time.monotonic()`` moment; past it the best known bound is returned unproved.
    """
    result = Certificate(None, min((r.bound for r in rows), default=incumbent), not rows, rows=len(rows))
    if not rows:
        result.bound = incumbent
        return result
    grain = incumbent / GRAINS
    problem = _Union(rows, grain, limit_bytes)
    result.literals = problem.literals
    best = incumbent
    while time.monotonic() < deadline:
        result.rounds += 1
        answer = problem.ask(best, deadline - time.monotonic(), workers)
        if answer.status == "infeasible":
            result.bound, result.proved = best, True
            return result
        result.bound = max(result.bound, min(best, answer.bound))
        report(best, result.bound)
        if answer.choice is None:
            return result
        g, picked = answer.choice
        found = judge(rows[g].chain, [rows[g].columns.runs(k) for k in picked], rows[g].objective, rows[g].stage_size, limit_bytes)
        if found is not None and found.value < best * (1 - 1e-12):
            best, result.best = found.value, (rows[g], found)
        result.cuts += problem.learn(g, picked, found)
    return result


@dataclass(frozen=True)
class _Answer:
    status: str
    bound: float
    choice: tuple[int, list[int]] | None


class _Union:
    """The CP-SAT model over all open rows; grows by one path a round."""

    def __init__(self, rows: list[OpenRow], grain: float, limit_bytes: int) -> None:
        self.rows, self.grain, self.limit = rows, grain, limit_bytes
        self.model = cp_model.CpModel()
        self.z = self.model.new_int_var(0, int(GRAINS * 1.01), "z")
        self.y = [self.model.new_bool_var(f"y{g}") for g in range(len(rows))]
        self.x = [[self.model.new_bool_var("") for _ in range(len(row.columns))] for row in rows]
        self.literals = sum(len(x) for x in self.x) + len(self.y)
        self._add_row()
        for g, row in enumerate(rows):
            self._add_stage(g)
            self._add_layers(g) if row.chain.alike else self._add_joined(g)
            for path in row.paths:
                self._add_path(g, path)
            self._add_cap(g)
            self.model.add(self.z >= int(row.bound / grain * (1 - 1e-12))).only_enforce_if(self.y[g])

    def ask(self, best: float, limit_s: float, workers: int) -> _Answer:
        """One solve for a plan at least a grain better than ``best``."""
        model = self.model.clone()
        model.add(model.get_int_var_from_proto_index(self.z.index) <= int(best / self.grain * (1 - 1e-12)) - 1)
        model.minimize(model.get_int_var_from_proto_index(self.z.index))
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = workers
        solver.parameters.random_seed = 0
        solver.parameters.max_time_in_seconds = max(0.1, limit_s)
        status = solver.solve(model)
        if status == cp_model.INFEASIBLE:
            return _Answer("infeasible", best, None)
        bound = max(0.0, solver.best_objective_bound - 1) * self.grain
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return _Answer("unknown", bound, None)
        g = next(g for g, y in enumerate(self.y) if solver.boolean_value(y))
        picked = [k for k, literal in enumerate(self.x[g]) if solver.boolean_value(literal)]
        return _Answer("found", bound, (g, sorted(picked, key=lambda k: int(self.rows[g].columns.stage[k]))))

    def learn(self, g: int, picked: list[int], found: Found | None) -> int:
        """Cut the choice off: by its longest path, and by name should that path be known already."""
        row = self.rows[g]
        if found is not None:
            e = found.evaluation
            graph = schedule_graph(row.chain.pp, 1, row.chain.micro_batches)
            path = critical_path(graph, e.forward, e.backward, row.chain.hop, e.tail)
            if not any(_same(path, known) for known in row.paths):
                row.paths.append(path)
                self._add_path(g, path)
                return 1
        self.model.add_bool_or([self.x[g][k].negated() for k in picked])
        return 0

    def _grains(self, values: NDArray | float) -> NDArray:
        return np.floor(np.asarray(values, dtype=np.float64) / self.grain * (1 - 1e-12)).astype(np.int64)

    def _add_row(self) -> None:
        self.model.add_exactly_one(self.y)

    def _add_stage(self, g: int) -> None:
        columns, chain = self.rows[g].columns, self.rows[g].chain
        for c in range(chain.pp):
            mine = np.flatnonzero(columns.stage == c)
            self.model.add(sum(self.x[g][k] for k in mine) == self.y[g])

    def _add_layers(self, g: int) -> None:
        columns = self.rows[g].columns
        n = (columns.j - columns.i).tolist()
        self.model.add(cp_model.LinearExpr.weighted_sum(self.x[g], n) == self.rows[g].chain.layers * self.y[g])

    def _add_joined(self, g: int) -> None:
        columns, x = self.rows[g].columns, self.x[g]
        for c in range(self.rows[g].chain.pp - 1):
            left, right = np.flatnonzero(columns.stage == c), np.flatnonzero(columns.stage == c + 1)
            for boundary in np.union1d(columns.j[left], columns.i[right]):
                ending = [x[k] for k in left if columns.j[k] == boundary]
                beginning = [x[k] for k in right if columns.i[k] == boundary]
                self.model.add(sum(ending) == sum(beginning))

    def _add_path(self, g: int, path: Path) -> None:
        row, columns = self.rows[g], self.rows[g].columns
        ticks = path.forward[columns.stage] * columns.forward + path.backward[columns.stage] * columns.backward
        ticks = ticks + np.where(columns.stage == path.device, columns.tail, 0)
        coefficients = self._grains(row.weight * ticks + row.objective.per_joule * row.dynamic)
        constant = int(self._grains(row.weight * path.hops * row.chain.hop))
        expression = cp_model.LinearExpr.weighted_sum(self.x[g], coefficients.tolist())
        self.model.add(self.z >= expression + constant * self.y[g])

    def _add_cap(self, g: int) -> None:
        row = self.rows[g]
        if row.objective.cap_w is None:
            return
        spare = row.objective.cap_w - float(row.objective.static.facility_w[0])
        if spare <= 0:
            self.model.add(self.y[g] == 0)
            return
        per_joule = float(row.objective.weight[0]) * row.objective.static.pue / spare + row.objective.per_joule
        coefficients = self._grains(per_joule * row.dynamic)
        self.model.add(self.z >= cp_model.LinearExpr.weighted_sum(self.x[g], coefficients.tolist()))


def _same(one: Path, other: Path) -> bool:
    return (
        one.hops == other.hops
        and one.device == other.device
        and np.array_equal(one.forward, other.forward)
        and np.array_equal(one.backward, other.backward)
    )
