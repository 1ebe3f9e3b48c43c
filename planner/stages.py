"""Several objectives in order: each solved over the whole space, its best plus the slack a limit on all that follow.

    stage 1    f1* = min f1(p)    over the space
    stage k    fk* = min fk(p)    over the space, with fi(p) <= (1 + slack) fi* for every i < k

A stage is the one search with one more limit (:mod:`planner.limits`) and starts from the plan of the stage before it,
which keeps that limit. A plan of other degrees may have fewer joules within the slack, so nothing else is carried
over. Where a stage ran out of time, its best plan stands in for ``fi*``. Clocks are chosen where a stage weighs joules:
where none counts, full clocks have the least time and rent of all.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from cost_models.calibration import Calibration
from cost_models.chain import Chain
from cost_models.ticks import Ticks
from planner.candidates import Space
from planner.clocks import weighs_joules
from planner.limits import per_step, training_steps
from planner.objectives import minimised
from planner.options import Options
from planner.result import Plan, ProvedStage, TrainingRun
from planner.search.bounds import objective_of
from planner.search.budget import Budget
from planner.search.engine import Kept, Search, SearchResult
from planner.search.incumbent import judge
from planner.search.start import search_of
from planner.search.untiered import begin_without_tiers
from planner.start import Start, start_from
from planner.stopping import INTERRUPT, searched

SAME_FRACTION = 1e-9


@dataclass(frozen=True)
class Stage:
    """One finished search for one objective; ``at_most`` is what later stages may take of it."""

    search: Search
    found: SearchResult
    at_most: float | None

    @property
    def proved(self) -> bool:
        """Whether no plan within the limits of the stage is better."""
        return self.found.proved or self.found.bound >= self.search.value * (1 - SAME_FRACTION)

    def record(self) -> ProvedStage:
        """The stage as the plan's proof holds it."""
        found, value = self.found, self.search.value
        return ProvedStage(
            objective=self.search.options.objective, minimises=minimised(self.search.options.objective), value=value,
            bound=value if found.proved else min(found.bound, value), proved=self.proved, at_most=self.at_most,
            rows=found.counts, search_s=found.seconds,
        )  # fmt: skip


def solved_in_stages(
    space: Space, options: Options, fits: Calibration, ticks: Ticks, progress: Callable[[str, float, float], None],
    budget: Budget, start: Start | None = None,
) -> tuple[list[Stage], list[str]]:  # fmt: skip
    """The stages in order, the last of them the plan's, and notes; one alone where the first finds no plan.

    Every stage has an equal share of the budget that is left. After Ctrl-C the later ones keep the plan there is.
    """
    names, stages, notes = options.objective.split(","), list[Stage](), list[str]()
    options = per_step(options, space.workload)
    for k, name in enumerate(names):
        search = _search(space, options, name, fits, ticks, progress, _share(budget, len(names) - k))
        if stages:
            _begin_with(search, stages[-1].found.best)
        elif start is not None:
            notes += start_from(search, start)
        elif space.cluster.tiers and options.solver == "default":
            begin_without_tiers(search)
        found = searched(search)
        budget.spent += search.budget.spent
        if stages and stages[-1].found.stopped == INTERRUPT:
            found.stopped = INTERRUPT
        if found.stopped == INTERRUPT:
            budget.deadline = min(budget.deadline, time.monotonic())
        last = k == len(names) - 1 or found.best is None
        at_most = None if last else (1 + (options.slack or 0.0)) * search.value
        stages.append(Stage(search, found, at_most))
        if last:
            break
        options = limited(options, minimised(name), at_most)
    return stages, notes


def _search(
    space: Space, options: Options, name: str, fits: Calibration, ticks: Ticks,
    progress: Callable[[str, float, float], None], budget: Budget,
) -> Search:  # fmt: skip
    """The search of one stage."""
    asked = options.model_copy(update={"objective": name, "slack": None})
    asked = asked.model_copy(update={"clocks": asked.clocks and weighs_joules(space.cluster, asked)})
    if options.solver == "pure-cpsat":
        from planner.search.pure_cpsat import PureSearch

        return PureSearch(space, asked, fits, ticks, progress, budget)
    return search_of(space, asked, fits, ticks, progress, budget)


def _share(budget: Budget, stages: int) -> Budget:
    """An equal part of what is left for each of so many stages."""
    now = time.monotonic()
    return Budget(now + (budget.deadline - now) / stages, budget.left_units / stages)


def limited(options: Options, quantity: str, at_most: float) -> Options:
    """The options with a limit on what a step takes of a quantity, or the lower one that there is."""
    name = f"step-{quantity}"
    lower = min(at_most, options.limits.get(name, at_most))
    return options.model_copy(update={"limits": {**options.limits, name: lower}})


def _begin_with(search: Search, known: Kept | None) -> None:
    """Let a search begin with a plan that an earlier one found, where it keeps the limits of this one."""
    if known is None or known.found is None:
        return
    prices = search.prices_of(known.prices.rows.take([known.row]))
    rows = known.prices.rows
    prices = prices.with_rows(prices.rows.scheduled(rows.schedule, known.virtual, rows.in_flight))
    objective, size = objective_of(prices.rows, search.cluster, search.options), int(prices.rows.stage_size[0])
    again = known.found
    chain = Chain(search.model, prices, 0)
    found = judge(chain, again.runs, objective, size, search.limit, again.clocks, again.leaving)
    if found is not None:
        search.best = dataclasses.replace(known, prices=prices, row=0, bound=0.0, found=found)


def staged_plan(plan: Plan, stages: list[Stage], options: Options) -> Plan:
    """The last stage's plan with what the user asked for, every stage's proof, and what training takes."""
    proved = all(stage.proved for stage in stages)
    changed = {
        "options": options.model_dump(mode="json"),
        "status": "optimal" if proved and plan.status == "optimal" else "feasible",
        "search_s": sum(stage.found.seconds for stage in stages),
        "training_run": training_run(plan, options),
    }
    if len(stages) > 1:
        changed["proof"] = plan.proof.model_copy(update={"stages": [stage.record() for stage in stages]})
    return plan.model_copy(update=changed)


def training_run(plan: Plan, options: Options) -> TrainingRun | None:
    """What training on the tokens that were asked for takes; ``None`` where none were."""
    steps = training_steps(options, plan.workload)
    if steps is None or options.tokens is None:
        return None
    usd = None if plan.usd_per_step is None else steps * plan.usd_per_step
    return TrainingRun(
        tokens=options.tokens, steps=steps, seconds=steps * plan.step_s, joules=steps * plan.joules_per_step, usd=usd
    )
