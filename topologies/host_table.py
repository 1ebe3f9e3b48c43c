"""Exceptions of a cluster file, one after the other, as one table of hosts; see :mod:`topologies.exceptions`."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from topologies.catalogue import Fabric, Host
from topologies.errors import BadInput
from topologies.exceptions import Exceptions, HostException, Numbers
from topologies.irregular import Irregular, Switch

MOST_LISTED = 2**21
MOST_CELLS = 2**26
FIGURES = ("devices", "nics", "nic_bandwidth")
_RANGE = re.compile(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,139}")
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
        table.apply(one, k, given.hosts_per_leaf)
    return table.irregular(given.spare_hosts, _names(given.host_names, hosts))


class _Table:
    """One row a host, filled exception by exception; a figure that nobody gives stays the regular host's."""

    def __init__(self, hosts: int, host: Host, fabric: Fabric) -> None:
        self.hosts, self.host, self.fabric = hosts, host, fabric
        self.given = {name: np.full(hosts, np.nan) for name in FIGURES}
        self.source = {name: np.full(hosts, -1) for name in FIGURES}
        self.switches: list[Switch] = []

    def apply(self, it: HostException, k: int, hosts_per_leaf: int | list[int] | None) -> None:
        """Write the ``k``-th exception into the table."""
        where = f"exceptions[{k}]"
        groups = self._groups(it, where, hosts_per_leaf)
        every = np.concatenate(groups)
        if not (it.dead or {*FIGURES, "oversubscription"} & it.model_fields_set):
            raise BadInput(f"{where} says nothing about its hosts; give dead, devices, nics, nic_bandwidth or "
                           "oversubscription")  # fmt: skip
        for name, value in self._figures(it, where).items():
            self._write(name, value, every, k)
        if it.oversubscription is not None:
            uplink = self._uplink(it.oversubscription, where)
            self.switches += [Switch(f"{where}.{n}", tuple(group.tolist()), uplink) for n, group in enumerate(groups)]
        if len(self.switches) * self.hosts > MOST_CELLS:
            raise BadInput(
                f"{where}: {len(self.switches)} oversubscribed switches above {self.hosts} hosts; their product is at "
                f"most {MOST_CELLS}; name fewer leaves, or make the fabric's own oversubscription the common one"
            )

    def _write(self, name: str, value: float, every: np.ndarray, k: int) -> None:
        """One figure of some hosts. Raises ``BadInput`` where another exception gave one of them another."""
        now = self.given[name][every]
        other = every[(now != value) & ~np.isnan(now)]
        if len(other):
            host = int(other[0])
            raise BadInput(
                f"exceptions[{k}] gives host {host} {_said(name, value)}, but exceptions[{self.source[name][host]}] "
                f"gives it {_said(name, self.given[name][host])}; say each figure of a host once"
            )
        self.given[name][every], self.source[name][every] = value, k

    def _groups(self, it: HostException, where: str, hosts_per_leaf: int | list[int] | None) -> list[np.ndarray]:
        if (it.hosts is None) == (it.leaves is None):
            raise BadInput(f"{where} names either hosts or leaves; give one of the two, for example hosts = '40-47'")
        if it.hosts is not None:
            return [_numbers(it.hosts, self.hosts, f"{where}.hosts", "host")]
        starts = _leaf_starts(hosts_per_leaf, self.hosts, where)
        chosen = _numbers(it.leaves, len(starts) - 1, f"{where}.leaves", "leaf")
        return [np.arange(starts[leaf], starts[leaf + 1]) for leaf in chosen.tolist()]

    def _figures(self, it: HostException, where: str) -> dict[str, float]:
        """The figures that an exception gives, none of them better than the regular host's."""
        if it.dead and it.devices:
            raise BadInput(f"{where} is dead and has devices = {it.devices}; leave one of the two out")
        if self.host.nics == 0 and {"nics", "nic_bandwidth"} & it.model_fields_set:
            raise BadInput(
                f"{where}: host {self.host.name!r} has no NICs to be slower; leave nics and nic_bandwidth out"
            )
        regular = {
            "devices": self.host.devices, "nics": self.host.nics,
            "nic_bandwidth": self.host.figures.nic_bandwidth.value,
        }  # fmt: skip
        found = {name: float(value) for name in FIGURES if (value := getattr(it, name)) is not None}
        for name, value in found.items():
            if value > regular[name] * (1 + 1e-9):
                raise BadInput(
                    f"{where} has {_said(name, value)}, but host {self.host.name!r} has "
                    f"{_said(name, regular[name])}; an exception only takes away"
                )
        return found | ({"devices": 0.0} if it.dead else {})

    def _nic(self) -> np.ndarray:
        """Each host's part of a regular host's share: ``nics min(NIC, port)`` over the same of a regular one."""
        rate, port = self.host.figures.nic_bandwidth.value, self.fabric.figures.port_bandwidth.value
        nics = np.where(np.isnan(self.given["nics"]), self.host.nics, self.given["nics"])
        rates = np.where(np.isnan(self.given["nic_bandwidth"]), rate, self.given["nic_bandwidth"])
        regular = self.host.nics * min(rate, port)
        return nics * np.minimum(rates, port) / regular if regular else np.ones(self.hosts)

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
        devices = np.where(np.isnan(self.given["devices"]), self.host.devices, self.given["devices"]).astype(np.int64)
        usable, nic = np.flatnonzero(devices > 0), self._nic()
        if len(usable) <= spare_hosts:
            raise BadInput(
                f"of {self.hosts} hosts {len(usable)} are usable and {spare_hosts} stay spare: "
                "none is left to plan on; leave one"
            )
        position = np.cumsum(devices > 0) - 1
        alive = [(s, [h for h in s.hosts if devices[h] > 0]) for s in _nested(self.switches)]
        return Irregular(
            numbers=tuple(usable.tolist()),
            devices=tuple(devices[usable].tolist()),
            nic=tuple(nic[usable].tolist()),
            switches=tuple(Switch(s.name, tuple(position[h].tolist()), s.uplink) for s, h in alive if h),
            spare_hosts=spare_hosts,
            names=tuple(names[h] for h in usable.tolist()) if names else (),
            dead=tuple(np.flatnonzero(devices == 0).tolist()),
        )


