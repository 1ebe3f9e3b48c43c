"""What differs among the hosts of one cluster: working devices, network cards, uplinks of switches.

Hosts hang on a tree of switches. Two of them talk at the rate of the narrowest edge between them, as a fraction of
what a regular host gets (its share of the scale-out level):

    W(a, b) = min(nic_a, nic_b, uplink_g for every switch g that has exactly one of the two below it)

Nobody else's traffic is on that path: such a figure bounds what contention leaves. Paths through a tree make ``W``
an ultrametric: the pairs with ``W >= beta`` join the hosts into disjoint *blocks*, one partition for each distinct
``beta``, finer where it is higher. Everything a placement can reach follows from these partitions.

The same numbers come from any graph of switches when ``W`` is the widest path: the edges of its maximum spanning
tree are the uplinks (Hu, "The maximum capacity route problem", Operations Research 9 (1961)).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ALONE = -1


@dataclass(frozen=True, slots=True)
class Switch:
    """The hosts below a switch, by position, and the fraction of a host's share that its uplinks leave each."""

    name: str
    hosts: tuple[int, ...]
    uplink: float


@dataclass(frozen=True)
class Irregular:
    """The usable hosts, by position: their number in the whole cluster, working devices, share of the network.

    ``switches`` are those with narrow uplinks, nested or apart; ``spare_hosts`` must stay idle; ``names`` is how
    the hosts are called, by position.
    """

    numbers: tuple[int, ...]
    devices: tuple[int, ...]
    nic: tuple[float, ...]
    switches: tuple[Switch, ...] = ()
    spare_hosts: int = 0
    names: tuple[str, ...] = ()
    dead: tuple[int, ...] = ()

    @cached_property
    def _levels(self) -> tuple[Floats, Ints]:
        """Distinct rates that some pair has, ascending, and the block of every host at each."""
        nic, below = np.array(self.nic), self._below
        tried = np.unique(np.minimum([*self.nic, *(s.uplink for s in self.switches)], 1.0))[::-1]
        kept, rates = [np.arange(len(nic))], []
        for rate in tried:
            cut = np.array([s.uplink < rate for s in self.switches], dtype=bool)
            place = np.where((below & cut).any(axis=1), self._innermost(cut), len(self.switches))
            place = np.where(nic < rate, len(self.switches) + 1 + np.arange(len(nic)), place)
            block = np.unique(place, return_inverse=True)[1].ravel()
            if not _same_partition(block, kept[-1]):
                kept.append(block)
                rates.append(float(rate))
        if not rates:
            return np.ones(1), np.zeros((1, len(nic)), dtype=np.int64)
        return np.array(rates[::-1]), np.stack(kept[:0:-1])

    @cached_property
    def _below(self) -> NDArray[np.bool_]:
        """Which hosts are below which switch, ``[hosts, switches]``."""
        below = np.zeros((len(self.numbers), len(self.switches)), dtype=bool)
        for k, switch in enumerate(self.switches):
            below[list(switch.hosts), k] = True
        return below

    def _innermost(self, cut: NDArray[np.bool_]) -> Ints:
        """Of the chosen switches above each host the one with the fewest hosts; the first of equals."""
        sizes = np.where(self._below & cut, [len(s.hosts) for s in self.switches], len(self.numbers) + 1)
        return np.argmin(sizes, axis=1) if len(self.switches) else np.zeros(len(self.numbers), dtype=np.int64)

    @property
    def rates(self) -> Floats:
        """Distinct rates between pairs of hosts as fractions of the regular share, ascending."""
        return self._levels[0]

    @property
    def blocks(self) -> Ints:
        """The block of every host at each rate, ``[rates, hosts]``: hosts of one block talk at that rate or faster."""
        return self._levels[1]

    @cached_property
    def classes(self) -> Ints:
        """The class of every host: hosts of one class have the same devices and the same rate to everybody else.

        Two hosts are alike exactly when they first join anyone at the same rate, and there the same block.
        """
        keys = self.blocks.copy()
        for row in keys:
            row[np.bincount(row)[row] == 1] = ALONE
        columns = np.concatenate([np.array(self.devices)[None], keys]).T
        return np.unique(columns, axis=0, return_inverse=True)[1].ravel()

    def worst_rate(self, hosts: Ints) -> float:
        """The least rate of any pair of these hosts (positions); 1 for a single one, which sends nothing."""
        hosts = np.asarray(hosts)
        if len(hosts) < 2:
            return 1.0
        inside = self._below[hosts].sum(axis=0)
        between = [s.uplink for s, n in zip(self.switches, inside, strict=True) if 0 < n < len(hosts)]
        return float(min([np.array(self.nic)[hosts].min(), *between, 1.0]))

    def pair_rates(self, a: Ints, b: Ints) -> Floats:
        """The rate between hosts ``a[k]`` and ``b[k]`` (positions); 1 of a host with itself."""
        nic = np.array(self.nic)
        rate = np.minimum(np.minimum(nic[a], nic[b]), 1.0)
        for k, switch in enumerate(self.switches):
            rate = np.where(self._below[a, k] != self._below[b, k], np.minimum(rate, switch.uplink), rate)
        return np.where(np.asarray(a) == np.asarray(b), 1.0, rate)

    def with_more(self, hosts: int, devices: int) -> Irregular:
        """The same hosts and so many regular ones of ``devices`` devices beside them, below no narrow switch."""
        first, named = 1 + max((*self.numbers, *self.dead)), range(1, hosts + 1) if self.names else ()
        return replace(
            self,
            numbers=(*self.numbers, *range(first, first + hosts)),
            devices=(*self.devices, *(devices,) * hosts),
            nic=(*self.nic, *(1.0,) * hosts),
            names=(*self.names, *(f"added-{k}" for k in named)),
        )

    def name(self, position: int) -> str:
        """What a host is called."""
        return self.names[position] if self.names else f"host-{self.numbers[position]}"


def _same_partition(one: Ints, other: Ints) -> bool:
    """Whether two labellings put the same hosts together; one of them is never coarser than the other."""
    return len(np.unique(one)) == len(np.unique(other))
