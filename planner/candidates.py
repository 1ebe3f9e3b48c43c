"""The space: every legal value of every axis, and the tables of rows that the search walks through.

Axes and their rules:

    tp            divides attention heads and feed-forward widths; KV heads are a multiple of it, or it of them
    cp            2 cp divides the sequence (each rank takes one early and one late piece)
    pp            at most one stage a layer
    dp            divides the global batch
    vocab_tp      ranks that divide embedding and head, where it is pinned: tp divides it, it divides tp cp; else tp
    micro_batch   divides the batch of a data-parallel rank
    ep, etp       divide the experts and their widths; ep etp divides dp cp tp; of a module's experts ep divides dp cp
                  where etp divides tp, else ep etp does: the runtime spreads them over ranks with other tokens
    zero, dp_shard  dp_shard divides dp; zero 0 exactly when nothing is sharded
    virtual_stages  1, or a number that cuts the layers evenly, with micro-batches a multiple of pp
    placement     factors of every axis on every network level; each level has room for their product
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from operator import le, mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.model_graph import ModelGraph
from cost_models.rows import Rows
from cost_models.schedules import BIDIRECTIONAL, EAGER, FEW_CUTS, MIRRORED, virtual_stages_of
from cost_models.vocabulary import may_split
from cost_models.workload import Training
from planner.errors import BadInput
from topologies.cluster import Cluster
from topologies.host_shape import HostShape

Ints = NDArray[np.int64]


@lru_cache(maxsize=65536)
def divisors(number: int) -> tuple[int, ...]:
    """Divisors in ascending order."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return tuple(sorted({*small, *(number // d for d in small)}))


@dataclass(frozen=True)
class Space:
    """Legal values by axis, after pins, and where the model puts limits."""

    model: ModelGraph
    cluster: Cluster
    workload: Training
    pins: dict[str, int | str]
    tp: tuple[int, ...]
    cp: tuple[int, ...]
    pp: tuple[int, ...]
    dp: tuple[int, ...]
    ep: tuple[int, ...]
    etp: tuple[int, ...]
    zero: tuple[int, ...]

    @property
    def vocab_tp(self) -> int:
        """Ranks that divide embedding and head; 0 for as many as tp."""
        return int(self.pins.get("vocab_tp", 0))

    def described(self) -> dict[str, Any]:
        """Axes with their values and the restrictions, for the proof."""
        return {
            "axes": {
                "tp": list(self.tp), "cp": list(self.cp), "pp": _range_text(self.pp), "dp": list(self.dp),
                "ep": list(self.ep), "etp": list(self.etp), "zero": list(self.zero),
                **({"vocab_tp": [self.vocab_tp]} if self.vocab_tp else {}),
                "dp_shard": "every divisor of dp", "dp_replicate": "dp / dp_shard",
                "micro_batch": "every divisor of global_batch / dp",
                **_schedule_axes(self.pins.get("schedule")),
                "recompute": "per stage: the first layers full, the next selective, the rest none; all pairs of counts",
                "placement": "every factorisation of every axis over the network levels that they have room for",
                "devices": f"1 to {self.cluster.devices}",
                **({"offload": offload_text(self.cluster)} if self.cluster.tiers else {}),
                **_hosts_axis(self.cluster),
            },
            "pins": dict(self.pins),
            "restrictions": self._restrictions(),
        }  # fmt: skip

    def _restrictions(self) -> list[str]:
        own = MODULE_RESTRICTIONS if self.model.modules and self.model.experts else []
        own = own + (ENDS_RESTRICTIONS if self.vocab_tp else [])
        return RESTRICTIONS + own + (HOST_RESTRICTIONS if self.cluster.irregular else [])


RESTRICTIONS = [
    "one tp, cp, ep, etp, zero and micro-batch for all stages",
    "the embedding is on the first stage, head and loss on the last",
    "a placement uses the same number of devices in every group of a level; hosts are whole or equally partly used",
    "axes nest in the order tp, cp, dp_shard, dp_replicate, pp inside a level; experts in the order etp, ep, edp",
    "virtual stages: a device recomputes alike in all of its own, the quickest (full, selective) counts that fit",
    "experts shard their states over the whole of edp when zero is 1 or more",
]

