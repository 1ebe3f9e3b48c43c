"""A plan of a mixed cluster checked by other code than the search's: identity, legality, prices, bound, in that order.

identity    digests of model, parts, link and cost models; the space that the proof names; the parts themselves
legality    every rule and limit (:mod:`planner.mixed.check`), places of stages, devices they reserve, pins
prices      every stage added up again, layer by layer; the schedule run again, one event after the other
bound       pipelines over several parts enumerated and bounded by other means (:mod:`planner.checks.rederive_mixed`),
            every part alone as a regular plan's space is (:mod:`planner.checks.rederive`)

Large clusters have more pipelines than can be looked at: then the report says what was not re-derived, and how far.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from cost_models.mixed import Machine, MixedEvaluation, MixedStrategy
from cost_models.mixed_power import mixed_watts
from cost_models.model_graph import ModelGraph
from cost_models.rows import shares_of
from cost_models.ticks import Ticks
from planner.checks.check_offloads import broken_shares
from planner.checks.mixed_prices import priced_again
from planner.checks.mixed_watts import within_watts
from planner.checks.mixed_ways import MixedProblem, place, reserved
from planner.checks.rederive import Problem, rederive
from planner.checks.rederive_energy import rederive_energy
from planner.checks.rederive_mixed import rederive_pipelines
from planner.checks.rederive_offloads import every_share
from planner.checks.rederive_rent import rederive_rent
from planner.checks.verify import RELATIVE, Report, options_of, wrong_but_for_the_bound, wrong_exclusions
from planner.checks.verify_stages import Claim, claims_of, wrong_in_order
from planner.errors import BadInput
from planner.limits import per_step, power_limits
from planner.mixed.asked import Asked, asked_of, check_asked
from planner.mixed.check import broken
from planner.mixed.consistent import complaints
from planner.mixed.inputs import not_the_plans
from planner.mixed.launch import refusals
from planner.mixed.plan import step_interval_s, tier_fields
from planner.mixed.result import MixedPlan
from planner.objectives import OBJECTIVES
from planner.options import Options
from topologies.mixed import MixedCluster

PIPELINE_SHARE = 0.6
"""Part of the time for pipelines over several parts; the parts alone share what is left."""


@dataclass(frozen=True)
class MixedReport(Report):
    """What was verified of a plan on a mixed cluster."""

    def looked_at(self) -> str:
        """What the bound rests on, and what it does not."""
        counted = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in self.counts.items())
        return "\n".join([counted, *(f"not re-derived: {what}" for what in self.not_rederived)])


def verify_mixed(
    plan: MixedPlan, model: ModelGraph, cluster: MixedCluster, *, time_limit_s: float = 120.0
) -> MixedReport:
    """Check ``plan`` against ``model`` and ``cluster``.

    When ``time_limit_s`` passes first, or there are more pipelines than are practical to hold, the verdict says so and
    ``bound`` is what was re-derived until then.
    """
    began = time.monotonic()
    cluster = cluster.with_tiers(tuple(plan.options.get("tiers", ())))
    reasons = _checks(plan, model, cluster)
    if reasons:
        return MixedReport("refused", reasons, 0.0, time.monotonic() - began)
    machine, claims, found = Machine.of(model, cluster, plan.workload), _claimed(plan), list[_Derived]()
    counts = Counter[str]()
    for n, claim in enumerate(claims):
        left, it = (time_limit_s - (time.monotonic() - began)) / (len(claims) - n), MixedProblem(machine, claim.options)
        last = list(_derived(plan, it, claim.bound, n + 1 == len(claims), left))
        found += last
    for one in found:
        counts.update(one.counts)
    reasons, left_out = [one.wrong for one in found if one.wrong], [one.left_out for one in found if one.left_out]
    verdict = "refused" if reasons else "not fully re-derived" if left_out else "verified"
    bound = plan.bound if verdict == "verified" else min(one.bound for one in last)
    return MixedReport(verdict, reasons, bound, time.monotonic() - began, dict(counts), tuple(left_out))


@dataclass(frozen=True, slots=True)
class _Derived:
    """What came of one part of the claim: a bound, what contradicts the claim, how far it went if not all the way."""

    bound: float
    wrong: str
    left_out: str
    counts: dict[str, int]


def _claimed(plan: MixedPlan) -> list[Claim]:
    """Every bound that the plan claims: one, or of objectives in order one each."""
    options = options_of(plan)
    if not plan.proof.stages:
        return [Claim(options, plan.bound)]
    return claims_of(plan, per_step(options, plan.workload))


def _derived(plan: MixedPlan, it: MixedProblem, bound: float, last: bool, time_limit_s: float) -> Iterator[_Derived]:
    """What comes of a claim, for pipelines and every part alone; of the last one a plan says each part's bound."""
    began = time.monotonic()
    yield _pipelines(it, bound, PIPELINE_SHARE * time_limit_s)
    for k, part in enumerate(plan.parts):
        left = (time_limit_s - (time.monotonic() - began)) / (len(plan.parts) - k)
        yield _one_part(part.name, it, k, part.alone_bound if last else bound, max(0.0, left))


