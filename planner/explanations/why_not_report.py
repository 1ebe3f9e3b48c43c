"""Answers to "why not that one" as text for a terminal."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.explanations.differences import Pair
from planner.explanations.explain_report import columns, titled, value_text
from planner.explanations.why_not import WhyNot
from planner.report import degrees_text, strategy_lines
from planner.result import Plan
from topologies.units import quantity_text


def why_not_view(it: WhyNot) -> RenderableType:
    """The answer in one line, then both plans term by term."""
    parts = answer_lines(it, degrees_text(it.chosen.strategy))
    if it.other is not None and it.verdict != "held":
        parts += [
            _strategies(it.chosen, it.other),
            titled("seconds a step", pairs_table(it.time, 1.0)),
            titled("memory of the fullest device, GB", pairs_table(it.memory, 1e9)),
            titled("mean power, kW", pairs_table(it.power, 1e3, total=False)),
            titled("a step", spent_table(it.spent)),
        ]
    return Group(*parts)


def answer_lines(it: WhyNot, held: str) -> list[RenderableType]:
    """The answer, and which of the plan's own pins gave way; ``held`` says where the chosen plan runs."""
    lines: list[RenderableType] = [Text(_answer(it, held), style="bold")]
    if it.replaced:
        lines.append(Text(f"note: in place of the plan's own {_listed(it.replaced)}"))
    return lines


def _listed(pins: dict[str, int | str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in pins.items())


def _answer(it: WhyNot, held: str) -> str:
    asked = _listed(it.pins)
    if it.other is None:
        return f"why not {asked}: {it.verdict}: {it.reason}"
    chosen, other = (value_text(it.chosen, plan.objective) for plan in (it.chosen, it.other))
    if it.verdict == "held":
        return f"why not {asked}: the plan has it ({held}, {chosen})"
    if it.verdict == "better":
        why = it.reason or _why_better(it)
        return f"why not {asked}: it is better, {other} against {chosen} ({-it.loses_fraction:.2%}): {why}"
    best, said = ("best plan", "proved") if it.proved else ("best plan found", _at_least(it))
    return f"why not {asked}: the {best} with it takes {other} against {chosen}, {it.loses_fraction:.2%} more ({said})"


def _at_least(it: WhyNot) -> str:
    return f"at least {max(0.0, it.loses_at_least):.2%}, proved"


def _why_better(it: WhyNot) -> str:
    if it.replaced:
        return f"the plan's own {_listed(it.replaced)} excluded it"
    further = "; start the next one from this" if isinstance(it.chosen, Plan) else ""
    return f"the plan was not proved and its search had not come that far{further}"


def _strategies(chosen: Plan, other: Plan) -> Table:
    table = columns(("", "left"), ("chosen", "left"), ("with the pins", "left"))
    mine, theirs = chosen.strategy, other.strategy
    others = strategy_lines(theirs, mine)
    for name, text in strategy_lines(mine, theirs).items():
        table.add_row(name, text, others[name])
    return table


def pairs_table(pairs: tuple[Pair, ...], unit: float, *, total: bool = True) -> Table:
    """The pairs, and where they are parts of a whole, their sums, which are the whole's."""
    table = columns(("", "left"), ("chosen", "right"), ("with the pins", "right"), ("difference", "right"))
    for pair in pairs:
        _row(table, pair, unit)
    if total:
        sums = (math.fsum(pair.chosen for pair in pairs), math.fsum(pair.other for pair in pairs))
        _row(table, Pair("all", *sums), unit, style="bold")
    return table


def spent_table(pairs: tuple[Pair, ...]) -> Table:
    """Joules and dollars of both plans, as far as they are known."""
    table = columns(("", "left"), ("chosen", "right"), ("with the pins", "right"), ("ratio", "right"))
    for pair in pairs:
        unit = "J" if pair.name == "energy" else "USD"
        numbers = (quantity_text(value, unit) for value in (pair.chosen, pair.other))
        table.add_row(pair.name, *numbers, f"{pair.other / pair.chosen:.3f}" if pair.chosen else "")
    return table


def _row(table: Table, pair: Pair, unit: float, style: str | None = None) -> None:
    numbers = (f"{value / unit:,.3f}" for value in (pair.chosen, pair.other))
    table.add_row(pair.name, *numbers, f"{pair.difference / unit:+,.3f}", style=style)