MODULE_RESTRICTIONS = [
    "experts of a module are on ranks with different tokens: ep divides dp*cp if etp divides tp, else ep*etp does"
]

ENDS_RESTRICTIONS = ["embedding and head: vocab_tp of the tp*cp ranks, those nearest each other; tp divides vocab_tp"]

HOST_RESTRICTIONS = [
    "hosts: every set of usable hosts for every stage; its collectives run at the rate of its worst pair of hosts",
    "hosts: every hop between stages costs what the slowest pair of hosts that one of them uses costs",
    "hosts, interleaved: groups in the order of their rates, begun anywhere",
]


def _schedule_axes(kind: int | str | None) -> dict[str, Any]:
    """What the schedule leaves to choose: under the usual two, or under the one that is pinned."""
    if kind is None:
        return {
            "schedule": ["1f1b", "interleaved"],
            "virtual_stages": "1 (1f1b); every v >= 2 with even cuts, pp dividing the micro-batches (interleaved)",
            "layers_per_stage": "every composition (1f1b); equal, ends counted as a layer or not (interleaved)",
        }
    cuts = "alike but the first and the last, which may be shorter, or one longer"
    few = kind in FEW_CUTS
    return {
        "schedule": [kind],
        "virtual_stages": f"{virtual_stages_of(str(kind))}, {_of_pipeline(kind)}",
        "layers_per_stage": cuts if few else "every composition",
        **({"in_flight": "pp + 1 to 2 pp - 1"} if kind == EAGER else {}),
    }


def _of_pipeline(kind: int | str) -> str:
    if kind == MIRRORED:
        return "pp even from 4, every stage on two devices, micro-batches even, 2 pp or more"
    return "pp above 1, micro-batches 2 pp or more" if kind in BIDIRECTIONAL else "pp above 1"


def _hosts_axis(cluster: Cluster) -> dict[str, str]:
    it = cluster.irregular
    kinds = 0 if it is None else len(set(it.classes.tolist()))
    return {} if it is None else {"hosts": f"{cluster.hosts} of {kinds} kinds, {it.spare_hosts} of them spare"}


def offload_text(cluster: Cluster) -> dict[str, Any]:
    """What may live outside device memory, and the figures of where."""
    return {
        "tiers": [dataclasses.asdict(tier, dict_factory=_as_json_reads) for tier in cluster.tiers],
        "optimizer": "none, a quarter, half, three quarters or all, in one tier",
        "gradients": "none, or all in the tier that holds all of optimizer",
        "weights": "none, or all in the tier that holds all of optimizer and gradients",
        "activations": "none, half or all, in one tier; by layers of a 1F1B stage where all may leave",
        "checkpoints": "none, or all in one tier where no activations leave",
        "layers": "under 1f1b without virtual stages any first of a stage let the last of optimizer, gradients and "
        "weights go, where what leaves of these leaves whole",
    }


def _as_json_reads(figures: list[tuple[str, Any]]) -> dict[str, Any]:
    """Figures equal to what a saved plan gives back: lists for tuples, and nothing that is infinite."""
    return {name: list(it) if isinstance(it, tuple) else it for name, it in figures if it != math.inf}


def _range_text(values: tuple[int, ...]) -> Any:
    whole = values == tuple(range(values[0], values[-1] + 1)) and len(values) > 8
    return f"{values[0]} to {values[-1]}, all" if whole else list(values)


def legal_space(model: ModelGraph, cluster: Cluster, workload: Training, pins: dict[str, int | str]) -> Space:
    """The space with every pin held. Raises ``BadInput`` where a pin is illegal, with the legal values."""
    devices, batch = cluster.devices, workload.global_batch
    stages, copies = range(1, min(model.layers, devices) + 1), [d for d in divisors(batch) if d <= devices]
    experts = [d for d in divisors(max(1, model.experts)) if d <= devices]
    return Space(
        model, cluster, workload, pins,
        tp=_held("tp", pins, legal_tp(model, devices), _tp_rule(model)),
        cp=_held("cp", pins, legal_cp(workload, devices), f"2*cp must divide the sequence of {workload.seq_len}"),
        pp=_held("pp", pins, tuple(stages), f"one stage a layer: {model.layers} layers"),
        dp=_held("dp", pins, tuple(copies), f"dp must divide the global batch of {batch}"),
        ep=_held("ep", pins, tuple(experts), f"ep must divide the {model.experts} experts"),
        etp=_held("etp", pins, legal_etp(model, devices), f"etp must divide {dict(model.expert_widths)}"),
        zero=_held("zero", pins, (0, 1, 2, 3), "zero is a stage"),
    )  # fmt: skip


