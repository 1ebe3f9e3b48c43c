"""What a launch target cannot express, said by name, with the pins under which a plan could be expressed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cost_models.model_graph import ModelGraph
from cost_models.strategy import DENSE_ORDER
from planner.errors import BadInput, PlannerError, Unsupported
from planner.export.facts import target
from planner.ranks import world_size
from planner.result import Plan, StrategyRecord

MOST_RANKS = 2**24
"""Past it no array of ranks is made: a plan is a file from outside."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One thing of a plan that a target has no setting for: which, why, and the pins that avoid it, any one of them."""

    what: str
    why: str
    pins: tuple[str, ...] = ()
    otherwise: str = ""

    def __str__(self) -> str:
        ways = " or ".join(f"--pin {pin}" for pin in self.pins) or self.otherwise
        return f"{self.what}: {self.why}" + (f"; {ways}" if ways else "")


def refuse(name: str, refusals: Iterable[Refusal]) -> None:
    """Raises ``Unsupported`` with every refusal, when there is one."""
    found = list(refusals)
    if found:
        raise refused(name, found)


def refused(name: str, refusals: list[Refusal]) -> Unsupported:
    """The error that says what the target ``name`` cannot express."""
    text = f"{target(name).name} cannot express this plan: " + ". ".join(map(str, refusals))
    return Unsupported(text + _together(refusals))


def _together(refusals: list[Refusal]) -> str:
    """One set of pins against all the refusals, where each has some."""
    pins: dict[str, str] = {}
    for refusal in refusals:
        for pin in refusal.pins[:1]:
            pins.setdefault(pin.partition("=")[0], pin)
    if len(pins) < 2 or not all(refusal.pins for refusal in refusals):
        return ""
    return ". All of it: " + " ".join(f"--pin {pin}" for pin in pins.values())


def check_degrees(plan: Plan) -> None:
    """Refuse a plan whose own arithmetic does not close, which no target would notice before the ranks have met.

    Raises ``BadInput``.
    """
    strategy, batch = plan.strategy, plan.workload.global_batch
    data, stage = dp(strategy), world_size(strategy) // strategy.pp
    complaints = []
    if strategy.micro_batch * strategy.micro_batches * data != batch:
        complaints.append(
            f"micro_batch * micro_batches * dp = {strategy.micro_batch} * {strategy.micro_batches} * {data}, but "
            f"global_batch = {batch}"
        )
    if strategy.ep * strategy.etp * strategy.edp != stage:
        complaints.append(
            f"ep * etp * edp = {strategy.ep} * {strategy.etp} * {strategy.edp}, but a stage has {stage} devices"
        )
    complaints += _rank_complaints(plan)
    if len(strategy.layers_per_stage) != strategy.pp * strategy.virtual_stages:
        complaints.append(
            f"{len(strategy.layers_per_stage)} stages are listed, but pp * virtual_stages = "
            f"{strategy.pp} * {strategy.virtual_stages}"
        )
    if sum(strategy.layers_per_stage) != plan.model.layers:
        complaints.append(f"the stages hold {sum(strategy.layers_per_stage)} layers of {plan.model.layers}")
    if [sum(count for count, _ in runs) for runs in strategy.recompute] != strategy.layers_per_stage:
        complaints.append("the runs of layers that recompute alike do not add up to the layers of their stages")
    complaints += _model_complaints(plan)
    if complaints:
        raise BadInput("the plan does not add up: " + "; ".join(complaints) + "; plan again")


def _rank_complaints(plan: Plan) -> Iterator[str]:
    strategy, ranks = plan.strategy, world_size(plan.strategy)
    if ranks != plan.cluster.devices_used or ranks > MOST_RANKS:
        yield f"the degrees multiply to {ranks}, and the plan uses {plan.cluster.devices_used} devices (at most 2^24)"
    for axis in DENSE_ORDER:
        factors = strategy.placement.get(axis, [])
        if math.prod(factors) != getattr(strategy, axis) or len(factors) != len(strategy.placement.get("tp", [])):
            yield f"the placement of {axis} is {factors}, but {axis} = {getattr(strategy, axis)}"


def _model_complaints(plan: Plan) -> Iterator[str]:
    model, strategy = model_of(plan), plan.strategy
    if model is None:
        return
    for axis, widths in (("tp", model.widths), ("etp", model.expert_widths)):
        for what, width in widths:
            if width % getattr(strategy, axis):
                yield f"{axis} = {getattr(strategy, axis)} does not divide {width} {what}"
    if strategy.ep > 1 and (not model.experts or model.experts % strategy.ep):
        yield f"ep = {strategy.ep} does not divide {model.experts} experts"


def model_of(plan: Plan) -> ModelGraph | None:
    """The model that was planned, where the plan carries its config."""
    from planner.read_model import read_config

    if plan.model.config is None:
        return None
    try:
        return read_config(plan.model.config, plan.model.name)
    except PlannerError:
        return None


def dp(strategy: StrategyRecord) -> int:
    """Copies of the batch."""
    return strategy.dp_replicate * strategy.dp_shard


def uniform_recompute(strategy: StrategyRecord) -> str | None:
    """What every layer recomputes, or ``None`` where layers differ."""
    kinds = {kind for runs in strategy.recompute for _, kind in runs}
    return kinds.pop() if len(kinds) == 1 else None


