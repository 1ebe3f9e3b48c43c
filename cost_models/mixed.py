"""What a pipeline over several kinds of devices costs: each stage priced on its own part, hops by their slower side.

A stage takes ``tp cp dp`` devices of one part; ``dp`` and its micro-batch may differ from stage to stage, their product
``B`` may not. A hidden state of ``V = B seq hidden`` elements goes from stage to stage and is cut anew on its way:

    side   = launch + latency + V / (devices of the stage * bandwidth of one)      of either stage of a hop
    hop    = the longer of its two sides
    step   = the longest path of 1F1B with a hop of its own on every boundary

Bandwidth is the outermost level's of the part between two stages of it, else the join's. Every step waits for the
slowest of all devices of the cluster, used or not. Left out: that several hops at once share a NIC.

What a stage keeps in its part's memory tiers (:mod:`cost_models.tiers`) has an even part of them, as if all devices of
the part moved as much at the same time; all layers of a stage are alike.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration, calibrate
from cost_models.chain import Chain
from cost_models.clocks import FULL
from cost_models.model_graph import ModelGraph
from cost_models.offload import evenly_offloaded
from cost_models.pipeline import in_flight, step_ticks
from cost_models.price import Prices, price
from cost_models.rows import Rows, shares_of
from cost_models.strategy import LayerRun, Offload
from cost_models.ticks import Ticks
from cost_models.workload import Training
from topologies.cluster import Cluster, Level
from topologies.mixed import MixedCluster

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SETUP = ("tp", "cp", "dp", "ep", "zero", "micro_batch")


@dataclass(frozen=True, slots=True)
class MixedStage:
    """One stage: its part of the cluster, how its devices share the work, its runs of layers, what it offloads, and the
    fraction of their full clock that its devices run at."""

    part: int
    tp: int
    cp: int
    dp: int
    ep: int
    zero: int
    micro_batch: int
    runs: tuple[LayerRun, ...]
    offloads: tuple[Offload, ...] = ()
    clock: float = FULL

    @property
    def devices(self) -> int:
        """Devices that the stage uses."""
        return self.tp * self.cp * self.dp

    @property
    def layers(self) -> int:
        """Layers that the stage holds."""
        return sum(run.count for run in self.runs)


@dataclass(frozen=True, slots=True)
class MixedStrategy:
    """Stages in model order, and the micro-batches of a step, which all of them see."""

    stages: tuple[MixedStage, ...]
    micro_batches: int


@dataclass(frozen=True)
class MixedEvaluation:
    """Ticks and bytes of every stage, ``[pp]``; ``hop`` is ``[pp - 1]``.

    ``tiers`` are, by memory tier, the bytes that a device keeps there and those that it has room for.
    """

    forward: Ints
    backward: Ints
    tail: Ints
    hop: Ints
    need: Ints
    classes: tuple[dict[str, float], ...]
    tiers: tuple[dict[str, tuple[int, int]], ...]
    step: int


@dataclass(frozen=True)
class Machine:
    """A mixed cluster with what prices need: the fits of every part, and one grain of time for all."""

    model: ModelGraph
    cluster: MixedCluster
    workload: Training
    fits: tuple[Calibration, ...]
    ticks: Ticks

    @staticmethod
    def of(model: ModelGraph, cluster: MixedCluster, workload: Training) -> Machine:
        """The machine under its calibration; the grain is that of the part with the slowest host, or of a very slow
        join."""
        fits = tuple(calibrate(part, workload.stack) for part in cluster.parts)
        grain = max(Ticks.of(model, part, workload, cluster.join).second for part in cluster.parts)
        return Machine(model, cluster, workload, fits, Ticks(grain))

    def prices(self, part: int, setups: Ints, clocks: tuple[float, ...] = (FULL,)) -> Prices:
        """Prices of ways to run a stage on a part; ``setups`` is ``[ways, 6]`` in the order of :data:`SETUP`.

        Those of every one of ``clocks`` stand below those of the one before, ``[clocks * ways]``.
        """
        cluster = self.cluster.parts[part]
        rows = stage_rows(cluster, setups, self.workload)
        found = price(
            self.model, cluster, self.workload, rows, self.fits[part], self.ticks, devices=self.cluster.devices,
            clocks=clocks,
        )  # fmt: skip
        return found if clocks == (FULL,) else Prices.concat([found.only(clock) for clock in clocks])

    def offloading(self, part: int, prices: Prices, share: Floats) -> Prices:
        """The prices of ways that keep ``share``, ``[ways, classes, tiers]``, in the memory tiers of their part."""
        return evenly_offloaded(prices, share, self.cluster.parts[part], self.workload)

    def chain(self, stage: MixedStage) -> Chain:
        """The layers as a stage prices them."""
        setup = np.array([[getattr(stage, name) for name in SETUP]], dtype=np.int64)
        prices, tiers = self.prices(stage.part, setup, (stage.clock,)), self.cluster.parts[stage.part].tiers
        if stage.offloads:
            share = shares_of(stage.offloads, tuple(tier.name for tier in tiers))
            prices = self.offloading(stage.part, prices, share[None])
        return Chain(self.model, prices, 0)

    def chains(self, stages: Iterable[MixedStage]) -> list[Chain]:
        """The layers as each stage prices them, priced once for all that are run alike."""
        alike = [dataclasses.replace(stage, runs=()) for stage in stages]
        made = {stage: self.chain(stage) for stage in dict.fromkeys(alike)}
        return [made[stage] for stage in alike]

    def side(self, part: int, tokens: int, devices: Ints, *, across: bool) -> Ints:
        """Ticks that ``devices`` of a part need to send or receive a hidden state of ``tokens``, ``[ways]``."""
        level = self.cluster.join if across else self.cluster.parts[part].levels[-1]
        volume = tokens * self.model.crossing * self.workload.recipe.activation_bytes
        return self.ticks.up(_side_s(volume / devices, level, self.fits[part]))


def _side_s(message_bytes: NDArray[np.float64], level: Level, fits: Calibration) -> NDArray[np.float64]:
    return fits.p2p_launch_s + level.latency_s + message_bytes / (fits.p2p_fraction * level.bandwidth_bytes_per_s)


def stage_rows(cluster: Cluster, setups: Ints, workload: Training) -> Rows:
    """Rows of setups ``[ways, 6]``: two stages stand for any number, states sharded over all of dp or none."""
    tp, cp, dp, ep, zero, micro = (setups[:, k] for k in range(6))
    shape = cluster.group_capacity, cluster.devices_per_host
    placed = np.array([placement(*shape, *map(int, row[:4])) for row in setups], dtype=np.int64)
    ones, flat = np.ones_like(tp), np.ones((len(tp), len(cluster.levels)), dtype=np.int64)
    sharded = (zero > 0)[:, None]
    factors = {
        "tp": placed[:, 0], "cp": placed[:, 1], "dp_shard": np.where(sharded, placed[:, 2], 1),
        "dp_replicate": np.where(sharded, 1, placed[:, 2]), "pp": flat, "etp": flat, "ep": placed[:, 3],
        "edp": placed[:, 4],
    }  # fmt: skip
    return Rows(
        tp=tp, cp=cp, dp_shard=np.where(zero > 0, dp, 1), dp_replicate=np.where(zero > 0, 1, dp), pp=2 * ones, ep=ep,
        etp=ones, zero=zero, micro_batch=micro, micro_batches=workload.global_batch // (dp * micro), virtual=ones,
        factors=factors,
    )  # fmt: skip


@lru_cache(maxsize=65536)
def placement(capacity: tuple[int, ...], host: int, tp: int, cp: int, dp: int, ep: int) -> tuple[tuple[int, ...], ...]:
    """Factors of tp, cp, dp, ep and edp over the levels of a part, each as deep inside as it fits.

    ``capacity`` is the members of each level, ``host`` the devices of a host. Raises ``ValueError`` for degrees that
    have no place there.
    """
    inside = inner_copies(capacity, host, tp * cp, dp)
    if not inside:
        raise ValueError(f"tp {tp} x cp {cp} x dp {dp} has no place on levels of {capacity}")
    near, far = tp * cp * inside, dp // inside
    ep_near = math.gcd(ep, near)
    ep_far = ep // ep_near
    if far % ep_far:
        raise ValueError(f"ep {ep} does not divide {near} devices inside x {far} domains")
    if len(capacity) == 1:
        return (tp,), (cp,), (dp,), (ep,), (near // ep,)
    return (tp, 1), (cp, 1), (inside, far), (ep_near, ep_far), (near // ep_near, far // ep_far)


def inner_copies(capacity: tuple[int, ...], host: int, group: int, dp: int) -> int:
    """Data-parallel copies, a divisor of ``dp``, inside one scale-up domain; 0 where there is no equal way.

    Copies of ``group`` devices each fill a domain as far as they can; a domain holds part of a host or whole hosts, and
    there are ``dp`` over that many domains.
    """
    domains = capacity[1] if len(capacity) > 1 else 1
    for copies in range(min(dp, capacity[0] // group), 0, -1):
        size = copies * group
        if dp % copies == 0 and (size <= host or size % host == 0) and dp // copies <= domains:
            return copies
    return 0


def evaluate_mixed(machine: Machine, strategy: MixedStrategy) -> MixedEvaluation:
    """Durations, hops, step and memory of a strategy, whether or not it fits."""
    stages, m, pp, at = strategy.stages, strategy.micro_batches, len(strategy.stages), 0
    terms = []
    for s, (stage, chain) in enumerate(zip(stages, machine.chains(stages), strict=True)):
        terms.append(_stage_terms(chain, stage, at, in_flight(pp, 1, m, s)[0][0]))
        at += stage.layers
    forward, backward, tail = (np.array([t[k] for t in terms], dtype=np.int64) for k in range(3))
    hop = np.array([_hop(machine, a, b) for a, b in itertools.pairwise(stages)], dtype=np.int64)
    each = hop[None] if pp > 1 else np.zeros((1, 1), dtype=np.int64)
    step = step_ticks(pp, 1, m, forward[None], backward[None], each, tail[None])
    classes, tiers = (tuple(t[k] for t in terms) for k in (3, 4))
    need = np.array([int(sum(c.values())) for c in classes], dtype=np.int64)
    return MixedEvaluation(forward, backward, tail, hop, need, classes, tiers, int(step[0]))


def _hop(machine: Machine, one: MixedStage, other: MixedStage) -> int:
    across = one.part != other.part
    tokens = one.micro_batch * one.dp * machine.workload.seq_len
    sides = [machine.side(s.part, tokens, np.array([s.devices]), across=across) for s in (one, other)]
    return int(max(side[0] for side in sides))


def _stage_terms(
    chain: Chain, stage: MixedStage, at: int, flight: int
) -> tuple[int, int, int, dict[str, float], dict[str, tuple[int, int]]]:
    """Forward, backward and tail of one stage in ticks, its bytes by class, and what it keeps in memory tiers."""
    i, j, again, kept = np.array([at]), np.array([at + stage.layers]), 0, 0
    for run in stage.runs:
        a, b = np.array([at]), np.array([at + run.count])
        again += int(chain.recompute(run.choice.recompute, a, b)[0])
        kept += int(chain.saved(run.choice.recompute, a, b)[0])
        at += run.count
    forward, backward = chain.forward(i, j), chain.backward(i, j) + again
    tail = chain.tail(chain.tail_parts(i, j), forward, backward)
    classes = {name: float(sizes[0]) for name, sizes in chain.states(i, j).items()}
    classes["logits"] = float(chain.logit_bytes(i, j)[0])
    classes["activations"] = float(flight * (kept + int(chain.saved_ends(i, j)[0])))
    classes |= {name: float(sizes[0]) for name, sizes in chain.prices.fixed.items()}
    tiers = {
        name: (int((chain.tier_states(name, i, j) + flight * chain.tier_saved(name, i, j))[0]), int(room[0]))
        for name, room in chain.prices.tier_room.items()
    }
    return int(forward[0]), int(backward[0]), int(tail[0]), classes, tiers
