"""Tensors that live outside the device's memory: what moving them takes, and where they then lie.

Of every tensor class a row may offload a share to a tier (:class:`cost_models.strategy.Offload`). A device then moves

    forward     reads its weights, writes what backward needs             a layer and micro-batch
    backward    reads weights and what forward wrote, adds up gradients   a layer and micro-batch
    update      reads and writes optimiser states                         a layer and step

With ``r_t`` read and ``w_t`` written of tier ``t``, ``n`` devices of a host and ``h`` hosts of a pool at it together
(``link_t`` being what the fullest PCIe port leaves a device, :mod:`topologies.inside`),

    t = max( sum_t r_t / link_t,  sum_t w_t / link_t,  max_t n (r_t / read_t + w_t / write_t),
             max_t n h (r_t + w_t) / pool_t ) + sum_t latency_t

A layer's traffic hides behind that layer's own forward or backward, layers being fetched and written one ahead; what is
longer sticks out. Only activations of a 1F1B stage's first layers have more time: layer ``l`` of ``k`` may be on its
way until ``l n / k`` of the stage's ``n`` layers are done, so that what has not left yet is never more than what the
other ``n - k`` layers keep in the end. There a pass takes ``max(sum of its layers' work, sum of their traffic)``. The
update is either done by the device, which streams its states through, or by a processor beside the tier, to which
gradients go and from which weights come; the quicker is taken:

    near = max(t of gradients out and weights in, n 2 s / update_t)

In joules above what the machine draws at rest, ``e_t`` a byte of the memory and ``l_t`` a byte of a device's link,

    passes and a device's update    sum_t (r_t + w_t) (e_t + l_t)
    a processor's update            sum_t touched_t e_t + (gradients out + weights in) (e_t + l_t)

of which the quicker update's are taken. What that processor itself spends is left out.

What backward needs is either all that layers save, charged as if none were recomputed, or the inputs of layers that
recompute in full, charged as if all were. A pool is one pipe, whose hosts share its bandwidth evenly; its capacity they
take as they need it (:mod:`cost_models.pools`).

Source of the forms: Ren et al., arXiv:2101.06840 (optimiser beside the host's memory); Rajbhandari et al.,
arXiv:2104.07857 (weights, gradients and states on slower tiers, contention of a node's links);
NVIDIA/TransformerEngine@d0067d0 transformer_engine/pytorch/cpu_offload_v1.py, ``layer_window_map`` (first layers, each
over ``n / k`` of all; what replaced it, ``DefaultOffloadSynchronizer``, gives layer ``l`` until layer ``n - k + l``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cost_models.pools import room_of_a_rank
from cost_models.power import hosts_used
from cost_models.rows import Rows
from cost_models.strategy import OFFLOADED
from cost_models.work import Work
from topologies.cluster import Cluster
from topologies.tiers import Tier

Floats = NDArray[np.float64]
OPTIMIZER, GRADIENTS, WEIGHTS, ACTIVATIONS, CHECKPOINTS = range(len(OFFLOADED))
STATES = ("optimizer", "gradients", "weights")


@dataclass(frozen=True)
class TierRates:
    """Seconds a byte of one device on the way to each tier, joules a byte of the memory and of the device's link, and
    the most it may keep there; ``[rows, tiers]``.
    """

    link: Floats
    read: Floats
    write: Floats
    pool: Floats
    near: Floats
    attend: Floats
    latency_s: Floats
    joules: Floats
    link_joules: Floats
    room_bytes: Floats

    def seconds(self, read: Floats, written: Floats) -> Floats:
        """What reading and writing so many bytes of every tier at the same time takes, ``[rows]``."""
        one_way = np.maximum((read * self.link).sum(axis=1), (written * self.link).sum(axis=1))
        port = (read * self.read + written * self.write).max(axis=1, initial=0.0)
        shared = ((read + written) * self.pool).max(axis=1, initial=0.0)
        return np.maximum.reduce([one_way, port, shared]) + ((read + written > 0) * self.latency_s).sum(axis=1)

    def spent(self, moved: Floats) -> Floats:
        """Joules of so many bytes that devices read and write, ``[rows]``."""
        return (moved * (self.joules + self.link_joules)).sum(axis=1)


def tiers_of(rows: Rows, cluster: Cluster) -> tuple[Tier, ...]:
    """The cluster's tiers that the rows name, in the rows' order."""
    by_name = {tier.name: tier for tier in cluster.tiers}
    return tuple(by_name[name] for name in rows.tiers)


def tier_rates(rows: Rows, cluster: Cluster) -> TierRates:
    """Rates of the tiers that ``rows`` name, when every device in use moves as much as every other.

    Of a pool a rank's device has room for what the ranks it meets there leave, even parts or not.
    """
    tiers, devices = tiers_of(rows, cluster), cluster.host_shape.devices_a_host(rows.used())
    rates = rates_of(tiers, devices.astype(float), hosts_used(rows, cluster).astype(float))
    pooled = np.array([tier.pools > 0 for tier in tiers], dtype=bool)
    return replace(rates, room_bytes=np.where(pooled, _alone(rows, cluster, tiers), rates.room_bytes))


def rates_of(tiers: tuple[Tier, ...], devices: Floats, hosts: Floats) -> TierRates:
    """Rates of tiers at which ``devices`` of every one of ``hosts`` work at the same time, each ``[rows]``."""
    devices, hosts = devices[:, None], hosts[:, None]
    pools = np.array([tier.pools for tier in tiers])
    sharing = devices * np.where(pools > 0, np.ceil(hosts / np.maximum(pools, 1)), 1.0)

    def figure(name: str) -> Floats:
        return np.array([getattr(tier, name) for tier in tiers], dtype=float)

    with np.errstate(divide="ignore"):
        near, attend = devices / figure("update_bytes_per_s"), sharing / figure("attend_bytes_per_s")
    return TierRates(
        link=_links(tiers, devices[:, 0]),
        read=devices / figure("read_bytes_per_s"),
        write=devices / figure("write_bytes_per_s"),
        pool=sharing / figure("pool_bytes_per_s"),
        near=np.where(pools > 0, np.maximum(near, sharing / figure("pool_bytes_per_s")), near),
        attend=attend,
        latency_s=np.broadcast_to(figure("latency_s"), sharing.shape),
        joules=np.broadcast_to(figure("joules_per_byte"), sharing.shape),
        link_joules=np.broadcast_to(figure("link_joules_per_byte"), sharing.shape),
        room_bytes=figure("capacity_bytes") / sharing,
    )


def _links(tiers: tuple[Tier, ...], devices: Floats) -> Floats:
    """Seconds a byte over the way of one device to its host, ``[rows, tiers]``."""
    each = [1 / tier.of_a_device(devices) for tier in tiers]
    return np.stack(each, axis=1) if each else np.zeros((len(devices), 0))


def _alone(rows: Rows, cluster: Cluster, tiers: tuple[Tier, ...]) -> Floats:
    """Bytes that a rank's device may keep in each tier at most if that is a pool, ``[rows, tiers]``."""
    return np.stack([room_of_a_rank(rows, cluster, tier) for tier in tiers], axis=1)


