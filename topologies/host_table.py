"""Exceptions of a cluster file, one after the other, as one table of hosts; see :mod:`topologies.exceptions`."""

from __future__ import annotations

import re

import numpy as np

from topologies.catalogue import Fabric, Host
from topologies.errors import BadInput
from topologies.exceptions import Exceptions, HostException, Numbers
from topologies.irregular import Irregular, Switch

MOST_LISTED = 2**21
MOST_CELLS = 2**26
_RANGE = re.compile(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?")
_NAMES = re.compile(r"([A-Za-z0-9._-]{0,60})\[([0-9]{1,9})-([0-9]{1,9})\]([A-Za-z0-9._-]{0,60})")


def irregular(given: Exceptions, hosts: int, host: Host, fabric: Fabric) -> Irregular:
    """What differs among ``hosts`` hosts, dead ones and those without devices left out.

    Raises ``BadInput`` for numbers out of range, a figure better than the regular one, switches that overlap without
    one inside the other, or nothing left.
    """
    if host.scale_up_devices != host.devices:
        raise BadInput(
            f"exceptions name hosts, but a scale-up domain of host {host.name!r} spans "
            f"{host.scale_up_devices // host.devices} of them; describe the domain as one host"
        )
    table = _Table(hosts, host, fabric)
    for k, one in enumerate(given.listed):
        table.apply(one, f"exceptions[{k}]", given.hosts_per_leaf)
    return table.irregular(given.spare_hosts, _names(given.host_names, hosts))


class _Table:
    """One row a host, filled exception by exception; the worst of several holds."""

    def __init__(self, hosts: int, host: Host, fabric: Fabric) -> None:
        self.hosts, self.host, self.fabric = hosts, host, fabric
        self.devices, self.nic = np.full(hosts, host.devices), np.ones(hosts)
        self.switches: list[Switch] = []

    def apply(self, it: HostException, where: str, hosts_per_leaf: int | list[int] | None) -> None:
        """Write one exception into the table."""
        groups = self._groups(it, where, hosts_per_leaf)
        every = np.concatenate(groups)
        if not (it.dead or {"devices", "nics", "nic_bandwidth", "oversubscription"} & it.model_fields_set):
            raise BadInput(f"{where} says nothing about its hosts; give dead, devices, nics, nic_bandwidth or "
                           "oversubscription")  # fmt: skip
        self.devices[every] = np.minimum(self.devices[every], 0 if it.dead else self._devices(it, where))
        self.nic[every] = np.minimum(self.nic[every], self._nic(it, where))
        if it.oversubscription is not None:
            uplink = self._uplink(it.oversubscription, where)
            self.switches += [Switch(f"{where}.{n}", tuple(group.tolist()), uplink) for n, group in enumerate(groups)]
        if len(self.switches) * self.hosts > MOST_CELLS:
            raise BadInput(
                f"{where}: {len(self.switches)} oversubscribed switches above {self.hosts} hosts; their product is at "
                f"most {MOST_CELLS}; name fewer leaves, or make the fabric's own oversubscription the common one"
            )

    def _groups(self, it: HostException, where: str, hosts_per_leaf: int | list[int] | None) -> list[np.ndarray]:
        if (it.hosts is None) == (it.leaves is None):
            raise BadInput(f"{where} names either hosts or leaves; give one of the two, for example hosts = '40-47'")
        if it.hosts is not None:
            return [_numbers(it.hosts, self.hosts, f"{where}.hosts", "host")]
        starts = _leaf_starts(hosts_per_leaf, self.hosts, where)
        chosen = _numbers(it.leaves, len(starts) - 1, f"{where}.leaves", "leaf")
        return [np.arange(starts[leaf], starts[leaf + 1]) for leaf in chosen.tolist()]

    def _devices(self, it: HostException, where: str) -> int:
        if it.devices is not None and it.devices > self.host.devices:
            raise BadInput(
                f"{where}.devices = {it.devices}, but host {self.host.name!r} has {self.host.devices}; "
                "an exception only takes away"
            )
        return self.host.devices if it.devices is None else it.devices

    def _nic(self, it: HostException, where: str) -> float:
        """The host's part of a regular host's share: ``nics min(NIC, port)`` over the same of a regular one."""
        if it.nics is None and it.nic_bandwidth is None:
            return 1.0
        figures, port = self.host.figures, self.fabric.figures.port_bandwidth.value
        regular = self.host.nics * min(figures.nic_bandwidth.value, port)
        if self.host.nics == 0:
            raise BadInput(
                f"{where}: host {self.host.name!r} has no NICs to be slower; leave nics and nic_bandwidth out"
            )
        nics = self.host.nics if it.nics is None else it.nics
        rate = figures.nic_bandwidth.value if it.nic_bandwidth is None else it.nic_bandwidth
        if nics > self.host.nics or rate > figures.nic_bandwidth.value * (1 + 1e-9):
            raise BadInput(
                f"{where} has {nics} NICs of {rate / 1e9:g} GB/s, but host {self.host.name!r} has {self.host.nics} of "
                f"{figures.nic_bandwidth.value / 1e9:g} GB/s; an exception only takes away"
            )
        return nics * min(rate, port) / regular

    def _uplink(self, oversubscription: float, where: str) -> float:
        regular = self.fabric.oversubscription
        if oversubscription < regular:
            raise BadInput(
                f"{where}.oversubscription = {oversubscription:g} is below the {regular:g} of fabric "
                f"{self.fabric.name!r}; an exception only takes away"
            )
        return regular / oversubscription

    def irregular(self, spare_hosts: int, names: tuple[str, ...]) -> Irregular:
        """The usable hosts, renumbered by position."""
        usable = np.flatnonzero(self.devices > 0)
        if len(usable) <= spare_hosts:
            raise BadInput(
                f"of {self.hosts} hosts {len(usable)} are usable and {spare_hosts} stay spare: none is left to plan on"
            )
        _check_nested(self.switches)
        position = np.cumsum(self.devices > 0) - 1
        alive = [(s, [h for h in s.hosts if self.devices[h] > 0]) for s in self.switches]
        return Irregular(
            numbers=tuple(usable.tolist()),
            devices=tuple(self.devices[usable].tolist()),
            nic=tuple(self.nic[usable].tolist()),
            switches=tuple(Switch(s.name, tuple(position[h].tolist()), s.uplink) for s, h in alive if h),
            spare_hosts=spare_hosts,
            names=tuple(names[h] for h in usable.tolist()) if names else (),
            dead=tuple(np.flatnonzero(self.devices == 0).tolist()),
        )


def _check_nested(switches: list[Switch]) -> None:
    """Raises ``BadInput`` for two switches that share hosts while each has some alone: no tree has that."""
    known: list[tuple[set[int], str]] = []
    for switch in sorted(switches, key=lambda s: len(s.hosts)):
        mine = set(switch.hosts)
        for other, name in known:
            if mine & other and not other <= mine:
                raise BadInput(
                    f"the switches of {name} and {switch.name} overlap, but neither holds the other's hosts; "
                    "a host hangs below one switch of each tier"
                )
        known.append((mine, switch.name))


def _numbers(given: Numbers, count: int, where: str, what: str) -> np.ndarray:
    """Sorted distinct numbers below ``count`` from ``17``, ``"3,40-47"`` or a list."""
    parts = [str(n) for n in given] if isinstance(given, list) else str(given).split(",")
    found: list[np.ndarray] = []
    for part in parts:
        match = _RANGE.fullmatch(part)
        if match is None:
            raise BadInput(f"{where}: {part.strip()[:40]!r} is no number or range; write for example '3,40-47'")
        low, high = int(match[1]), int(match[2] or match[1])
        if high < low or high >= count:
            raise BadInput(f"{where}: {part.strip()[:40]!r} is not within the {count} {what} numbers 0 to {count - 1}")
        found.append(np.arange(low, high + 1))
        if sum(map(len, found)) > MOST_LISTED:
            raise BadInput(f"{where} lists more than {MOST_LISTED} numbers; name each once")
    if not found:
        raise BadInput(f"{where} is empty; name at least one {what}, or leave the exception out")
    return np.unique(np.concatenate(found))


def _leaf_starts(hosts_per_leaf: int | list[int] | None, hosts: int, where: str) -> np.ndarray:
    """The first host of every leaf, and one past the last."""
    if hosts_per_leaf is None:
        raise BadInput(f"{where} names leaves, but the file does not say hosts_per_leaf; add it, or name hosts")
    if isinstance(hosts_per_leaf, int):
        return np.minimum(np.arange(0, hosts + hosts_per_leaf, hosts_per_leaf), hosts)
    if sum(hosts_per_leaf) != hosts:
        raise BadInput(f"hosts_per_leaf adds up to {sum(hosts_per_leaf)} hosts, but there are {hosts}; list every leaf")
    return np.concatenate([[0], np.cumsum(hosts_per_leaf)])


def _names(pattern: str, hosts: int) -> tuple[str, ...]:
    """The names of ``"node[001-064]"``; one a host."""
    if not pattern:
        return ()
    match = _NAMES.fullmatch(pattern)
    if match is None or int(match[3]) - int(match[2]) + 1 != hosts:
        raise BadInput(
            f"host_names = {pattern[:80]!r} does not name {hosts} hosts; write for example 'node[1-{hosts}]'"
        )
    width = len(match[2])
    return tuple(f"{match[1]}{n:0{width}}{match[4]}" for n in range(int(match[2]), int(match[3]) + 1))