def _said(name: str, value: float) -> str:
    """A figure as the file would say it."""
    if name == "devices" and value == 0:
        return "no working devices"
    return f"{name} = {value / 1e9:g} GB/s" if name == "nic_bandwidth" else f"{name} = {value:g}"


def _nested(switches: list[Switch]) -> list[Switch]:
    """The switches, each once.

    Raises ``BadInput`` for two that share hosts while each has some alone, which no tree has, and for one with two
    figures.
    """
    known: list[tuple[set[int], Switch]] = []
    for switch in sorted(switches, key=lambda s: len(s.hosts)):
        mine = set(switch.hosts)
        for other, one in known:
            if mine & other and not other <= mine:
                raise BadInput(
                    f"the switches of {one.name} and {switch.name} overlap, but neither holds the other's hosts; "
                    "a host hangs below one switch of each tier"
                )
            if mine == other and one.uplink != switch.uplink:
                raise BadInput(
                    f"{one.name} and {switch.name} name the switch above the same {len(mine)} hosts, with uplinks of "
                    f"{one.uplink:.3g} and {switch.uplink:.3g} of a host's share; give its oversubscription once"
                )
        if all(mine != other for other, _ in known):
            known.append((mine, switch))
    return [switch for switch in switches if any(switch is one for _, one in known)]


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
            raise BadInput(f"{where}: {part.strip()[:40]!r} is not within the {count} {what} numbers 0 to {count - 1}; "
                           "counting begins at 0")  # fmt: skip
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


def is_host_name(text: str) -> bool:
    """Whether a launch file may call a host so: letters, digits, dots, dashes, underscores, no shell word."""
    return _NAME.fullmatch(text) is not None


def _names(given: str | list[str], hosts: int) -> tuple[str, ...]:
    """The names that are listed, or those of ``"node[001-064]"``; one a host."""
    return _running(given, hosts) if isinstance(given, str) else _listed(given, hosts)


def _listed(given: list[str], hosts: int) -> tuple[str, ...]:
    """Raises ``BadInput`` for other than one name a host, for a name that is none, and for one that is there twice."""
    if given and len(given) != hosts:
        raise BadInput(f"host_names lists {len(given)} names, but there are {hosts} hosts; name each once")
    if wrong := next((name for name in given if not is_host_name(name)), None):
        raise BadInput(
            f"host_names: {wrong[:80]!r} is no host's name: letters, digits, '.', '-', '_', at most 140, the first a "
            "letter or digit"
        )
    if twice := next((name for name, count in Counter(given).items() if count > 1), None):
        raise BadInput(f"host_names has {twice!r} twice; name each host once")
    return tuple(given)


def _running(pattern: str, hosts: int) -> tuple[str, ...]:
    if not pattern:
        return ()
    match = _NAMES.fullmatch(pattern)
    if match is None or int(match[3]) - int(match[2]) + 1 != hosts:
        raise BadInput(
            f"host_names = {pattern[:80]!r} does not name {hosts} hosts; write for example 'node[1-{hosts}]', or list "
            "them"
        )
    width = len(match[2])
    return tuple(f"{match[1]}{n:0{width}}{match[4]}" for n in range(int(match[2]), int(match[3]) + 1))
