"""Legality of a mixed strategy, from its own rules: nothing here is shared with the search that chose it."""

from __future__ import annotations

from cost_models.mixed import Machine, MixedEvaluation, MixedStage, MixedStrategy
from planner.checks.check_offloads import broken_shares

RUN_ORDER = ("full", "selective", "none")


def broken(machine: Machine, strategy: MixedStrategy, found: MixedEvaluation, limits: tuple[int, ...]) -> list[str]:
    """Every rule and limit that a strategy breaks, in words; empty when it is legal and fits."""
    stages, model, batch = strategy.stages, machine.model, machine.workload.global_batch
    layers, complaints = sum(stage.layers for stage in stages), []
    if layers != model.layers:
        complaints.append(f"stages hold {layers} layers, {model.name!r} has {model.layers}; every layer once")
    for s, stage in enumerate(stages):
        sequences = stage.dp * stage.micro_batch * strategy.micro_batches
        if sequences != batch:
            complaints.append(
                f"stage {s}: dp {stage.dp} x micro_batch {stage.micro_batch} x {strategy.micro_batches} micro-batches "
                f"= {sequences}, the global batch is {batch}"
            )
        complaints += [f"stage {s}: {text}" for text in _stage(machine, stage)]
        if found.need[s] > limits[stage.part]:
            complaints.append(f"stage {s} needs {found.need[s]:,} bytes, its devices leave {limits[stage.part]:,}")
        for tier, (held, room) in found.tiers[s].items():
            if held > room:
                complaints.append(f"stage {s} keeps {held:,} bytes a device in {tier!r}, whose even part is {room:,}")
    return complaints + _devices(machine, strategy)


def _stage(machine: Machine, stage: MixedStage) -> list[str]:
    model, cluster, found = machine.model, machine.cluster.parts[stage.part], []
    if any(width % stage.tp for _, width in model.widths):
        found.append(f"tp={stage.tp} does not divide {dict(model.widths)}")
    if model.kv_heads % stage.tp and stage.tp % model.kv_heads:
        found.append(f"tp={stage.tp} and {model.kv_heads} KV heads: neither divides the other")
    if stage.cp > 1 and machine.workload.seq_len % (2 * stage.cp):
        found.append(f"2*cp={2 * stage.cp} does not divide the sequence of {machine.workload.seq_len}")
    if stage.tp * stage.cp > cluster.levels[0].fanout:
        found.append(f"tp x cp = {stage.tp * stage.cp} is wider than a domain of {cluster.levels[0].fanout} devices")
    if max(1, model.experts) % stage.ep or stage.devices % stage.ep:
        found.append(f"ep={stage.ep} does not divide {model.experts} experts and {stage.devices} devices")
    if stage.zero and stage.cp * stage.dp == 1:
        found.append(f"zero={stage.zero} has nothing to shard over")
    kinds = [RUN_ORDER.index(run.choice.recompute) for run in stage.runs]
    if kinds != sorted(kinds) or any(run.count < 1 for run in stage.runs):
        found.append("runs are not full, then selective, then none, of a layer or more")
    if not 0 < stage.clock <= 1:
        found.append(f"its devices run at {stage.clock} of the full clock; a clock is a fraction above 0, up to 1")
    return found + list(broken_shares(cluster, stage.offloads))


def _devices(machine: Machine, strategy: MixedStrategy) -> list[str]:
    """Parts whose stages, the largest first, do not find room in their scale-up domains."""
    found = []
    for k, part in enumerate(machine.cluster.parts):
        room = part.levels[0].fanout
        free = [room] * (part.devices // room)
        for devices in sorted((s.devices for s in strategy.stages if s.part == k), reverse=True):
            whole = -(-devices // room) if devices > room else 0
            at = [d for d, left in enumerate(free) if left == room][:whole] if whole else _first(free, devices)
            if len(at) < max(1, whole):
                found.append(f"part {part.name!r} has no room for a stage of {devices} devices beside the others")
                break
            for d in at:
                free[d] -= room if whole else devices
    return found


def _first(free: list[int], devices: int) -> list[int]:
    return [d for d, left in enumerate(free) if left >= devices][:1]
