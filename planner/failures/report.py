"""A plan under failures as text: what is lost to what, what one failure takes, other stores, a run of tokens."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.explanations.explain_report import columns, titled
from planner.failures.goodput_record import GoodputRecord
from planner.failures.goodput_report import checkpoint_text, failures_text, lost_text, tokens_text
from planner.failures.under_failures import Run, UnderFailures
from planner.report import degrees_text
from topologies.units import duration_text, quantity_text


def failures_view(it: UnderFailures) -> RenderableType:
    """The whole report, top to bottom."""
    return Group(
        Text(_head(it), style="bold"),
        _pairs(it),
        titled("what one failure takes; all other devices wait", _blasts(it.goodput)),
        titled("the same plan, checkpoints elsewhere or otherwise, each at its best interval", _others(it)),
    )


def _head(it: UnderFailures) -> str:
    plan = it.plan
    return (
        f"{plan.model.name} on {plan.cluster.source}: {degrees_text(plan.strategy)}, step "
        f"{quantity_text(plan.step_s, 's')}, goodput {it.goodput.fraction:.2%}"
    )


def _pairs(it: UnderFailures) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    low, high = it.goodput.range
    for row in (
        ("goodput", f"{it.goodput.fraction:.2%} ({low:.2%} to {high:.2%} as fleets differ)"),
        ("lost to", lost_text(it.goodput)),
        ("failures", failures_text(it.goodput)),
        ("checkpoint", checkpoint_text(it.goodput)),
        ("spares", _spares(it)),
        (f"{tokens_text(it.run.tokens)} tokens", _run(it.run)),
    ):
        table.add_row(*row)
    return table


def _spares(it: UnderFailures) -> str:
    needed, spares = it.goodput.spares_needed, it.goodput.spares
    idle = f"; the plan leaves {it.idle_hosts} hosts idle" if it.idle_hosts else ""
    return f"{needed} keep it whole 99.9% of the time; {spares} assumed{idle}"


def _run(run: Run) -> str:
    if run.seconds is None:
        return "never: nothing is kept between failures"
    quick, slow = (duration_text(seconds) if seconds is not None else "never" for seconds in run.seconds_range)
    money = "" if run.usd is None else f", {quantity_text(run.usd, 'USD')}"
    return (
        f"{duration_text(run.seconds)} ({quick} to {slow}; {duration_text(run.ideal_s)} without failures), "
        f"{quantity_text((run.joules or 0.0) / 3600, 'Wh')}{money}"
    )


def _blasts(it: GoodputRecord) -> Table:
    table = columns(
        ("what fails", "left"), ("a day", "right"), ("devices", "right"), ("replicas", "right"), ("states", "left")
    )
    for blast in it.blasts:
        rate = "not counted" if blast.failures_per_day is None else f"{blast.failures_per_day:.3g}"
        states = "on other devices too" if blast.survives else "in the checkpoint alone"
        table.add_row(blast.unit, rate, str(blast.devices), f"{blast.replicas} of {blast.of_replicas}", states)
    return table


def _others(it: UnderFailures) -> Table:
    table = columns(
        ("store", "left"), ("steps", "left"), ("written in", "right"), ("every", "right"), ("goodput", "right")
    )
    for one in sorted((it.goodput, *it.others), key=lambda one: -one.fraction):
        table.add_row(
            one.store, "go on" if one.asynchronous else "wait", duration_text(one.checkpoint.write_s),
            duration_text(one.interval_s), f"{one.fraction:.2%}", style="bold" if one is it.goodput else None,
        )  # fmt: skip
    return table
