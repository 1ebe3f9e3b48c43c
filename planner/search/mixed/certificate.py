"""CP-SAT over the stages that the bounds left of one table, for pipelines of one length.

    minimise    z
    chain       sum x[d | begins at i] = sum x[d+1 | ends at i]                every boundary i, depth d
    ends        sum x[1 | ends at L] = 1 ,  sum x[pp | begins at 0] = 1
    devices     sum_k size_k x[k] <= devices                                   every part
    crossing    cross[b] >= [part before b is p] - [part after b is p]         every boundary b between stages, part p
    hop         hop[b] >= side of either stage, of the kind that cross[b] says
    path        z >= f.x + b.x + hops + tail.x [ + joules.x ]                  every known path
    watts       z >= rate drawn.x [ + joules.x ]                               every line, where steps wait
                z >= wait.x[d] [ + joules.x ]                                  every depth d
    other       limit >= f.x + b.x + hops + tail.x [ + joules.x ]              every known path
    better      z <= incumbent - 1

Joules, as ticks, are part of what is minimised or of what has a limit beside it, or of neither
(:mod:`planner.search.mixed.weighing`). Where steps wait for their watts, the line "other" is of these waits too.

Each line is one ``_add_<name>``. As in :mod:`planner.search.certificate` the longest path of a choice that runs longer
than its ``z`` is added and CP-SAT asked again; infeasible means that nothing beats the incumbent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from cost_models.critical_paths import Path, critical_path, seed_paths
from cost_models.pipeline import schedule_graph
from planner.errors import PlannerBug
from planner.search.budget import Budget
from planner.search.deadline import left_s
from planner.search.mixed.labels import LabelSearch
from planner.search.mixed.pipelines import Durations, Pipeline, durations, values
from planner.search.mixed.stages import Stages
from planner.search.mixed.table import NEVER, StageTable
from planner.search.mixed.weighing import Weighing
from planner.search.solver import cp_sat
from planner.search.watched import Watched

Ints = NDArray[np.int64]
GRAINS = 2.0**32
FINE = 2.0**12
MOST_GRAINS = 2.0**40
"""Parts of a tick that waits are told in; a limit on what is not minimised of more grains is as good as none."""
MOST_FINE = 2.0**62
"""Parts of a tick that a wait is told up to: no longer one fits 63 bits, and less than it is bounds it too."""
LEAST_UNITS = 1e-3


@dataclass(frozen=True)
class Columns:
    """Stages that a pipeline of one length may have: depth, layers ``i`` to ``j - 1``, way and recompute, with their
    ticks and those that their joules count for; ``wait`` is what each waits for its watts by itself, ``drawn`` what its
    joules are at the highest rate that several wait at together, in ticks over ``FINE``."""

    depth: Ints
    i: Ints
    j: Ints
    way: Ints
    recompute: Ints
    forward: Ints
    backward: Ints
    tail: Ints
    spent: Ints
    wait: Ints
    drawn: Ints

    def __len__(self) -> int:
        return len(self.way)

    def take(self, index: NDArray) -> Columns:
        """Some columns."""
        return Columns(*(getattr(self, name)[index] for name in Columns.__dataclass_fields__))


@dataclass
class Certificate:
    """What CP-SAT did: the best pipeline it found, if better; the bound it proved; how hard it worked."""

    best: Pipeline | None
    bound: float
    proved: bool
    literals: int = 0
    rounds: int = 0
    cuts: int = 0


def open_columns(search: LabelSearch, length: int) -> Columns | None:
    """The stages of pipelines of one length that a search leaves, by every way; ``None`` where some depth has none.

    A slot stands for its quickest way: a slower one must afford the difference.
    """
    kept = _slower_ways(search, length)
    fits = (search.m * (kept.forward + kept.backward) < search.incumbent) & (kept.wait < FINE * search.incumbent)
    kept = _undominated(search.table, kept.take(fits))
    return kept if len(np.unique(kept.depth)) == length else None


def _undominated(table: StageTable, columns: Columns) -> Columns:
    """Those that no other of the same layers, depth, part and size equals in every time, joules and its sides of a hop.

    No step is longer with one that is quicker in all; of equal ones the first stays.
    """
    way = columns.way
    kind = table.part[way], table.size[way], table.told_apart[way]
    alike = np.stack([columns.depth, columns.i, columns.j, *kind])
    group = np.unique(alike, axis=1, return_inverse=True)[1].ravel()
    sides = table.same[way], table.across[way]
    spent = columns.spent, columns.wait, columns.drawn
    costs = np.stack([columns.forward, columns.backward, columns.tail, *spent, *sides])
    order = np.lexsort((columns.way, costs.sum(axis=0), group))
    place = np.arange(len(order)) - np.searchsorted(group[order], group[order])
    keep = np.ones(len(order), dtype=bool)
    for back in range(1, int(place.max(initial=0)) + 1):
        here = np.flatnonzero(place >= back)
        keep[here] &= ~(costs[:, order[here - back]] <= costs[:, order[here]]).all(axis=0)
    return columns.take(np.sort(order[keep]))


def _slower_ways(search: LabelSearch, length: int) -> Columns:
    """The stages that a search leaves for one length, by every way that affords its time."""
    exact = (search.stages.depth <= length) & ((search.stages.i == 0) == (search.stages.depth == length))
    stages, most = search.stages.take(exact), (search.stages.time + search.spare * (1 + 1e-9) + 1)[exact]
    parts = []
    for slot in np.unique(stages.slot).tolist():
        mine = np.flatnonzero(stages.slot == slot)
        members = search.slots.members[slot]
        parts += _columns(search.table, stages.take(mine), np.minimum(most[mine], NEVER), members, search.weighing)
    if not parts:
        return Columns(*[np.zeros(0, dtype=np.int64)] * len(Columns.__dataclass_fields__))
    return Columns(*np.unique(np.concatenate(parts, axis=1), axis=1))  # first stages come once for every tail


def _columns(table: StageTable, stages: Stages, most: NDArray, members: Ints, weighing: Weighing) -> list[Ints]:
    """Stages by each of some ways whose time is below ``most`` ticks, ``[fields, columns]`` by way."""
    segments, parts = len(table.segments.i), []
    keys = table.flight(stages.depth) * segments + table.segments.index[stages.i, stages.j]
    keys, inverse = np.unique(keys, return_inverse=True)
    limit = np.zeros(len(keys))
    np.maximum.at(limit, inverse, most)
    for way in members.tolist():
        asked = np.flatnonzero(table.base[way, keys % segments] < limit)
        at, found = table.columns(way, keys[asked] // segments, keys[asked] % segments)
        row, pick = _met(inverse, asked[at], len(keys))
        row, pick = (it[(found.forward + found.backward)[pick] < most[row]] for it in (row, pick))
        joules = table.spent(way, found)
        spent = weighing.spent(joules).astype(np.int64)
        rates = table.wait_rate[way], weighing.highest
        wait, drawn = (np.minimum(FINE * joules * rate, MOST_FINE).astype(np.int64) for rate in rates)
        recompute = table.name(found.full, found.selective)
        costs = np.stack([recompute, found.forward, found.backward, found.tail, spent, wait, drawn])[:, pick]
        same = np.stack([stages.depth[row], stages.i[row], stages.j[row], np.full(len(row), way)])
        parts.append(np.concatenate([same, costs]))
    return parts


def _met(key: Ints, found: Ints, keys: int) -> tuple[Ints, Ints]:
    """Every pair of positions in ``key`` and in ``found`` that are alike; of ``keys`` different ones."""
    order = np.argsort(found, kind="stable")
    count = np.bincount(found, minlength=keys)
    begins, times = (np.cumsum(count) - count)[key], count[key]
    row = np.repeat(np.arange(len(key)), times)
    return row, order[begins[row] + np.arange(len(row)) - np.repeat(np.cumsum(times) - times, times)]


def certify(
    table: StageTable, devices: Ints, stages: int, columns: Columns, bound: float, incumbent: float, budget: Budget,
    weighing: Weighing,
) -> Certificate:  # fmt: skip
    """Prove that no pipeline of these columns beats ``incumbent``, or find those that do.

    When the budget is spent the best known bound is returned unproved.
    """
    result, best = Certificate(None, bound, False, literals=len(columns)), incumbent
    problem = _Model(table, devices, stages, columns, bound, incumbent / GRAINS, weighing)
    while not budget.over:
        result.rounds += 1
        status, least, picked = problem.ask(best, budget)
        if status == "infeasible":
            result.bound, result.proved = best, True
            return result
        result.bound = max(result.bound, min(best, least))
        if picked is None:
            return result
        pipeline = Pipeline(*(getattr(columns, name)[picked] for name in ("way", "i", "j", "recompute")))
        found = durations(table, pipeline)
        value = float(values(table, weighing, [pipeline])[0])
        if value < best:
            best, result.best = value, pipeline
        result.cuts += problem.learn(picked, found)
    return result


class _Model:
    """The CP-SAT model; grows by one path a round."""

    def __init__(
        self, table: StageTable, devices: Ints, stages: int, columns: Columns, bound: float, grain: float,
        weighing: Weighing,
    ) -> None:  # fmt: skip
        self.weighing = weighing
        self.table, self.devices, self.stages, self.columns, self.grain = table, devices, stages, columns, grain
        self.stage = stages - columns.depth
        self.model = cp_model.CpModel()
        self.z = self.model.new_int_var(max(0, int(bound / grain * (1 - 1e-9))), int(GRAINS * 1.01), "z")
        self.x = [self.model.new_bool_var("") for _ in range(len(columns))]
        self.hop = self._hop_variables()
        self.known: list[Path] = []
        self._add_chain()
        self._add_devices()
        self._add_hop()
        self._add_watts()
        for path, crossed in crossing_seeds(stages, table.micro_batches):
            self._add_path(path, crossed)

    def ask(self, best: float, budget: Budget) -> tuple[str, float, Ints | None]:
        """One solve for a plan at least a grain better than ``best``: status, bound in ticks, what was picked."""
        model = self.model.clone()
        z = model.get_int_var_from_proto_index(self.z.index)
        model.add(z <= int(best / self.grain * (1 - 1e-12)) - 1)
        model.minimize(z)
        solver = cp_sat(left_s(budget.deadline))
        if budget.units < np.inf:
            solver.parameters.max_deterministic_time = max(LEAST_UNITS, budget.left_units)
        solve = Watched(solver, model)
        solve.run(budget.deadline)
        if not solve.answered:
            return "unknown", 0.0, None
        status = solve.status
        budget.solved(solver.deterministic_time)
        if status == cp_model.INFEASIBLE:
            return "infeasible", best, None
        if status == cp_model.MODEL_INVALID:
            raise PlannerBug(f"CP-SAT refuses the model of mixed stages: {model.validate()[:200]}")
        bound = max(0.0, solver.best_objective_bound - 1) * self.grain
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return "unknown", bound, None
        picked = np.array([k for k, literal in enumerate(self.x) if solver.boolean_value(literal)])
        return "found", bound, picked[np.argsort(self.stage[picked])]

    def learn(self, picked: Ints, found: Durations) -> int:
        """Cut the choice off: by its longest path, and by name should that path be known already."""
        graph = schedule_graph(self.stages, 1, self.table.micro_batches)
        path = critical_path(graph, found.forward, found.backward, found.hop, found.tail)
        if path.crossed is not None and not any(_same(path, known) for known in self.known):
            self.known.append(path)
            self._add_path(path, path.crossed)
            return 1
        self.model.add_bool_or([self.x[k].negated() for k in picked])
        return 0

    def _of(self, mask: NDArray[np.bool_]) -> list[cp_model.IntVar]:
        return [self.x[k] for k in np.flatnonzero(mask)]

    def _grains(self, values: NDArray) -> NDArray:
        return np.floor(np.asarray(values, dtype=np.float64) / self.grain * (1 - 1e-12)).astype(np.int64)

    def _add_chain(self) -> None:
        """Chain and ends: one stage a depth, each beginning where the one before it ends."""
        columns = self.columns
        for depth in range(1, self.stages + 1):
            self.model.add_exactly_one(self._of(columns.depth == depth))
        for depth in range(1, self.stages):
            begins, ends = columns.depth == depth, columns.depth == depth + 1
            for i in np.union1d(columns.i[begins], columns.j[ends]):
                mine, other = self._of(begins & (columns.i == i)), self._of(ends & (columns.j == i))
                self.model.add(sum(mine) == sum(other))

    def _add_devices(self) -> None:
        part, size = self.table.part[self.columns.way], self.table.size[self.columns.way]
        for k, there in enumerate(self.devices.tolist()):
            weights = np.where(part == k, size, 0)
            self.model.add(cp_model.LinearExpr.weighted_sum(self.x, weights.tolist()) <= there)

    def _hop_variables(self) -> list[cp_model.IntVar]:
        most = int(max(self.table.same.max(), self.table.across.max()) / self.grain) + 1
        return [self.model.new_int_var(0, most, "") for _ in range(self.stages - 1)]

    def _add_hop(self) -> None:
        """Crossing and hop."""
        way, parts = self.columns.way, range(len(self.devices))
        same, across = self._grains(self.table.same[way]), self._grains(self.table.across[way])
        on = [[self._of((self.stage == s) & (self.table.part[way] == p)) for p in parts] for s in range(self.stages)]
        for b, hop in enumerate(self.hop):
            cross = self.model.new_bool_var("")
            for p in parts:
                self.model.add(cross >= sum(on[b][p]) - sum(on[b + 1][p]))
            for s in (b, b + 1):
                here = np.flatnonzero(self.stage == s)
                for sides, literal in ((same, cross.negated()), (across, cross)):
                    side = cp_model.LinearExpr.weighted_sum([self.x[k] for k in here], sides[here].tolist())
                    self.model.add(hop >= side).only_enforce_if(literal)

    def _add_path(self, path: Path, crossed: Ints) -> None:
        columns, stage = self.columns, self.stage
        ticks = path.forward[stage] * columns.forward + path.backward[stage] * columns.backward
        ticks = self._grains(ticks + np.where(stage == path.device, columns.tail, 0))
        path = cp_model.LinearExpr.weighted_sum(self.hop, crossed[: self.stages - 1].tolist())
        path += cp_model.LinearExpr.weighted_sum(self.x, ticks.tolist())
        self._add_lasting(path)

    def _add_watts(self) -> None:
        columns = self.columns
        if self.weighing.waits:
            part, drawn = self.table.part[columns.way], columns.drawn / FINE
            for line in self.weighing.lines:
                rate = line[part] / self.weighing.highest
                self._add_lasting(cp_model.LinearExpr.weighted_sum(self.x, self._grains(rate * drawn).tolist()))
            for depth in range(1, self.stages + 1):
                wait = np.where(columns.depth == depth, self._grains(columns.wait / FINE), 0)
                self._add_lasting(cp_model.LinearExpr.weighted_sum(self.x, wait.tolist()))

    def _add_lasting(self, path: cp_model.LinearExpr) -> None:
        """The step is no shorter than that: "path" and "other"."""
        columns = self.columns
        spent = self._grains(columns.spent).tolist()
        joules = cp_model.LinearExpr.weighted_sum(self.x, spent) if self.weighing.counts else 0
        value, other = (path + joules, path) if self.weighing.minimised else (path, path + joules)
        self.model.add(self.z >= value)
        if self.weighing.limits:
            self.model.add(other <= int(np.ceil(min(self.weighing.below / self.grain, MOST_GRAINS))))


def crossing_seeds(stages: int, m: int) -> Iterator[tuple[Path, Ints]]:
    """Every seed path with its hops over each boundary: above the stage where it stays, and below.

    Those that go round all stages first cross each boundary twice more a round.
    """
    paths, boundary = iter(seed_paths(stages, 1, m)), np.arange(stages - 1)
    yield next(paths), np.full(stages - 1, 2)
    for s in range(stages):
        turns, kinds = m - stages + s, [(2, 0), (1, 0)]
        kinds += [(2, 4), (1, 4)] if turns > 0 else []
        again = 2 * ((turns - 1) // stages)
        kinds += [(2 + again, 4 + again)] if turns > stages > 1 else []
        for above, below in kinds:
            path, crossed = next(paths), np.where(boundary < s, above, below)
            if crossed.sum() != path.hops:
                raise PlannerBug(f"a seed path of stage {s} of {stages} has {path.hops} hops, not {crossed.sum()}")
            yield path, crossed


def _same(one: Path, other: Path) -> bool:
    return (
        one.device == other.device
        and np.array_equal(one.forward, other.forward)
        and np.array_equal(one.backward, other.backward)
        and np.array_equal(one.crossed, other.crossed)
    )