def _pipelines(it: MixedProblem, claimed: float, time_limit_s: float) -> _Derived:
    """No pipeline over several parts takes less than the bound."""
    asked, tick, target = asked_again(it), it.machine.ticks.second, claimed * (1 - RELATIVE)
    if asked.weighs_hosts or asked.waits:
        again = rederive_energy if asked.weighs_joules else rederive_rent
        found = again(it, asked, target, time_limit_s=time_limit_s)
        bound, met = found.bound, found.counter_example_value
    else:
        found = rederive_pipelines(it, target / tick, time_limit_s=time_limit_s)
        bound, met = found.bound * tick, found.counter_example_value * tick
    wrong = f"bound is {claimed:.12g}, but a pipeline of {met:.12g} exists: {found.counter_example}"
    unit = OBJECTIVES[asked.minimised]
    left = f"pipelines over several parts; none takes less than {bound:.6g} {unit}"
    return _Derived(bound, wrong * bool(found.counter_example), left * (not found.complete), found.counts)


def asked_again(it: MixedProblem) -> Asked:
    """What the options ask for. Raises ``BadInput`` as the search does."""
    return asked_of(it.machine.cluster, it.machine.workload, it.options)


def _one_part(name: str, it: MixedProblem, k: int, claimed: float, time_limit_s: float) -> _Derived:
    """No plan on one part alone takes less than the plan says of it."""
    unit = OBJECTIVES[asked_again(it).minimised]
    found = rederive(_alone(it, k), claimed * (1 - RELATIVE), time_limit_s=time_limit_s)
    wrong = (
        f"no plan on {name} alone is said to take less than {claimed:.12g}, but one of "
        f"{found.counter_example_value:.12g} exists: {found.counter_example}"
    )
    left, counts = f"{name} alone; no plan there takes less than {found.bound:.6g} {unit}", found.counts["rows"]
    return _Derived(
        found.bound, wrong * bool(found.counter_example), left * (not found.complete), {"rows_alone": counts}
    )


def _alone(it: MixedProblem, k: int) -> Problem:
    machine, part = it.machine, it.machine.cluster.parts[k]
    ticks = Ticks.of(machine.model, part, machine.workload)
    options = it.options.model_copy(update={"clocks": len(it.clocks) > 1})
    return Problem(machine.model, part, machine.workload, options, machine.fits[k], ticks)


def _checks(plan: MixedPlan, model: ModelGraph, cluster: MixedCluster) -> list[str]:
    """Everything but the bound; each group is asked only when the ones before it hold."""
    try:
        options = options_of(plan)
        check_asked(options)
        asked_of(cluster, plan.workload, options)
    except BadInput as error:
        return [str(error)]
    reasons = complaints(plan) or not_the_plans(plan, model, cluster)
    if reasons:
        return reasons
    if reasons := list(wrong_in_order(plan, options, _taken(plan))):
        return reasons
    it = MixedProblem(Machine.of(model, cluster, plan.workload), _claimed(plan)[-1].options)
    reasons = list(_space(plan, it)) + list(_claims(plan))
    if plan.alone is not None:
        return reasons or _on_one_part(plan, it)
    return reasons or list(_offloads(plan, it)) or list(_places(plan, it)) or list(_stages(plan, it))


