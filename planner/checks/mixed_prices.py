"""A mixed pipeline priced again: layer by layer in whole numbers, then run one piece of work after the other.

Prices of single layers and a stage's exposed tail are the cost models'; what a stage adds up to is added here.
"""

from __future__ import annotations

import itertools

import numpy as np

from cost_models.mixed import Machine, MixedEvaluation, MixedStage, MixedStrategy
from planner.checks.verify_schedule import run_order, work_order


def priced_again(machine: Machine, strategy: MixedStrategy) -> MixedEvaluation:
    """Ticks and bytes of every stage, and of the step, whether or not it fits."""
    stages, m, pp = strategy.stages, strategy.micro_batches, len(strategy.stages)
    begins = [0, *itertools.accumulate(stage.layers for stage in stages)]
    each = [_stage(machine, stages[s], begins[s], min(m, pp - s)) for s in range(pp)]
    tiers = tuple(_tiers(machine, stages[s], begins[s], min(m, pp - s)) for s in range(pp))
    forward, backward, tail = ([one[k] for one in each] for k in range(3))
    hop = [max(_side(machine, one, other), _side(machine, other, one)) for one, other in itertools.pairwise(stages)]
    step = run_order(work_order("1f1b", pp, 1, m), forward, backward, None, hop, tail)
    classes = tuple(one[3] for one in each)
    need = [int(sum(held.values())) for held in classes]
    arrays = (np.array(values, dtype=np.int64) for values in (forward, backward, tail, hop, need))
    return MixedEvaluation(*arrays, classes, tiers, step)


def _side(machine: Machine, stage: MixedStage, other: MixedStage) -> int:
    """Ticks that a stage needs to send to another, or to receive from it."""
    tokens = stage.micro_batch * stage.dp * machine.workload.seq_len
    return int(machine.side(stage.part, tokens, np.array([stage.devices]), across=stage.part != other.part)[0])


def _stage(machine: Machine, stage: MixedStage, at: int, flight: int) -> tuple[int, int, int, dict[str, float]]:
    """Forward, backward and tail of a stage that begins with layer ``at``, and its bytes by class."""
    model, end = machine.model, at + stage.layers
    chain = machine.chain(stage)
    prices = chain.prices
    chosen = [run.choice.recompute for run in stage.runs for _ in range(run.count)]
    layers = list(zip(model.order[at:end], chosen, strict=True))
    ends = [-2] * (at == 0) + [-1] * (end == model.layers)
    kinds = [kind for kind, _ in layers] + ends
    forward = sum(int(prices.forward[0, kind]) for kind in kinds)
    backward = sum(int(prices.backward[0, kind]) for kind in kinds)
    backward += sum(int(prices.extra[choice][0, kind]) for kind, choice in layers)
    last, copied = end == model.layers, end == model.layers and at > 0
    classes = {
        name: float(sum(int(table[0, kind]) for kind in kinds) + copied * int(prices.tied_states[name][0]))
        for name, table in prices.states.items()
    }
    classes["logits"] = float(last * int(prices.logits[0]))
    kept = [int(prices.saved[choice][0, kind]) for kind, choice in layers]
    kept += [int(prices.saved["none"][0, kind]) for kind in ends]
    classes["activations"] = float(flight * sum(kept))
    classes |= {name: float(sizes[0]) for name, sizes in prices.fixed.items()}
    i, j = np.array([at]), np.array([end])
    tail = chain.tail(chain.tail_parts(i, j), np.array([forward]), np.array([backward]))
    return forward, backward, int(tail[0]), classes


def _tiers(machine: Machine, stage: MixedStage, at: int, flight: int) -> dict[str, tuple[int, int]]:
    """What a device of a stage keeps in each memory tier, layer by layer, and the even part of it that it has."""
    prices, part, end = machine.chain(stage).prices, machine.cluster.parts[stage.part], at + stage.layers
    last = end == machine.model.layers
    kinds = [*machine.model.order[at:end], *[-2] * (at == 0), *[-1] * last]
    found = {}
    for tier in part.tiers if stage.offloads else ():
        states, saved = (int(table[tier.name][0, kinds].sum()) for table in (prices.tier_states, prices.tier_saved))
        states += (last and at > 0) * int(prices.tier_tied[tier.name][0])
        hosts = -(-part.hosts // tier.pools) if tier.pools else 1
        room = int(tier.capacity_bytes // (hosts * part.devices_per_host))
        found[tier.name] = states + flight * saved, room
    return found
