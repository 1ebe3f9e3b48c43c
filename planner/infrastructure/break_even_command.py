"""``meshwright break-even``: what memory beside the devices is worth for a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli_options import (
    AsJson,
    Batch,
    ClusterName,
    Headroom,
    Model,
    Optimizer,
    OptimizerOption,
    Pins,
    PrecisionOption,
    SeqLen,
    work_asked,
)
from planner.terminal import print_json, show

if TYPE_CHECKING:
    from rich.console import Group

    from planner.infrastructure.break_even import BreakEven, Way

TierOption = Annotated[
    str, typer.Option("--tier", help="The memory tier: dram, nvme, or units of the catalogue's: cxl-expander:4.")
]
EachLimit = Annotated[float, typer.Option("--time-limit", min=0.01, help="Seconds to search at most, for each row.")]


def break_even(
    model: Model, cluster: ClusterName, tier: TierOption, seq_len: SeqLen = None, global_batch: Batch = None,
    precision: PrecisionOption = None, optimizer: OptimizerOption = Optimizer.adam, headroom: Headroom = 0.05,
    pin: Pins = None, time_limit: EachLimit = 20.0, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Say what a memory tier may cost to pay for itself, against more devices, more HBM or doing without."""
    from planner.infrastructure.break_even import break_even as found_for
    from planner.live import live_line

    with live_line() as report:
        found = found_for(
            model, cluster, tier, time_limit_s=time_limit, progress=report, headroom=headroom,
            pins=",".join(pin or ()), **work_asked(seq_len, global_batch, precision, optimizer),
        )  # fmt: skip
    print_json(as_record(found)) if as_json else show(break_even_view(found))


def as_record(found: BreakEven) -> dict[str, Any]:
    """The answer as one JSON object."""
    ways = {"with": [found.with_tier], "without": found.without, "more_memory": found.more_memory}
    return {
        "tier": found.tier, "gb_per_device": found.gb_per_device, "usd_per_gb_hour": found.usd_per_gb_hour,
        "least_bandwidth": found.least_bandwidth,
        **{name: [_record(way) for way in some] for name, some in ways.items()},
    }  # fmt: skip


def _record(way: Way) -> dict[str, Any]:
    fits = way.plan is not None
    return {
        "name": way.name, "devices": way.devices, "tokens_per_s": way.tokens_per_s,
        "step_s": way.plan.step_s if fits else None, "usd_per_token": way.usd_per_token if fits else None,
        "joules_per_token": way.joules_per_token if fits else None, "tier_joules_per_token": way.tier_joules_per_token,
    }  # fmt: skip


def break_even_view(found: BreakEven) -> Group:
    """The answer in words, then every way with what it makes and costs."""
    from rich.console import Group
    from rich.text import Text

    from planner.explanations.explain_report import columns
    from planner.report import degrees_text, offload_text

    table = columns(
        ("", "left"), ("devices", "right"), ("step s", "right"), ("tokens/s", "right"), ("USD/T tokens", "right"),
        ("J/token", "right"), ("plan", "left"),
    )  # fmt: skip
    for way in (found.with_tier, *found.without, *found.more_memory):
        if way.plan is None:
            table.add_row(way.name, str(way.devices), "-", "-", "-", "-", "nothing fits")
            continue
        it = way.plan.strategy
        money = "no price known" if way in found.more_memory else f"{way.usd_per_token * 1e12:,.0f}"
        moved = f"; {offload_text(it)}" if it.offloads else ""
        table.add_row(
            way.name, str(way.devices), f"{way.plan.step_s:.3f}", f"{way.tokens_per_s:,.0f}", money,
            f"{way.joules_per_token:.3g}", degrees_text(it) + moved,
        )  # fmt: skip
    return Group(Text(answer_text(found), style="bold"), Text(energy_text(found)), table)


def answer_text(found: BreakEven) -> str:
    """The answer in one sentence."""
    if not found.gb_per_device:
        return f"{found.tier} stays unused: everything fits on the devices, and nothing is quicker with it"
    used = f"{found.tier}: {found.gb_per_device:.1f} GB a device in use"
    if found.usd_per_gb_hour is None:
        return f"{used}; without it nothing fits on any number of hosts that was tried, so it pays at any price"
    other = found.best_without.name
    if found.usd_per_gb_hour <= 0:
        return f"{used}; it does not pay, even for nothing: {other} is cheaper a token"
    per_month = found.usd_per_gb_hour * 730
    least = f", and free, from {found.least_bandwidth:.0%} of its bandwidth on" if found.least_bandwidth else ""
    return (
        f"{used}; it pays for itself below {found.usd_per_gb_hour:.2g} USD a GB and hour "
        f"({per_month:.2g} USD a GB and month) against {other}{least}"
    )


def energy_text(found: BreakEven) -> str:
    """Joules of a token with the tier, what of them its traffic takes, and of the best way without."""
    mine, other = found.with_tier, found.best_without
    against = "" if other.plan is None else f"; {other.name}: {other.joules_per_token:.3g}"
    moving = f", {mine.tier_joules_per_token:.2g} of them before cooling for what {found.tier} reads and writes"
    return f"a token takes {mine.joules_per_token:.3g} J at the meter{moving if found.gb_per_device else ''}{against}"
