"""Explanations as text for a terminal: where the time goes, what binds, what more would buy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.explanations.explain import Bought, Explanation
from planner.failures.goodput_report import goodput_lines
from planner.report import degrees_text
from planner.result import Plan
from topologies.units import quantity_text

if TYPE_CHECKING:
    from planner.explanations.mixed_explain import MixedExplanation


def explanation_view(it: Explanation) -> RenderableType:
    """The whole explanation, top to bottom."""
    return Group(
        Text(_head(it.plan), style="bold"),
        titled("where the time goes", _terms(it.plan)),
        titled("which limits bind", _limits(it)),
        *([] if it.plan.goodput is None else [titled("what failures leave", _kept(it.plan))]),
        *bought_view(it, _units(it)),
    )


def _head(plan: Plan) -> str:
    low, high = plan.step_interval_s
    said = "proved optimal" if plan.status == "optimal" else f"gap {plan.gap:.2%}"
    return (
        f"{plan.model.name} on {plan.cluster.source}: {degrees_text(plan.strategy)}, step "
        f"{quantity_text(plan.step_s, 's')} (90 % interval {quantity_text(low, 's')} to {quantity_text(high, 's')}), "
        f"{objective_text(plan)}{said}"
    )


def objective_text(plan: Plan) -> str:
    """``"energy 6.59 MJ, "``; nothing where the objective is the step that stands beside it."""
    return "" if plan.objective_name == "time" else f"{value_text(plan, plan.objective)}, "


def value_text(plan: Plan, value: float) -> str:
    """A value of the plan's objective with its unit."""
    unit = {"time": "s", "energy": "J", "goodput": "s"}.get(plan.objective_name)
    return quantity_text(value, unit, 5) if unit else f"{value:.5g} USD"


def _terms(plan: Plan) -> Table:
    table = columns(("term", "left"), ("seconds", "right"), ("share", "right"))
    for term in sorted(plan.time, key=lambda term: -term.seconds):
        table.add_row(term.name, f"{term.seconds:.4g}", f"{term.seconds / plan.step_s:.1%}")
    return table


def _limits(it: Explanation) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    bought = {row.name: row for row in it.bought}
    for limit in it.plan.binding:
        row = bought.get(limit.limit)
        table.add_row(limit.limit, limit.detail + ("" if row is None else f"; {row.change} buys {gain_text(row)}"))
    best = it.best_buy
    nothing = "nothing: no single one of these makes the step any better"
    table.add_row("buys most", nothing if best is None else f"{best.name}, {best.change}: {gain_text(best)}")
    return table


def _kept(plan: Plan) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in goodput_lines(plan):
        table.add_row(name, text)
    return table


def _units(it: Explanation) -> Table:
    timed = it.plan.objective_name == "time"
    table = columns(
        ("one more", "left"), ("change", "left"), ("step" if timed else it.plan.objective_name, "right"),
        ("gain", "right"), ("the plan", "left"), ("proof", "left"),
    )  # fmt: skip
    for row in it.bought:
        table.add_row(
            row.name, row.change, value_text(it.plan, row.objective), gain_text(row), decided_text(row), proof_text(row)
        )
    return table


def gain_text(row: Bought) -> str:
    """What a row gains; a question mark where that is too little to tell another layout by."""
    sure = "" if row.told_apart else " (?)"
    return f"{row.gain_fraction:.2%}{sure}"


def decided_text(row: Bought) -> str:
    """What the plan found with one more decides otherwise."""
    if row.status == "kept":
        return "as it is"
    return "; ".join(row.decided_otherwise) or "as it is"


def proof_text(row: Bought) -> str:
    """How far a row's gain is proved."""
    if row.status == "optimal" and row.gain_at_most - row.gain_at_least < 1e-6:
        return f"proved in {row.search_s:.1f} s"
    return f"gain {row.gain_at_least:.2%} to {row.gain_at_most:.2%}, {row.search_s:.1f} s"


def bought_view(it: Explanation | MixedExplanation, units: Table) -> list[RenderableType]:
    """What one more of each thing would buy, with what was left out and what is in doubt."""
    return [
        titled(f"what one more would buy (of what is not counted {it.more:.0%} more), each planned again", units),
        *(Text(f"left out: {why}") for why in it.left_out),
        *(Text(f"note: {row.name}: {row.reason}") for row in it.bought if row.reason),
        *(Text(note) for note in _doubts(it.bought)),
    ]


def _doubts(bought: Sequence[Bought]) -> list[str]:
    """What the question mark means, where one stands."""
    if all(row.told_apart for row in bought):
        return []
    return ["(?) another layout, by less than the models can tell two layouts apart: measure both before buying"]


def columns(*names: tuple[str, str]) -> Table:
    """An empty table with these columns and their sides."""
    table = Table(box=SIMPLE_HEAD)
    for name, justify in names:
        table.add_column(name, justify=justify)
    return table


def titled(title: str, content: RenderableType) -> Group:
    """A table under its bold title."""
    return Group(Text(f"\n{title}", style="bold"), content)
