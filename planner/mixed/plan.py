"""``plan()`` on a mixed cluster: one pipeline over all parts, and every part alone, under one bound."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cost_models.clocks import FULL
from cost_models.intervals import interval, kind_of
from cost_models.mixed import Machine, MixedEvaluation, MixedStage, MixedStrategy, evaluate_mixed
from cost_models.mixed_power import mixed_watts
from cost_models.mixed_power_levels import Held, mixed_level_watts, mixed_wait_s, step_within
from cost_models.model_graph import ModelGraph
from cost_models.workload import Training
from planner import __version__
from planner.checks.mixed_ways import place, reserved
from planner.clocks import search_clocks
from planner.defaults import default_workload
from planner.errors import BadInput, InfeasiblePlan, PlannerBug
from planner.limits import RELATIVE
from planner.mixed.asked import QUANTITIES, Asked, asked_of, check_asked
from planner.mixed.check import broken
from planner.mixed.inputs import legal_alone, part_alone
from planner.mixed.launch import refusals
from planner.mixed.refusal import above_limits, limits_of, no_plan
from planner.mixed.result import MixedPlan, PartRecord, StageRecord
from planner.options import Options
from planner.result import ModelRecord, Plan, Proof
from planner.stopping import INTERRUPT, stopped_note
from planner.strategy_record import OffloadRecord
from topologies.cluster import Cluster
from topologies.mixed import MixedCluster

if TYPE_CHECKING:
    from planner.search.budget import Budget
    from planner.search.mixed.alone import Alone
    from planner.search.mixed.engine import MixedResult, Report
    from planner.search.mixed.space import MixedSpace

LEAST_UNITS = 0.01
PIPELINE_SHARE = 0.85
"""Part of both limits for the pipeline over all parts; every part alone gets what is left of the whole."""
PARTS_SHARE = 0.3
"""Part of both limits for the parts where they come first; what is not proved then is asked again at the end."""


def plan_mixed(
    model: ModelGraph, cluster: MixedCluster, options: Options, asked: dict[str, Any], progress: Report, source: str,
    *, start: object = None, jobs: int | str = 1,
) -> MixedPlan:  # fmt: skip
    """The best plan on a mixed cluster: never slower than the best on one of its parts.

    ``start`` and ``jobs`` are there to be refused.

    Raises ``BadInput`` for what is not searched on mixed clusters, ``InfeasiblePlan`` when nothing fits,
    ``SearchGaveUp`` when the time limit passes before any plan is found.
    """
    check_asked(options, start, jobs)
    cluster = cluster.with_tiers(options.tiers)
    workload, notes = _workload(model, cluster, asked)
    names = options.objective.split(",")
    for name in names:
        asked_of(cluster, workload, options.model_copy(update={"objective": name}))
    machine = Machine.of(model, cluster, workload)

    def solved(one: Options) -> MixedPlan:
        return _solved(machine, one, progress, source, notes)

    try:
        if len(names) == 1:
            return solved(options)
        from planner.mixed.in_order import planned_in_order

        return planned_in_order(solved, options, workload)
    except InfeasiblePlan as error:
        if not limits_of(options):
            raise
        raise above_limits(error, solved, options, workload) from error


def _solved(machine: Machine, options: Options, progress: Report, source: str, notes: list[str]) -> MixedPlan:
    """The best plan for one objective.

    Raises ``KeyboardInterrupt`` for Ctrl-C before there is a plan, ``InfeasiblePlan``, ``SearchGaveUp`` and, for a pin
    that neither stages nor parts alone can have, ``BadInput`` as :func:`plan_mixed`.
    """
    began = time.monotonic()
    space = space_of(machine, options, asked_of(machine.cluster, machine.workload, options))
    if (refused := space.refused_pin) and not legal_alone(machine, options.pins):
        raise BadInput(refused)
    found, alone = _searched(space, options, progress, began)
    if found.best is None and alone.best is None:
        if found.stopped == INTERRUPT:
            raise KeyboardInterrupt
        raise no_plan(space, options, found.stopped, found.proved and alone.proved)
    notes = [*notes, *stopped_note(found, starts=False)]
    return _plan(space, options, found, alone, notes, source, time.monotonic() - began)


def space_of(machine: Machine, options: Options, asked: Asked) -> MixedSpace:
    """The space that options leave on a machine."""
    from planner.search.mixed.space import MixedSpace

    limits = tuple(int(part.memory_bytes * (1 - options.headroom)) for part in machine.cluster.parts)
    clocks = search_clocks(options) if asked.weighs_joules else (FULL,)
    return MixedSpace(machine, dict(options.pins), limits, asked, clocks)


def _searched(space: MixedSpace, options: Options, progress: Report, began: float) -> tuple[MixedResult, Alone]:
    """The best pipeline and the best plan on one part alone, within the limits on time and work.

    What comes first is what the other has to beat: pipelines, or, where hosts in use count, the parts, of which one is
    cheap or thrifty.
    """
    from planner.search.budget import Budget
    from planner.search.mixed.alone import Alone, search_alone
    from planner.search.mixed.engine import MixedResult

    machine, tick, end = space.machine, space.machine.ticks.second, began + options.time_limit_s
    units = options.deterministic_limit or math.inf

    def parts(beat: float, budget: Budget) -> Alone:
        own = options.model_copy(update={"clocks": len(space.clocks) > 1})
        return search_alone(machine.model, machine.cluster, machine.workload, own, beat, budget, progress)

    def pipelines(beat: float, budget: Budget) -> MixedResult:
        def told(stage: str, best: float, bound: float) -> None:
            progress(stage, best * tick, bound * tick)

        return pipelines_below(space, budget, beat / tick, told)

    def upto(share: float, spent: float) -> Budget:
        """What is left of a share of both limits."""
        return Budget(began + share * (end - began), max(LEAST_UNITS, share * units - spent))

    if not space.asked.weighs_hosts:
        first = upto(PIPELINE_SHARE, 0.0)
        found = pipelines(math.inf, first)
        if found.stopped == INTERRUPT:
            return found, Alone(None, (0.0,) * len(space.limits), False)
        return _after(found, parts(found.value * tick, upto(1.0, first.spent)))
    first = upto(PARTS_SHARE, 0.0)
    alone = parts(math.inf, first)
    if alone.interrupted:
        return MixedResult.unknown(time.monotonic() - began, INTERRUPT), alone
    second = upto(PIPELINE_SHARE, first.spent)
    found = pipelines(_value(alone), second)
    if alone.proved or found.stopped == INTERRUPT:
        return found, alone
    again = parts(min(_value(alone), found.value * tick), upto(1.0, first.spent + second.spent))
    return _after(found, _better(alone, again))


def _after(found: MixedResult, alone: Alone) -> tuple[MixedResult, Alone]:
    """Pipelines and the parts that were looked at after them, by Ctrl-C not to the end."""
    return dataclasses.replace(found, stopped=INTERRUPT) if alone.interrupted else found, alone


def _value(alone: Alone) -> float:
    return math.inf if alone.best is None else alone.best.objective


def _better(one: Alone, other: Alone) -> Alone:
    """What two searches of the parts say together, the other asked for what is better than the one's."""
    bounds = tuple(map(max, one.bounds, other.bounds))
    return type(one)(other.best or one.best, bounds, one.proved or other.proved, other.interrupted)


