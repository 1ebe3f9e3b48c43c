"""Seconds of collectives over groups that cross several network levels; all arguments broadcast as arrays.

A group is given by its factors per level, innermost first: ``f[..., k]`` members at level ``k``. A
hierarchical algorithm works level by level: to gather ``V`` bytes, each device first exchanges its
shard across the outer levels, where inner members divide the volume, then inside. With
``P_k = prod_{j<k} f_j``, the bytes a device moves at level k are

    W_k = V / P_k * (f_k - 1) / f_k        all-gather, reduce-scatter
    W_k = 2 V / P_k * (f_k - 1) / f_k      all-reduce

and each level costs ``t0 + alpha steps + c sqrt(W / 1 MB) + W / B`` with that level's fit; a step never
takes less than the level's own latency, for fabrics slower than the ones that were measured. Devices of
one host all take part in the same collective at the same time, so the bandwidth per device of a level
is the host's divided by its devices: sharing a NIC is in the level's figure.

Source: hierarchical ring, e.g. Thakur, Rabenseifner and Gropp, "Optimization of collective communication
operations in MPICH", 2005; the form of the fit and its parameters: ``calibration/collectives.toml``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cost_models.calibration import Calibration
from topologies.cluster import Level

Operation = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all"]
Floats = NDArray[np.float64]


def collective_s(
    operation: Operation, volume_bytes: ArrayLike, factors: NDArray, levels: tuple[Level, ...], fits: Calibration
) -> Floats:
    """Seconds of one all-gather, reduce-scatter or all-reduce; 0 for groups of one and for no bytes.

    ``volume_bytes`` is the whole buffer: what a device holds after a gather, before a scatter, or in an
    all-reduce. ``factors`` has shape ``[..., levels]``.
    """
    volume = np.asarray(volume_bytes, dtype=np.float64)
    passes = 2.0 if operation == "all_reduce" else 1.0
    inner = np.ones(np.broadcast_shapes(volume.shape, factors.shape[:-1]))
    total = np.zeros_like(inner)
    for k, level in enumerate(levels):
        members = factors[..., k]
        moved = passes * volume / inner * (members - 1) / members
        total = total + np.where(moved > 0, _level_s(operation, moved, members, k, level, fits), 0.0)
        inner = inner * members
    return total


def all_to_all_s(sent_bytes: ArrayLike, factors: NDArray, levels: tuple[Level, ...], fits: Calibration) -> Floats:
    """Seconds for every device to send ``sent_bytes`` in equal parts to every member of its group; 0 for none.

    Of the ``n`` members, ``P_{k+1} - P_k`` share level ``k`` with a device but no level inside it; that
    part of the volume crosses level k. Levels work one after the other.
    """
    sent = np.asarray(sent_bytes, dtype=np.float64)
    size = np.prod(factors, axis=-1)
    inner = np.ones(np.broadcast_shapes(sent.shape, factors.shape[:-1]))
    total = np.zeros_like(inner)
    for k, level in enumerate(levels):
        outer = inner * factors[..., k]
        moved = sent * (outer - inner) / size
        seconds = _level_s("all_to_all", moved, outer - inner + 1, k, level, fits)
        total = total + np.where(moved > 0, seconds, 0.0)
        inner = outer
    return total


def p2p_s(message_bytes: ArrayLike, factors: NDArray, levels: tuple[Level, ...], fits: Calibration) -> Floats:
    """Seconds from the end of one stage to the start of its neighbour: the slowest level the axis crosses."""
    message = np.asarray(message_bytes, dtype=np.float64)
    worst = np.zeros(np.broadcast_shapes(message.shape, factors.shape[:-1]))
    for k, level in enumerate(levels):
        hop = fits.p2p_launch_s + level.latency_s + message / (fits.p2p_fraction * level.bandwidth_bytes_per_s)
        worst = np.where(factors[..., k] > 1, np.maximum(worst, hop), worst)
    return worst


def _level_s(
    operation: Operation, moved_bytes: Floats, members: NDArray, k: int, level: Level, fits: Calibration
) -> Floats:
    fit = fits.collective(operation, k)
    steps = np.log2(members) if operation == "all_reduce" else members - 1
    bandwidth = fit.bandwidth_fraction * level.bandwidth_bytes_per_s
    latency = fit.t0_s + max(fit.alpha_s, level.latency_s) * steps
    return latency + fit.sqrt_s * np.sqrt(moved_bytes / 1e6) + moved_bytes / bandwidth
