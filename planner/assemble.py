"""From a finished search to a Plan: estimate, check without the solver, what binds, what else there was."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from typing import Any

from cost_models.calibration import Calibration
from cost_models.estimate import Estimate, estimate
from cost_models.intervals import told_apart_log
from cost_models.model_graph import ModelGraph
from cost_models.money import price_per_device_hour
from cost_models.movement import moved
from cost_models.strategy import Strategy
from cost_models.tier_movement import moved_in_tiers
from cost_models.workload import Training
from planner import __version__
from planner.apart import replica_rows
from planner.candidates import degree_table, legal_space
from planner.checks.check import check_strategy
from planner.clocks import described
from planner.errors import PlannerBug
from planner.failures.goodput_record import GoodputRecord
from planner.kinds import met_kinds, search_kinds, with_pins
from planner.limits import power_limits
from planner.objectives import minimised
from planner.options import Options
from planner.report import degrees_text
from planner.result import (
    Alternative,
    Binding,
    ClusterRecord,
    Excluded,
    ModelRecord,
    MovedRecord,
    Plan,
    Proof,
    StageMemory,
    StrategyRecord,
    Term,
    TierMemory,
)
from planner.runtime.limits import not_launched
from planner.search.budget import Budget
from planner.search.deadline import in_time
from planner.search.engine import Kept, Search, SearchResult
from planner.stopping import GRACE_S, stopped_note
from topologies.cluster import Cluster
from topologies.units import quantity_text

SAME_FRACTION = 1e-9
CLEARLY_MORE = 0.05
"""Part of the device memory from which more headroom is worth a word."""
ALTERNATIVES_S = 3.0
"""So long at most is spent on what else there was; nearly always the units of :mod:`planner.kinds` end it."""
IDLE_S = 3.0
"""So long at most is looked for a plan that leaves no device idle."""


def assemble(search: Search, found: SearchResult, notes: list[str], *, source: str) -> Plan:
    """The Plan of a search that found something. Raises ``PlannerBug`` when a check outside the search disagrees."""
    best = found.best
    if best is None or best.found is None:
        raise PlannerBug("a plan was asked for where the search found none")
    strategy = search.strategy(best)
    priced = _priced(search, strategy)
    _agree(search, best, strategy, priced)
    proved = found.proved or found.bound >= best.found.value * (1 - SAME_FRACTION)
    bound = best.found.value if found.proved else min(found.bound, best.found.value)
    others = _alternatives(search, found, strategy, priced)
    return Plan(
        meshwright_version=__version__,
        status="optimal" if proved else "feasible",
        objective_name=minimised(search.options.objective),
        objective=best.found.value,
        bound=bound,
        gap=max(0.0, (best.found.value - bound) / best.found.value),
        search_s=found.seconds,
        strategy=StrategyRecord.of(strategy),
        binding=binding(strategy, priced, search.options),
        notes=[
            *notes,
            *stopped_note(found),
            *_money_note(search),
            *_idle_note(search, found, priced),
            *_near_note(others, priced),
            *([f"advisory: {why}"] if (why := not_launched(StrategyRecord.of(strategy))) else []),
            *replica_rows(search.cluster, strategy, search.options),
        ],
        alternatives=others,
        proof=_proof(search, found),
        moved=moved_records(search.model, search.cluster, search.workload, strategy, search.fits),
        **estimate_fields(priced, search.options.headroom),
        **_inputs(search, source, priced),
    )


def _priced(search: Search, strategy: Strategy) -> Estimate:
    return estimate(
        search.model, search.cluster, search.workload, strategy,
        fits=search.fits, ticks=search.ticks, limits=power_limits(search.options),
    )  # fmt: skip


def _agree(search: Search, best: Kept, strategy: Strategy, priced: Estimate) -> None:
    """The estimate must repeat the search's step to the tick, and the strategy break no rule."""
    step = best.found.evaluation.step
    complaints = check_strategy(
        search.model, search.cluster, search.workload, strategy,
        headroom=search.options.headroom, power_cap_w=search.options.power_cap_w, fits=search.fits,
        options=search.options,
    )  # fmt: skip
    if priced.step_ticks != step:
        complaints.append(f"the search's step is {step} ticks, the estimate's {priced.step_ticks}")
    if complaints:
        raise PlannerBug("the search chose a plan that its checks refuse: " + "; ".join(complaints))