def pipelines_below(space: MixedSpace, budget: Budget, beat: float, report: Report) -> MixedResult:
    """The best pipeline below ``beat`` ticks, or, where rent or energy is minimised, these times dollars a second or
    watts."""
    from planner.search.mixed.engine import MixedSearch
    from planner.search.mixed.rent import RentSearch, Wanted
    from planner.search.mixed.waiting import lines_of
    from planner.search.mixed.weighing import Weighing

    asked, tick = space.asked, space.machine.ticks.second
    most = {name: limit / tick * (1 + RELATIVE) for name, limit in zip(QUANTITIES, asked.limits.values(), strict=True)}
    if not asked.weighs_hosts:
        ticks = math.floor(most["time"]) + 1 if math.isfinite(most["time"]) else math.inf
        hosts = np.array([part.hosts for part in space.machine.cluster.parts])
        waits = {"minimised": False, "waits": True, "lines": lines_of(space, hosts, 0.0)} if asked.waits else {}
        return MixedSearch(space, budget, min(beat, ticks), report, weighing=Weighing(**waits)).run()
    most[asked.minimised] = min(most[asked.minimised], beat)
    rates = np.array(asked.usd_per_s) if asked.weighs_rent else np.zeros(len(space.limits))
    site_w = math.inf if asked.power.site_w is None else asked.power.site_w
    watts = np.array(asked.idle_w) if asked.weighs_energy or site_w < math.inf else None
    wanted = Wanted(asked.minimised, rates, *most.values(), watts, site_w, asked.waits)
    return RentSearch(space, budget, wanted, report).run()


