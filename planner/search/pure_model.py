"""One CP-SAT model of a whole small space: an independent formulation that must agree with the search.

    one          sum_g y[g] + sum_p w[p] = 1                    a row as 1F1B, or one of its interleaved cuts
    axes         sum_{g, p with value v} = a[axis, v]           tp, cp, pp, dp, zero, ep, micro-batch, ... by literals
    stages       0 <= end[0] <= end[1] <= ... = L               a layer or more where pp says the stage exists, else 0
    recompute    end[s-1] <= full[s] <= selective[s] <= end[s]
    features     n, u, v, h of stage s by element               (:mod:`planner.search.pure_rows`)
    floor        z >= sum_g floor_g y[g] + sum_p floor_p w[p]
    memory       need_g,s (x_s) <= limit           if y[g]      in units of 2^-17 of it, each term rounded down
    path         z >= value_g (path (x))           if y[g]      every path known for (pp, micro-batches), 4 tails
    cap          z >= joules_g (x)                 if y[g]

CP-SAT is asked whether anything stays below a target ``z``. Memory, path and cap are added for a row once it is
picked, or one of a floor near it. An answer is run through the schedule: where that takes longer than its paths, the
longest is added for all rows of its kind; where a stage is too full after all, its row in bytes. Every row only
cuts off what cannot be, so that "infeasible" proves that nothing is below the target.

CP-SAT's presolve stays off: with it, version 9.15.6755 called spaces of this form empty, or a worse plan the best one,
though better plans are in them: 5 of 44 small instances with ``z`` as objective, 1 of 300 without (google/or-tools
issues 5274 and 5293 are of that kind). And there is no objective: without presolve its bound crawls, where a fixed
target is answered at once.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from cost_models.chain import Chain
from cost_models.critical_paths import Path, critical_path, seed_paths
from cost_models.estimate import Evaluation, Runs
from cost_models.pipeline import schedule_graph
from planner.errors import PlannerBug
from planner.search.pure_rows import Question, RowForms
from planner.search.solver import cp_sat

AXES = ("tp", "cp", "pp", "dp_shard", "dp_replicate", "ep", "etp", "zero", "micro_batch")
GRAINS, LARGEST = 2.0**40, 2**58
MEMORY_UNITS = 2**17
AT_ONCE = 64
"""Rows that get their constraints, or interleaved points that are priced, when one of them is picked."""


class PureModel:
    """The CP-SAT model of a question; it grows by what its answers teach."""

    def __init__(self, question: Question) -> None:
        self.question, self.order = question, np.array(question.it.model.order)
        self.layers, self.kinds = len(self.order), len(question.it.model.kinds)
        self.known: dict[int, RowForms] = {}
        self.paths: defaultdict[tuple[int, int], list[Path]] = defaultdict(list)
        self.exact: set[tuple[int, int]] = set()
        self.model, self.solver = cp_model.CpModel(), cp_sat(0.0)
        plain = np.isfinite(question.floor) if question.it.pinned("virtual_stages", 1) else np.zeros(0, dtype=bool)
        self.y = {int(g): self.model.new_bool_var("") for g in np.flatnonzero(plain)}
        self.w = {int(p): self.model.new_bool_var("") for p in np.flatnonzero(np.isfinite(question.points.floor))}
        floors = [*(question.floor[g] for g in self.y), *(question.points.floor[p] for p in self.w)]
        self.grain = max(float(min(floors, default=1.0)) / GRAINS, float(max(floors, default=1.0)) / (LARGEST / 8))
        self.z = self.model.new_int_var(0, LARGEST, "z")
        self._add_one()
        self._add_axes()
        self._add_stages()
        self._add_floor(floors)

    def _add_one(self) -> None:
        self.model.add_exactly_one([*self.y.values(), *self.w.values()])

    def _add_axes(self) -> None:
        rows, point = self.question.rows, self.question.points.row
        every = [(g, literal) for g, literal in self.y.items()] + [(int(point[p]), w) for p, w in self.w.items()]
        for axis in AXES:
            values = getattr(rows, axis)
            members = defaultdict(list)
            for g, literal in every:
                members[int(values[g])].append(literal)
            for value, literals in members.items():
                self.model.add(sum(literals) == self.model.new_bool_var(f"{axis}={value}"))

    def _add_stages(self) -> None:
        """Ends of the stages and of what they recompute; and their features."""
        pp, model, pinned = self.question.rows.pp, self.model, self.question.it.options.pins.get("recompute")
        plain, start = sum(self.y.values()), 0
        self.ends: list[tuple] = []
        self.features: list[list] = []
        for stage in range(max((int(pp[g]) for g in self.y), default=0)):
            full, selective, end = (model.new_int_var(0, self.layers, f"{n}{stage}") for n in ("full", "sel", "end"))
            exists = sum(literal for g, literal in self.y.items() if pp[g] > stage)
            model.add(end - start >= exists)
            model.add(end - start <= self.layers * exists)
            model.add(start <= full if pinned in (None, "full") else start == full)
            model.add(full <= selective if pinned in (None, "selective") else full == selective)
            model.add(selective <= end if pinned in (None, "none") else selective == end)
            self.ends.append((start, full, selective, end))
            self.features.append(self._stage_features(start, full, selective, end))
            start = end
        model.add(start == self.layers * plain)

    def _stage_features(self, start, full, selective, end) -> list:
        marks = [self._layers_before(mark) for mark in (start, full, selective, end)]
        n, u, v = ([b - a for a, b in zip(marks[i], marks[j], strict=True)] for i, j in ((0, 3), (0, 1), (1, 2)))
        return [*n, *u, *v, *self._first_kind(start), 1]

    def _layers_before(self, mark) -> list:
        """How many layers of each kind stand before a boundary."""
        if self.kinds == 1 or isinstance(mark, int):
            return [mark] if self.kinds == 1 else [0] * self.kinds
        return [self._element(mark, np.cumsum(self.order == k)) for k in range(self.kinds)]

    def _first_kind(self, start) -> list:
        """For every kind 1 where the layer after a boundary is of it; the first stage's bucket is the embedding."""
        if self.kinds == 1 or isinstance(start, int):
            return [1] * self.kinds
        return [
            self._element(start, np.append((self.order == k)[1:], 0), int(self.order[0] == k))
            for k in range(self.kinds)
        ]

    def _element(self, mark, after: NDArray, before: int = 0):
        """``table[mark]`` for a table that begins with ``before``."""
        table = [before, *(int(x) for x in after)]
        value = self.model.new_int_var(min(table), max(table), "")
        self.model.add_element(mark, table, value)
        return value

    def _add_floor(self, floors: list[float]) -> None:
        literals = [*self.y.values(), *self.w.values()]
        self.model.add(self.z >= cp_model.LinearExpr.weighted_sum(literals, [int(f / self.grain) for f in floors]))

    def ask(self, target: float, limit_s: float) -> str:
        """Whether anything is below ``target``: found, infeasible or unknown."""
        model = self.model.clone()
        model.add(model.get_int_var_from_proto_index(self.z.index) == int(min(target / self.grain, LARGEST)))
        self.solver = cp_sat(limit_s)
        self.solver.parameters.cp_model_presolve = False
        status = self.solver.solve(model)
        if status == cp_model.MODEL_INVALID:
            raise PlannerBug(f"CP-SAT refuses the model of a space: {model.validate()[:200]}")
        if status == cp_model.INFEASIBLE:
            return "infeasible"
        return "found" if status in (cp_model.OPTIMAL, cp_model.FEASIBLE) else "unknown"

    def picked(self) -> tuple[int | None, int | None]:
        """The row of the last answer, or its interleaved point."""
        true = self.solver.boolean_value
        row = next((g for g, literal in self.y.items() if true(literal)), None)
        return row, None if row is not None else next(p for p, literal in self.w.items() if true(literal))

    def set_aside(self, point: int, best: float) -> list[int]:
        """The picked point and those with the lowest floors, no longer to be picked because they are priced now."""
        floor = self.question.points.floor
        near = sorted((p for p in self.w if floor[p] < best and p != point), key=lambda p: floor[p])
        chosen = [point, *near[: AT_ONCE - 1]]
        for p in chosen:
            self.model.add(self.w.pop(p) == 0)
        return chosen

    def open_rows(self, row: int, best: float) -> None:
        """Give the picked row its memory, paths and cap, and the rows with the lowest floors theirs."""
        floor = self.question.floor
        near = sorted(
            (g for g in self.y if floor[g] < best and g not in self.known and g != row), key=lambda g: floor[g]
        )
        for g in [row, *near[: AT_ONCE - 1]]:
            self.known[g] = forms = RowForms(self.question, g)
            unit = max(1, self.question.it.limit_bytes // MEMORY_UNITS)
            for stage in range(forms.pp):
                self._add_memory(g, stage, unit)
            self._add_cap(g)
            paths = self.paths[forms.pp, forms.m]
            if not paths:
                for path in seed_paths(forms.pp, 1, forms.m):
                    if not any(_same(path, other) for other in paths):
                        paths.append(path)
            for path in paths:
                self._add_path(g, path)

    def _add_memory(self, g: int, stage: int, unit: int) -> None:
        form = self.known[g].need(stage)
        room = (self.question.it.limit_bytes - int(form[-1])) // unit
        self._if_row(g, self._sum(stage, form[:-1] // unit) <= int(room))

    def _add_path(self, g: int, path: Path) -> None:
        """``z`` is at least the value of a path, with every tail that its device may have."""
        forms = self.known[g]
        stages = [
            int(path.forward[s]) * forms.forward(s) + int(path.backward[s]) * forms.backward(s) for s in range(forms.pp)
        ]
        for tail in forms.tails(path.device):
            ticks = [form + tail if s == path.device else form for s, form in enumerate(stages)]
            self._add_value(g, ticks, self.question.per_joule[g], path.hops * forms.hop)

    def _add_cap(self, g: int) -> None:
        if self.question.it.options.power_cap_w is not None:
            nothing = [np.zeros(4 * self.kinds + 1, dtype=object)] * self.known[g].pp
            self._add_value(g, nothing, self.question.per_capped_joule[g], 0)

    def _add_value(self, g: int, ticks: list[NDArray], per_joule: float, hop_ticks: int) -> None:
        """``z >= per_tick ticks(x) + per_joule joules(x)``, every coefficient in whole grains, rounded down."""
        per_tick, total = float(self.question.per_tick[g]), []
        for stage, form in enumerate(ticks):
            value = form.astype(float) * per_tick
            if per_joule:
                value = value + float(per_joule) * self.known[g].joules(stage).astype(float)
            total.append(self._sum(stage, np.floor(value / self.grain)))
        self._if_row(g, self.z >= sum(total) + int(hop_ticks * per_tick / self.grain))

    def _sum(self, stage: int, form: NDArray):
        return sum(int(c) * x for c, x in zip(form, self.features[stage], strict=False) if c)

    def _if_row(self, g: int, constraint) -> None:
        """A constraint that holds where the row is picked; one that never can excludes the row."""
        if isinstance(constraint, bool | np.bool_):
            if not constraint:
                self.model.add(self.y[g] == 0)
            return
        self.model.add(constraint).only_enforce_if(self.y[g])

    def runs(self, row: int) -> Runs:
        """The stages of the last answer."""
        found = []
        for marks in self.ends[: self.known[row].pp]:
            at = [mark if isinstance(mark, int) else self.solver.value(mark) for mark in marks]
            kinds = zip(("full", "selective", "none"), at[:-1], at[1:], strict=True)
            found.append([(kind, i, j) for kind, i, j in kinds if j > i])
        return found

    def cut(self, row: int, chain: Chain, runs: Runs, found: Evaluation) -> int:
        """Add what the answer broke: bytes of its fullest stages, or its longest path for all rows of its kind.

        Where both stand there already, the answer lies within what rounding leaves open, and goes by name.
        """
        forms, limit = self.known[row], self.question.it.limit_bytes
        full = [s for s in range(forms.pp) if int(found.need[s]) > limit and (row, s) not in self.exact]
        for stage in full:
            self.exact.add((row, stage))
            self._add_memory(row, stage, 1)
        graph = schedule_graph(forms.pp, 1, forms.m)
        path = critical_path(graph, found.forward, found.backward, forms.hop, found.tail)
        paths = self.paths[forms.pp, forms.m]
        if any(_same(path, other) for other in paths):
            if not full:
                self._forbid(row)
            return max(1, len(full))
        paths.append(path)
        for g, other in self.known.items():
            if (other.pp, other.m) == (forms.pp, forms.m):
                self._add_path(g, path)
        return len(full) + 1

    def _forbid(self, row: int) -> None:
        marks = [mark for stage in self.ends[: self.known[row].pp] for mark in stage[1:]]
        values = [self.solver.value(mark) for mark in marks]
        self.model.add_forbidden_assignments([self.y[row], *marks], [(1, *values)])


def _same(one: Path, other: Path) -> bool:
    arrays = zip((one.forward, one.backward), (other.forward, other.backward), strict=True)
    return (one.hops, one.device) == (other.hops, other.device) and all(np.array_equal(a, b) for a, b in arrays)
