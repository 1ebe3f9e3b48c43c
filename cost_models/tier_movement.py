"""Bytes that a step reads and writes in each memory tier, and the joules that takes.

    J = B e + B_l l        with B the bytes that the tier's memory reads and writes, B_l those that cross devices' links

The joules of :mod:`cost_models.tiers` give bytes when a tier's memory takes one joule a byte and nothing else takes
any: each tier in turn is metered so, against none. So what is told is what is priced, by layer and schedule; unlike
what networks send, it is added to the energy of the step.
"""

from __future__ import annotations

import dataclasses

from cost_models.calibration import Calibration
from cost_models.chain import joules
from cost_models.model_graph import ModelGraph
from cost_models.movement import Moved
from cost_models.placed import strategy_chain
from cost_models.strategy import Strategy
from cost_models.ticks import Ticks
from cost_models.workload import Training
from topologies.cluster import Cluster
from topologies.tiers import Tier


def moved_in_tiers(
    model: ModelGraph, cluster: Cluster, workload: Training, strategy: Strategy, fits: Calibration
) -> tuple[Moved, ...]:
    """Bytes and joules of a step in every memory tier that the strategy uses, in the cluster's order."""
    used = {offload.tier for offload in strategy.offloads}
    ticks = Ticks.of(model, cluster, workload)

    def spent(*costing: Tier) -> float:
        """Dynamic joules of a step where only these tiers take any."""
        by_name = {tier.name: tier for tier in costing}
        tiers = tuple(by_name.get(tier.name, _costing(tier, 0.0, 0.0)) for tier in cluster.tiers)
        metered = dataclasses.replace(cluster, tiers=tiers)
        chain = strategy_chain(model, metered, workload, strategy, fits, ticks)
        each = joules(chain, chain.runs(strategy.stages), strategy.clocks)
        return float(each.sum()) * strategy.degrees.stage_size

    nothing, found = spent() if used else 0.0, []
    for tier in cluster.tiers:
        if tier.name in used:
            size, taken = (spent(it) - nothing for it in (_costing(tier, 1.0, 0.0), tier))
            known = tier.joules_per_byte + tier.link_joules_per_byte > 0
            found.append(Moved(tier.name, size, taken if known else None))
    return tuple(found)


def _costing(tier: Tier, joules_per_byte: float, link_joules_per_byte: float) -> Tier:
    return dataclasses.replace(tier, joules_per_byte=joules_per_byte, link_joules_per_byte=link_joules_per_byte)
