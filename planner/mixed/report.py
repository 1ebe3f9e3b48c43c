"""A mixed plan as text: stages in a table, parts, proof."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from planner.limits import LIMITS, amount, power_limits, training_steps
from planner.mixed.one_mesh import clocks_of
from planner.mixed.result import MixedPlan, StageRecord
from planner.objectives import OBJECTIVES
from planner.options import read_options
from planner.report_objectives import stage_rows
from topologies.units import quantity_text


def mixed_view(plan: MixedPlan) -> Group:
    """Everything a reader wants first, top to bottom."""
    from planner.report import plan_view

    parts = [_head(plan)]
    parts.append(stages_view(plan) if plan.alone is None else plan_view(plan.alone))
    parts += [_parts(plan), _proof(plan), *(Text(f"note: {note}") for note in plan.notes)]
    return Group(*parts)


def _head(plan: MixedPlan) -> Text:
    work, (low, high) = plan.workload, plan.step_interval_s
    used = " + ".join(f"{p.devices_used} of {p.devices} x {p.accelerator}" for p in plan.parts)
    kind = "advisory: no launch target expresses such stages" if plan.advisory else _kind(plan)
    return Text(
        f"{plan.model.name} ({quantity_text(plan.model.parameters, '').strip()} parameters) on {plan.cluster_name}: "
        f"{used}\nsequence {work.seq_len}, batch {work.global_batch}, {work.precision}, {work.optimizer}\n"
        f"step {quantity_text(plan.step_s, 's')} (90 % interval {quantity_text(low, 's')} to "
        f"{quantity_text(high, 's')}), {plan.tokens_per_s:,.0f} tokens/s; {kind}"
        f"{_rent(plan)}{_power(plan)}{_training(plan)}",
        style="bold",
    )


def _rent(plan: MixedPlan) -> str:
    if plan.usd_per_step is None:
        return ""
    hosts = " + ".join(str(part.hosts_used) for part in plan.parts)
    return f"\nrent of {hosts} hosts {plan.usd_per_step:.4g} USD a step"


def _power(plan: MixedPlan) -> str:
    """Mean power and energy, where the plan has them."""
    if plan.joules_per_step is None:
        return ""
    each = ", ".join(f"{name} {quantity_text(w, 'W')}" for name, w in plan.watts.items() if name != "facility")
    joules, token = plan.joules_per_step, plan.joules_per_step / plan.workload.tokens
    return (
        f"\npower {quantity_text(plan.watts['facility'], 'W')} ({each}){_levels(plan)}\nenergy "
        f"{quantity_text(joules, 'J')} a step, {token:.3g} J a token"
    )


def _levels(plan: MixedPlan) -> str:
    """Mean watts of the fullest device, host and rack in use, limits on any, and how long the step waits for them."""
    limits, found = power_limits(read_options(**plan.options)).given, []
    for level, watts in plan.level_watts.items():
        limit = f" of {quantity_text(limits[level], 'W', 4)} at most" if level in limits else ""
        if limit or level != "site":
            name = "all sites" if level == "site" else level
            found.append(f"{name} {quantity_text(watts, 'W', 4 if limit else 3)}{limit}")
    waits = f"; the step waits {quantity_text(plan.waits_s, 's')} for its watts" if plan.waits_s > 0 else ""
    return f"\nfullest {', '.join(found)}{waits}" if found else ""


def _training(plan: MixedPlan) -> str:
    """What training takes, where tokens were given."""
    steps = training_steps(read_options(**plan.options), plan.workload)
    if steps is None:
        return ""
    usd = "" if plan.usd_per_step is None else f", {amount(steps * plan.usd_per_step, LIMITS['money'])}"
    tokens, time = plan.options["tokens"], amount(steps * plan.step_s, LIMITS["train-time"])
    return f"\ntraining {tokens:.4g} tokens in {steps:,} steps: {time}{usd}"


def rent_text(plan: MixedPlan) -> str:
    """Rent of a step behind a comma, nothing where a part has no price."""
    return "" if plan.usd_per_step is None else f", rent {plan.usd_per_step:.4g} USD"


def _kind(plan: MixedPlan) -> str:
    return "a pipeline over several parts" if plan.alone is None else "on one part alone"


def stages_view(plan: MixedPlan) -> Group:
    """The stages of a pipeline over several parts, a row each."""
    table, slower = Table(box=SIMPLE_HEAD), bool(clocks_of(plan.stages))
    clock = ["clock"] if slower else []
    for name in ("stage", "devices", "parallel", "zero", "mbs", "layers", "recompute", *clock, "pass", "hop", "GB"):
        table.add_column(name, justify="left" if name in ("devices", "parallel", "recompute") else "right")
    for s, it in enumerate(plan.stages):
        table.add_row(
            str(s), f"{it.devices} x {it.accelerator}", _degrees(it), str(it.zero), str(it.micro_batch), str(it.layers),
            _recompute(it), *([f"{it.clock:g}"] if slower else []), f"{1e3 * (it.forward_s + it.backward_s):.1f} ms",
            f"{1e3 * it.hop_s:.2f} ms" if s + 1 < len(plan.stages) else "",
            f"{it.need_bytes / 1e9:.1f} of {it.limit_bytes / 1e9:.1f}",
        )  # fmt: skip
    head = Text(f"\n1F1B, {plan.micro_batches} micro-batches, {len(plan.stages)} stages", style="bold")
    return Group(head, table, *(Text(text) for text in _offloads(plan)))


def _offloads(plan: MixedPlan) -> Iterator[str]:
    """What every stage keeps in memory tiers, neighbours alike together."""
    for said, several in itertools.groupby(range(len(plan.stages)), key=lambda s: _offload(plan.stages[s])):
        if said:
            first, *others = several
            which = f"stages {first} to {others[-1]}" if others else f"stage {first}"
            yield f"offload  {which}: {said}"


def _offload(it: StageRecord) -> str:
    left = [one.text() for one in it.offloads]
    held = [f"{size / 1e9:.4g} of {it.tier_room_bytes[n] / 1e9:.4g} GB in {n}" for n, size in it.tier_bytes.items()]
    return ", ".join([*left, *held])


def _degrees(it: StageRecord) -> str:
    named = [f"{axis} {getattr(it, axis)}" for axis in ("tp", "cp", "dp", "ep") if getattr(it, axis) > 1]
    return " x ".join(named) or "one device"


def _recompute(it: StageRecord) -> str:
    return ", ".join(f"{count} {kind}" for count, kind in it.recompute if kind != "none") or "none"


def _parts(plan: MixedPlan) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    unit = OBJECTIVES[plan.objective_name]
    for part in plan.parts:
        unused = "left unused; " if part.devices_used == 0 else ""
        table.add_row(part.name, f"{unused}alone it takes at least {part.alone_bound:.6g} {unit} a step")
    return table


def _proof(plan: MixedPlan) -> Table:
    rows, proof = plan.proof.rows, plan.proof
    said = "proved optimal" if plan.status == "optimal" else f"gap {plan.gap:.2%}"
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    met = f"{plan.objective_name} {plan.objective:.6g}, bound {plan.bound:.6g}"
    table.add_row("proof", f"{said} in {plan.search_s:.2f} s: {met}")
    for name, text in stage_rows(plan):
        table.add_row(name, text)
    hosts = f"{rows['boxes']:,} boxes of host counts, {rows['host_counts']:,} of one, " if "boxes" in rows else ""
    table.add_row(
        "searched",
        f"{hosts}{rows['ways']:,} ways to run a stage, {rows['jobs']:,} jobs of which {rows['jobs_by_bound']:,} fell "
        f"to their bounds, {rows['labels']:,} partial pipelines, {rows['jobs_to_solver']:,} jobs to CP-SAT",
    )
    before = proof.incumbent_before_solver
    if before and before > plan.objective * (1 + 1e-9):
        table.add_row("CP-SAT gained", f"{1 - plan.objective / before:.2%}")
    return table
