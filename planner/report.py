"""Plans, estimates and comparisons as text for a terminal, and as HTML for a notebook."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cost_models.estimate import Estimate
from cost_models.strategy import OFFLOADED
from planner.failures.goodput_report import goodput_lines
from planner.host_order import host_rows
from planner.report_objectives import figures_text, stage_rows, training_rows
from planner.result import ClusterRecord, Plan, StrategyRecord
from topologies.units import quantity_text

if TYPE_CHECKING:
    from planner.mixed.result import MixedPlan

WIDTH = 110
REMOVED_BY = {
    "memory": "by memory", "bound": "by their bound", "dominated": "dominated", "columns": "by their stages' columns",
    "hosts": "without hosts", "cp-sat": "by CP-SAT", "open": "left open",
}  # fmt: skip


def as_text(content: RenderableType, width: int = WIDTH) -> str:
    """What a terminal of that width would show, without colours."""
    console = Console(width=width, file=io.StringIO(), force_terminal=False, force_jupyter=False, color_system=None)
    console.print(content)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().split("\n")) + "\n"


def summary(plan: Plan) -> str:
    """The plan as text: what, how long, memory, power and money, proof, alternatives."""
    return as_text(plan_view(plan))


def plan_view(plan: Plan | MixedPlan) -> Group:
    """Everything a reader wants first, top to bottom."""
    if not isinstance(plan, Plan):
        from planner.mixed.report import mixed_view

        return mixed_view(plan)
    parts: list[RenderableType] = [
        _head(plan),
        _choice(plan),
        _time(plan),
        _memory(plan),
        _consumption(plan),
        _proof(plan),
    ]
    if plan.alternatives:
        parts.append(_alternatives(plan))
    parts += [Text(f"note: {note}") for note in plan.notes]
    return Group(*parts)


def _head(plan: Plan) -> Text:
    cluster, work = plan.cluster, plan.workload
    size = quantity_text(plan.model.parameters, "").strip()
    active = (
        ""
        if plan.model.active_parameters == plan.model.parameters
        else f", {quantity_text(plan.model.active_parameters, '').strip()} active"
    )
    return Text(
        f"{plan.model.name} ({size} parameters{active}) on {cluster.source}: "
        f"{cluster.devices_used} of {cluster.devices} x {cluster.accelerator}\n"
        f"sequence {work.seq_len}, batch {work.global_batch}, {work.precision}, {work.optimizer}",
        style="bold",
    )


def degrees_text(it: StrategyRecord) -> str:
    """``tp 2 x cp 2 x pp 4 x dp 2``, axes of 1 left out, experts after a semicolon."""
    dense = [f"{a} {getattr(it, a)}" for a in ("tp", "cp", "pp") if getattr(it, a) > 1]
    dp = it.dp_replicate * it.dp_shard
    dense += [f"dp {dp}"] if dp > 1 else []
    experts = [f"{a} {getattr(it, a)}" for a in ("ep", "etp") if getattr(it, a) > 1]
    text = " x ".join(dense) or "one device"
    text += f"; embedding and head tp {it.vocab_tp}" if it.vocab_tp not in (0, it.tp) else ""
    return text + ("; experts " + " x ".join([*experts, f"edp {it.edp}"]) if experts else "")


def _choice(plan: Plan) -> Table:
    it = plan.strategy
    rows = [
        ("parallel", degrees_text(it)),
        ("states", _states(it)),
        ("schedule", _schedule(it)),
        ("layers", _layers(it.layers_per_stage)),
        ("recompute", recompute_text(it)),
        *([("clocks", clocks_text(it.clocks))] if it.clocks else []),
        *([("offload", offload_text(it))] if it.offloads else []),
        ("placement", _placement(it, plan.cluster)),
        *host_rows(plan),
    ]
    return _pairs(rows)


def _states(it: StrategyRecord) -> str:
    if it.zero == 0:
        return "replicated"
    copies = f", {it.dp_replicate} replicas" if it.dp_replicate > 1 else ""
    what = {1: "optimiser", 2: "optimiser and gradients", 3: "optimiser, gradients and weights"}[it.zero]
    return f"ZeRO-{it.zero}: {what} sharded over {it.dp_shard * it.cp} (dp_shard {it.dp_shard} x cp {it.cp}){copies}"


def _schedule(it: StrategyRecord) -> str:
    name = schedule_text(it.schedule, it.virtual_stages, it.in_flight)
    return f"{name if it.pp > 1 else 'no pipeline'}, {it.micro_batches} micro-batches of {it.micro_batch}"


NAMES = {
    "1f1b": "1F1B", "zb-h1": "zero bubble H1", "zbv": "zero bubble V", "dualpipe": "DualPipe", "dualpipev": "DualPipeV",
}  # fmt: skip


def schedule_text(kind: str, virtual_stages: int, in_flight: int) -> str:
    """A schedule by the name that its users know."""
    if kind == "interleaved":
        return f"interleaved 1F1B, {virtual_stages} virtual stages a device"
    if kind == "eager-1f1b":
        return f"eager 1F1B, {in_flight} micro-batches in flight on the first stage"
    return NAMES.get(kind, kind)


def _layers(counts: list[int]) -> str:
    """``3 + 30 x 2 + 1``: runs of equal stages."""
    runs: list[list[int]] = []
    for n in counts:
        if runs and runs[-1][1] == n:
            runs[-1][0] += 1
        else:
            runs.append([1, n])
    return " + ".join(f"{times} x {n}" if times > 1 else str(n) for times, n in runs)


def recompute_text(it: StrategyRecord) -> str:
    """How many layers recompute, by kind, and on which stages."""
    parts = []
    for kind in ("full", "selective"):
        counts = [sum(n for n, k in stage if k == kind) for stage in it.recompute]
        if any(counts):
            where = [s for s, n in enumerate(counts) if n]
            parts.append(
                f"{sum(counts)} layers {kind} ({_stages(where)})" if len(counts) > 1 else f"{sum(counts)} layers {kind}"
            )
    return ", ".join(parts) or "none"


def clocks_text(clocks: list[float]) -> str:
    """``2 x 0.9 + 6 x 0.85 of the full clock``, by pipeline stage in order; ``full`` for none, which are all full."""
    runs = [f"{len(list(same))} x {clock:g}" for clock, same in itertools.groupby(clocks)]
    return (f"{clocks[0]:g}" if len(runs) == 1 else " + ".join(runs)) + " of the full clock" if clocks else "full"


def offload_text(it: StrategyRecord) -> str:
    """``optimizer of 12 of 32 layers to dram, activations of 7 of 32 layers to nvme``."""
    last = [name for name in OFFLOADED[:3] if name in {o.tensors for o in it.offloads}][-1:]
    first = {**dict.fromkeys(last, it.offloaded), "activations": it.activations_offloaded}
    layers, parts = " + ".join(map(str, it.layers_per_stage)), []
    for o in it.offloads:
        some = ", ".join(map(str, first.get(o.tensors, ())))
        parts.append(f"{o.tensors} of {some} of {layers} layers to {o.tier}" if some else o.text())
    return ", ".join(parts) or "nothing"


def _stages(where: list[int]) -> str:
    return f"stage {where[0]}" if len(where) == 1 else f"stages {where[0]} to {where[-1]}"


def _level_names(cluster: ClusterRecord, levels: int) -> list[str]:
    """Words for where a factor lies, level by level."""
    inside = ["inside a scale-up domain"]
    if cluster.domain_levels > 1:
        inside = [f"{'along' if 'torus' in name else 'inside a'} {name}" for name in cluster.level_names]
    between = ["across", *(f"across level {k}" for k in range(cluster.domain_levels + 2, levels + 2))]
    return [*inside[: cluster.domain_levels], *between]


def _placement(it: StrategyRecord, cluster: ClusterRecord) -> str:
    levels = len(next(iter(it.placement.values())))
    names = _level_names(cluster, levels)
    parts = []
    for k in range(levels):
        here = [
            f"{axis} {it.placement[axis][k]}"
            for axis in ("tp", "cp", "dp_shard", "dp_replicate", "pp")
            if it.placement[axis][k] > 1
        ]
        if here:
            parts.append(f"{names[k]}: {', '.join(here)}")
    return "; ".join(parts) or "one device"


def _time(plan: Plan) -> Group:
    low, high = plan.step_interval_s
    title = (
        f"step {quantity_text(plan.step_s, 's')} "
        f"(90 % interval {quantity_text(low, 's')} to {quantity_text(high, 's')}), "
        f"{plan.tokens_per_s_per_device:,.0f} tokens/s a device, MFU {plan.model_flop_utilisation:.1%}"
    )
    table = Table(box=SIMPLE_HEAD)
    for name, justify in (("time", "left"), ("seconds", "right"), ("share", "right")):
        table.add_column(name, justify=justify)
    for term in plan.time:
        table.add_row(term.name, f"{term.seconds:.3f}", f"{term.seconds / plan.step_s:.1%}")
    return _titled(title, table)


def _memory(plan: Plan) -> Group:
    ranks = [plan.memory[k] for k in sorted({0, len(plan.memory) // 2, len(plan.memory) - 1})]
    fullest = max(plan.memory, key=lambda m: m.need_bytes)
    ranks = sorted({m.stage: m for m in [*ranks, fullest]}.values(), key=lambda m: m.stage)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("class")
    for rank in ranks:
        table.add_column(str(rank.stage), justify="right")
    for name in fullest.classes:
        table.add_row(name, *(f"{rank.classes[name] / 1e9:.2f}" for rank in ranks))
    table.add_row("all", *(f"{rank.need_bytes / 1e9:.2f}" for rank in ranks), style="bold")
    for use in plan.tiers:
        label = f"in {use.tier}, of {use.room_bytes / 1e9:.1f}"
        if use.pool_bytes is not None and use.pool_room_bytes is not None:
            held, room = (quantity_text(size, "B") for size in (use.pool_bytes, use.pool_room_bytes))
            label = f"in {use.tier} (pool {held} of {room})"
        table.add_row(label, *(f"{use.need_bytes[rank.stage] / 1e9:.2f}" for rank in ranks))
    return _titled(f"memory, GB a device of {fullest.limit_bytes / 1e9:.1f}, by pipeline rank", table)


def _consumption(plan: Plan) -> Table:
    watts = ", ".join(f"{name} {quantity_text(w, 'W')}" for name, w in plan.watts.items() if name != "facility")
    money = (
        "no price known"
        if plan.usd_per_step is None
        else f"{plan.usd_per_step:.3g} USD a step, {plan.usd_per_billion_tokens:,.0f} USD a billion tokens"
    )
    rows = [
        ("power", f"{quantity_text(plan.watts['facility'], 'W')} ({watts})"),
        *([("  fullest", _by_level(plan))] if plan.level_watts else []),
        ("energy", f"{quantity_text(plan.joules_per_step, 'J')} a step, {plan.joules_per_token:.3g} J a token"
                    f" ({1 / plan.joules_per_token:.3g} tokens a joule)"),
        *([("moved", _moved(plan))] if plan.moved else []),
        ("money", money),
    ]  # fmt: skip
    return _pairs([*rows, *training_rows(plan), *goodput_lines(plan)])


def _by_level(plan: Plan) -> str:
    """Mean watts of the fullest device, host and rack; the rack's where the cluster says what stands in one."""
    inside = {level: watts for level, watts in plan.level_watts.items() if level != "site"}
    return ", ".join(f"{level} {quantity_text(watts, 'W')}" for level, watts in inside.items())