def first_full(strategy: StrategyRecord) -> int | None:
    """The ``n`` for which every virtual stage recomputes its first ``n`` layers in full, or all it has, and no more.

    ``None`` where there is no such number above 0.
    """
    full = [sum(count for count, kind in runs if kind == "full") for runs in strategy.recompute]
    n = max(full)
    fits = all(
        [kind for count, kind in runs for _ in range(count)] == ["full"] * mine + ["none"] * (layers - mine)
        and mine == min(n, layers)
        for runs, layers, mine in zip(strategy.recompute, strategy.layers_per_stage, full, strict=True)
    )
    return n if n and fits else None


def recompute_text(strategy: StrategyRecord) -> str:
    """``"5 layers full, 43 selective, 32 none"``."""
    counts = dict.fromkeys(("full", "selective", "none"), 0)
    for runs in strategy.recompute:
        for count, kind in runs:
            counts[kind] += count
    shown = [f"{count} {kind}" for kind, count in counts.items() if count]
    return ", ".join([shown[0].replace(" ", " layers ", 1), *shown[1:]])


def mixed_recompute(strategy: StrategyRecord, can: str, pins: tuple[str, ...]) -> Iterator[Refusal]:
    """Layers that recompute in different ways, where a target can only what ``can`` says."""
    if uniform_recompute(strategy) is None:
        yield Refusal("recompute of part of the layers", f"{recompute_text(strategy)}, and it {can}", pins)


def uneven_stages(strategy: StrategyRecord, can: str) -> Iterator[Refusal]:
    """Stages of different sizes."""
    sizes = strategy.layers_per_stage
    if len(set(sizes)) > 1:
        yield Refusal("uneven stages", f"{min(sizes)} to {max(sizes)} layers a stage, and it {can}", ("pp=1",))


def no_axis(strategy: StrategyRecord, axes: dict[str, str], instead: str = "") -> Iterator[Refusal]:
    """Axes of degree above 1 that a target does not have, with why."""
    for axis, why in axes.items():
        if getattr(strategy, axis) > 1:
            yield Refusal(f"{axis} = {getattr(strategy, axis)}", why, (f"{axis}=1",), instead)


def other_work(plan: Plan, precisions: tuple[str, ...]) -> Iterator[Refusal]:
    """Adapters, packed sequences, number types and offloaded tensors, which a target's settings do not cover."""
    yield from other_training(plan, precisions)
    yield from offloaded(plan)


def other_training(plan: Plan, precisions: tuple[str, ...]) -> Iterator[Refusal]:
    """Adapters, packed sequences and number types, which a target's settings do not cover."""
    work = plan.workload
    if work.tuning != "all":
        yield Refusal("tuning", f"the plan trains {work.tuning} adapters", otherwise="plan with tuning='all'")
    if work.packed_len is not None:
        yield Refusal(
            "packed sequences", f"examples of {work.packed_len:g} tokens", otherwise="plan without packed_len"
        )
    if work.precision not in precisions:
        ways = " or ".join(f"--precision {one}" for one in precisions)
        yield Refusal("precision", f"the plan is for {work.precision}", otherwise=ways)


def no_decoder(plan: Plan) -> Iterator[Refusal]:
    """Encoders, models of images and others, where a target's programs build decoders of tokens."""
    if not plan.model.is_decoder:
        why = "its programs build decoders, which predict each token from those before it"
        yield Refusal(f"model {plan.model.name!r}", why, otherwise="--target torchrun runs it")


def offloaded(plan: Plan) -> Iterator[Refusal]:
    """Tensors in memory tiers, of which a plan offloads shares that no target has settings for."""
    offloads = plan.strategy.offloads
    if offloads:
        shown = ", ".join(f"{it.share:.0%} of {it.tensors} in {it.tier}" for it in offloads)
        yield Refusal("offloading", f"the plan keeps {shown}", otherwise="plan without --tiers")


def own_bytes(plan: Plan) -> Iterator[Refusal]:
    """Bytes a parameter that the plan's stack sets apart from its precision: no target takes them as numbers."""
    stack = plan.workload.stack
    names = [name for name in type(stack).model_fields if name.endswith("_bytes") and getattr(stack, name) is not None]
    if names:
        yield Refusal("bytes a parameter", f"the stack sets {', '.join(names)}", otherwise="plan with the stack's own")


def shared_heads(plan: Plan, why: str) -> Iterator[Refusal]:
    """A tp that does not divide the key-value heads, in a target that gives no two ranks the same head."""
    model, tp = model_of(plan), plan.strategy.tp
    if model is not None and model.kv_heads % tp:
        pins = dict.fromkeys((f"tp={model.kv_heads}", "tp=1"))
        yield Refusal(f"tp = {tp}", f"{why} {model.kv_heads} key-value heads", tuple(pins))


def split_experts(plan: Plan) -> Iterator[Refusal]:
    """States of experts, which a plan shards over all their copies, where a target shards inside ``dp_replicate``."""
    strategy = plan.strategy
    if strategy.dp_replicate > 1 and strategy.zero and has_experts(plan):
        yield Refusal(
            f"dp_replicate = {strategy.dp_replicate} with experts",
            "it would shard the experts' states over a part of edp too, and the plan shards them over all of it",
            ("dp_replicate=1",),
        )


def has_experts(plan: Plan) -> bool:
    """Whether the model has experts: some parameters do not work on every token, or the plan spreads experts."""
    return plan.model.active_parameters < plan.model.parameters or plan.strategy.ep * plan.strategy.etp > 1


def clocks_of_ranks(plan: Plan, why: str) -> Iterator[Refusal]:
    """Per-stage clocks, where a target could not bring them to the right devices."""
    if plan.strategy.clocks:
        yield Refusal("per-stage clocks", why, otherwise="plan without --clocks")