@dataclass(frozen=True)
class LayerBytes:
    """Bytes of one layer by class before any share is offloaded, ``[rows]``.

    ``saved`` is all that it keeps of one micro-batch, ``checkpoint`` what it keeps when it recomputes in full.
    ``updated`` are the gradients of the states that the device updates, fewer than it holds under ZeRO-1, and
    ``weights_back`` the weights that a processor beside a tier sends to the device after that update.
    """

    optimizer: Floats
    gradients: Floats
    weights: Floats
    saved: Floats
    checkpoint: Floats
    updated: Floats
    weights_back: Floats


@dataclass(frozen=True)
class LayerTiers:
    """What a layer's offloaded tensors cost: seconds that stick out, joules, and bytes that lie in each tier.

    ``forward_left_s`` and ``backward_left_s`` are what the traffic leaves of a pass's work, for another's to hide in;
    ``forward_sent_s`` and ``backward_sent_s`` all traffic of a pass, where it may hide behind other layers' work.

    ``states`` and ``saved`` are ``[rows, tiers]``, ``saved`` of one micro-batch; the others ``[rows]``.
    """

    forward_s: Floats
    backward_s: Floats
    forward_left_s: Floats
    backward_left_s: Floats
    forward_sent_s: Floats
    backward_sent_s: Floats
    update_s: Floats
    joules_pass: Floats
    joules_step: Floats
    states: Floats
    saved: Floats


