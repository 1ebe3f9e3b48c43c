"""How many layers a pipeline over several parts can hold at most under some pins: the arithmetic where none fits.

    layers of a stage = floor((limit - fixed - ends) / (states + in flight * kept with the leanest recompute))
                        and no more than memory tiers have room for
    layers            = first stage + last stage + sum over parts  most layers of stages on the devices left

``ends`` are embedding or head, with logits; ``in flight`` is 1 for the last stage and 2 for the others, where there are
two micro-batches. More stages keep more: no pipeline holds more layers than the best such sum of any global
micro-batch.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.mixed import Machine
from cost_models.price import Prices
from planner.search.mixed.space import MixedSpace, Setups
from planner.strategy_record import OffloadRecord

Ints = NDArray[np.int64]
ROLES = ("first", "last", "inner")


@dataclass(frozen=True, slots=True)
class StageHolds:
    """Stages of one way: bytes of a device, and the layers that there is room for in each."""

    role: str
    part: str
    way: str
    devices: int
    stages: int
    fixed_bytes: int
    layer_bytes: int
    limit_bytes: int
    layers_per_stage: int

    @property
    def layers(self) -> int:
        """Layers of all of them."""
        return self.stages * self.layers_per_stage

    def text(self) -> str:
        """The arithmetic, written out."""
        room = f"({self.limit_bytes / 1e9:.2f} - {self.fixed_bytes / 1e9:.2f}) GB / {self.layer_bytes / 1e9:.3f} GB"
        count = "" if self.stages == 1 else f" x {self.stages} stages = {self.layers}"
        held = f"{room} = {self.layers_per_stage}{count}"
        return f"{self.role} on {self.part}: {held} ({self.devices} devices, {self.way})"


def most_layers(machine: Machine, pins: dict[str, int | str], limits: tuple[int, ...]) -> tuple[StageHolds, ...]:
    """The stages that hold most layers together, those alike as one; none where no first and last stage fit."""
    space = MixedSpace(machine, pins, limits)
    found = [_of_batch(space, batch) for batch in space.batches()]
    return max(found, key=lambda held: sum(one.layers for one in held))


def without_place(machine: Machine, pins: dict[str, int | str]) -> str:
    """Why no stage has a place on any part under these pins, in words; nothing where some has one.

    Devices of a stage are a multiple of ``tp cp`` and of ``ep``, and twice ``tp`` or more where states are sharded.
    """
    space = MixedSpace(machine, pins, tuple(0 for _ in machine.cluster.parts))
    parts = machine.cluster.parts
    if any(len(space.setups(k, batch)) for k in range(len(parts)) for batch in space.batches()):
        return ""
    tp, cp, ep = (int(pins.get(name, 1)) for name in ("tp", "cp", "ep"))
    group = math.lcm(tp * cp, ep)
    copies = 2 * tp if pins.get("zero", 0) and cp == 1 else group
    said = ", ".join(f"{name}={pins[name]}" for name in ("tp", "cp", "ep", "zero") if name in pins)
    there = ", ".join(f"{part.name} has {part.devices} in domains of {part.levels[0].fanout}" for part in parts)
    return (
        f"a stage with {said} takes {-(-copies // group) * group} devices or more, tp x cp inside a domain, and its dp "
        f"divides the global batch of {machine.workload.global_batch}; {there}"
    )


def _of_batch(space: MixedSpace, batch: int) -> tuple[StageHolds, ...]:
    """The best stages of one global micro-batch."""
    parts, m = space.machine.cluster.parts, space.machine.workload.global_batch // batch
    options: dict[str, list[tuple[int, StageHolds]]] = {role: [] for role in ROLES}
    for k in range(len(parts)):
        setups = space.setups(k, batch)
        if len(setups):
            setups, prices = space.priced(setups)
            for role in ROLES:
                options[role] += [(k, one) for one in _by_size(space, setups, prices, role, min(m, 2))]
    most = [
        _most_by_devices([one for n, one in options["inner"] if n == k], part.devices) for k, part in enumerate(parts)
    ]
    best, held = 0, ()
    for (k, first), (n, last) in itertools.product(options["first"], options["last"]):
        left = [part.devices - first.devices * (p == k) - last.devices * (p == n) for p, part in enumerate(parts)]
        if min(left) >= 0:
            layers = first.layers + last.layers + sum(table[some][0] for table, some in zip(most, left, strict=True))
            best, held = max((best, held), (layers, (first, last, left)), key=lambda pair: pair[0])
    if not held:
        return ()
    first, last, left = held
    return (first, last, *(one for table, some in zip(most, left, strict=True) for one in _filled(table, some)))


def _by_size(space: MixedSpace, setups: Setups, prices: Prices, role: str, flight: int) -> list[StageHolds]:
    """Of every number of devices the way that holds most layers in one stage; those that hold none left out."""
    kind, present = space.recompute or "full", sorted(set(space.machine.model.order))
    limit, inner = space.limits[setups.part], 1 if role == "last" else flight
    layer = (prices.state_bytes + inner * prices.saved[kind])[:, present].min(axis=1)
    fixed = prices.fixed_bytes.copy()
    if role != "inner":
        end = -2 if role == "first" else -1
        fixed += prices.state_bytes[:, end] + inner * prices.saved["none"][:, end] + (end == -1) * prices.logits
    most = np.maximum(0, limit - fixed) // np.maximum(layer, 1)
    for name, room in prices.tier_room.items():
        held = (prices.tier_states[name] + inner * prices.tier_saved[name])[:, present].min(axis=1)
        most = np.where(held > 0, np.minimum(most, room // np.maximum(held, 1)), most)
    found = []
    for size in np.unique(setups.size[most > 0]).tolist():
        mine = np.flatnonzero(setups.size == size)
        at = int(mine[np.argmax(most[mine])])
        name = space.machine.cluster.parts[setups.part].name
        held = int(fixed[at]), int(layer[at]), limit, int(most[at])
        found.append(StageHolds(role, name, _way(space, setups, at, kind), size, 1, *held))
    return found


def _way(space: MixedSpace, setups: Setups, at: int, kind: str) -> str:
    tp, cp, dp, ep, zero, micro = setups.table[at].tolist()
    moved = "".join(f", {OffloadRecord.of(it).text()}" for it in space.offloads(setups.part, setups.offload[at]))
    return f"tp {tp} x cp {cp} x dp {dp}, ep {ep}, zero {zero}, micro_batch {micro}, recompute {kind}{moved}"


def _most_by_devices(inner: list[StageHolds], devices: int) -> list[tuple[int, StageHolds | None]]:
    """Most layers of inner stages on 0, 1, ... ``devices`` devices of a part, and one of the stages that hold them;
    none where a device is left over. The knapsack's recursion, each stage as often as it fits."""
    most: list[tuple[int, StageHolds | None]] = [(0, None)]
    for left in range(1, devices + 1):
        more = ((most[left - one.devices][0] + one.layers, one) for one in inner if one.devices <= left)
        most.append(max([(most[-1][0], None), *more], key=lambda pair: pair[0]))
    return most


def _filled(most: list[tuple[int, StageHolds | None]], left: int) -> list[StageHolds]:
    """The inner stages that hold most layers on the devices left of a part, those alike as one."""
    count: Counter[StageHolds] = Counter()
    while left:
        one = most[left][1]
        count.update([one] if one else [])
        left -= one.devices if one else 1
    return [dataclasses.replace(one, stages=stages) for one, stages in count.items()]