def _taken(plan: MixedPlan) -> dict[str, float]:
    """What the plan says that a step takes of every quantity."""
    return {"time": plan.step_s, "money": plan.usd_per_step or 0.0, "energy": plan.joules_per_step or 0.0}


def _space(plan: MixedPlan, it: MixedProblem) -> Iterator[str]:
    """The stated space must be the one these inputs have, and hold the axes that this check enumerates itself."""
    from planner.search.mixed.space import MixedSpace

    try:
        claimed = MixedSpace(it.machine, dict(it.options.pins), it.limits, asked_again(it), it.clocks).described()
    except BadInput as error:
        yield str(error)
        return
    if plan.proof.space != claimed:
        yield "proof.space is not the space of this model, cluster, workload and options; plan again"
    batch = it.machine.workload.global_batch
    own = {**it.axes(), "batch_per_micro_batch": [b for b in range(1, batch + 1) if batch % b == 0]}
    for name, values in own.items():
        if list(claimed["axes"][name]) != values:
            yield f"the space has {name} {list(claimed['axes'][name])}, but legal are {values}"
    if not math.isclose(plan.proof.tick_s, it.machine.ticks.second, rel_tol=RELATIVE):
        yield f"proof.tick_s is {plan.proof.tick_s:.12g}, but comes to {it.machine.ticks.second:.12g}"


def _claims(plan: MixedPlan) -> Iterator[str]:
    """Step, bound, gap and status among themselves."""
    gap = max(0.0, (plan.objective - plan.bound) / plan.objective)
    least = min(part.alone_bound for part in plan.parts)
    stated = _taken(plan)[plan.objective_name]
    if not _same(plan.objective, stated):
        yield f"objective is {plan.objective:.12g}, but the {plan.objective_name} of the step is {stated:.12g}"
    if plan.stages and plan.proof.bound_root > plan.objective * (1 + RELATIVE):
        yield f"proof.bound_root {plan.proof.bound_root:.12g} is above the objective {plan.objective:.12g}"
    if plan.bound > plan.objective * (1 + RELATIVE):
        yield f"bound {plan.bound:.12g} is above the objective {plan.objective:.12g}"
    if plan.bound > least * (1 + RELATIVE):
        yield f"bound {plan.bound:.12g} is above {least:.12g}, the least that a part alone is said to take"
    if abs(plan.gap - gap) > RELATIVE:
        yield f"gap is {plan.gap:.12g}, but (objective - bound) / objective is {gap:.12g}"
    if plan.status == "optimal" and gap > RELATIVE:
        yield f"status is 'optimal', but the bound {plan.bound:.12g} is below the objective {plan.objective:.12g}"


def _offloads(plan: MixedPlan, it: MixedProblem) -> Iterator[str]:
    """Tiers that a stage's part does not have, shares that add up to more than all, ways that nobody enumerates."""
    for s, stage in enumerate(plan.stages):
        part, offloads = it.machine.cluster.parts[stage.part], stage.stage().offloads
        wrong = list(broken_shares(part, offloads))
        yield from (f"stage {s} {text}" for text in wrong)
        if offloads and not wrong:
            share = shares_of(offloads, tuple(tier.name for tier in part.tiers))
            if not any((share == one).all() for one in every_share(len(part.tiers))):
                said = ", ".join(one.text() for one in stage.offloads)
                yield f"stage {s} offloads {said}, which is none of the ways of the space"