def legal_tp(model: ModelGraph, devices: int) -> tuple[int, ...]:
    """Tensor-parallel degrees that divide every width and agree with the KV heads."""
    common = int(np.gcd.reduce([width for _, width in model.widths]))
    kv = model.kv_heads
    return tuple(t for t in divisors(common) if t <= devices and (kv % t == 0 or t % kv == 0))


def legal_cp(workload: Training, devices: int) -> tuple[int, ...]:
    """Context-parallel degrees: 1, and those with ``2 cp`` dividing the sequence."""
    return tuple(c for c in divisors(workload.seq_len) if c <= devices and (c == 1 or workload.seq_len % (2 * c) == 0))


def legal_etp(model: ModelGraph, devices: int) -> tuple[int, ...]:
    """Degrees that divide every expert width; 1 for dense models."""
    if not model.expert_widths:
        return (1,)
    common = int(np.gcd.reduce([width for _, width in model.expert_widths]))
    return tuple(d for d in divisors(common) if d <= devices)


def experts_hold(model: ModelGraph, tp: int, data: int, ep: int, etp: int) -> bool:
    """Whether a stage of ``tp * data`` devices has places for ``ep * etp`` of a kind of experts."""
    if not model.modules:
        return tp * data % (ep * etp) == 0
    return data % (ep if tp % etp == 0 else ep * etp) == 0


def _tp_rule(model: ModelGraph) -> str:
    widths = ", ".join(f"{width} {name}" for name, width in model.widths)
    return f"tp must divide {widths} of {model.name!r}, and divide or be a multiple of its {model.kv_heads} KV heads"


def _held(axis: str, pins: dict[str, int | str], legal: tuple[int, ...], rule: str) -> tuple[int, ...]:
    if axis not in pins:
        return legal
    if pins[axis] not in legal:
        shown = ", ".join(map(str, legal[:24])) + (f", ... {legal[-1]}" if len(legal) > 24 else "")
        raise BadInput(f"{axis}={pins[axis]} is not legal: {rule}; legal on this cluster: {shown}")
    return (int(pins[axis]),)