def _moved(plan: Plan) -> str:
    """Bytes a step by network level and memory tier, with the joules on the wire or for the tier where known."""
    parts, tiers = [], {tier.tier for tier in plan.tiers}
    for it in plan.moved:
        what = "" if it.level in tiers else " on the wire"
        joules = "" if it.joules is None else f" ({quantity_text(it.joules, 'J')}{what})"
        parts.append(f"{it.level} {quantity_text(it.size_bytes, 'B')}{joules}")
    return ", ".join(parts)


def _proof(plan: Plan) -> Table:
    rows, proof = plan.proof.rows, plan.proof
    said = {"optimal": "proved optimal", "feasible": f"gap {plan.gap:.2%}", "estimate": "not searched"}[plan.status]
    counted = (
        f"{rows.get('degrees', 0):,} degree tuples, {rows.get('rows', 0):,} rows priced, "
        f"{rows.get('rows_evaluated', 0):,} evaluated, {rows.get('rows_to_solver', 0):,} to CP-SAT"
    )
    pairs = [
        ("proof", f"{said} in {plan.search_s:.2f} s: {figures_text(plan)}"),
        *stage_rows(plan),
        ("searched", counted),
        *_removed(plan),
        ("binding", "; ".join(f"{b.limit}: {b.detail}" for b in plan.binding)),
    ]
    if proof.incumbent_before_solver:
        before, after = proof.incumbent_before_solver, plan.objective
        pairs.insert(-1, ("incumbent", f"{before:.6g} before CP-SAT, {after:.6g} after it"))
    if proof.incumbent_before_solver and proof.incumbent_before_solver > plan.objective * (1 + 1e-9):
        pairs.append(
            ("CP-SAT gained", f"{1 - plan.objective / proof.incumbent_before_solver:.2%} on the best balanced cut")
        )
    return _pairs(pairs)