def _places(plan: MixedPlan, it: MixedProblem) -> Iterator[str]:
    """What keeps the stages, which have a place each, from having room together; hosts that they do not reserve; pins
    that they do not hold."""
    taken = [0] * len(plan.parts)
    for s, stage in enumerate(plan.stages):
        part = it.machine.cluster.parts[stage.part]
        taken[stage.part] += reserved(part, *place(part, stage.tp, stage.cp, stage.dp, stage.ep))
        held = {name: getattr(stage, name) for name in ("tp", "cp", "ep", "zero")}
        kinds = [("recompute", kind) for _, kind in stage.recompute]
        for name, value in [*held.items(), *kinds]:
            if not it.pinned(name, value):
                yield f"stage {s} has {name}={value}, but {name}={it.options.pins[name]} is pinned"
        if stage.clock not in it.clocks:
            legal = ", ".join(map(str, it.clocks))
            yield f"stage {s} runs at {stage.clock:g} of the full clock, but the options allow {legal}"
    for part, count in zip(it.machine.cluster.parts, taken, strict=True):
        if count > part.devices:
            yield f"stages reserve {count} devices of part {part.name!r}, which has {part.devices}"
    for record, part, count in zip(plan.parts, it.machine.cluster.parts, taken, strict=True):
        if record.hosts_used != -(-count // part.devices_per_host):
            yield f"{record.name} has {record.hosts_used} hosts in use, but stages reserve {count} devices there"
    if len(plan.stages) < 2:
        yield "a pipeline over several parts has two stages or more"


def _stages(plan: MixedPlan, it: MixedProblem) -> Iterator[str]:
    """Rules and limits, then the plan's numbers against the pipeline priced again."""
    strategy = plan.strategy()
    found = priced_again(it.machine, strategy)
    wrong = broken(it.machine, strategy, found, it.limits)
    yield from wrong
    if wrong:
        return
    hosts, power = [part.hosts_used for part in plan.parts], asked_again(it).power
    step_s, level_watts = within_watts(it.machine, strategy, hosts, power, found.step)
    yield from _numbers(plan, it, step_s)
    yield from _levels(plan, level_watts)
    for s in range(len(plan.stages)):
        yield from _stage(plan, it, strategy, found, s)
    advisory = any(refusals(plan.stages, plan.parts, plan.model, plan.workload))
    if plan.advisory != advisory:
        yield f"advisory is {plan.advisory}, but comes to {advisory}"


def _stage(plan: MixedPlan, it: MixedProblem, strategy: MixedStrategy, found: MixedEvaluation, s: int) -> Iterator[str]:
    """What a stage's record says against what it comes to."""
    record, tick, part = plan.stages[s], it.machine.ticks.second, strategy.stages[s].part
    right = {
        "forward_s": found.forward[s] * tick, "backward_s": found.backward[s] * tick, "tail_s": found.tail[s] * tick,
        "hop_s": found.hop[s] * tick if s < len(found.hop) else 0.0,
        "need_bytes": float(found.need[s]), "limit_bytes": float(it.limits[part]),
    }  # fmt: skip
    for name, value in right.items():
        if not _same(getattr(record, name), float(value)):
            yield f"stage {s}: {name} is {getattr(record, name):.12g}, but comes to {float(value):.12g}"
    for name, right in tier_fields(found, s).items():
        stated = getattr(record, name)
        if stated.keys() != right.keys() or any(not _same(stated[tier], held) for tier, held in right.items()):
            yield f"stage {s}: {name} are {stated}, but come to {right}"
    stated, classes = record.classes, found.classes[s]
    wrong = [n for n in sorted(stated.keys() | classes) if not _same(stated.get(n, 0.0), classes.get(n, 0.0))]
    if wrong:
        yield f"stage {s}: bytes of {', '.join(wrong)} differ; they come to {classes}"


def _numbers(plan: MixedPlan, it: MixedProblem, step_s: float) -> Iterator[str]:
    """Figures of a step of so many seconds on the hosts in use, and the limits on it."""
    asked = asked_again(it)
    if plan.objective_name != asked.minimised:
        yield f"objective is {plan.objective_name!r}, but the options ask for {asked.minimised!r}"
    usd = asked.usd(tuple(part.hosts_used for part in plan.parts), step_s)
    yield from asked.above(step_s, usd, plan.joules_per_step or 0.0)
    low, high = step_interval_s(it.machine, step_s)
    if plan.joules_per_step is not None:
        yield from _energy(plan, it, step_s)
    numbers = {
        "step_s": (plan.step_s, step_s), "tokens_per_s": (plan.tokens_per_s, plan.workload.tokens / step_s),
        "usd_per_step": (plan.usd_per_step or 0.0, usd or 0.0),
        "step_interval_s": (plan.step_interval_s[0], low), "step_interval_s, upper": (plan.step_interval_s[1], high),
    }  # fmt: skip
    for name, (stated, right) in numbers.items():
        if not _same(stated, right):
            yield f"{name} is {stated:.12g}, but comes to {right:.12g}"


def _levels(plan: MixedPlan, right: dict[str, float]) -> Iterator[str]:
    """Watts of the fullest of every level that a plan states; none of a plan saved before they were there."""
    stated = plan.level_watts
    if stated and (stated.keys() != right.keys() or not all(_same(stated[name], right[name]) for name in right)):
        yield f"level_watts are {stated}, but come to {right}"
    for name, limit_w in power_limits(options_of(plan)).given.items():
        if right[name] > limit_w * (1 + RELATIVE):
            yield f"the fullest {name} draws {right[name]:.6g} W, above the limit of {limit_w:.6g} W"


def _energy(plan: MixedPlan, it: MixedProblem, step_s: float) -> Iterator[str]:
    """Watts and joules that a plan states, of a step of so many seconds."""
    hosts = tuple(part.hosts_used for part in plan.parts)
    alone = plan.alone
    right = mixed_watts(it.machine, plan.strategy(), hosts, step_s) if alone is None else alone.watts
    names = sorted(right.keys() | plan.watts.keys())
    if wrong := [name for name in names if not _same(plan.watts.get(name, 0.0), right.get(name, 0.0))]:
        yield f"watts differ in {', '.join(wrong)}; they come to {right}"
    if not _same(plan.joules_per_step or 0.0, right["facility"] * step_s):
        yield f"joules_per_step is {plan.joules_per_step:.12g}, but comes to {right['facility'] * step_s:.12g}"


def _on_one_part(plan: MixedPlan, it: MixedProblem) -> list[str]:
    """A plan on one part alone: itself as any regular plan, and what the mixed one says of it."""
    alone, parts = plan.alone, it.machine.cluster.parts
    mine = [k for k, part in enumerate(parts) if part.digest == alone.cluster.digest]
    k = mine[0]
    reasons = [f"{parts[k].name} alone: {text}" for text in wrong_but_for_the_bound(alone, it.machine.model, parts[k])]
    if reasons:
        return reasons
    reasons = [*_numbers(plan, it, alone.step_s), *_levels(plan, alone.level_watts)]
    if plan.micro_batches != alone.strategy.micro_batches or plan.advisory:
        reasons.append("micro_batches or advisory are not those of the plan on one part alone")
    if _asked(options_of(alone)) != _asked(it.options) or alone.workload != plan.workload:
        reasons.append("the plan on one part alone was made for other options or another workload")
    least = max(plan.parts[n].alone_bound for n in mine)
    if alone.bound > least * (1 + RELATIVE):
        reasons.append(f"the plan on {parts[k].name} alone has bound {alone.bound:.12g}, the part has {least:.12g}")
    return [*reasons, *wrong_exclusions(alone)]


def _asked(options: Options) -> dict[str, object]:
    """Options that say which plans there are and which is best."""
    return options.model_dump(exclude={"time_limit_s", "deterministic_limit", "alternatives"})


def _same(stated: float, right: float) -> bool:
    return math.isclose(stated, right, rel_tol=RELATIVE, abs_tol=1e-12)