def estimate_fields(priced: Estimate, headroom: float) -> dict[str, Any]:
    """The fields of a Plan that an estimate fills."""
    limit = priced.memory_limit_bytes * (1 - headroom)
    return {
        "step_s": priced.step_s,
        "step_interval_s": priced.interval_s,
        "tokens_per_s_per_device": priced.tokens_per_s_per_device,
        "model_flop_utilisation": priced.model_flop_utilisation,
        "memory": [
            StageMemory(stage=s, need_bytes=need, limit_bytes=limit, classes=classes)
            for s, (need, classes) in enumerate(zip(priced.need_bytes, priced.memory, strict=True))
        ],
        "memory_headroom_fraction": priced.headroom_fraction,
        "tiers": [
            TierMemory(
                tier=it.name,
                need_bytes=list(it.need_bytes),
                room_bytes=it.room_bytes,
                pool_bytes=it.pool_bytes,
                pool_room_bytes=it.pool_room_bytes,
            )
            for it in priced.tiers
        ],
        "time": [Term(name=name, seconds=seconds) for name, seconds in priced.time],
        "watts": priced.watts,
        "level_watts": priced.level_watts,
        "joules_per_step": priced.joules,
        "usd_per_step": priced.usd,
        "goodput": GoodputRecord.of(priced.goodput),
    }


def moved_records(
    model: ModelGraph, cluster: Cluster, workload: Training, strategy: Strategy, fits: Calibration
) -> list[MovedRecord]:
    """What a step sends over each network level, then what it moves in each memory tier, as a plan holds it."""
    asked = model, cluster, workload, strategy, fits
    return [
        MovedRecord(level=it.level, size_bytes=it.size_bytes, joules=it.joules)
        for it in (*moved(*asked), *moved_in_tiers(*asked))
    ]


def _inputs(search: Search, source: str, priced: Estimate) -> dict[str, Any]:
    model, cluster, tokens = search.model, search.cluster, search.workload.tokens
    return {
        "joules_per_token": priced.joules / tokens,
        "tokens_per_joule": tokens / priced.joules,
        "usd_per_billion_tokens": None if priced.usd is None else priced.usd / tokens * 1e9,
        "model": ModelRecord.of(model),
        "cluster": ClusterRecord(
            name=cluster.name, source=source, digest=cluster.digest, accelerator=cluster.accelerator.name,
            hosts=cluster.hosts, devices_per_host=cluster.devices_per_host, scale_up_devices=cluster.domain_devices,
            hosts_per_rack=cluster.hosts_per_rack,
            domain_levels=cluster.domain_levels, level_names=[level.name for level in cluster.levels],
            devices=cluster.devices, hosts_used=priced.hosts_used, devices_used=priced.devices_used,
            host_names=cluster.host_names, hosts_are_named=bool(cluster.irregular and cluster.irregular.names),
        ),
        "workload": search.workload,
        "options": search.options.model_dump(mode="json"),
    }  # fmt: skip


def _proof(search: Search, found: SearchResult) -> Proof:
    before = found.incumbent_before_solver
    return Proof(
        space=described(search.space, search.options),
        rows=found.counts,
        model_digest=search.model.digest,
        cost_model_digest=search.fits.digest,
        solver=search.solver,
        incumbent_before_solver=before if before < float("inf") else None,
        tick_s=search.ticks.second,
        bound_root=found.bound_root,
        excluded=[Excluded(**entry) for entry in found.excluded],
    )


def binding(strategy: Strategy, priced: Estimate, options: Options) -> list[Binding]:
    """What keeps the plan from being better: limits it touches, then its largest shares of time."""
    found = [
        Binding(limit="power cap", detail=f"waits {s:.3g} s a step to stay under it")
        for n, s in priced.time
        if n == "power cap"
    ]
    need, worst = max((n, s) for s, n in enumerate(priced.need_bytes))
    limit = priced.memory_limit_bytes * (1 - options.headroom)
    recomputed = sum(stage.recomputed("full") + stage.recomputed("selective") for stage in strategy.stages)
    if recomputed or need > 0.95 * limit or strategy.zero >= 2:
        forced = f"; {recomputed} layers recompute" if recomputed else ""
        forced += f"; ZeRO-{strategy.zero}" if strategy.zero >= 2 else ""
        found.append(
            Binding(limit="memory", detail=f"rank {worst} needs {need / 1e9:.1f} of {limit / 1e9:.1f} GB{forced}")
        )
    shares = sorted(
        ((seconds / priced.step_s, name) for name, seconds in priced.time if name != "power cap"), reverse=True
    )
    return found + [Binding(limit=name, detail=f"{share:.0%} of the step") for share, name in shares[:2]]


def _alternatives(search: Search, found: SearchResult, strategy: Strategy, priced: Estimate) -> list[Alternative]:
    """The best plans known of other kinds (tp, cp, pp, dp, ep), with what they lose and on what.

    The search leaves a kind as soon as it cannot win, so the most promising are searched again by themselves.
    """
    best, most = met_kinds(found), search.options.alternatives
    answer: list[Alternative] = []

    def price_all() -> None:
        others = sorted(best.values(), key=lambda k: k.found.value)[:most]
        answer.extend(_alternative(search, kept, found.best.found.value, priced) for kept in others)

    with suppress(KeyboardInterrupt):
        if found.proved and most:
            until = min(search.budget.deadline, time.monotonic() + ALTERNATIVES_S)
            in_time(until, lambda: search_kinds(search, found.best, best, most))
        in_time(max(search.budget.deadline, time.monotonic()) + GRACE_S, price_all)
    return answer


