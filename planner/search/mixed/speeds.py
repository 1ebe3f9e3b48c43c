"""How quick the parts are at one global micro-batch: bounds of whole steps before any stage is looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.search.bounds import kind_counts
from planner.search.mixed.space import MixedSpace
from planner.search.mixed.table import Priced
from planner.search.mixed.weighing import Weighing

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Speed:
    """``per_device`` by part and ``total`` of all devices; ``work`` is what all layers cost relatively, ``weight`` one
    of each kind that there is, ``least`` the lightest."""

    per_device: Floats
    total: float
    work: float
    weight: Floats
    least: float

    @staticmethod
    def of(space: MixedSpace, priced: list[Priced], devices: Ints) -> Speed | None:
        """Speeds by part; ``None`` where no devices have a way to run a stage, or the states do not fit all devices."""
        if not any(len(p.setups) for p in priced) or not _states_fit(space, priced, devices):
            return None
        counts = kind_counts(space.machine.model)[:-2]
        present = np.flatnonzero(counts)
        each = [(p.prices.forward + p.prices.backward)[:, present].astype(np.float64) for p in priced]
        weight = next(times[0] for times in each if len(times))
        speeds = np.array([
            float((weight / times / p.setups.size[:, None]).max()) if len(times) else 0.0
            for times, p in zip(each, priced, strict=True)
        ])  # fmt: skip
        if not speeds @ devices:
            return None
        return Speed(speeds, float(speeds @ devices), float(weight @ counts[present]), weight, float(weight.min()))

    @staticmethod
    def by_batch(space: MixedSpace, priced: dict[int, list[Priced]], devices: Ints) -> dict[int, Speed]:
        """Speeds at every global micro-batch that has any."""
        each = {batch: Speed.of(space, some, devices) for batch, some in priced.items()}
        return {batch: speed for batch, speed in each.items() if speed is not None}

    @property
    def fluid(self) -> float:
        """Ticks that a micro-batch takes in the slowest stage at least: all layers spread over all devices."""
        return self.work / self.total

    def deepest(self, ceiling: float, m: int, layers: int) -> int:
        """The most stages of a pipeline below ``ceiling`` ticks.

        ``pp`` stages of a layer or more last ``pp ** 2 least / total`` a micro-batch (Cauchy's inequality), and for
        ``pp < m`` the return paths add ``m - pp`` times the fluid bound.
        """
        pp = np.arange(2, layers + 1)
        ticks = pp**2 * self.least / self.total + np.maximum(0, m - pp) * self.fluid
        return int(pp[ticks < ceiling].max(initial=0))


def fluid_ticks(
    space: MixedSpace, priced: dict[int, list[Priced]], speeds: dict[int, Speed], weighing: Weighing
) -> dict[int, float]:  # fmt: skip
    """What a search minimises at least at every global micro-batch: layers spread like a fluid, and their joules."""
    found = {batch: space.rounds(batch) * speed.fluid for batch, speed in speeds.items()}
    if weighing.counts:
        for batch, ticks in found.items():
            found[batch] = weighing.at_least(ticks, least_joules(space, priced[batch], batch))
    return found


def least_joules(space: MixedSpace, priced: list[Priced], batch: int) -> float:
    """Joules above idle, at the meter, that no pipeline of a global micro-batch takes fewer than: every layer's least
    by any way, with nothing recomputed."""
    each = joules_by_part(space, priced, batch)
    return float(np.min(each, axis=0) @ kind_counts(space.machine.model)) * (1 - 1e-12)


def most_joules(space: MixedSpace, priced: list[Priced], batch: int) -> float:
    """Joules above idle, at the meter, that no pipeline of a global micro-batch takes more than: every layer's most by
    any way, recomputed."""
    found = np.zeros((1, len(space.machine.model.kinds) + 2))
    for priced_part, part in zip(priced, space.machine.cluster.parts, strict=True):
        prices, devices = priced_part.prices, priced_part.setups.devices[:, None]
        passes = prices.joules_pass + np.maximum(*(prices.joules_extra[kind] for kind in ("full", "selective")))
        each = devices * (space.rounds(batch) * passes + prices.joules_step)
        found = np.maximum(found, each.max(axis=0, initial=0.0) * part.facility.figures.pue.value)
    return float(found[0] @ kind_counts(space.machine.model)) * (1 + 1e-12)


def joules_by_part(space: MixedSpace, priced: list[Priced], batch: int) -> Floats:
    """The least that a layer of each kind takes on each part, ``[parts, kinds]``; infinite where there is no way."""
    found = []
    for priced_part, part in zip(priced, space.machine.cluster.parts, strict=True):
        prices, devices = priced_part.prices, priced_part.setups.devices[:, None]
        each = devices * (space.rounds(batch) * prices.joules_pass + prices.joules_step)
        found.append(each.min(axis=0, initial=np.inf) * part.facility.figures.pue.value)
    return np.array(found)


def _states_fit(space: MixedSpace, priced: list[Priced], devices: Ints) -> bool:
    """Whether all devices together hold every layer's states, where each takes least room."""
    counts = kind_counts(space.machine.model)
    each = [(p.prices.state_bytes * p.setups.size[:, None]).min(axis=0) for p in priced if len(p.setups)]
    room = sum(limit * int(there) for limit, there in zip(space.limits, devices, strict=True))
    return int(np.min(each, axis=0) @ counts) <= room