def _removed(plan: Plan) -> list[tuple[str, str]]:
    """How many rows were removed by what, at every stage together; the least bound among them, of the objective."""
    said = []
    for reason in dict.fromkeys(entry.reason for entry in plan.proof.excluded):
        mine = [entry for entry in plan.proof.excluded if entry.reason == reason]
        least = min((entry.least_bound for entry in mine if entry.least_bound is not None), default=None)
        shown = "" if least is None else f" (least {least:.6g})"
        said.append(f"{sum(entry.rows for entry in mine):,} {REMOVED_BY[reason]}{shown}")
    return [("removed", ", ".join(said))] if said else []


def _alternatives(plan: Plan) -> Group:
    table = Table(box=SIMPLE_HEAD)
    for name in ("", "parallel", "zero", "mbs", "step", "loses", "on"):
        table.add_column(name, justify="right" if name in ("step", "loses") else "left")
    table.add_row(
        "✔",
        degrees_text(plan.strategy),
        str(plan.strategy.zero),
        str(plan.strategy.micro_batch),
        f"{plan.step_s:.3f} s",
        "",
        "",
    )
    for other in plan.alternatives:
        it = other.strategy
        table.add_row(
            "",
            degrees_text(it),
            str(it.zero),
            str(it.micro_batch),
            f"{other.step_s:.3f} s",
            f"{other.loses_fraction:.2%}",
            other.reason,
        )
    return _titled("next best of other kinds", table)