def _alternative(search: Search, kept: Kept, value: float, chosen: Estimate) -> Alternative:
    strategy = search.strategy(kept)
    priced = _priced(search, strategy)
    return Alternative(
        strategy=StrategyRecord.of(strategy),
        step_s=priced.step_s,
        objective=kept.found.value,
        loses_fraction=kept.found.value / value - 1,
        reason=_difference(chosen, priced),
        headroom_fraction=priced.headroom_fraction,
    )


def _difference(chosen: Estimate, other: Estimate) -> str:
    """The two terms that grow most, and the one that shrinks most."""
    mine, theirs = dict(chosen.time), dict(other.time)
    change = sorted(((theirs.get(n, 0.0) - mine.get(n, 0.0), n) for n in {*mine, *theirs}), reverse=True)
    floor = 0.002 * chosen.step_s
    parts = [f"{name} +{quantity_text(delta, 's')}" for delta, name in change[:2] if delta > floor]
    delta, name = change[-1]
    if delta < -floor:
        parts.append(f"{name} -{quantity_text(-delta, 's')}")
    return ", ".join(parts) or "the same within 0.2 % of every term"


def _money_note(search: Search) -> list[str]:
    """That money is electricity alone, where the objective is money and nothing says what a device costs."""
    if search.options.objective != "money" or price_per_device_hour(search.cluster) is not None:
        return []
    tariff = search.cluster.facility.figures.electricity_price.value
    return [
        f"no price of {search.cluster.accelerator.name} is known: money is electricity alone, at {tariff:g} USD/kWh; "
        "price_usd_per_device_hour in a cluster file adds the devices"
    ]


def _near_note(others: list[Alternative], priced: Estimate) -> list[str]:
    """Alternatives so near that the models do not know which is faster, and the one of them with most memory free."""
    apart = told_apart_log()
    near = [a for a in others if abs(math.log(a.step_s / priced.step_s)) < apart]
    if not near:
        return []
    names = [degrees_text(a.strategy) for a in near]
    more = f" and {len(near) - 3} more" if len(near) > 3 else ""
    note = f"cannot be told apart from the plan (steps within {math.expm1(apart):.1%}): {'; '.join(names[:3])}{more}"
    return [note, *_roomier(near, priced)]


def _roomier(near: list[Alternative], priced: Estimate) -> list[str]:
    """Of plans that cannot be told apart, prefer the one that leaves clearly more memory free."""
    best = max(near, key=lambda a: a.headroom_fraction)
    if best.headroom_fraction < priced.headroom_fraction + CLEARLY_MORE:
        return []
    it = best.strategy
    pins = ",".join(f"{axis}={getattr(it, axis)}" for axis in ("tp", "cp", "pp", "zero"))
    free = f"{best.headroom_fraction:.0%} of memory free instead of {priced.headroom_fraction:.0%}"
    return [f"of these, {degrees_text(it)} leaves {free}: prefer it where memory is tight, with --pin {pins}"]


def _idle_note(search: Search, found: SearchResult, priced: Estimate) -> list[str]:
    """Why devices are left idle: the best plan that uses all of them, or that none can."""
    idle = search.cluster.devices - priced.devices_used
    if idle == 0 or "devices" in search.options.pins:
        return []
    total = search.cluster.devices
    space = legal_space(search.model, search.cluster, search.workload, {**search.options.pins, "devices": total})
    start = f"{idle} of {total} devices stay idle: "
    if not len(degree_table(space)):
        batch, layers = search.workload.global_batch, search.model.layers
        return [
            f"{start}no legal degrees multiply to that (batch {batch}, {layers} layers); this is the best use of "
            "fewer, and meshwright plan --jobs auto the best of several equal jobs"
        ]
    late = f"{start}the {found.stopped or 'time limit'} left no time to find out what using all of them would cost"
    budget = Budget(min(search.budget.deadline, time.monotonic() + IDLE_S), search.budget.left_units)
    if not found.proved or budget.over:
        return [late]
    try:
        other = with_pins(search, {"devices": total}, budget)
    except KeyboardInterrupt:
        return [late]
    if other.best is None:
        return [start + f"no plan that uses all {total} fits" + ("" if other.proved else " that was found in time")]
    worse = other.best.found.value / found.best.found.value - 1
    kind = degrees_text(StrategyRecord.of(search.strategy(other.best)))
    return [f"{start}using all {total} ({kind}) is {worse:.1%} worse"]
