"""Many strategies at once, as arrays: what the cost formulas are given.

A row fixes everything but the layers of each stage and what they recompute. ``estimate`` prices one
row, the search prices thousands; both run the same formulas.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.strategy import MIRRORED, OFFLOADED, Offload, Strategy, TrainingSchedule

Ints = NDArray[np.int64]
LARGEST_KEY = 2**62
AXIS_FACTORS = ("tp", "cp", "dp_shard", "dp_replicate", "pp", "etp", "ep", "edp")


@dataclass(frozen=True)
class Rows:
    """``[rows]`` arrays of degrees and schedule; ``factors[axis]`` is ``[rows, levels]``, innermost level first.

    ``offload`` is the share of each class of :data:`cost_models.strategy.OFFLOADED` that lives in each of ``tiers``,
    ``[rows, classes, tiers]``; none where ``tiers`` is empty. ``schedule`` is that of all rows, where ``1f1b`` with
    several virtual stages is interleaved, ``in_flight`` as in :class:`cost_models.strategy.TrainingSchedule`,
    ``vocab_tp`` as in :class:`cost_models.strategy.ParallelDegrees`.
    """

    tp: Ints
    cp: Ints
    dp_shard: Ints
    dp_replicate: Ints
    pp: Ints
    ep: Ints
    etp: Ints
    zero: Ints
    micro_batch: Ints
    micro_batches: Ints
    virtual: Ints
    factors: dict[str, Ints]
    offload: NDArray[np.float64] | None = None
    tiers: tuple[str, ...] = ()
    schedule: str = "1f1b"
    in_flight: int = 0
    vocab_tp: int = 0

    def __len__(self) -> int:
        return len(self.tp)

    @property
    def dp(self) -> Ints:
        """Copies of the batch: ``dp_replicate * dp_shard``."""
        return self.dp_replicate * self.dp_shard

    @property
    def stage_size(self) -> Ints:
        """Devices a stage."""
        return self.dp * self.cp * self.tp

    @property
    def mirror(self) -> Ints:
        """How the two devices that hold a stage under DualPipe are apart, ``[rows, levels]``: ones under others.

        They are as far apart as any stages are, so their level is the outermost that the pipeline takes.
        """
        pp = self.factors["pp"]
        found = np.ones_like(pp)
        if self.schedule == MIRRORED:
            outermost = pp.shape[1] - 1 - np.argmax(pp[:, ::-1] > 1, axis=1)
            found[np.arange(len(self)), outermost] = np.where(self.pp > 1, 2, 1)
        return found

    @property
    def edp(self) -> Ints:
        """Copies of each expert."""
        return self.stage_size // (self.ep * self.etp)

    @property
    def world_size(self) -> Ints:
        """Devices in all."""
        return self.stage_size * self.pp

    def used(self) -> Ints:
        """Members that the dense axes use together at each level, ``[rows, levels]``."""
        dense = ("tp", "cp", "dp_shard", "dp_replicate", "pp")
        return np.prod([self.factors[axis] for axis in dense], axis=0)

    def take(self, index: NDArray) -> Rows:
        """The rows at ``index`` (positions or a mask)."""
        arrays = {name: getattr(self, name)[index] for name in COLUMNS}
        offload = None if self.offload is None else self.offload[index]
        factors = {axis: values[index] for axis, values in self.factors.items()}
        return dataclasses.replace(self, **arrays, factors=factors, offload=offload)

    def scheduled(self, kind: str, virtual: int, in_flight: int = 0) -> Rows:
        """The rows under that schedule."""
        every = np.full(len(self), virtual, dtype=np.int64)
        return dataclasses.replace(self, virtual=every, schedule=kind, in_flight=in_flight)

    def offloading(self, share: NDArray[np.float64], tiers: tuple[str, ...]) -> Rows:
        """The rows with that share of every tensor class in each tier, ``[rows or 1, classes, tiers]``."""
        every = np.broadcast_to(share, (len(self), len(OFFLOADED), len(tiers)))
        return dataclasses.replace(self, offload=every, tiers=tiers)

    @staticmethod
    def concat(parts: list[Rows]) -> Rows:
        """One table of several, which name the same tiers."""
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
        factors = {axis: np.concatenate([part.factors[axis] for part in parts]) for axis in AXIS_FACTORS}
        tiers = parts[0].tiers
        offload = np.concatenate([part.offload for part in parts]) if tiers else None
        return dataclasses.replace(parts[0], **arrays, factors=factors, offload=offload)

    @staticmethod
    def of(strategy: Strategy) -> Rows:
        """The single row of a training strategy."""
        d, schedule = strategy.degrees, strategy.schedule
        if not isinstance(schedule, TrainingSchedule):
            raise TypeError("only training strategies have training rows")
        one = {
            "tp": d.tp, "cp": d.cp, "dp_shard": d.dp_shard, "dp_replicate": d.dp_replicate, "pp": d.pp,
            "ep": d.ep, "etp": d.etp, "zero": strategy.zero, "micro_batch": schedule.micro_batch,
            "micro_batches": schedule.micro_batches, "virtual": schedule.virtual_stages,
        }  # fmt: skip
        factors = {axis: np.array([strategy.placement[axis]], dtype=np.int64) for axis in AXIS_FACTORS}
        rows = Rows(**{k: np.array([v], dtype=np.int64) for k, v in one.items()}, factors=factors)
        kind = "1f1b" if schedule.kind == "interleaved" else schedule.kind
        rows = dataclasses.replace(rows, schedule=kind, in_flight=schedule.in_flight, vocab_tp=d.vocab_tp)
        return _with_offloads(rows, strategy) if strategy.offloads else rows


COLUMNS = tuple(f.name for f in dataclasses.fields(Rows) if f.type == "Ints")


def _with_offloads(row: Rows, strategy: Strategy) -> Rows:
    tiers = tuple(dict.fromkeys(it.tier for it in strategy.offloads))
    return row.offloading(shares_of(strategy.offloads, tiers)[None], tiers)


def shares_of(offloads: tuple[Offload, ...], tiers: tuple[str, ...]) -> NDArray[np.float64]:
    """The share of every tensor class in each of ``tiers``, ``[classes, tiers]``."""
    share = np.zeros((len(OFFLOADED), len(tiers)))
    for it in offloads:
        share[OFFLOADED.index(it.tensors), tiers.index(it.tier)] += it.share
    return share


def offloads_of(share: NDArray[np.float64], tiers: tuple[str, ...]) -> tuple[Offload, ...]:
    """What shares ``[classes, tiers]`` keep outside device memory: :func:`shares_of` the other way round."""
    return tuple(
        Offload(OFFLOADED[tensors], tiers[tier], float(share[tensors, tier]))
        for tensors, tier in np.argwhere(share > 0).tolist()
    )


def unique_rows(*columns: NDArray) -> tuple[Ints, Ints]:
    """Distinct combinations of integer columns: ``(first position of each, inverse)``.

    Price the first positions, then index with the inverse: each distinct combination is priced once.
    """
    keys, size = np.zeros(len(columns[0]), dtype=np.int64), 1
    for part in (part for column in columns for part in column.reshape(len(keys), -1).T):
        values = int(part.max()) + 1
        if part.min() < 0 or size * values > LARGEST_KEY:
            (keys, size), (part, values) = _numbered(keys), _numbered(part)
        keys, size = keys * values + part, size * values
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first, inverse


def _numbered(values: Ints) -> tuple[Ints, int]:
    """The place of every value among the distinct ones, and how many there are."""
    distinct, place = np.unique(values, return_inverse=True)
    return place, len(distinct)
