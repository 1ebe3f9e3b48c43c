"""A site's cases as text: hosts, plan, rate, energy and money of a trillion tokens, a column each."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from planner.explanations.explain_report import columns
from planner.infrastructure.site import Site, SiteCase
from planner.report import degrees_text
from topologies.units import duration_text, quantity_text


def site_view(it: Site) -> RenderableType:
    """The whole report, top to bottom."""
    lines = [_lines(case) for case in it.cases]
    best = [" ✔" if case is it.best and len(it.cases) > 1 else "" for case in it.cases]
    heads = [f"{case.hosts_name}, {case.facility}{mark}" for case, mark in zip(it.cases, best, strict=True)]
    table = columns(("", "left"), *((head, "right") for head in heads))
    for name in dict.fromkeys(name for case in lines for name in case):
        table.add_row(name, *(case.get(name, "") for case in lines))
    how = "what they draw at most" if it.sized_by == "peak" else "what the plan draws on the mean"
    return Group(
        Text(f"{it.model} on a site of {quantity_text(it.power_w, 'W')}, hosts counted by {how}", style="bold"),
        table,
        *(Text(line) for case in it.cases for line in _remarks(case)),
        *(Text(f"note: {note}") for note in dict.fromkeys(note for case in it.cases for note in case.notes)),
        *(Text(f"note: {note}") for note in it.notes),
    )


def _lines(case: SiteCase) -> dict[str, str]:
    """What a case says, by line."""
    fits = case.sized
    found = {
        "PUE": f"{case.pue:g}",
        "a host draws at most": quantity_text(fits.host_peak_w, "W"),
        "hosts": f"{fits.hosts:,}",
        "racks, by power": f"{fits.racks:,} of {fits.hosts_per_rack} hosts" if fits.hosts else "0",
    }
    return found if case.plan is None else {**found, **_plan_lines(case), **_trillion_lines(case)}


def _plan_lines(case: SiteCase) -> dict[str, str]:
    plan = case.plan
    return {
        "hosts in use": f"{plan.cluster.hosts_used:,}",
        "plan": degrees_text(plan.strategy),
        "step": quantity_text(plan.step_s, "s"),
        "goodput": "" if plan.goodput is None else f"{plan.goodput.fraction:.1%}",
        "tokens/s kept": f"{case.tokens_per_s:,.0f}",
        "mean power at the meter": quantity_text(plan.watts["facility"], "W"),
    }


def _trillion_lines(case: SiteCase) -> dict[str, str]:
    days, joules = case.days_per_trillion, case.joules_per_trillion
    if days is None or joules is None:
        return {"a trillion tokens": "never"}
    rent, electricity = case.rent_usd_per_trillion, case.electricity_usd_per_trillion or 0.0
    return {
        "a trillion tokens": duration_text(days * 86400),
        "  energy": quantity_text(joules / 3600, "Wh"),
        "  electricity": quantity_text(electricity, "USD"),
        "  rent": "no price known" if rent is None else quantity_text(rent, "USD"),
    }


def _remarks(case: SiteCase) -> list[str]:
    """Why there is no plan, or why hosts stay idle."""
    name = f"{case.hosts_name}, {case.facility}"
    if case.plan is None:
        return [f"{name}: {case.reason}"]
    return [f"{name}: {note}" for note in case.plan.notes if "stay idle" in note]
