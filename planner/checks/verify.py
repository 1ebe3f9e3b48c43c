"""A plan checked by other code than the search's: identity, legality, prices, schedule and bound, in that order.

identity    digests of model, cluster and cost model; the space that the proof names
legality    every rule and limit (:mod:`planner.checks.check`)
prices      the strategy priced again; its schedule run again, one event after the other, in whole ticks
bound       the whole space enumerated again and bounded by other means (:mod:`planner.checks.rederive`; where hosts
            differ, :mod:`planner.checks.rederive_hosts`), for every objective of several with what it may take of those
            before it
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from cost_models.calibration import calibrate
from cost_models.estimate import Estimate, estimate, evaluate
from cost_models.model_graph import ModelGraph
from cost_models.movement import moved
from cost_models.placed import strategy_chain
from cost_models.strategy import Strategy
from cost_models.ticks import Ticks
from cost_models.tier_movement import moved_in_tiers
from planner.apart import as_numbered
from planner.candidates import legal_space
from planner.checks.check import broken_pins, check_strategy, unasked
from planner.checks.rederive import Problem, Rederived, legal_axes, rederive
from planner.checks.rederive_hosts import rederive_hosts
from planner.checks.verify_schedule import run_order, work_order
from planner.checks.verify_stages import claims_of, wrong_stages
from planner.clocks import described, search_clocks, weighs_joules
from planner.errors import BadInput
from planner.failures.goodput_record import GoodputRecord
from planner.limits import per_step, power_limits
from planner.objectives import minimised
from planner.options import Options, read_options
from planner.result import Plan
from planner.strategy_record import recorded_activations, recorded_clocks, recorded_offloaded
from planner.summarised import Summarised
from topologies.cluster import Cluster
from topologies.tiers import with_tiers

if TYPE_CHECKING:
    from planner.mixed.result import MixedPlan

RELATIVE = 1e-9
ROUNDED_UP = 1e-7
"""Of a step, what its passes in whole ticks may take more than the seconds of its terms."""


@dataclass(frozen=True)
class Report(Summarised):
    """What was verified. ``reasons`` say why a plan is refused; ``verdict`` sums up."""

    verdict: Literal["verified", "refused", "not fully re-derived"]
    reasons: list[str]
    bound: float
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)
    not_rederived: tuple[str, ...] = ()
    """Parts of the claim that were not re-derived, and how far they were, where the claim has parts."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong; the bound may be re-derived in part only."""
        return not self.reasons

    def summary(self) -> str:
        """The report as text."""
        lines = [f"{self.verdict} in {self.seconds:.1f} s; re-derived bound {self.bound:.9g}"]
        if self.counts:
            lines.append(self.looked_at())
        return "\n".join([*lines, *(f"- {reason}" for reason in self.reasons)])

    def looked_at(self) -> str:
        """What the bound rests on."""
        return (
            "{rows} rows enumerated, {bounded} excluded by their bound, {branched} branched over their stages, "
            "{leaves} splits and {interleaved} interleaved cuts run"
        ).format(**self.counts)


def verify(plan: Plan, model: ModelGraph, cluster: Cluster, *, time_limit_s: float = 120.0) -> Report:
    """Check ``plan`` against ``model`` and ``cluster``.

    A plan that was only estimated, which claims no bound, is checked up to its prices. When ``time_limit_s``
    passes first, the verdict says so and ``bound`` is what was re-derived until then.
    """
    began = time.monotonic()
    cluster = with_tiers(as_numbered(cluster, plan), tuple(plan.options.get("tiers", ())))
    reasons = wrong_but_for_the_bound(plan, model, cluster)
    if reasons or plan.status == "estimate":
        return Report("refused" if reasons else "verified", reasons, 0.0, time.monotonic() - began)
    problem, complete = _problem(plan, model, cluster), True
    again = rederive if cluster.irregular is None else rederive_hosts
    for claim in claims_of(plan, problem.options):
        left, clocks = max(0.0, time_limit_s - (time.monotonic() - began)), claim.options.clocks
        # Full clocks stand for all where nothing weighs joules.
        asked = claim.options.model_copy(update={"clocks": clocks and weighs_joules(cluster, claim.options)})
        found = again(replace(problem, options=asked), claim.bound * (1 - RELATIVE), time_limit_s=left)
        complete &= found.complete
        if found.counter_example:
            which = f" of objective {claim.options.objective}" if plan.proof.stages else ""
            better = f"bound{which} is {claim.bound:.12g}, but a plan of {found.counter_example_value:.12g} exists"
            reasons.append(f"{better}: {found.counter_example}")
    reasons += wrong_exclusions(plan)
    verdict = "refused" if reasons else "verified" if complete else "not fully re-derived"
    return Report(verdict, reasons, _proved(plan, found), time.monotonic() - began, found.counts)


