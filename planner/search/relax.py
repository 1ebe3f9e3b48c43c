"""Rows that cost no more than any completion of a partly decided row.

Which factors of an axis over the levels are cheapest depends on the message: deep inside is best for large ones,
but where one level starts up slowly, or is very wide, small ones are quicker spread out. Of all factorings only
those stay that no other beats for every message; a partly decided row is bounded by the least of its variants.
Expert compute is monotone neither in joules (a product that waits for memory draws less) nor in seconds (cut by etp,
few experts fill their tiles better or worse), so while ep and etp are open every legal pair of them is a variant.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration
from cost_models.communication import all_to_all_s, collective_s, token_exchange_s
from cost_models.rows import Rows
from planner.candidates import Space, innermost, splits
from topologies.cluster import Cluster

Ints = NDArray[np.int64]
Factors = tuple[int, ...]
Pairs = Sequence[tuple[int, int]]
AXES = ("tp", "cp", "pp", "etp", "ep")
VOLUMES = np.array([1e9, 4e9, 9e9])
"""Their square roots are as 1 to 2 to 3. None is 0: a collective without bytes costs nothing, its start included."""


class Relaxation:
    """The variants of partly decided rows of one space."""

    def __init__(self, space: Space, fits: Calibration) -> None:
        self.space, self.fits, self.levels = space, fits, space.cluster.levels
        self._known: dict[tuple[str, int], list[Factors]] = {}
        self._spreads: dict[tuple[int, ...], Ints] = {}

    def variants(self, rows: Rows, *, experts_open: bool) -> tuple[Rows, Ints]:
        """Rows to bound ``rows`` by, and for each the position in ``rows`` it belongs to."""
        if experts_open:
            return self._variants(rows, lambda etp, ep, stage: self._expert_degrees(stage))
        return self._variants(rows, lambda etp, ep, stage: [(etp, ep)])

    def spread(self, rows: Rows) -> tuple[Rows, Ints]:
        """As :meth:`variants` where not even the size of a stage is decided: every (ep, etp) that the cluster holds."""
        return self._variants(rows, lambda etp, ep, stage: self._all_expert_degrees())

    def _variants(self, rows: Rows, pairs: Callable[[int, int, int], Pairs]) -> tuple[Rows, Ints]:
        dense = _Tables.of(np.stack([rows.tp, rows.cp, rows.pp], axis=1), self._dense)
        spread = _Tables.of(
            np.stack([rows.etp, rows.ep, rows.stage_size], axis=1), lambda *key: self._spread(pairs(*key))
        )
        each = dense.count * spread.count
        origin = np.repeat(np.arange(len(rows)), each)
        within = np.arange(len(origin)) - np.repeat(np.cumsum(each) - each, each)
        here = dense.rows[dense.first[origin] + within % dense.count[origin]]
        table = spread.rows[spread.first[origin] + within // dense.count[origin]]
        ways, levels = np.concatenate([here, table[:, 2:]], axis=1), len(self.levels)
        chosen = {axis: ways[:, k * levels : (k + 1) * levels] for k, axis in enumerate(AXES)}
        taken = rows.take(origin)
        return dataclasses.replace(taken, factors={**taken.factors, **chosen}, etp=table[:, 0], ep=table[:, 1]), origin

    def _dense(self, *degrees: int) -> Ints:
        """``[ways, 3 levels]``: factors of tp, cp and pp."""
        return self._ways(AXES[:3], degrees)

    def _spread(self, pairs: Pairs) -> Ints:
        """``[ways, 2 + 2 levels]``: etp, ep and their factors."""
        found = self._spreads.get(key := tuple(itertools.chain(*pairs)))
        if found is None:
            each = [(pair, self._ways(AXES[3:], pair)) for pair in pairs]
            found = self._spreads[key] = np.concatenate(
                [np.column_stack([np.tile(pair, (len(ways), 1)), ways]) for pair, ways in each]
            )
        return found

    def _ways(self, axes: tuple[str, ...], degrees: tuple[int, ...]) -> Ints:
        ways = itertools.product(*(self._factorings(*it) for it in zip(axes, degrees, strict=True)))
        return np.array([[*itertools.chain(*way)] for way in ways], dtype=np.int64)

    def _all_expert_degrees(self) -> Pairs:
        most = self.space.cluster.devices
        return [(etp, ep) for etp in self.space.etp for ep in self.space.ep if ep * etp <= most] or [(1, 1)]

    def _expert_degrees(self, stage: int) -> Pairs:
        return [(etp, ep) for etp in self.space.etp for ep in self.space.ep if stage % (ep * etp) == 0] or [(1, 1)]

    def _factorings(self, axis: str, degree: int) -> list[Factors]:
        if (axis, degree) not in self._known:
            capacity = self.space.cluster.group_capacity
            found = [f for f in splits(degree, len(capacity)) if all(a <= c for a, c in zip(f, capacity, strict=True))]
            alone = tuple(innermost(np.array([degree]), capacity)[0].tolist())
            self._known[axis, degree] = _front(found, [self._cost(axis, f) for f in found]) or [alone]
        return self._known[axis, degree]

    def _cost(self, axis: str, factors: Factors) -> NDArray[np.float64]:
        """Numbers that are all less where an axis with these factors is quicker for every message."""
        if axis == "pp":
            return self._hop_cost(factors)
        table = np.broadcast_to(np.array(factors), (len(VOLUMES), len(factors)))
        if axis == "ep":
            return np.concatenate([_terms(seconds) for seconds in self._exchanges(table)])
        operations = ("all_gather", "reduce_scatter")
        each = [collective_s(op, VOLUMES, table, self.levels, self.fits) for op in operations]
        if axis == "cp" and self.space.workload.stack.context_exchange == "all_to_all":
            each.append(all_to_all_s(VOLUMES, table, self.levels, self.fits))
        return np.concatenate([_terms(seconds) for seconds in each])

    def _exchanges(self, table: Ints) -> list[NDArray[np.float64]]:
        """What experts' exchanges take as the stack does them, by the layers' number of experts a token."""
        if self.space.workload.stack.dispatcher == "alltoall":
            return [all_to_all_s(VOLUMES, table, self.levels, self.fits)]
        in_order = self.space.workload.stack.consecutive_experts
        kinds = [kind for kind in self.space.model.kinds if kind.top_k]
        several = {(kind.top_k, in_order * kind.experts, kind.expert_groups) for kind in kinds} or {(1, 0, (1, 1))}
        return [token_exchange_s(VOLUMES, k, table, self.levels, self.fits, *how) for k, *how in sorted(several)]

    def _hop_cost(self, factors: Factors) -> NDArray[np.float64]:
        """Latency and seconds a byte of every level crossed, 0 of the others.

        Where levels get no better outward the outermost one crossed decides, and its two numbers do.
        """
        each = np.array([(level.latency_s, 1 / level.bandwidth_bytes_per_s) for level in self.levels])
        crossed = each * (np.array(factors) > 1)[:, None]
        return crossed.max(axis=0) if (np.diff(each, axis=0) >= 0).all() else crossed.ravel()


@dataclass(frozen=True)
class _Tables:
    """Tables one below the other, and of which ``count`` rows from ``first`` on each of many keys has its own."""

    rows: Ints
    first: Ints
    count: Ints

    @staticmethod
    def of(keys: Ints, table: Callable[..., Ints]) -> _Tables:
        """The tables of ``keys``, ``[many, parts]``; of equal keys once."""
        distinct, inverse = np.unique(keys, axis=0, return_inverse=True)
        parts = [table(*key) for key in distinct.tolist()]
        sizes = np.array([len(part) for part in parts])
        at = inverse.ravel()
        return _Tables(np.concatenate(parts), (np.cumsum(sizes) - sizes)[at], sizes[at])


def packed(rows: Rows, cluster: Cluster) -> Rows:
    """The rows with all their devices side by side, so that they need as few hosts as their number allows."""
    flat = {axis: np.ones_like(factors) for axis, factors in rows.factors.items()}
    flat["tp"] = cluster.host_shape.side_by_side(rows.world_size, len(cluster.levels))
    return dataclasses.replace(rows, factors=flat)


def _terms(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(c, a, b)`` of ``c + a sqrt(V / 1e9) + b V / 1e9`` from its values at :data:`VOLUMES`."""
    one, four, nine = seconds
    linear = (nine - 2 * four + one) / 2
    root = four - one - 3 * linear
    return np.array([one - root - linear, root, linear])


def _front(found: list[Factors], costs: list[NDArray[np.float64]]) -> list[Factors]:
    """Those that no other matches or beats in every number; of equal ones the first."""
    kept: list[int] = []
    for k, cost in enumerate(costs):
        as_good = [at for at, other in enumerate(costs) if at != k and (other <= cost).all()]
        if not any(at < k or (costs[at] < cost).any() for at in as_good):
            kept.append(k)
    return [found[k] for k in kept]
