"""The first bounds of meshes and degree tuples, from prices of their (tp, cp, micro-batch) alone.

Devices, stages and copies of the batch enter a bound in closed form, so millions of tuples are bounded by a few
thousand prices. With ``S`` the least work of one micro-batch over all layers, whatever the expert degrees and the
placement of any axis by itself, ``m`` micro-batches and ``pp`` stages,

    step >= max(m / pp, 1) S        S = S_0 + (w(N) - w(N_0)) C

``S_0`` is priced on the least devices ``N_0 = tp cp`` that have the axes. On ``N`` devices compute lasts
``w(N) / w(N_0)`` times as long (:func:`cost_models.price.waiting_factor`); what it then hides of communication it can
hide behind attention and host time only, so ``C`` is compute without these. The busiest of ``pp`` devices has at
least ``m S / pp`` of work in every schedule, and no micro-batch is done before ``S`` unless weights' gradients are work
of their own; where passes run beside each other, ``S`` is without the exchange of experts that could hide then. A mesh
(tp, cp, pp, dp), whose micro-batch is open, has the least ``m S_0``, ``m C``, ``S_0`` and ``C`` of all its
micro-batches, each by itself.
"""

from __future__ import annotations

import copy
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
from cost_models.schedules import BIDIRECTIONAL, SPLIT
from planner.candidates import Degrees, Space, legal_micro_batches, micro_batches, relaxed_rows
from planner.clocks import search_clocks
from planner.options import Options
from planner.search.bounds import kind_counts, objective_of
from planner.search.relax import Relaxation
from topologies.cluster import Cluster

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ROWS_AT_ONCE = 2**16
SLACK = 1 - 1e-9
"""What ticks, rounded up one price at a time, and floats, added in another order, may differ by."""


@dataclass(frozen=True)
class _Least:
    """Of a step's work on all devices of a stage and of one micro-batch alone: seconds ``S_0`` and ``C``, joules."""

    step_s: Floats
    step_compute_s: Floats
    once_s: Floats
    once_compute_s: Floats
    joules: Floats