def best_pipeline(
    machine: Machine, options: Options, bounds: tuple[float, ...], source: str
) -> tuple[MixedPlan | None, float, bool]:
    """The quickest pipeline of two stages or more, what no pipeline goes below in seconds, and whether that is proved.

    ``bounds`` are what is known of every part alone, which is not searched. Raises ``KeyboardInterrupt`` for Ctrl-C
    before there is a pipeline.
    """
    from planner.search.budget import Budget
    from planner.search.mixed.alone import Alone

    began = time.monotonic()
    space = space_of(machine, options, asked_of(machine.cluster, machine.workload, options))
    budget = Budget(began + options.time_limit_s, options.deterministic_limit or math.inf)
    found = pipelines_below(space, budget, math.inf, lambda *_: None)
    if found.best is None and found.stopped == INTERRUPT:
        raise KeyboardInterrupt
    bound_s = found.bound * machine.ticks.second
    if found.best is None:
        return None, bound_s, found.proved
    notes = ["pipelines alone were searched for; of the parts alone only bounds are known"]
    plan = _plan(space, options, found, Alone(None, bounds, False), notes, source, time.monotonic() - began)
    return plan, bound_s, found.proved


def _workload(model: ModelGraph, cluster: MixedCluster, asked: dict[str, Any]) -> tuple[Training, list[str]]:
    """The workload for as many devices as there are, in a precision that every part has."""
    precision = asked["precision"] or next(
        (name for name in ("bf16", "fp16") if all(part.supports(name) for part in cluster.parts)), "fp32"
    )
    first, notes = cluster.parts[0], []
    whole = dataclasses.replace(first, hosts=-(-cluster.devices // first.devices_per_host))
    workload, notes = default_workload(model, whole, **{**asked, "precision": precision})
    if asked["precision"] is None:
        notes.append(f"precision {precision} assumed (every part has it)")
    said = {"seq_len": workload.seq_len, "global_batch": workload.global_batch, "precision": precision}
    for part in cluster.parts[1:]:
        notes += [note for note in default_workload(model, part, **{**asked, **said})[1] if note not in notes]
    return workload, notes


def _plan(
    space: MixedSpace, options: Options, found: MixedResult, alone: Alone, notes: list[str], source: str, seconds: float
) -> MixedPlan:
    from planner.search.mixed.pipelines import durations, strategy_of

    tick, single = space.machine.ticks.second, alone.best
    value = found.value * tick
    if single is not None and single.objective < value:
        value, strategy, stages, step = single.objective, None, [], 0
    else:
        single, strategy = None, strategy_of(found.table, found.best)
        step = durations(found.table, found.best).step
        stages = _stage_records(space, strategy, step)
    bound = min(value, found.bound * tick, *alone.bounds)
    proved = found.proved and alone.proved
    # Nothing fits a part that was asked before there was a plan to beat: any bound holds, this one can be saved.
    bounds = tuple(value if math.isinf(least) else least for least in alone.bounds)
    before, parts = found.before_solver * tick, _part_records(space, strategy, single, bounds)
    hosts = tuple(part.hosts_used for part in parts)
    step_s = single.step_s if single is not None else _step_s(space, strategy, hosts, step)
    usd = space.asked.usd(hosts, step_s)
    watts, level_watts = (
        _watts(space.machine, strategy, hosts, step_s) if single is None else (single.watts, single.level_watts)
    )
    joules = watts["facility"] * step_s
    if wrong := list(_weighed_wrong(space.asked, value, {"time": step_s, "money": usd, "energy": joules})):
        raise PlannerBug("the search chose a mixed plan that its checks refuse: " + "; ".join(wrong))
    inputs = _inputs(space.machine, source)
    return MixedPlan(
        meshwright_version=__version__, status="optimal" if proved else "feasible",
        advisory=single is None and any(refusals(stages, parts, inputs["model"], inputs["workload"])),
        objective_name=space.asked.minimised, objective=value, bound=value if proved else bound,
        gap=0.0 if proved else max(0.0, (value - bound) / value),
        search_s=seconds, step_s=step_s, step_interval_s=step_interval_s(space.machine, step_s),
        tokens_per_s=space.machine.workload.tokens / step_s, usd_per_step=usd, watts=watts,
        level_watts=level_watts, joules_per_step=joules,
        micro_batches=(strategy or single.strategy).micro_batches, stages=stages, alone=single,
        parts=parts,
        proof=_proof(space, found, before, value), notes=notes, options=options.model_dump(mode="json"),
        **inputs,
    )  # fmt: skip


def _step_s(space: MixedSpace, strategy: MixedStrategy, hosts: tuple[int, ...], step: int) -> float:
    """Seconds of a step of so many ticks that waits for its watts."""
    machine, tick = space.machine, space.machine.ticks.second
    wait_s = mixed_wait_s(machine, strategy, held_of(machine, strategy), hosts, space.asked.power)
    return step_within(step, wait_s, tick) * tick


def _watts(
    machine: Machine, strategy: MixedStrategy, hosts: tuple[int, ...], step_s: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean watts by consumer, and by level of the fullest."""
    levels = mixed_level_watts(machine, strategy, held_of(machine, strategy), hosts, step_s)
    return mixed_watts(machine, strategy, hosts, step_s), levels


def held_of(machine: Machine, strategy: MixedStrategy) -> list[Held]:
    """What every stage has of its part."""
    found = []
    for stage in strategy.stages:
        part = machine.cluster.parts[stage.part]
        near, far = place(part, stage.tp, stage.cp, stage.dp, stage.ep)
        found.append(Held(near, far, reserved(part, near, far)))
    return found


def _weighed_wrong(asked: Asked, value: float, step: dict[str, float | None]) -> Iterator[str]:
    """Limits that a plan is above that takes ``step`` of every quantity, and an objective that it does not come to."""
    right = step[asked.minimised]
    if right is None or not math.isclose(value, right, rel_tol=1e-9):
        yield f"the search's {asked.minimised} is {value:.12g}, the estimate's {right}"
    yield from asked.above(step["time"], step["money"], step["energy"])


def _inputs(machine: Machine, source: str) -> dict[str, Any]:
    return {
        "model": ModelRecord.of(machine.model),
        "cluster_name": source, "cluster_digest": machine.cluster.digest, "workload": machine.workload,
    }  # fmt: skip


def _proof(space: MixedSpace, found: MixedResult, before: float, value: float) -> Proof:
    machine = space.machine
    return Proof(
        space=space.described(), rows=found.counts, model_digest=machine.model.digest,
        cost_model_digest="+".join(fits.digest for fits in machine.fits),
        solver="priced devices and labels with a bound, then OR-Tools CP-SAT with critical-path cuts",
        incumbent_before_solver=before if before < float("inf") else None,
        tick_s=machine.ticks.second, bound_root=min(value, found.bound_root * machine.ticks.second),
    )  # fmt: skip


def _stage_records(space: MixedSpace, strategy: MixedStrategy, step: float) -> list[StageRecord]:
    """Records of the stages, priced again and checked without the search. Raises ``PlannerBug`` where they disagree."""
    machine, tick = space.machine, space.machine.ticks.second
    found = evaluate_mixed(machine, strategy)
    complaints = broken(machine, strategy, found, space.limits)
    if found.step != step:
        complaints.append(f"the search's step is {step:.0f} ticks, the estimate's {found.step}")
    if complaints:
        raise PlannerBug("the search chose a mixed plan that its checks refuse: " + "; ".join(complaints))
    return [_stage_record(space, strategy, found, s, tick) for s in range(len(strategy.stages))]


def _stage_record(
    space: MixedSpace, strategy: MixedStrategy, found: MixedEvaluation, s: int, tick: float
) -> StageRecord:
    stage = strategy.stages[s]
    return StageRecord(
        part=stage.part, accelerator=space.machine.cluster.parts[stage.part].accelerator.name, devices=stage.devices,
        tp=stage.tp, cp=stage.cp, dp=stage.dp, ep=stage.ep, zero=stage.zero, micro_batch=stage.micro_batch,
        layers=stage.layers, recompute=[(run.count, run.choice.recompute) for run in stage.runs],
        forward_s=float(found.forward[s]) * tick, backward_s=float(found.backward[s]) * tick,
        tail_s=float(found.tail[s]) * tick, hop_s=float(found.hop[s]) * tick if s < len(found.hop) else 0.0,
        need_bytes=float(found.need[s]), limit_bytes=float(space.limits[stage.part]), classes=found.classes[s],
        offloads=[OffloadRecord.of(it) for it in stage.offloads], clock=stage.clock, **tier_fields(found, s),
    )  # fmt: skip


def tier_fields(found: MixedEvaluation, s: int) -> dict[str, dict[str, float]]:
    """What the record of a stage says of memory tiers; nothing of those where it keeps nothing."""
    used = {name: it for name, it in found.tiers[s].items() if it[0]}
    return {
        "tier_bytes": {name: float(held) for name, (held, _) in used.items()},
        "tier_room_bytes": {name: float(room) for name, (_, room) in used.items()},
    }


def _part_records(
    space: MixedSpace, strategy: MixedStrategy | None, single: Plan | None, bounds: tuple[float, ...]
) -> list[PartRecord]:
    records, mine = [], None if single is None else part_alone(single, space.machine.cluster)
    for k, part in enumerate(space.machine.cluster.parts):
        used, hosts = _used(part, [stage for stage in strategy.stages if stage.part == k] if strategy else [])
        if single is not None and k == mine:
            used, hosts = single.cluster.devices_used, single.cluster.hosts_used
        records.append(
            PartRecord(
                name=part.name, accelerator=part.accelerator.name, host=part.host.name, hosts=part.hosts,
                devices=part.devices, devices_used=used, hosts_used=hosts, alone_bound=bounds[k],
            )
        )  # fmt: skip
    return records


def _used(part: Cluster, stages: list[MixedStage]) -> tuple[int, int]:
    """Devices in use of a part, and the hosts that its stages reserve some on."""
    places = [place(part, stage.tp, stage.cp, stage.dp, stage.ep) for stage in stages]
    held = sum(reserved(part, *at) for at in places if at is not None)
    return sum(stage.devices for stage in stages), -(-held // part.devices_per_host)


def step_interval_s(machine: Machine, step_s: float) -> tuple[float, float]:
    """The widest of the parts' intervals: nothing published mixes accelerators."""
    kind, stack = kind_of(machine.model, machine.workload), machine.workload.stack.name
    parts = [part.accelerator for part in machine.cluster.parts]
    each = [interval("time", step_s, stack, kind, part.family, part.whole) for part in parts]
    return min(low for low, _ in each), max(high for _, high in each)