def _titled(title: str, table: Table) -> Group:
    return Group(Text(f"\n{title}", style="bold"), table)


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    return table


def comparison(mine: Estimate, mine_it: StrategyRecord, plan: Plan | None, limit_bytes: float) -> Table:
    """ "Mine" beside the plan, line by line; alone where there is no plan."""
    table = Table(box=SIMPLE_HEAD)
    for name, justify in (("", "left"), ("mine", "right"), ("plan", "right"), ("mine / plan", "right")):
        table.add_column(name, justify=justify)
    other = () if plan is None else (plan.strategy,)
    theirs = {name: text for it in other for name, text in strategy_lines(it, mine_it).items()}
    for name, text in strategy_lines(mine_it, *other).items():
        table.add_row(name, text, theirs.get(name, ""), "")
    mine_numbers, their_numbers = _numbers(mine), {} if plan is None else _plan_numbers(plan)
    for name in dict.fromkeys([*mine_numbers, *their_numbers]):
        _ratio_row(table, name, mine_numbers.get(name, 0.0), their_numbers.get(name, 0.0), alone=plan is None)
    need = max(mine.need_bytes)
    fits = "yes" if need <= limit_bytes else f"no: {need / 1e9:.1f} of {limit_bytes / 1e9:.1f} GB"
    table.add_row("fits", fits, "nothing does" if plan is None else "yes", "")
    return table


def strategy_lines(it: StrategyRecord, *beside: StrategyRecord) -> dict[str, str]:
    """What a strategy decides, a line each; clocks and offloading where it or one ``beside`` it has them."""
    shown = (it, *beside)
    return {
        "parallel": degrees_text(it), "zero": str(it.zero), "schedule": _schedule(it),
        "layers": _layers(it.layers_per_stage), "recompute": recompute_text(it),
        **({"clocks": clocks_text(it.clocks)} if any(one.clocks for one in shown) else {}),
        **({"offload": offload_text(it)} if any(one.offloads for one in shown) else {}),
    }  # fmt: skip


def _numbers(it: Estimate) -> dict[str, float]:
    return {
        "step, s": it.step_s, **{f"  {name}": seconds for name, seconds in it.time},
        "memory, GB": max(it.need_bytes) / 1e9,
        "power, kW": it.watts["facility"] / 1e3, "energy, MJ a step": it.joules / 1e6,
        "tokens/s a device": it.tokens_per_s_per_device, "goodput, %": 100 * it.goodput.fraction,
    }  # fmt: skip


def _plan_numbers(it: Plan) -> dict[str, float]:
    return {
        "step, s": it.step_s, **{f"  {term.name}": term.seconds for term in it.time},
        "memory, GB": max(m.need_bytes for m in it.memory) / 1e9, "power, kW": it.watts["facility"] / 1e3,
        "energy, MJ a step": it.joules_per_step / 1e6, "tokens/s a device": it.tokens_per_s_per_device,
        **({} if it.goodput is None else {"goodput, %": 100 * it.goodput.fraction}),
    }  # fmt: skip


def _ratio_row(table: Table, name: str, mine: float, plan: float, *, alone: bool) -> None:
    shown = min(mine, plan) >= 0.0005 and not alone
    table.add_row(name, f"{mine:,.3f}", "" if alone else f"{plan:,.3f}", f"{mine / plan:.2f}" if shown else "")