@dataclass(frozen=True)
class Degrees:
    """Rows of (tp, cp, pp, dp, micro_batch): the coarsest table."""

    tp: Ints
    cp: Ints
    pp: Ints
    dp: Ints
    micro_batch: Ints

    def __len__(self) -> int:
        return len(self.tp)

    def take(self, index: NDArray) -> Degrees:
        """The rows at ``index``."""
        return Degrees(*(getattr(self, name)[index] for name in ("tp", "cp", "pp", "dp", "micro_batch")))

    @staticmethod
    def concat(parts: list[Degrees]) -> Degrees:
        """One table of several."""
        names = ("tp", "cp", "pp", "dp", "micro_batch")
        return Degrees(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def mesh_table(space: Space) -> Degrees:
    """Every legal (tp, cp, pp, dp) whose devices the cluster has; the micro-batch, still open, is 0."""
    axes = np.meshgrid(*(np.array(v, dtype=np.int64) for v in (space.tp, space.cp, space.pp, space.dp)), indexing="ij")
    tp, cp, pp, dp = (axis.ravel() for axis in axes)
    world = tp * cp * pp * dp
    keep = (world <= space.cluster.devices) & may_split(tp, cp, space.vocab_tp)
    if "devices" in space.pins:
        keep &= world == space.pins["devices"]
    return Degrees(*(axis[keep] for axis in (tp, cp, pp, dp)), np.zeros(int(keep.sum()), dtype=np.int64))


def with_micro_batches(space: Space, meshes: Degrees) -> Degrees:
    """Every legal micro-batch of meshes, one below the other."""
    which, size = np.nonzero(legal_micro_batches(space, meshes.dp))
    sizes = np.array(micro_batches(space), dtype=np.int64)
    return dataclasses.replace(meshes.take(which), micro_batch=sizes[size])


def degree_table(space: Space) -> Degrees:
    """Every legal (tp, cp, pp, dp, micro_batch) whose devices the cluster has."""
    return with_micro_batches(space, mesh_table(space))


def legal_micro_batches(space: Space, dp: Ints) -> NDArray[np.bool_]:
    """Which of :func:`micro_batches` divide the batch of a data-parallel rank, ``[dp, sizes]``."""
    return (space.workload.global_batch // dp)[:, None] % np.array(micro_batches(space))[None, :] == 0


def micro_batches(space: Space) -> tuple[int, ...]:
    """Micro-batches that divide the global batch; the pinned one."""
    legal = divisors(space.workload.global_batch)
    return _held(
        "micro_batch", space.pins, legal, f"micro_batch must divide the global batch of {space.workload.global_batch}"
    )


@lru_cache(maxsize=65536)
def _innermost_factors(degree: int, capacity: tuple[int, ...]) -> tuple[int, ...]:
    """The degree's factors when it alone is put as deep inside as it fits."""
    factors, rest = [], degree
    for room in capacity[:-1]:
        here = max(d for d in divisors(rest) if d <= room)
        factors.append(here)
        rest //= here
    return (*factors, rest)


def innermost(degrees: Ints, capacity: tuple[int, ...]) -> Ints:
    """``[rows, levels]`` factors, each degree by itself as deep inside as it fits: never dearer than a placement."""
    values, inverse = np.unique(degrees, return_inverse=True)
    table = np.array([_innermost_factors(int(d), capacity) for d in values], dtype=np.int64)
    return table.reshape(len(values), len(capacity))[inverse]


def relaxed_rows(space: Space, degrees: Degrees) -> Rows:
    """Rows that cost no more than any row with the same degrees: states fully sharded, every axis deep inside.

    Experts are not spread: :class:`planner.search.relax.Relaxation` tries every way. Data-parallel communication is
    left out when such rows are priced with ``relaxed=True``.
    """
    capacity = space.cluster.group_capacity
    ones = np.ones_like(degrees.tp)
    flat = np.ones((len(degrees), len(capacity)), dtype=np.int64)
    factors = {
        **{axis: innermost(getattr(degrees, axis), capacity) for axis in ("tp", "cp", "pp")},
        "dp_shard": flat, "dp_replicate": flat, "etp": flat, "ep": flat, "edp": flat,
    }  # fmt: skip
    return Rows(
        tp=degrees.tp, cp=degrees.cp, dp_shard=degrees.dp, dp_replicate=ones, pp=degrees.pp, ep=ones, etp=ones,
        zero=3 * ones, micro_batch=degrees.micro_batch,
        micro_batches=space.workload.global_batch // (degrees.dp * degrees.micro_batch), virtual=ones, factors=factors,
        vocab_tp=space.vocab_tp,
    )  # fmt: skip


@lru_cache(maxsize=16384)
def placements(
    degrees: tuple[int, ...], capacity: tuple[int, ...], host: HostShape
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Every way to factor each degree over the levels such that each level has room: ``[way][axis][level]``.

    A domain may hold part of a host's devices or whole hosts, so that every host runs equally many ranks.
    """
    levels = len(capacity)
    ways = [((), (1,) * levels)]
    for degree in degrees:
        grown = [(way, axis, tuple(map(mul, used, axis))) for way, used in ways for axis in splits(degree, levels)]
        ways = [((*way, axis), used) for way, axis, used in grown if all(map(le, used, capacity))]
    return tuple(way for way, used in ways if host.whole(used))


@lru_cache(maxsize=65536)
def splits(degree: int, levels: int) -> tuple[tuple[int, ...], ...]:
    """Ordered factorisations of ``degree`` into ``levels`` factors."""
    if levels == 1:
        return ((degree,),)
    return tuple((d, *rest) for d in divisors(degree) for rest in splits(degree // d, levels - 1))
