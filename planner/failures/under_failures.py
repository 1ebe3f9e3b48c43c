"""A plan under failures: what is kept with one way of taking care of it, beside other ways, and a run of N tokens.

Nothing is planned again: the same strategy is priced with another store, other checkpoints, other machines that fail.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cost_models.goodput import Care, Goodput, goodput
from cost_models.rows import Rows
from planner.errors import BadInput
from planner.explanations.again import Question, question_of
from planner.failures.goodput_record import GoodputRecord
from planner.plan_text import SCHEMA_VERSION
from planner.result import Plan
from planner.summarised import Summarised
from topologies import catalogue
from topologies.cluster import Cluster
from topologies.ready import fleet_of, store_of
from topologies.units import duration_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cost_models.model_graph import ModelGraph
    from planner.mixed.result import MixedPlan

USUAL_TOKENS = 1e12
MOST_SPARES = 2**21


@dataclass(frozen=True, slots=True)
class Run:
    """A training run of ``tokens``: seconds without failures and with them, their range, joules and USD with them.

    ``None`` where nothing is ever kept; ``usd`` also where no price is known.
    """

    tokens: float
    ideal_s: float
    seconds: float | None
    seconds_range: tuple[float | None, float | None]
    joules: float | None
    usd: float | None


@dataclass(frozen=True, slots=True)
class UnderFailures(Summarised):
    """A plan's goodput as asked for, its run of tokens, and the goodput of other stores and ways of writing there."""

    plan: Plan
    goodput: GoodputRecord
    run: Run
    others: tuple[GoodputRecord, ...]
    idle_hosts: int

    def view(self) -> RenderableType:
        """The report for a terminal."""
        from planner.failures.report import failures_view

        return failures_view(self)

    def summary(self) -> str:
        """The report as text."""
        from planner.report import as_text

        return as_text(self.view())

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "schema_version": SCHEMA_VERSION, "step_s": self.plan.step_s,
            "goodput": self.goodput.model_dump(mode="json"), "run": dataclasses.asdict(self.run),
            "others": [other.model_dump(mode="json") for other in self.others], "idle_hosts": self.idle_hosts,
        }  # fmt: skip


def under_failures(
    plan: Plan | MixedPlan,
    *,
    store: str | None = None,
    fleet: str | None = None,
    asynchronous: bool = True,
    interval_steps: int | None = None,
    spares: int | None = None,
    tokens: float = USUAL_TOKENS,
    model: ModelGraph | None = None,
    cluster: Cluster | str | None = None,
) -> UnderFailures:
    """What failures leave of ``plan``, and what a run of ``tokens`` takes with them.

    ``store`` and ``fleet`` are names of the catalogue; without them the cluster's own. Checkpoints are written behind
    the steps unless ``asynchronous`` is false, every ``interval_steps`` (the best number without it). With ``spares``
    the job stands while more hosts than those are away; without, there are as many as it takes. ``model`` and
    ``cluster`` are needed where the plan was made from objects, or the cluster's file has moved.

    Of a mixed plan on one part alone, that plan's. Raises ``BadInput`` for pipelines over several kinds of devices and
    for numbers out of range, ``UnknownName`` for stores and fleets that there are not.
    """
    _check(interval_steps, spares, tokens)
    plan = _of_one_kind(plan)
    question = question_of(plan, model, cluster)
    machine = _machine(question.cluster, store, fleet)
    found = _goodput(question, machine, Care(asynchronous, interval_steps, spares))
    _check_interval(found, plan.step_s)
    record = GoodputRecord.of(found)
    others = (
        GoodputRecord.of(_goodput(question, _machine(machine, name, None), Care(behind, None, spares)))
        for name in catalogue.names("stores")
        for behind in (True, False)
        if (name, behind) != (store_of(machine).name, asynchronous) or interval_steps is not None
    )
    idle = plan.cluster.hosts - plan.cluster.hosts_used
    return UnderFailures(plan, record, run_of(plan, record, tokens), tuple(others), idle)


def _of_one_kind(plan: Plan | MixedPlan) -> Plan:
    """The plan of the one kind of devices that it runs on. Raises ``BadInput`` where there are several."""
    from planner.mixed.result import MixedPlan

    if not isinstance(plan, MixedPlan):
        return plan
    if plan.alone is None:
        raise BadInput(
            f"goodput is counted for plans on one kind of device, and this one has stages on {plan.cluster_name!r}; "
            "plan one of its parts alone"
        )
    return plan.alone


def run_of(plan: Plan, it: GoodputRecord, tokens: float) -> Run:
    """A run of ``tokens`` under a goodput; hosts draw and cost the same while steps wait or are done again."""
    ideal_s = tokens / plan.workload.tokens * plan.step_s
    slow, quick = (_over(ideal_s, fraction) for fraction in it.range)
    seconds = _over(ideal_s, it.fraction)
    per_s = None if seconds is None else seconds / plan.step_s
    return Run(
        tokens=tokens, ideal_s=ideal_s, seconds=seconds, seconds_range=(quick, slow),
        joules=None if per_s is None else per_s * plan.joules_per_step,
        usd=None if per_s is None or plan.usd_per_step is None else per_s * plan.usd_per_step,
    )  # fmt: skip


def _over(seconds: float, fraction: float) -> float | None:
    longer = seconds / fraction if fraction > 0 else math.inf
    return longer if math.isfinite(longer) else None


def _machine(cluster: Cluster, store: str | None, fleet: str | None) -> Cluster:
    return dataclasses.replace(
        cluster,
        store=store_of(cluster) if store is None else catalogue.load("stores", store),
        fleet=fleet_of(cluster) if fleet is None else catalogue.load("fleets", fleet),
    )


def _goodput(question: Question, machine: Cluster, care: Care) -> Goodput:
    plan, strategy = question.plan, question.plan.strategy.strategy()
    return goodput(question.model, machine, plan.workload, Rows.of(strategy), plan.step_s, care)


def _check(interval_steps: int | None, spares: int | None, tokens: float) -> None:
    for name, value, least in (("interval_steps", interval_steps, 1), ("spares", spares, 0)):
        if value is not None and not (isinstance(value, int) and least <= value <= MOST_SPARES):
            raise BadInput(f"{name}={value!r} is a whole number from {least} to {MOST_SPARES}")
    if not (isinstance(tokens, int | float) and 0 < tokens <= 1e18):
        raise BadInput(f"tokens={tokens!r} is a number above 0 and at most 1e18; 15e12 is fifteen trillion")


def _check_interval(found: Goodput, step_s: float) -> None:
    least = found.checkpoint.least_steps(step_s)
    if found.interval_steps < least:
        raise BadInput(
            f"a checkpoint every {found.interval_steps} steps begins before the last one is written: that takes "
            f"{duration_text(found.checkpoint.write_s)} to {found.store!r}, at least {least} steps of "
            f"{duration_text(step_s)}; write less often, or with steps that wait"
        )
