"""The CP-SAT model of one row: choose a column for every stage.

    stage       sum_k x[s,k] = 1                                       every stage s
    layers      sum_{s,k} n_k x[s,k] = L
    joined      sum_k x[s,k | ends at c] = sum_k x[s+1,k | begins at c]    every class c of boundary
    path        z >= w (f.x + b.x + hops + tail.x) + dynamic.x         every known path
    wait        z >= w sum_s r_s joules_s.x + dynamic.x                every line r of the limits on power
    pool        sum_s n_gs u_s.x <= capacity                           every memory pool g that ranks share
    limit       w' (path or wait) + dynamic'.x <= limit                every limit on a step, every path, every wait
    better      z <= incumbent - 1

Each line is one ``_add_<name>`` below; the last is asked for by :meth:`RowModel.ask`. z counts whole ticks where only
the step matters, which is exact; else whole grains of the incumbent, rounded down term by term, so that z never exceeds
the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from cost_models.critical_paths import Path
from cost_models.long_paths import longest_path
from planner.errors import PlannerBug
from planner.limits import RELATIVE
from planner.search.budget import Budget
from planner.search.deadline import left_s, look
from planner.search.incumbent import Found
from planner.search.order import EQUAL
from planner.search.solver import cp_sat
from planner.search.watched import Watched

if TYPE_CHECKING:
    from planner.search.certificate import OpenRow

Ints = NDArray[np.int64]
GRAINS = 2.0**44
POOL_GRAINS = 2.0**30
ALIKE = 1e-11
"""Plans nearer than this part of the objective count as equal where z counts grains: what rounding 126 stages down may
hide of it."""
MOST_EXACT = 2.0**60
"""Of whole ticks, so that no sum of them leaves the 63 bits of an integer."""


@dataclass(frozen=True)
class _Answer:
    """What CP-SAT said, ``infeasible``, ``optimal``, ``found`` or ``unknown``, and its choice as one column a stage."""

    status: str
    picked: list[int] | None


def _solver(workers: int, budget: Budget) -> cp_model.CpSolver:
    """A solver that gives the same answer every time, within what is left of the budget."""
    solver = cp_sat(left_s(budget.deadline), workers)
    if budget.units < np.inf:
        solver.parameters.max_deterministic_time = budget.left_units
    return solver


class RowModel:
    """The CP-SAT model of one row; grows by one path a round."""

    def __init__(self, row: OpenRow, incumbent: float) -> None:
        self.row, ticks = row, incumbent / row.weight
        self.exact = not row.objective.counts_joules and ticks * (len(row.columns) + 2) < MOST_EXACT
        self.grain = row.weight if self.exact else incumbent / GRAINS
        self.model = cp_model.CpModel()
        most = max(self.most(incumbent, equal=True), 1)
        self.z = self.model.new_int_var(max(0, int(row.bound / self.grain * (1 - 1e-12))), 2 * most, "z")
        self.x = [self.model.new_bool_var("") for _ in range(len(row.columns))]
        self._add_stage()
        self._add_layers()
        self._add_joined()
        for path in row.paths:
            self._add_path(path)
        self._add_wait()
        self._add_pools()
        row.restrict(self.model, self.x)

    def most(self, value: float, *, equal: bool) -> int:
        """The largest z of plans that are better than ``value``, or with ``equal`` as good."""
        if not self.exact:
            return int(value * (1 + EQUAL) / self.grain) if equal else int(value / self.grain * (1 - ALIKE)) - 1
        ticks = round(value / self.grain)
        while (worth := self._worth(ticks)) > value or (worth == value and not equal):
            ticks -= 1
        return ticks

    def z_of(self, value: float) -> float:
        """The z of a plan of that objective; infinite above a limit."""
        if value == np.inf:
            return value
        return self.most(value, equal=True) if self.exact else int(value / self.grain)

    def _worth(self, ticks: int) -> float:
        step_s = np.array([ticks * self.row.chain.prices.ticks.second])
        return float(self.row.objective.cost(step_s, np.zeros(1))[0])

    def ask(
        self,
        most: int,
        budget: Budget,
        workers: int,
        *,
        weights: Ints | None = None,
        fixed: Ints | tuple[int, ...] = (),
    ) -> _Answer:
        """One solve for any plan with z at most ``most``; with ``weights`` for that of the least sum of them above 0.

        Columns that are ``fixed`` must be part of the plan.
        """
        look()
        model = self.model.clone()
        model.add(model.get_int_var_from_proto_index(self.z.index) <= most)
        for k in fixed:
            model.add(model.get_bool_var_from_proto_index(self.x[k].index) == 1)
        if weights is not None:
            literals = [model.get_bool_var_from_proto_index(x.index) for x in self.x]
            model.minimize(cp_model.LinearExpr.weighted_sum(literals, np.maximum(weights, 0).tolist()))
        solve = Watched(_solver(workers, budget), model)
        solve.run(budget.deadline)
        if not solve.answered:
            return _Answer("unknown", None)
        budget.solved(solve.solver.deterministic_time)
        if solve.status == cp_model.MODEL_INVALID:
            raise PlannerBug(f"CP-SAT refuses the model of a row: {model.validate()[:200]}")
        if solve.status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return _Answer("infeasible" if solve.status == cp_model.INFEASIBLE else "unknown", None)
        picked = [k for k, literal in enumerate(self.x) if solve.solver.boolean_value(literal)]
        said = "optimal" if solve.status == cp_model.OPTIMAL else "found"
        return _Answer(said, sorted(picked, key=lambda k: int(self.row.columns.stage[k])))

    def learn(self, picked: list[int], found: Found | None) -> int:
        """Cut the choice off: by its longest path, and by name should that path be known already."""
        row = self.row
        if found is not None:
            e = found.evaluation
            path = longest_path(row.chain.schedule, e.forward, e.backward, row.chain.hop, e.tail, e.weights)
            if self.add(path):
                return 1
        self.model.add_bool_or([self.x[k].negated() for k in picked])
        return 0

    def add(self, path: Path) -> bool:
        """Make a path known; False where it was."""
        if any(_same(path, known) for known in self.row.paths):
            return False
        self.row.paths.append(path)
        self._add_path(path)
        return True

    def _grains(self, values: NDArray | float) -> NDArray:
        return _floored(values, self.grain)

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
        row, ticks = self.row, self.row.columns.along(path)
        hops, tick = path.hops * row.chain.hop, row.chain.prices.ticks.second
        self._add_limit(ticks * tick, hops * tick)
        if self.exact:
            self.model.add(self.z >= self._sum(ticks) + hops)
            return
        coefficients = self._grains(row.weight * ticks + row.objective.per_joule * row.dynamic)
        self.model.add(self.z >= self._sum(coefficients) + int(self._grains(row.weight * hops)))

    def _add_wait(self) -> None:
        """The waits that limits on power force; rows whose idling exceeds one never come here."""
        row, per_s = self.row, float(self.row.objective.weight[0])
        for rates in row.rates:
            seconds = rates[row.columns.stage] * row.dynamic / row.stage_size
            self.model.add(self.z >= self._sum(self._grains(per_s * seconds + row.objective.per_joule * row.dynamic)))
            self._add_limit(seconds, 0.0)

    def _add_pools(self) -> None:
        """Room in pools, in grains rounded down: what exceeds it by less is found when the plan is weighed."""
        chain, columns = self.row.chain, self.row.columns
        flight = chain.schedule.flight(columns.stage)
        for name, (devices, most) in chain.pools.items():
            x, y = columns.i + columns.out, columns.j - columns.kept
            used = chain.tier_bytes(name, columns.i, columns.j, flight, x, y)
            for here in devices:
                self.model.add(self._sum(_floored(here[columns.stage] * used, most / POOL_GRAINS)) <= int(POOL_GRAINS))

    def _add_limit(self, seconds: NDArray, fixed_s: float) -> None:
        """Every limit on a step that lasts that long at least."""
        for ceiling in self.row.objective.ceilings:
            per_s, grain = float(ceiling.weight[0]), ceiling.limit / GRAINS
            used = _floored(per_s * seconds + ceiling.per_joule * self.row.dynamic, grain)
            left = GRAINS * (1 + RELATIVE) + 1 - float(_floored(per_s * fixed_s, grain))
            # What is alone above the limit needs to be no more than that: sums stay within 63 bits.
            used = np.minimum(used, int(2 * GRAINS))
            self.model.add(self._sum(used) <= int(left))


def _floored(values: NDArray | float, grain: float) -> NDArray:
    """Whole grains, rounded down; a single number of them fits an integer, however small the grain."""
    return np.floor(np.minimum(np.asarray(values, dtype=np.float64) / grain, MOST_EXACT) * (1 - 1e-12)).astype(np.int64)


def _same(one: Path, other: Path) -> bool:
    return (
        one.hops == other.hops
        and one.device == other.device
        and np.array_equal(one.forward, other.forward)
        and np.array_equal(one.backward, other.backward)
        and np.array_equal(one.weights, other.weights)
    )
