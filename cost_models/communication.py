"""Seconds of collectives over groups that cross several network levels; all arguments broadcast as arrays.

A group is given by its factors per level, innermost first: ``f[..., k]`` members at level ``k``, ``n`` in all.
Every collective of ``V`` bytes takes ``start + root sqrt(V) + slope V`` seconds, and the three depend on the group.

A ring passes through all members of a host before it leaves it, with one ring a NIC. So all levels work at the
same time, the slowest decides, and the members inside share what crosses a level. With ``P_k = prod_{j<k} f_j``
and ``Q_k = prod_{j>k} f_j``, of the levels with ``f_k > 1``:

    W_k    = V (n - 1) / n / P_k                all-gather, reduce-scatter; twice that in an all-reduce
    steps  = (f_k - 1) Q_k                      all-gather, reduce-scatter
    steps  = log2 f_k                           all-reduce: trees
    t      = max_k t0_k + sum_k alpha_k steps_k + max_k c_k r_k sqrt(W_k / 1 MB) + max_k W_k / B_k

To ``W_k`` of the innermost level used inside a scale-up domain comes a part of a device's own share, ``own V / n``:
copied from one buffer to the other by the same thread blocks that drive the links, half as much again in a group of
two and next to nothing in one of 64. ``r_k`` is 1 but in an all-reduce. A message of the best chunks for a tree of
``d`` steps takes ``d alpha + V / B + 2 sqrt(d alpha V / B)``, hence ``r_k = sqrt(steps)`` inside a domain; between
hosts the ramps of the steps add up, ``r_k = steps``: measured from 2 to 32 hosts, and what is foreseen best of 32
from fewer (11 % off, with the root of the steps 16 %, with neither 20 %).

Where the switch inside a host multiplies and adds (NVLink SHARP), an all-reduce sends ``V (f_0 + 1) / f_0`` inside
instead, and a tree joins the hosts, whose busiest sends ``min(2, f / 2) V / P`` between ``f`` of them (a pair halves
the traffic); the quicker of tree and ring is taken. In an all-to-all the steps of level k are the members with whom it
is shared but none inside it. Inside a domain ``W_k`` is what is meant for them; between hosts NICs and uplinks carry
what goes farther too, so there it is all that leaves the level below:

    W_k    = V (P_{k+1} - P_k) / n              inside a domain
    W_k    = V (1 - P_k / n)                    between hosts

Axes of a torus (levels that are rings) carry parts of the buffer at the same time, each in another order of the axes,
so that their wires add up. A group that fills an axis sends both ways round, one that is a part of it, or a pair, one
way. Over axes with ``f_k > 1``, ``P`` the members inside the first of them, and ``b_k`` one direction of a link:

    t      = V (n - 1) / n / P / sum_k B_k      B_k = 2 b_k where f_k is the whole axis and more than 2, else b_k
    t      = max_k V h_k / B_k                  all-to-all, h_k = f_k / 4, less 1 / (4 f_k) where f_k is odd

with ``h_k`` the mean way on an axis, which is twice as long on an open one, whose links each way are used once.

Where a calibration measured that bytes take longer in larger groups (``crowding`` c), ``1 / B_k`` grows by
``1 + c log2(f_k / 2)``. A step was measured between hosts of a whole fabric: ``alpha_k`` is less by what level k's way
is shorter than the outermost one's. It is never less than the level's own latency, for fabrics slower than the ones
that were measured.
Devices of one host all take part in collectives of the same kind at the same time, each in its own group or in a
common one, so the bandwidth per device of a level is the host's divided by its devices. That is wrong where only
some of a host's devices communicate (stages of a pipeline on one host, at different moments): these are charged
for NICs that stand idle. Not modelled: rings of thousands of ranks cut short by logarithmic algorithms that need
one rank a host (NCCL's PAT, small messages only), reduction inside the fabric's switches, congestion.

Source: ring and its volumes: Patarasuk and Yuan, J. Parallel Distrib. Comput. 69 (2009); double binary trees and
multicast: NVIDIA/nccl src/graph/tuning.cc and ``ncclTopoTuneModel``; the form of the fit and its parameters, and what
each form is worth on data that was left out: :mod:`cost_models.fitting.collectives`, ``calibration/collectives.toml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cost_models.calibration import Calibration, Collective
from topologies.cluster import Level

Operation = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Terms:
    """``start + root sqrt(V) + slope V`` seconds for ``V`` bytes, each ``[...]`` as the groups."""

    start: Floats
    root: Floats
    slope: Floats

    def seconds(self, volume_bytes: ArrayLike) -> Floats:
        """Seconds for that many bytes; 0 for none, and for groups of one, whose terms are all 0."""
        volume = np.asarray(volume_bytes, dtype=np.float64)
        time = self.start + self.root * np.sqrt(volume) + self.slope * volume
        return np.where(volume > 0, time, 0.0)


def collective_s(
    operation: Operation, volume_bytes: ArrayLike, factors: NDArray, levels: tuple[Level, ...], fits: Calibration
) -> Floats:
    """Seconds of one all-gather, reduce-scatter or all-reduce; 0 for groups of one and for no bytes.

    ``volume_bytes`` is the whole buffer: what a device holds after a gather, before a scatter, or in an
    all-reduce. ``factors`` has shape ``[..., levels]``.
    """
    return collective_terms(operation, factors, levels, fits).seconds(volume_bytes)


def all_to_all_s(sent_bytes: ArrayLike, factors: NDArray, levels: tuple[Level, ...], fits: Calibration) -> Floats:
    """Seconds for every device to send ``sent_bytes`` in equal parts to every member of its group; 0 for none."""
    inside = _inside(factors)
    size = inside[..., -1:]
    met = np.diff(inside, axis=-1)
    share = np.where(_between(levels, fits), _leaving(factors), met / size)
    share = np.where(_rings(levels), _mean_way(factors), share) + _own("all_to_all", factors, fits)
    return _terms("all_to_all", share, met, levels, fits, factors).seconds(sent_bytes)


def token_exchange_s(
    token_bytes: ArrayLike, top_k: ArrayLike, factors: NDArray, levels: tuple[Level, ...], fits: Calibration,
    experts: int = 0, expert_groups: tuple[int, int] = (1, 1),
) -> Floats:  # fmt: skip
    """Seconds of a dispatch or a combine that sends a token once to every host and once to every rank that needs it.

    ``token_bytes`` is one copy of a device's tokens, each for ``top_k`` experts drawn evenly. Of the ``G_k`` groups
    that lie inside level k, a token needs ``N_k = G_k (1 - (1 - 1 / G_k) ** top_k)``, and of these all but one part in
    ``f_k`` lie across that level from where it arrives. Switches between hosts copy nothing: of ``N`` hosts that need
    it as many copies cross a level as lie beyond:

        W_k = T N_k (1 - 1 / f_k)               inside a domain
        W_k = T N (1 - P_k / n)                 between hosts

    Of ``experts`` that are not drawn but dealt out in their order, token by token, those of a token lie side by side:
    it needs ``N_k = 1 + (top_k - gcd(top_k, E_k)) / E_k`` groups of ``E_k`` experts.

    Where experts are in ``expert_groups``, of so many of which all of a token's are, it needs no more (:func:`_drawn`).

    Source: the two hops of DeepEP and HybridEP (deepseek-ai/DeepEP, README), over rails and then inside the host.
    """
    inside = _inside(factors)
    hosts = inside[..., min(fits.domain_levels, len(levels)), None]
    groups = inside[..., -1:] / np.where(_between(levels, fits), hosts, inside[..., :-1])
    copies = _needed(np.asarray(top_k)[..., None], groups, experts, expert_groups)
    ways = np.where(_between(levels, fits), _leaving(factors), 1 - 1 / factors)
    share = copies * np.where(_rings(levels), _mean_way(factors), ways)
    return _terms("all_to_all", share, np.diff(inside, axis=-1), levels, fits, factors).seconds(token_bytes)


def _needed(top_k: NDArray, groups: Floats, experts: int, expert_groups: tuple[int, int]) -> Floats:
    """Groups that hold the experts of a token: drawn evenly, or of ``experts`` in their order."""
    if not experts:
        return _drawn(np.asarray(top_k, dtype=np.float64), groups, *expert_groups)
    each = np.maximum(np.floor(experts / groups), 1.0)
    return 1 + (top_k - np.gcd(top_k.astype(np.int64), each.astype(np.int64))) / each


def _drawn(top_k: Floats, ranks: Floats, groups: int, most: int) -> Floats:
    """Of ``ranks`` groups of ranks those that hold ``top_k`` experts drawn evenly from ``most`` of ``groups``.

    Drawn from ``n`` they are in ``n (1 - (1 - 1 / n) ** top_k)``. A router that picks ``most`` groups of experts first
    draws from ``n = most ranks / groups`` where a group has several ranks. Where ranks have ``m`` groups of experts
    each, they need none of a token that is in ``h`` groups with probability ``prod (1 - h / (groups - i)), i < m``.

    Source: DeepSeek-AI, arXiv:2412.19437, section 2.1.2: each token is sent to at most 4 nodes, those of its groups.
    """
    if most >= groups:
        return ranks * (1 - (1 - 1 / ranks) ** top_k)
    within = np.maximum(most * ranks / groups, 1.0)
    chosen, missed = most * (1 - (1 - 1 / most) ** top_k), np.ones(np.broadcast_shapes(np.shape(ranks), top_k.shape))
    for place in range(groups):
        missed = np.where(place < groups / ranks, missed * np.maximum(1 - chosen / (groups - place), 0.0), missed)
    return np.where(ranks >= groups, within * (1 - (1 - 1 / within) ** top_k), ranks * (1 - missed))


def p2p_s(message_bytes: ArrayLike, factors: NDArray, levels: tuple[Level, ...], fits: Calibration) -> Floats:
    """Seconds from the end of one stage to the start of its neighbour: the slowest level the axis crosses."""
    message = np.asarray(message_bytes, dtype=np.float64)
    worst = np.zeros(np.broadcast_shapes(message.shape, factors.shape[:-1]))
    for k, level in enumerate(levels):
        hop = fits.p2p_launch_s + level.latency_s + message / (fits.p2p_fraction * _one_way(level))
        worst = np.where(factors[..., k] > 1, np.maximum(worst, hop), worst)
    return worst


def collective_terms(operation: Operation, factors: NDArray, levels: tuple[Level, ...], fits: Calibration) -> Terms:
    """What an all-gather, reduce-scatter or all-reduce costs in a group, by the bytes of the whole buffer."""
    inside = _inside(factors)
    size, passes = inside[..., -1:], 2.0 if operation == "all_reduce" else 1.0
    share = np.where(factors > 1, passes * (size - 1) / size / inside[..., :-1], 0.0)
    share = _split_over_axes(share, factors, levels) + _own(operation, factors, fits)
    steps = np.log2(factors) if operation == "all_reduce" else (factors - 1) * size / inside[..., 1:]
    ring = _terms(operation, share, steps, levels, fits, factors)
    if operation != "all_reduce":
        return ring
    return Terms(ring.start, ring.root, np.minimum(ring.slope, _tree_slope(factors, levels, fits)))


def _own(operation: str, factors: NDArray, fits: Calibration) -> Floats:
    """Of the volume, what a device's own share counts beside what travels inside the domain; ``[..., levels]``.

    It is copied once, beside the wires of the innermost level of the scale-up domain that the group uses.
    """
    used = (factors > 1) & (np.arange(factors.shape[-1]) < fits.domain_levels)
    innermost = used & (np.cumsum(used, axis=-1) == 1)
    size = np.prod(factors, axis=-1, keepdims=True, dtype=np.float64)
    return np.where(innermost, fits.collective(operation, 0).own / size, 0.0)


def _inside(factors: NDArray) -> Floats:
    """``[..., levels + 1]``: members inside each level, and in all."""
    one = np.ones((*factors.shape[:-1], 1))
    return np.concatenate([one, np.cumprod(factors, axis=-1, dtype=np.float64)], axis=-1)


def _between(levels: tuple[Level, ...], fits: Calibration) -> NDArray[np.bool_]:
    """Levels that join hosts or domains, not devices of one."""
    return np.arange(len(levels)) >= fits.domain_levels


def _leaving(factors: NDArray) -> Floats:
    """Part of an even exchange that leaves the group inside each level."""
    inside = _inside(factors)
    return 1.0 - inside[..., :-1] / inside[..., -1:]


def _rings(levels: tuple[Level, ...]) -> NDArray[np.bool_]:
    return np.array([level.ring for level in levels])


def _mean_way(factors: NDArray) -> Floats:
    """Links that a byte for a member drawn evenly passes on a closed axis of that many, itself among them."""
    return (factors**2 - factors % 2) / (4.0 * factors)


def _one_way(level: Level) -> float:
    """Bandwidth between two neighbours of a level."""
    return level.bandwidth_bytes_per_s / 2 if level.ring else level.bandwidth_bytes_per_s


def _reached(factors: NDArray, levels: tuple[Level, ...]) -> Floats:
    """Bandwidth of each level for a group with these factors: of a ring, both ways or one."""
    whole = np.array([level.bandwidth_bytes_per_s for level in levels])
    closed = (factors == np.array([level.fanout for level in levels])) & (factors > 2)
    return np.where(closed | ~_rings(levels), whole, np.array([_one_way(level) for level in levels]))


def _split_over_axes(share: Floats, factors: NDArray, levels: tuple[Level, ...]) -> Floats:
    """Parts of a buffer that pass each level, those of a torus in proportion to what its used axes carry."""
    rings = _rings(levels)
    if not rings.any():
        return share
    carries = np.where(rings & (factors > 1), _reached(factors, levels), 0.0)
    together = carries.sum(axis=-1, keepdims=True)
    first = np.where(rings, share, 0.0).max(axis=-1, keepdims=True)
    return np.where(rings, first * carries / np.maximum(together, 1e-300), share)


def _terms(
    operation: Operation, share: Floats, steps: Floats, levels: tuple[Level, ...], fits: Calibration, factors: NDArray
) -> Terms:
    """The terms of a collective that moves ``share`` of its volume over each level in ``steps``, ``[..., levels]``."""
    used = share > 0
    every = [fits.collective(operation, k) for k in range(len(levels))]
    start = np.where(used, [fit.t0_s for fit in every], 0.0).max(axis=-1)
    alpha = np.array([_step_s(fit, level, levels[-1] if k >= fits.domain_levels else level)
                      for k, (fit, level) in enumerate(zip(every, levels, strict=True))])  # fmt: skip
    root = np.array([fit.sqrt_s for fit in every]) * np.sqrt(share / 1e6) * _ramps(operation, steps, fits)
    slope = share / (np.array([fit.bandwidth_fraction for fit in every]) * _reached(factors, levels))
    if any(fit.crowding for fit in every):
        crowd = np.log2(np.maximum(factors / 2, 1.0))
        slope = slope * (1.0 + np.array([fit.crowding for fit in every]) * crowd)
    return Terms(start + (steps * alpha * used).sum(axis=-1), root.max(axis=-1), slope.max(axis=-1))


def _step_s(fit: Collective, level: Level, farthest: Level) -> float:
    """Seconds of one step over a level, from that over the farthest one."""
    return max(fit.alpha_s - max(farthest.latency_s - level.latency_s, 0.0), level.latency_s)


def _ramps(operation: str, steps: Floats, fits: Calibration) -> Floats:
    """How often a level's ramp to full bandwidth counts: the root of a tree's steps inside a domain, all between."""
    if operation != "all_reduce":
        return np.ones(steps.shape)
    inside = fits.domain_levels
    return np.concatenate([np.sqrt(steps[..., :inside]), steps[..., inside:]], axis=-1)


def _tree_slope(factors: NDArray, levels: tuple[Level, ...], fits: Calibration) -> Floats:
    """Seconds a byte of an all-reduce whose hosts add and multiply in their switch; infinite where they cannot."""
    fit, members = fits.collective("all_reduce", 0), factors[..., 0]
    if not fit.multicast:
        return np.full(factors.shape[:-1], np.inf)
    slope = (members + 1) / members / (fit.multicast * _bandwidth(fit, levels[0]))
    slope = np.where(members > 1, slope, np.inf)
    inner = members.astype(np.float64)
    for k in range(1, len(levels)):
        between = np.where(factors[..., k] > 1, np.minimum(2.0, factors[..., k] / 2) / inner, 0.0)
        slope = np.maximum(slope, between / _bandwidth(fits.collective("all_reduce", k), levels[k]))
        inner = inner * factors[..., k]
    return slope


def _bandwidth(fit: Collective, level: Level) -> float:
    return fit.bandwidth_fraction * level.bandwidth_bytes_per_s