def _proved(plan: Plan, found: Rederived) -> float:
    return plan.bound if found.complete and found.bound == found.target else found.bound


def wrong_but_for_the_bound(plan: Plan, model: ModelGraph, cluster: Cluster) -> list[str]:
    """Everything but the bound; each group is asked only when the ones before it hold."""
    try:
        options = options_of(plan)
    except BadInput as error:
        return [str(error)]
    reasons = list(_identity(plan, model, cluster, options))
    if reasons:
        return reasons
    strategy = plan.strategy.strategy()
    if plan.strategy.layers_per_stage != list(strategy.layers_per_stage) or plan.strategy.edp != strategy.degrees.edp:
        return ["strategy contradicts itself: layers_per_stage or edp do not follow from the rest"]
    leaving = {"offloaded": recorded_offloaded, "activations_offloaded": recorded_activations}
    for name, recorded in leaving.items():
        if (said := getattr(plan.strategy, name)) != recorded(strategy):
            return [f"strategy has {name} {said}; one number a stage, none where all layers offload"]
    if plan.strategy.clocks != recorded_clocks(strategy):
        return [f"strategy has clocks {plan.strategy.clocks} for pp={plan.strategy.pp}; one each, none where all are 1"]
    reasons = check_strategy(
        model, cluster, plan.workload, strategy, headroom=options.headroom, power_cap_w=options.power_cap_w,
        options=options,
    )  # fmt: skip
    return reasons or [
        *broken_pins(options.pins, strategy),
        *unasked(options.pins, strategy),
        *_clocks(options, strategy),
        *_prices(plan, model, cluster, strategy, options),
        *_claims(plan),
        *wrong_stages(plan, options),
    ]


def options_of(plan: Plan | MixedPlan) -> Options:
    """The options that a plan was made with. Raises ``BadInput`` where they cannot be."""
    if unknown := sorted(plan.options.keys() - Options.model_fields.keys()):
        raise BadInput(f"options has {unknown[0]!r:.80}, which is no option; plan again")
    return read_options(**plan.options)


def _problem(plan: Plan, model: ModelGraph, cluster: Cluster) -> Problem:
    ticks = Ticks.of(model, cluster, plan.workload)
    options = per_step(options_of(plan), plan.workload)
    return Problem(model, cluster, plan.workload, options, calibrate(cluster, plan.workload.stack), ticks)


def _identity(plan: Plan, model: ModelGraph, cluster: Cluster, options: Options) -> Iterator[str]:
    """Digests; and for plans that were searched for, the space."""
    digests = {
        "model": (plan.model.digest, model.digest),
        "proof's model": (plan.proof.model_digest, model.digest),
        "cluster": (plan.cluster.digest, cluster.digest),
        "cost model": (plan.proof.cost_model_digest, calibrate(cluster, plan.workload.stack).digest),
    }
    for name, (stated, found) in digests.items():
        if stated != found:
            yield f"the {name} has digest {found}, but the plan was made for {stated}; plan again"
    if plan.model.digest == model.digest:
        yield from plan.model.differs_from(model)
    if plan.cluster.host_names != cluster.host_names:
        yield f"the plan does not name the {len(cluster.host_names)} hosts of {cluster.name!r} as they are; plan again"
    if plan.status != "estimate":
        yield from _space(plan, model, cluster, options)
    if minimised(options.objective.split(",")[-1]) != plan.objective_name:
        yield f"objective is {plan.objective_name!r}, but the options ask for {options.objective!r}"


def _space(plan: Plan, model: ModelGraph, cluster: Cluster, options: Options) -> Iterator[str]:
    """The stated space must be the one these inputs have, and hold the axes that this check enumerates itself."""
    claimed = legal_space(model, cluster, plan.workload, options.pins)
    if plan.proof.space != described(claimed, options):
        yield "proof.space is not the space of this model, cluster, workload and options; plan again"
    for axis, values in legal_axes(_problem(plan, model, cluster)).items():
        if list(getattr(claimed, axis)) != values:
            yield f"the space has {axis} {list(getattr(claimed, axis))}, but legal are {values}"


def _clocks(options: Options, strategy: Strategy) -> Iterator[str]:
    for clock in sorted(set(strategy.clocks) - set(search_clocks(options))):
        legal = ", ".join(map(str, search_clocks(options)))
        yield f"a stage runs at {clock:g} of the full clock, but the options allow {legal}"


