"""The first bound of every degree tuple, from prices of its (tp, cp, micro-batch) alone.

Devices, stages and copies of the batch enter a bound in closed form, so a million tuples are bounded by a few
thousand prices. With ``S`` the least work of one micro-batch over all layers, whatever the expert degrees and the
placement of any axis by itself, ``m`` micro-batches and ``pp`` stages,

    step >= max(m / pp, 1) S        S = S_0 + (w(N) - w(N_0)) C

``S_0`` is priced on the least devices ``N_0 = tp cp`` that have the axes. On ``N`` devices compute lasts
``w(N) / w(N_0)`` times as long (:func:`cost_models.price.waiting_factor`); what it then hides of communication it can
hide behind attention and host time only, so ``C`` is compute without these. The busiest of ``pp`` devices has at
least ``m S / pp`` of work in every schedule, and no micro-batch is done before ``S``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration
from cost_models.compute import layer_compute
from cost_models.layer_communication import Talk, layer_communication
from cost_models.model_graph import Layer
from cost_models.price import waiting_factor
from cost_models.rows import AXIS_FACTORS, Rows
from planner.candidates import Degrees, Space, relaxed_rows
from planner.options import Options
from planner.search.bounds import kind_counts, objective_of
from planner.search.relax import Relaxation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ROWS_AT_ONCE = 2**16
SLACK = 1 - 1e-9
"""What ticks, rounded up one price at a time, and floats, added in another order, may differ by."""


@dataclass(frozen=True)
class _Least:
    """The least of one micro-batch over all layers, ``[keys]``: seconds ``S_0``, seconds ``C``, dynamic joules."""

    seconds: Floats
    compute_s: Floats
    joules: Floats


def coarse_bounds(space: Space, degrees: Degrees, fits: Calibration, options: Options) -> Floats:
    """The objective that no plan of a degree tuple can beat, ``[degrees]``."""
    keys = np.stack([degrees.tp, degrees.cp, degrees.micro_batch], axis=1)
    _, first, key = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    least, key = _least_of(space, degrees.take(first), fits), key.ravel()
    parts = np.array_split(np.arange(len(degrees)), max(1, -(-len(degrees) // ROWS_AT_ONCE)))
    return np.concatenate([_bounds(space, degrees.take(at), key[at], least, fits, options) for at in parts])


def _bounds(
    space: Space, degrees: Degrees, key: Ints, least: _Least, fits: Calibration, options: Options
) -> Floats:  # fmt: skip
    rows = _side_by_side(space, degrees)
    alone = dataclasses.replace(rows, dp_shard=np.ones_like(rows.pp), pp=np.ones_like(rows.pp))
    longer = waiting_factor(rows, space.cluster, fits) - waiting_factor(alone, space.cluster, fits)
    work = least.seconds[key] + longer * least.compute_s[key]
    step_s = np.maximum(rows.micro_batches / rows.pp, 1.0) * work
    dynamic_j = rows.micro_batches * rows.stage_size * least.joules[key]
    return objective_of(rows, space.cluster, options).value(step_s, dynamic_j) * SLACK


def _side_by_side(space: Space, degrees: Degrees) -> Rows:
    """Rows of the degrees with all their devices side by side, so that they need the fewest hosts."""
    ones = np.ones_like(degrees.tp)
    levels = len(space.cluster.group_capacity)
    flat = np.broadcast_to(np.int64(1), (len(degrees), levels))
    every = flat.copy()
    every[:, 0] = degrees.tp * degrees.cp * degrees.pp * degrees.dp
    return Rows(
        tp=degrees.tp, cp=degrees.cp, dp_shard=degrees.dp, dp_replicate=ones, pp=degrees.pp, ep=ones, etp=ones,
        zero=ones, micro_batch=degrees.micro_batch, virtual=ones,
        micro_batches=space.workload.global_batch // (degrees.dp * degrees.micro_batch),
        factors={axis: every if axis == "tp" else flat for axis in AXIS_FACTORS},
    )  # fmt: skip


def _least_of(space: Space, degrees: Degrees, fits: Calibration) -> _Least:
    """The least work of every (tp, cp, micro-batch): of each kind of layer by itself, over all its variants."""
    ones = np.ones_like(degrees.tp)
    rows = relaxed_rows(space, dataclasses.replace(degrees, pp=ones, dp=ones))
    model, relaxation = space.model, Relaxation(space, fits)
    plain, spread = relaxation.variants(rows, experts_open=False), None
    total = np.zeros((3, len(rows)))
    for kind, count in zip((*model.kinds, model.embedding, model.head), kind_counts(model), strict=True):
        if kind.experts and spread is None:
            spread = relaxation.spread(rows)
        loose, origin = spread if kind.experts else plain
        total += count * _least_of_kind(space, kind, loose, origin, fits, len(rows))
    return _Least(*total)


def _least_of_kind(space: Space, kind: Layer, rows: Rows, origin: Ints, fits: Calibration, keys: int) -> Floats:
    """``[3, keys]``: least seconds, least seconds of compute that hides nothing, least joules of one layer."""
    least = np.full((3, keys), np.inf)
    for at in np.array_split(np.arange(len(rows)), max(1, -(-len(rows) // ROWS_AT_ONCE))):
        for row, values in zip(least, _of_kind(space, kind, rows.take(at), fits), strict=True):
            np.minimum.at(row, origin[at], values)
    return least


def _of_kind(space: Space, kind: Layer, rows: Rows, fits: Calibration) -> tuple[Floats, Floats, Floats]:
    cluster, workload = space.cluster, space.workload
    bare = layer_compute(kind, rows, cluster, workload, fits)
    compute = bare.slowed(waiting_factor(rows, cluster, fits))
    talk = layer_communication(kind, Talk(space.model, rows, cluster, workload, fits), compute, relaxed=True)
    both = (compute.forward, compute.backward, talk.forward, talk.backward)
    free = bare.forward.seconds + bare.backward.seconds - sum(bare.attention) - sum(bare.waiting)
    return sum(it.seconds for it in both), np.maximum(free, 0.0), sum(it.joules for it in both)
