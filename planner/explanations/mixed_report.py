"""Explanations of plans over several kinds of devices as text for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.explanations.explain_report import (
    bought_view,
    columns,
    decided_text,
    gain_text,
    proof_text,
    titled,
    value_text,
)
from planner.explanations.mixed_again import shape_text
from planner.explanations.mixed_explain import MixedExplanation
from planner.explanations.mixed_terms import WAITING
from planner.explanations.mixed_why_not import MixedWhyNot
from planner.explanations.why_not_report import answer_lines, pairs_table, spent_table
from planner.mixed.report import rent_text, stages_view
from planner.mixed.result import MixedPlan
from planner.report import strategy_lines
from planner.result import Plan
from topologies.units import quantity_text


def mixed_why_not_view(it: MixedWhyNot) -> RenderableType:
    """The answer in one line, then both plans, term by term."""
    parts = answer_lines(it, shape_text(it.chosen))
    if it.other is not None and it.verdict != "held":
        parts += [
            titled("chosen", _stages(it.chosen)),
            titled("with the pins", _stages(it.other)),
            titled("seconds a step, on the stage that works longest", pairs_table(it.time, 1.0)),
            titled("memory of the fullest device, GB", pairs_table(it.memory, 1e9)),
            titled("mean power, kW", pairs_table(it.power, 1e3, total=False)),
            titled("a step", spent_table(it.spent)),
        ]
    return Group(*parts)


def _stages(plan: MixedPlan | Plan) -> RenderableType:
    alone = plan if isinstance(plan, Plan) else plan.alone
    if alone is None:
        return stages_view(plan)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in {"runs on": f"{alone.cluster.source} alone", **strategy_lines(alone.strategy)}.items():
        table.add_row(name, text)
    return table


def mixed_explanation_view(it: MixedExplanation) -> RenderableType:
    """The whole explanation, top to bottom."""
    return Group(
        Text(_head(it.plan), style="bold"),
        titled("where the time goes, % of the step by stage", _times(it)),
        titled("and on the mean device of each part", _parts(it)),
        titled("which limits bind", _limits(it)),
        *bought_view(it, _units(it)),
    )


def _head(plan: MixedPlan) -> str:
    low, high = plan.step_interval_s
    said = "proved optimal" if plan.status == "optimal" else f"gap {plan.gap:.2%}"
    return (
        f"{plan.model.name} on {plan.cluster_name}: {shape_text(plan)}, step {quantity_text(plan.step_s, 's')} "
        f"(90 % interval {quantity_text(low, 's')} to {quantity_text(high, 's')}){rent_text(plan)}; {said}"
    )


def _times(it: MixedExplanation) -> Table:
    heads = [f"{one.stage}: {one.devices} x {it.plan.parts[one.part].accelerator}" for one in it.times]
    return _shares([one.seconds for one in it.times], heads, it.plan.step_s)


def _parts(it: MixedExplanation) -> Table:
    return _shares(list(it.by_part().values()), list(it.by_part()), it.plan.step_s)


def _shares(each: list[dict[str, float]], heads: list[str], step_s: float) -> Table:
    """A column of shares of the step for each; waiting and idling stand last."""
    table = columns(("", "left"), *((head, "right") for head in heads))
    names = sorted(dict.fromkeys(n for one in each for n in one), key=lambda n: _order(n, each))
    for name in names:
        table.add_row(name, *(f"{one[name] / step_s:.1%}" if name in one else "" for one in each))
    return table


def _order(name: str, each: list[dict[str, float]]) -> tuple[int, float]:
    return (WAITING, "unused").index(name) + 1 if name in (WAITING, "unused") else 0, -max(
        one.get(name, 0.0) for one in each
    )


def _limits(it: MixedExplanation) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    bought = {row.name: row for row in it.bought}
    for limit in it.binding:
        name = f"{limit.limit} of {limit.part}" if limit.part else limit.limit
        row = bought.get(name)
        table.add_row(name, limit.detail + ("" if row is None else f"; {row.change} buys {gain_text(row)}"))
    best = it.best_buy
    nothing = "nothing: no single one of these makes the plan any better"
    table.add_row("buys most", nothing if best is None else f"{best.name}, {best.change}: {gain_text(best)}")
    return table


def _units(it: MixedExplanation) -> Table:
    table = columns(
        ("one more", "left"), ("change", "left"), (it.plan.objective_name, "right"), ("gain", "right"),
        ("the plan", "left"), ("proof", "left"),
    )  # fmt: skip
    for row in it.bought:
        value = value_text(it.plan, row.objective)
        table.add_row(row.name, row.change, value, gain_text(row), decided_text(row), proof_text(row))
    return table