def _prices(plan: Plan, model: ModelGraph, cluster: Cluster, strategy: Strategy, options: Options) -> Iterator[str]:
    """The plan's numbers against the strategy priced again."""
    found = estimate(model, cluster, plan.workload, strategy, limits=power_limits(options))
    simulated = simulated_ticks(model, cluster, plan, strategy)
    if simulated != found.step_ticks:
        yield f"the schedule run event by event takes {simulated} ticks, the recurrence {found.step_ticks}"
    numbers = {
        "step_s": (plan.step_s, found.step_s),
        "step_interval_s": (plan.step_interval_s[0], found.interval_s[0]),
        "step_interval_s, upper": (plan.step_interval_s[1], found.interval_s[1]),
        "objective": (plan.objective, _objective(found, options)),
        "joules_per_step": (plan.joules_per_step, found.joules),
        "joules_per_token": (plan.joules_per_token, found.joules / plan.workload.tokens),
        "tokens_per_s_per_device": (plan.tokens_per_s_per_device, found.tokens_per_s_per_device),
        "model_flop_utilisation": (plan.model_flop_utilisation, found.model_flop_utilisation),
        "memory_headroom_fraction": (plan.memory_headroom_fraction, found.headroom_fraction),
        "cluster.devices_used": (plan.cluster.devices_used, found.devices_used),
        "cluster.hosts_used": (plan.cluster.hosts_used, found.hosts_used),
    }
    usd = found.usd or 0.0
    numbers["usd_per_step"] = (plan.usd_per_step or 0.0, usd)
    numbers["usd_per_billion_tokens"] = (plan.usd_per_billion_tokens or 0.0, usd / plan.workload.tokens * 1e9)
    if plan.tokens_per_joule is not None:
        numbers["tokens_per_joule"] = (plan.tokens_per_joule, plan.workload.tokens / found.joules)
    for level, watts in plan.level_watts.items():
        numbers[f"level_watts of {level}"] = (watts, found.level_watts.get(level, 0.0))
    if not math.isclose(plan.proof.tick_s, found.tick_s, rel_tol=RELATIVE):
        yield f"proof.tick_s is {plan.proof.tick_s:.12g}, but comes to {found.tick_s:.12g}"
    terms, right_terms = {term.name: term.seconds for term in plan.time}, dict(found.time)
    numbers |= {f"time, {n}": (terms.get(n, 0.0), right_terms.get(n, 0.0)) for n in terms.keys() | right_terms.keys()}
    for name, (stated, right) in sorted(numbers.items()):
        if not _same(stated, right):
            yield f"{name} is {stated:.12g}, but comes to {right:.12g}"
    if not math.isclose(math.fsum(terms.values()), found.step_s, rel_tol=ROUNDED_UP):
        yield f"the sum of time is {math.fsum(terms.values()):.12g}, but comes to {found.step_s:.12g}"
    yield from _watts_and_memory(plan, found, options.headroom)
    stated_tiers = [(it.tier, list(it.need_bytes), it.room_bytes, it.pool_bytes, it.pool_room_bytes)
                    for it in plan.tiers]  # fmt: skip
    right_tiers = [(it.name, list(it.need_bytes), it.room_bytes, it.pool_bytes, it.pool_room_bytes)
                   for it in found.tiers]  # fmt: skip
    if stated_tiers != right_tiers:
        yield f"memory tiers hold {stated_tiers}, but it comes to {right_tiers}"
    yield from _goodput(plan, found)
    yield from _moved(plan, model, cluster, strategy)


def _moved(plan: Plan, model: ModelGraph, cluster: Cluster, strategy: Strategy) -> Iterator[str]:
    """Bytes by level and tier; none are asked of plans that hold none."""
    asked = model, cluster, plan.workload, strategy, calibrate(cluster, plan.workload.stack)
    found = (*moved(*asked), *moved_in_tiers(*asked))
    if plan.moved and [it.level for it in plan.moved] != [it.level for it in found]:
        yield f"moved is over {[it.level for it in plan.moved]}, but comes to {[it.level for it in found]}"
    for stated, right in zip(plan.moved, found, strict=False):
        same = _same(stated.size_bytes, right.size_bytes) and _same(stated.joules or 0.0, right.joules or 0.0)
        if stated.level != right.level or not same:
            yield f"moved is {stated}, but comes to {right}"