def layer_tiers(
    size: LayerBytes, share: Floats, rates: TierRates, forward_s: Floats, backward_s: Floats, update_s: Floats, *,
    spread: NDArray[np.bool_],
) -> LayerTiers:  # fmt: skip
    """The cost of offloading ``share``, ``[rows, classes, tiers]``, of a layer that works so long without it.

    Rows that ``spread`` what backward needs over the passes of other layers wait here for the rest alone.
    """
    optimizer = size.optimizer[:, None] * share[:, OPTIMIZER]
    gradients = size.gradients[:, None] * share[:, GRADIENTS]
    weights = size.weights[:, None] * share[:, WEIGHTS]
    saved = size.saved[:, None] * share[:, ACTIVATIONS] + size.checkpoint[:, None] * share[:, CHECKPOINTS]
    sent = rates.seconds(weights, saved), rates.seconds(weights + saved + gradients, gradients)
    alone = saved * ~spread[:, None]
    forward = rates.seconds(weights, alone)
    backward = rates.seconds(weights + alone + gradients, gradients)
    update = _update(size, share, optimizer, weights, rates)
    return LayerTiers(
        forward_s=np.maximum(forward - forward_s, 0.0),
        backward_s=np.maximum(backward - backward_s, 0.0),
        forward_left_s=np.maximum(forward_s - forward, 0.0),
        backward_left_s=np.maximum(backward_s - backward, 0.0),
        forward_sent_s=np.where(spread, sent[0], 0.0),
        backward_sent_s=np.where(spread, sent[1], 0.0),
        update_s=np.maximum(update.seconds - update_s, 0.0),
        joules_pass=rates.spent(2 * weights + 2 * saved + 2 * gradients),
        joules_step=update.joules,
        states=optimizer + gradients + weights,
        saved=saved,
    )


def _update(size: LayerBytes, share: Floats, optimizer: Floats, weights: Floats, rates: TierRates) -> Work:
    """The quicker of two updates, by the device and by a processor beside the tier; of equals the device's."""
    device, near = _streamed(size, share, optimizer, weights, rates), _near(size, share, optimizer, rates)
    nearer = near.seconds < device.seconds
    return Work(np.where(nearer, near.seconds, device.seconds), np.where(nearer, near.joules, device.joules))


def _streamed(size: LayerBytes, share: Floats, optimizer: Floats, weights: Floats, rates: TierRates) -> Work:
    """The device updates: states in and out, gradients in and weights out where they live outside too."""
    gradients = size.updated[:, None] * share[:, GRADIENTS]
    read, written = optimizer + gradients, optimizer + weights
    return Work(rates.seconds(read, written), rates.spent(read + written))


def _near(size: LayerBytes, share: Floats, optimizer: Floats, rates: TierRates) -> Work:
    """A processor beside the tier updates; infinite where there is none."""
    mine = share[:, OPTIMIZER]
    out = size.updated[:, None] * np.maximum(mine - share[:, GRADIENTS], 0.0)
    back = size.weights_back[:, None] * np.maximum(mine - share[:, WEIGHTS], 0.0)
    touched = 2 * optimizer + size.updated[:, None] * mine + size.weights_back[:, None] * mine
    with np.errstate(invalid="ignore"):
        work = np.where(touched > 0, touched * rates.near, 0.0).max(axis=1)
    joules = (touched * rates.joules).sum(axis=1) + rates.spent(out + back)
    return Work(np.maximum(rates.seconds(back, out), work), joules)


def kept_share(share: Floats, name: str) -> Floats:
    """Part of a tensor class that stays in device memory, ``[rows]``."""
    return 1.0 - share[:, OFFLOADED.index(name)].sum(axis=1)
