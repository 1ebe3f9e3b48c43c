"""Why not that one: the best plan that holds what the user names, against the chosen one, or what rules it out.

held         the chosen plan has it already
worse        the best plan with it, term by term; ``loses_at_least`` is proved
better       only where the chosen plan was not proved and the search with the pins found one that beats it
illegal      a rule that the pin breaks by itself, with its value and legal values
does not fit the leanest plan with it: bytes by class against what a device leaves, or no place on the machine
not found    the time limit passed first; ``loses_at_least`` comes from the bound
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from planner.candidates import degree_table, legal_space
from planner.checks.check import broken_pins
from planner.errors import BadInput, InfeasiblePlan, SearchGaveUp
from planner.explanations.again import Progress, Question, question_of
from planner.explanations.differences import Pair, memory_pairs, power_pairs, spent_pairs, time_pairs
from planner.options import Options, pins_of, read_options
from planner.pins import beyond_devices, check_pins
from planner.plan_text import SCHEMA_VERSION
from planner.result import Plan
from planner.summarised import Summarised
from topologies.cluster import Cluster

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cost_models.model_graph import ModelGraph

Verdict = Literal["held", "worse", "better", "illegal", "ruled out", "not found"]
SAME_FRACTION = 1e-9


@dataclass(frozen=True, slots=True)
class WhyNot(Summarised):
    """The answer about some pins. ``other`` is the best plan found with them; ``reason`` says why there is none.

    ``time`` are the steps' terms in seconds, ``memory`` bytes by class on each plan's fullest device, ``power`` watts
    by consumer, ``spent`` joules and USD a step: all empty without ``other``. Losses are fractions of the chosen
    objective. ``leanest`` is the arithmetic of memory where that rules the pins out, ``repairs`` what would change it.
    """

    pins: dict[str, int | str]
    replaced: dict[str, int | str]
    verdict: Verdict
    chosen: Plan
    other: Plan | None = None
    reason: str = ""
    loses_fraction: float | None = None
    loses_at_least: float | None = None
    time: tuple[Pair, ...] = ()
    memory: tuple[Pair, ...] = ()
    power: tuple[Pair, ...] = ()
    spent: tuple[Pair, ...] = ()
    leanest: dict[str, Any] | None = None
    repairs: tuple[dict[str, Any], ...] = ()

    @property
    def proved(self) -> bool:
        """Whether no plan with the pins is better than ``other``."""
        return self.other.status == "optimal" or self.loses_at_least >= self.loses_fraction - SAME_FRACTION

    def view(self) -> RenderableType:
        """The answer for a terminal."""
        from planner.explanations.why_not_report import why_not_view

        return why_not_view(self)

    def summary(self) -> str:
        """The answer as text."""
        from planner.report import as_text

        return as_text(self.view())

    def as_json(self) -> dict[str, Any]:
        """The answer as one JSON object."""
        tables = {name: [pair.as_json() for pair in getattr(self, name)] for name in TABLES}
        plain = {name: getattr(self, name) for name in ("pins", "replaced", "verdict", "reason", "loses_fraction")}
        return {
            "schema_version": SCHEMA_VERSION, **plain, "loses_at_least": self.loses_at_least, **tables,
            "leanest": self.leanest, "repairs": list(self.repairs),
            "chosen": json.loads(self.chosen.to_json()),
            "other": None if self.other is None else json.loads(self.other.to_json()),
        }  # fmt: skip


TABLES = {"time": time_pairs, "memory": memory_pairs, "power": power_pairs, "spent": spent_pairs}


def why_not(
    plan: Plan,
    pins: str | dict[str, int | str],
    *,
    model: ModelGraph | None = None,
    cluster: Cluster | str | None = None,
    time_limit_s: float = 60.0,
    progress: Progress | None = None,
) -> WhyNot:
    """The best plan that holds ``pins`` (``"tp=8,pp=4"``) against ``plan``, or what rules it out.

    The plan's own pins hold too, but for those that ``pins`` names anew. ``model`` and ``cluster`` are needed where
    the plan was made from objects, or the cluster's file has moved.

    Raises ``BadInput`` for pins that do not exist or contradict each other, and for inputs that are not the plan's.
    """
    question = question_of(plan, model, cluster)
    named = read_options(pins=pins_of(pins)).pins
    if not named:
        raise BadInput("why not what? name at least one pin, such as tp=8 or tp=8,pp=4")
    own = _options(plan).pins
    anew = {*named, *(ONE_CHOICE if any(name in named for name in ONE_CHOICE) else ())}
    replaced = {name: value for name, value in own.items() if name in anew and named.get(name) != value}
    answer = WhyNot(named, replaced, "held", plan)
    illegal = _illegal(question, named)
    if illegal:
        return dataclasses.replace(answer, verdict="illegal", reason=illegal)
    every = {**{name: value for name, value in own.items() if name not in anew}, **named}
    beyond = "; ".join(beyond_devices(question.cluster, every))
    if beyond:
        return dataclasses.replace(answer, verdict="illegal", reason=beyond)
    check_pins(question.model, question.cluster, plan.workload, every)
    legal_space(question.model, question.cluster, plan.workload, every)
    if plan.status == "optimal" and not list(broken_pins(named, plan.strategy.strategy())):
        return _against(answer, plan)
    return _searched(answer, question, every, time_limit_s, progress)


ONE_CHOICE = ("schedule", "virtual_stages")
"""Pins that say one thing, so that naming either lets go of both."""


def _options(plan: Plan) -> Options:
    return read_options(**{name: value for name, value in plan.options.items() if name in Options.model_fields})


def _illegal(question: Question, pins: dict[str, int | str]) -> str:
    """Every rule that one of the pins breaks all by itself; pins that only contradict each other are the user's."""
    said = []
    for name, value in pins.items():
        try:
            check_pins(question.model, question.cluster, question.plan.workload, {name: value})
            degree_table(legal_space(question.model, question.cluster, question.plan.workload, {name: value}))
        except BadInput as error:
            said.append(str(error).removeprefix("the pins cannot hold: "))
    return "; ".join(said)


def _searched(
    answer: WhyNot, question: Question, pins: dict[str, int | str], time_limit_s: float, progress: Progress | None
) -> WhyNot:
    """The answer by planning again with the pins held."""
    try:
        other = question.again(pins=pins, time_limit_s=time_limit_s, progress=progress)
    except InfeasiblePlan as error:
        repairs = tuple(error.repairs)
        return dataclasses.replace(
            answer, verdict="ruled out", reason=str(error), leanest=error.leanest, repairs=repairs
        )
    except SearchGaveUp as error:
        return dataclasses.replace(answer, verdict="not found", reason=str(error))
    return _against(answer, other)


def _against(answer: WhyNot, other: Plan) -> WhyNot:
    """The answer with both plans term by term."""
    chosen = answer.chosen
    loses = other.objective / chosen.objective - 1
    verdict: Verdict = "worse" if loses > SAME_FRACTION else "better" if loses < -SAME_FRACTION else "held"
    if verdict == "held" and list(broken_pins(answer.pins, chosen.strategy.strategy())):
        verdict = "worse"
    return dataclasses.replace(
        answer, verdict=verdict, other=other, loses_fraction=loses,
        loses_at_least=other.bound / chosen.objective - 1,
        **{name: pairs(chosen, other) for name, pairs in TABLES.items()},
    )  # fmt: skip
