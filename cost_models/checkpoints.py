"""Bytes of a checkpoint, the seconds that it takes and stops the step for, and how many steps lie between two.

    B             (weights + optimiser's states and master copy) x parameters that learn
    write_s       copies B / min(hosts x a host's bandwidth, the store's)     every host writes an equal part
    blocked_s     write_s where the step waits; else B / devices into the host's memory
    behind_s      0 where the step waits; else write_s: until then a restart needs the one before
    read_s        B / min(hosts x a host's bandwidth, the store's)     once; replicas get theirs over the fabric

A write goes on behind the steps only as long as the next one does not begin: ``tau + blocked_s >= write_s``.
Intervals are whole steps. Left out: what writing takes from the network that the steps use, metadata, and stages
whose states are more than an even share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cost_models.model_graph import Layer, ModelGraph
from cost_models.reliability import best_interval_s, goodput_fraction
from cost_models.workload import Training
from topologies.cluster import Cluster
from topologies.ready import store_of

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint of a job: its bytes and seconds, as in the head of this file."""

    size_bytes: float
    write_s: float
    read_s: float
    blocked_s: float
    behind_s: float

    def least_steps(self, step_s: float) -> int:
        """Fewest steps between two, so that one is written before the next begins."""
        return max(1, math.ceil((self.write_s - self.blocked_s) / step_s * (1 - 1e-12)))


def checkpoint_bytes(model: ModelGraph, workload: Training) -> float:
    """Bytes of what a restart needs: weights that learn, with their master copy and the optimiser's states."""
    return learnt_parameters(model, workload) * (workload.recipe.weight_bytes + workload.optimizer_bytes)


def learnt_parameters(model: ModelGraph, workload: Training) -> int:
    """Parameters that training changes: all, or adapters of rank r, ``r (n + k)`` beside an ``[n, k]`` matrix."""
    if workload.tuning != "lora":
        return model.parameters
    layers = (*(model.kinds[kind] for kind in model.order), model.embedding, model.head)
    return workload.lora_rank * sum(_adapted(layer, workload) for layer in layers)


def _adapted(layer: Layer, workload: Training) -> int:
    return sum(op.n + op.k for op in layer.operators if workload.adapts(op.name))


def checkpoint(
    model: ModelGraph, cluster: Cluster, workload: Training, devices: int, hosts: int, *, asynchronous: bool
) -> Checkpoint:
    """The checkpoint of a job on so many devices and hosts, written to the cluster's store."""
    store, size = store_of(cluster), checkpoint_bytes(model, workload)
    write_s = store.copies * size / float(bandwidth_bytes_per_s(cluster, "write", hosts))
    snapshot_bytes_per_s = cluster.packages(devices) * store.figures.snapshot_bandwidth.value
    blocked_s = size / snapshot_bytes_per_s if asynchronous else write_s
    return Checkpoint(
        size_bytes=size, write_s=write_s, read_s=size / float(bandwidth_bytes_per_s(cluster, "read", hosts)),
        blocked_s=min(blocked_s, write_s), behind_s=write_s if asynchronous else 0.0,
    )  # fmt: skip


def bandwidth_bytes_per_s(cluster: Cluster, way: Literal["read", "write"], hosts: ArrayLike) -> Floats:
    """Bytes a second into or out of the cluster's store when that many hosts of it write or read."""
    store = store_of(cluster)
    each, whole = (getattr(store.figures, f"{name}{way}_bandwidth") for name in ("host_", ""))
    units = 1 if store.unit_hosts is None else -(-cluster.hosts // store.unit_hosts)
    most = math.inf if whole is None else units * whole.value
    return np.minimum(np.asarray(hosts, dtype=np.float64) * each.value, most)


def best_steps(each: Checkpoint, step_s: float, restart_s: float, mtbf_s: float) -> int:
    """Whole steps between checkpoints with the most goodput: a neighbour of the best interval that can be written.

    Goodput rises up to the best interval and falls from there on, so that its neighbours are the best whole numbers.
    """
    best = float(best_interval_s(each.blocked_s, mtbf_s)) / step_s
    least = each.least_steps(step_s)
    few = max(least, math.floor(best))
    options = np.array([few, max(least, few + 1)], dtype=np.float64)
    kept = goodput_fraction(options * step_s, each.blocked_s, each.behind_s, restart_s, mtbf_s)
    return int(options[int(np.argmax(kept))])
