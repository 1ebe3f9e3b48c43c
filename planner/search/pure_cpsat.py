"""``--solver pure-cpsat``: CP-SAT chooses everything of a small space, as an independent check of the search.

Asked for a plan below a target (:mod:`planner.search.pure_model`), CP-SAT gives one, which the schedule prices and
which is cut off where it was priced too low, or says that there is none. The target is halfway between bound and
incumbent until the two are near, then just below the incumbent: the last "infeasible" proves it. Interleaved plans
have no free integers: one that is picked is priced and set aside, with those that look as good.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration
from cost_models.chain import Chain, joules
from cost_models.estimate import Evaluation, Runs, evaluate
from cost_models.pipeline import in_flight
from cost_models.ticks import Ticks
from planner.candidates import Space
from planner.checks.rederive import Problem
from planner.options import Options
from planner.search.budget import Budget
from planner.search.deadline import left_s
from planner.search.engine import Incumbent, Kept, Report, SearchResult
from planner.search.incumbent import Found
from planner.search.pure_model import PureModel
from planner.search.pure_rows import Question, question_of

NEARER = 1 - 1e-10
NEAR_FRACTION = 1e-3
"""Bound and incumbent this near, the target goes just below the incumbent."""


class PureSearch(Incumbent):
    """The same question as :class:`planner.search.engine.Search`, asked of CP-SAT alone. ``run`` is called once."""

    solver = "pure-cpsat: one OR-Tools CP-SAT model of rows, stages and recompute, with critical-path cuts"

    def __init__(
        self, space: Space, options: Options, fits: Calibration, ticks: Ticks, report: Report = lambda *_: None,
        budget: Budget | None = None,
    ) -> None:  # fmt: skip
        self.budget = budget or Budget()
        self.floor, self.root, self.proved = 0.0, 0.0, False
        self.space, self.options, self.fits, self.ticks, self.report = space, options, fits, ticks, report
        self.model, self.cluster, self.workload = space.model, space.cluster, space.workload
        self.problem = Problem(self.model, self.cluster, self.workload, options, fits, ticks)
        self.kept: list[Kept] = []
        names = ("degrees", "rows", "rows_that_cannot_fit", "points", "rows_evaluated", "rows_to_solver", "literals",
                 "solver_rounds", "solver_cuts")  # fmt: skip
        self.counts = dict.fromkeys(names, 0)

    def run(self) -> SearchResult:
        """Ask, price the answer, cut, ask again; until CP-SAT says that nothing is better, or time is up."""
        self.began = time.monotonic()
        self.budget.deadline = min(self.budget.deadline, self.began + self.options.time_limit_s)
        question = question_of(self.problem)
        if question is None:
            self.proved, self.floor = True, np.inf
            return self.so_far()
        model = PureModel(question)
        self._count(question, model)
        self.root = self.floor = float(min([*question.floor, *question.points.floor]))
        self._ask_until_none(model)
        return self.so_far()

    def so_far(self) -> SearchResult:
        """What is known at this moment."""
        return SearchResult(
            best=self.best, bound=min(self.floor, self.value), proved=self.proved, counts=self.counts, kept=self.kept,
            bound_root=self.root, seconds=time.monotonic() - self.began,
            stopped="" if self.proved else self.budget.ended_by,
        )  # fmt: skip

    def _ask_until_none(self, model: PureModel) -> None:
        while not self.budget.over:
            self.counts["solver_rounds"] += 1
            target = self._target(self.floor)
            status = model.ask(target, left_s(self.budget.deadline))
            if status == "infeasible":
                self.floor = max(self.floor, target)
                if target >= self.value * NEARER:
                    self.floor, self.proved = self.value, True
                    return
            if status == "found":
                self._learn(model)
            self.report("solving", self.value, min(self.floor, self.value))

    def _target(self, bound: float) -> float:
        near = self.value - bound <= NEAR_FRACTION * self.value
        return self.value * NEARER if near or np.isinf(self.value) else (self.value + bound) / 2

    def _learn(self, model: PureModel) -> None:
        """Price what CP-SAT picked, and tell it what it got wrong."""
        row, point = model.picked()
        question = model.question
        if point is not None:
            for one in model.set_aside(point, self.value):
                plan = _interleaved(question, one)
                if plan is not None:
                    self._keep(question, int(question.points.row[one]), *plan, evaluate(*plan))
        elif row not in model.known:
            model.open_rows(row, self.value)
        else:
            runs = model.runs(row)
            chain = Chain(self.model, question.prices.take(np.array([row])), 0)
            found = evaluate(chain, runs)
            if not self._keep(question, row, chain, runs, found):
                self.counts["solver_cuts"] += model.cut(row, chain, runs, found)
        self.counts["rows_to_solver"] = len(model.known)

    def _keep(self, question: Question, row: int, chain: Chain, runs: Runs, found: Evaluation) -> bool:
        """Judge a plan by the schedule and in bytes; one that fits and is better becomes the incumbent."""
        self.counts["rows_evaluated"] += 1
        if int(found.need.max()) > self.problem.limit_bytes:
            return False
        rows = chain.prices.rows
        dynamic = float(joules(chain, runs).sum() * rows.stage_size[0])
        value = float(self.problem.values(rows, np.array([float(found.step)]), np.array([dynamic]))[0])
        if not np.isfinite(value):
            return False
        better = value < self.value * NEARER
        kept = Kept(chain.prices, 0, chain.virtual, float(question.floor[row]), Found(value, runs, found, dynamic))
        self.kept.append(kept)
        if value < self.value:
            self.best = kept
        return better

    def _count(self, question: Question, model: PureModel) -> None:
        rows = question.rows
        degrees = np.stack([rows.tp, rows.cp, rows.pp, rows.dp, rows.micro_batch], axis=1)
        self.counts["degrees"] = len(np.unique(degrees, axis=0))
        self.counts["rows"], self.counts["points"] = len(rows), len(question.points.floor)
        self.counts["rows_that_cannot_fit"] = int(np.isinf(question.floor).sum())
        self.counts["literals"] = len(model.y) + len(model.w)


def _interleaved(question: Question, point: int) -> tuple[Chain, Runs] | None:
    """An interleaved point with the quickest recompute of every device that fits; ``None`` where none does."""
    points = question.points
    prices = question.prices.take(points.row[point : point + 1]).with_virtual(int(points.virtual[point]))
    chain = Chain(question.it.model, prices, 0)
    end = np.cumsum(points.cuts[point])
    start, choices = end - np.array(points.cuts[point]), []
    for device in range(chain.pp):
        choice = _quickest(question, chain, start[device :: chain.pp], end[device :: chain.pp], device)
        if choice is None:
            return None
        choices.append(choice)
    runs = []
    for c, (i, j) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
        a, b = (min(i + count, j) for count in np.cumsum(choices[c % chain.pp]).tolist())
        runs.append([(kind, x, y) for kind, x, y in (("full", i, a), ("selective", a, b), ("none", b, j)) if y > x])
    return chain, runs


def _quickest(question: Question, chain: Chain, i: NDArray, j: NDArray, device: int) -> tuple[int, int] | None:
    """(full, selective) layers of each virtual stage of a device; in the order of ticks, then of the counts."""
    size, pin = int((j - i).max()), question.it.options.pins.get("recompute")
    moments = np.array(in_flight(chain.pp, chain.virtual, chain.micro_batches, device))
    still = int((chain.state_bytes(i, j) + chain.logit_bytes(i, j)).sum()) + chain.fixed_bytes
    fitting = []
    for full in range(size + 1):
        for selective in range(size + 1 - full):
            if pin is not None and (full, selective) != (size * (pin == "full"), size * (pin == "selective")):
                continue
            a = np.minimum(i + full, j)
            b = np.minimum(a + selective, j)
            kept = chain.saved("full", i, a) + chain.saved("selective", a, b) + chain.saved("none", b, j)
            if still + int((moments @ (kept + chain.saved_ends(i, j))).max()) <= question.it.limit_bytes:
                ticks = int((chain.recompute("full", i, a) + chain.recompute("selective", a, b)).sum())
                fitting.append((ticks, full, selective))
    return min(fitting)[1:] if fitting else None