class CoarseBounds:
    """First bounds in one space: prices of every (tp, cp, micro-batch), ``[tp, cp, sizes]``, are found once."""

    def __init__(self, space: Space, fits: Calibration, options: Options) -> None:
        self.space, self.fits, self.options = space, fits, options
        self.sizes = np.array(micro_batches(space), dtype=np.int64)
        tables = _least_of_all(space, self.sizes, fits, search_clocks(options))
        self.seconds, self.compute_s, self.joules = tables

    def under(self, options: Options) -> CoarseBounds:
        """The same prices under another objective or other limits; not other clocks."""
        other = copy.copy(self)
        other.options = options
        return other

    def of_meshes(self, meshes: Degrees) -> Floats:
        """The objective that no plan of a mesh can beat, ``[meshes]``; infinite where no micro-batch is legal."""
        copies, at = np.unique(meshes.dp, return_inverse=True)
        batches = self.space.workload.global_batch // copies[:, None] / self.sizes[None, :]
        legal = legal_micro_batches(self.space, copies)
        asked = [(table, times) for times in (batches, 1.0) for table in (self.seconds, self.compute_s)]
        least = [
            np.where(legal, table[:, :, None, :] * times, np.inf).min(axis=-1)
            for table, times in (*asked, (self.joules, batches))
        ]
        where = (*self._places(meshes), at)
        return self._in_parts(meshes, _Least(*(table[where] for table in least)))

    def of_degrees(self, degrees: Degrees) -> Floats:
        """The objective that no plan of a degree tuple can beat, ``[degrees]``."""
        where = (*self._places(degrees), np.searchsorted(self.sizes, degrees.micro_batch))
        seconds, compute_s, joules = (table[where] for table in (self.seconds, self.compute_s, self.joules))
        times = self.space.workload.global_batch // (degrees.dp * degrees.micro_batch)
        return self._in_parts(degrees, _Least(times * seconds, times * compute_s, seconds, compute_s, times * joules))

    def _places(self, degrees: Degrees) -> tuple[Ints, Ints]:
        return np.searchsorted(self.space.tp, degrees.tp), np.searchsorted(self.space.cp, degrees.cp)

    def _in_parts(self, degrees: Degrees, least: _Least) -> Floats:
        """The bounds, of so many rows at once that their tables stay small."""
        parts = np.array_split(np.arange(len(degrees)), max(1, -(-len(degrees) // ROWS_AT_ONCE)))
        names = [field.name for field in dataclasses.fields(_Least)]
        return np.concatenate(
            [self._bounds(degrees.take(at), _Least(*(getattr(least, name)[at] for name in names))) for at in parts]
        )

    def _bounds(self, degrees: Degrees, least: _Least) -> Floats:
        cluster = self.space.cluster
        rows = _side_by_side(degrees, cluster)
        alone = dataclasses.replace(rows, dp_shard=np.ones_like(rows.pp), pp=np.ones_like(rows.pp))
        longer = waiting_factor(rows.world_size, self.fits) - waiting_factor(alone.world_size, self.fits)
        busiest = (least.step_s + longer * least.step_compute_s) / rows.pp
        step_s = busiest
        if self.space.pins.get("schedule") not in SPLIT:
            step_s = np.maximum(busiest, least.once_s + longer * least.once_compute_s)
        joules = np.where(np.isfinite(least.joules), rows.stage_size * least.joules, 0.0)
        return objective_of(rows, cluster, self.options, placed=False).value(step_s, joules) * SLACK


def _side_by_side(degrees: Degrees, cluster: Cluster) -> Rows:
    """Rows of the degrees with all their devices side by side, so that they need the fewest hosts."""
    ones = np.ones_like(degrees.tp)
    levels, world = len(cluster.levels), degrees.tp * degrees.cp * degrees.pp * degrees.dp
    flat, every = np.broadcast_to(np.int64(1), (len(degrees), levels)), cluster.host_shape.side_by_side(world, levels)
    return Rows(
        tp=degrees.tp, cp=degrees.cp, dp_shard=degrees.dp, dp_replicate=ones, pp=degrees.pp, ep=ones, etp=ones,
        zero=ones, micro_batch=degrees.micro_batch, micro_batches=ones, virtual=ones,
        factors={axis: every if axis == "tp" else flat for axis in AXIS_FACTORS},
    )  # fmt: skip


def _least_of_all(space: Space, sizes: Ints, fits: Calibration, clocks: tuple[float, ...]) -> Floats:
    """``[3, tp, cp, sizes]``: the least seconds, compute that hides nothing, and joules of one micro-batch.

    Of each kind of layer by itself, over all its variants; infinite where tp and cp together exceed the cluster.
    """
    axes = np.meshgrid(np.array(space.tp), np.array(space.cp), sizes, indexing="ij")
    tp, cp, micro_batch = (axis.ravel() for axis in axes)
    fits_in = np.flatnonzero(tp * cp <= space.cluster.devices)
    ones = np.ones_like(fits_in)
    rows = relaxed_rows(space, Degrees(tp[fits_in], cp[fits_in], ones, ones, micro_batch[fits_in]))
    table = np.full((3, tp.size), np.inf)
    table[:, fits_in] = _least_of_rows(space, rows, fits, clocks)
    return table.reshape(3, *axes[0].shape)


def _least_of_rows(space: Space, rows: Rows, fits: Calibration, clocks: tuple[float, ...]) -> Floats:
    model, relaxation = space.model, Relaxation(space, fits)
    plain, spread = relaxation.variants(rows, experts_open=False), None
    total = np.zeros((3, len(rows)))
    for kind, count in zip((*model.kinds, model.embedding, model.head), kind_counts(model), strict=True):
        if kind.experts and spread is None:
            spread = relaxation.spread(rows)
        loose, origin = spread if kind.experts else plain
        total += count * _least_of_kind(space, kind, loose, origin, fits, clocks, len(rows))
    return total


def _least_of_kind(
    space: Space, kind: Layer, rows: Rows, origin: Ints, fits: Calibration, clocks: tuple[float, ...], keys: int
) -> Floats:
    """``[3, keys]``: least seconds, least seconds of compute that hides nothing, least joules of one layer."""
    least = np.full((3, keys), np.inf)
    for at in np.array_split(np.arange(len(rows)), max(1, -(-len(rows) // ROWS_AT_ONCE))):
        for row, values in zip(least, _of_kind(space, kind, rows.take(at), fits, clocks), strict=True):
            np.minimum.at(row, origin[at], values)
    return least


def _of_kind(
    space: Space, kind: Layer, rows: Rows, fits: Calibration, clocks: tuple[float, ...]
) -> tuple[Floats, Floats, Floats]:
    cluster, workload = space.cluster, space.workload
    bare = layer_compute(kind, rows, cluster, workload, fits)
    compute = bare.slowed(waiting_factor(rows.world_size, fits))
    talk = layer_communication(kind, Talk(space.model, rows, cluster, workload, fits), compute, relaxed=True)
    both = (compute.forward, compute.backward, talk.forward, talk.backward)
    hidden = 0.0
    if space.pins.get("schedule") in BIDIRECTIONAL:
        hidden = (1 - fits.interference) * talk.parts["expert parallel"]
    slower = [layer_compute(kind, rows, cluster, workload, fits, clock) for clock in clocks[1:]]
    spent = np.minimum.reduce([it.forward.joules + it.backward.joules for it in (bare, *slower)])
    free = bare.forward.seconds + bare.backward.seconds - sum(bare.attention) - sum(bare.waiting)
    spent = spent + talk.forward.joules + talk.backward.joules
    return sum(it.seconds for it in both) - hidden, np.maximum(free, 0.0), spent