def _goodput(plan: Plan, found: Estimate) -> Iterator[str]:
    if plan.goodput is None:
        return
    right = GoodputRecord.of(found.goodput)
    for name in plan.goodput.differs_from(right, RELATIVE):
        yield f"goodput.{name} is {getattr(plan.goodput, name)}, but comes to {getattr(right, name)}"


def _watts_and_memory(plan: Plan, found: Estimate, headroom: float) -> Iterator[str]:
    watts = plan.watts
    if watts.keys() != found.watts.keys() or not all(_same(watts[name], found.watts[name]) for name in watts):
        yield f"watts are {plan.watts}, but come to {found.watts}"
    if len(plan.memory) != len(found.memory):
        yield f"memory lists {len(plan.memory)} stages, but there are {len(found.memory)}"
        return
    limit = found.memory_limit_bytes * (1 - headroom)
    for s, (stage, classes) in enumerate(zip(plan.memory, found.memory, strict=True)):
        stated = {**stage.classes, "stage": stage.stage}
        stated |= {"need_bytes": stage.need_bytes, "limit_bytes": stage.limit_bytes}
        right = {**classes, "need_bytes": sum(classes.values()), "limit_bytes": limit, "stage": s}
        wrong = [n for n in sorted(stated.keys() | right) if not _same(stated.get(n, 0.0), right.get(n, 0.0))]
        if wrong:
            yield f"memory of stage {s} differs in {', '.join(wrong)}; it comes to {right}"


def _objective(found: Estimate, options: Options) -> float:
    name = minimised(options.objective.split(",")[-1])
    return {"time": found.step_s, "energy": found.joules, "money": float(found.usd or 0.0),
            "goodput": found.goodput.effective_step_s}[name]  # fmt: skip


def _claims(plan: Plan) -> Iterator[str]:
    """Bound, gap and status among themselves."""
    gap = 0.0 if plan.objective == 0 else (plan.objective - plan.bound) / plan.objective
    if plan.status == "estimate":
        return
    if plan.bound > plan.objective * (1 + RELATIVE):
        yield f"bound {plan.bound:.12g} is above the objective {plan.objective:.12g}"
    if abs(plan.gap - gap) > RELATIVE:
        yield f"gap is {plan.gap:.12g}, but (objective - bound) / objective is {gap:.12g}"
    if plan.status == "optimal" and gap > RELATIVE:
        yield f"status is 'optimal', but the bound {plan.bound:.12g} is below the objective {plan.objective:.12g}"


def wrong_exclusions(plan: Plan) -> Iterator[str]:
    """What was excluded by a number must not have been below the bound, and every mesh must be somewhere."""
    for entry in plan.proof.excluded:
        least, name = entry.least_bound, f"{entry.rows} {entry.stage} excluded by {entry.reason}"
        if least is not None and least < plan.bound * (1 - RELATIVE):
            yield f"{name} have a least bound of {least:.12g}, below the bound {plan.bound:.12g}"
        if entry.reason == "open" and plan.status == "optimal":
            yield f"status is 'optimal', but {entry.rows} {entry.stage} were left open"
    rows, gone = plan.proof.rows, sum(entry.rows for entry in plan.proof.excluded if entry.stage == "meshes")
    told = plan.proof.excluded and plan.status == "optimal"
    if told and rows.get("meshes", 0) != gone + rows.get("meshes_expanded", 0):
        yield (
            f"of {rows.get('meshes', 0)} meshes {gone} were excluded and {rows.get('meshes_expanded', 0)} expanded, "
            "which is not all of them"
        )


def _same(stated: float, right: float) -> bool:
    return math.isclose(stated, right, rel_tol=RELATIVE, abs_tol=1e-12)


def simulated_ticks(model: ModelGraph, cluster: Cluster, plan: Plan, strategy: Strategy) -> int:
    """Ticks of the step, every forward and backward run in turn as soon as its device and its data are ready."""
    ticks = Ticks.of(model, cluster, plan.workload)
    chain = strategy_chain(model, cluster, plan.workload, strategy, calibrate(cluster, plan.workload.stack), ticks)
    priced = evaluate(chain, chain.runs(strategy.stages), strategy.clocks)
    schedule = strategy.schedule
    order = work_order(schedule.kind, chain.pp, chain.virtual, chain.micro_batches, schedule.in_flight)
    weights = None if priced.weights is None else priced.weights.tolist()
    hidden = None if priced.hidden is None else tuple(less.tolist() for less in priced.hidden)
    work = (priced.forward.tolist(), priced.backward.tolist(), weights)
    return run_order(order, *work, chain.hop, priced.tail.tolist(), hidden)
