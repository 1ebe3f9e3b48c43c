"""Bytes that a step sends over each network level, and the joules that takes on the wire.

    J = 8 B e        with B the bytes all devices send over a level and e the level's energy a bit

The formulas of :mod:`cost_models.layer_communication` give bytes when a wire takes a second a byte: each level in turn
has one byte a second and all others any number, nothing starts late and nothing hides. Of ring and tree an all-reduce
takes what sends less. Pipelines send a hidden state forward and its gradient back over every boundary between stages.

Axes of a torus count as if they took their turn, the inner ones first; in fact they share a collective's bytes.

Part of what devices and network draw anyway (:mod:`cost_models.power`), so not added to it. Left out: what the links
draw while nothing is sent, most of the power of an optical port; memory on the device.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from cost_models.calibration import Calibration, Collective
from cost_models.layer_communication import LayerCommunication, Talk, layer_communication
from cost_models.model_graph import Layer, ModelGraph
from cost_models.rows import Rows
from cost_models.schedules import schedule_of
from cost_models.strategy import MIRRORED, Recompute, Strategy
from cost_models.work import LayerCompute, Work
from cost_models.workload import Training
from topologies.cluster import Cluster


@dataclass(frozen=True, slots=True)
class Moved:
    """What all devices together send over a level in a step; ``joules`` is ``None`` where no energy a bit is known."""

    level: str
    size_bytes: float
    joules: float | None


def moved(
    model: ModelGraph, cluster: Cluster, workload: Training, strategy: Strategy, fits: Calibration
) -> tuple[Moved, ...]:
    """Bytes and joules of a step on every network level that the strategy uses, innermost first."""
    found = []
    for k, level in enumerate(cluster.levels):
        size = _level_bytes(model, cluster, workload, strategy, fits, k)
        energy = cluster.energy_j_per_bit(k)
        if size:
            found.append(Moved(level.name, size, None if energy is None else 8 * size * energy))
    return tuple(found)


def _level_bytes(
    model: ModelGraph, cluster: Cluster, workload: Training, strategy: Strategy, fits: Calibration, level: int
) -> float:
    rows = Rows.of(strategy)
    talk = Talk(model, rows, _metered(cluster, level), workload, _metering(fits))
    passes = strategy.schedule.micro_batches
    counted: Counter[tuple[Layer, Recompute]] = Counter(_layers(model, strategy))
    sums = {kind: layer_communication(kind, talk, _nothing(rows), relaxed=False) for kind, _ in counted}
    copies = 2 if strategy.schedule.kind == MIRRORED else 1
    total = sum(count * _of_layer(sums[kind], choice, passes, copies) for (kind, choice), count in counted.items())
    hidden = float(talk.hidden_bytes[0]) / strategy.degrees.tp
    return strategy.degrees.stage_size * (total + passes * _crossings(strategy, level) * hidden)


def _layers(model: ModelGraph, strategy: Strategy) -> list[tuple[Layer, Recompute]]:
    """Every layer with what it recomputes, in order; embedding and head repeat nothing."""
    choices: list[Recompute] = [
        run.choice.recompute for stage in strategy.stages for run in stage.runs for _ in range(run.count)
    ]
    blocks = [(model.kinds[kind], choice) for kind, choice in zip(model.order, choices, strict=True)]
    return [(model.embedding, "none"), *blocks, (model.head, "none")]


def _of_layer(it: LayerCommunication, choice: Recompute, passes: int, copies: int) -> float:
    """Bytes of one device for one layer in a step, of all devices with a copy of its stage."""
    again = {"none": 0.0, "selective": it.repeated_selective.seconds, "full": it.repeated.seconds}[choice]
    once = sum(it.parts.values()) + again
    return float(np.sum(passes * once + copies * (it.reduce_s + it.gather_s + it.broadcast_s)))


def _crossings(strategy: Strategy, level: int) -> float:
    """How often a micro-batch crosses a level between stages, there and back.

    Of the boundaries between stages of two devices ``(f_k - 1) prod_{j>k} f_j`` in ``pp - 1`` are on level k; where a
    V turns, a device has both.
    """
    pp, factors, schedule = strategy.degrees.pp, strategy.placement["pp"], strategy.schedule
    if pp == 1:
        return 0.0
    devices = schedule_of(schedule.kind, pp, schedule.virtual_stages, schedule.micro_batches).devices
    boundaries = sum(one != other for one, other in itertools.pairwise(devices))
    return 2 * boundaries * (factors[level] - 1) * int(np.prod(factors[level + 1 :])) / (pp - 1)


def _metered(cluster: Cluster, level: int) -> Cluster:
    """The cluster with a byte a second on one level, nothing to wait for on the others."""
    levels = tuple(
        dataclasses.replace(
            one, latency_s=0.0, bandwidth_bytes_per_s=1.0 if k == level else math.inf, ring=False
        )
        for k, one in enumerate(cluster.levels)
    )  # fmt: skip
    return dataclasses.replace(cluster, levels=levels)


def _metering(fits: Calibration) -> Calibration:
    """The calibration with collectives that reach their wires at once, share work evenly and hide behind nothing."""
    plain = {name: _plain(getattr(fits, name)) for name in ("scale_up", "scale_out")}
    fits = dataclasses.replace(fits, **plain, overlap=dict.fromkeys(fits.overlap, 0.0))
    return dataclasses.replace(fits, tp_wait=1.0, dp_wait=1.0, expert_imbalance=1.0, broadcast_hop_s=0.0)


def _plain(wires: dict[str, Collective]) -> dict[str, Collective]:
    """Wires that reach their bandwidth; switches that add and multiply still do."""
    return {op: Collective(0.0, 0.0, 0.0, 1.0, 0.0, float(it.multicast > 0)) for op, it in wires.items()}


def _nothing(rows: Rows) -> LayerCompute:
    """Compute that takes no time: nothing hides behind it."""
    none, zero = Work.zero(len(rows)), np.zeros(len(rows))
    return LayerCompute(none, none, none, (zero, zero), (zero, zero), (zero, zero), none)
