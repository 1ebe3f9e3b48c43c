"""Hosts and the network between them, out of namespaces, veth pairs, a bridge and token buckets; commands as data.

    host k   namespace mesh-host-k, eth0 = 10.77.0.(k+1)/24, joined to a bridge in mesh-switch
    rate     ``tc tbf`` at both ends of each link, so both ways; burst 64 KB

Nothing of this host's own network is touched: pairs are made inside the namespaces. Latency is the kernel's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from planner.errors import BadInput, Unsupported
from planner.machine.local_job import Launch

SWITCH, HOST = "mesh-switch", "mesh-host-"
SUBNET = "10.77.0."
BURST, QUEUE = "64kb", "100ms"
MOST_HOSTS = 16
_RATE = re.compile(r"(\d{1,5})(kbit|mbit|gbit)")


@dataclass(frozen=True)
class Network:
    """``hosts`` of ``per_host`` ranks on links of ``rate``, as ``tc`` writes it (``100mbit``)."""

    hosts: int
    per_host: int
    rate: str

    @property
    def name(self) -> str:
        """Such as ``2x1-100mbit``."""
        return f"{self.hosts}x{self.per_host}-{self.rate}"

    @classmethod
    def of(cls, text: str) -> Network:
        """Reads ``HOSTSxRANKS-RATE``. Raises ``BadInput`` for anything else."""
        match = re.fullmatch(r"(\d{1,2})x(\d{1,2})-(.*)", text)
        if (
            match is None
            or _RATE.fullmatch(match[3]) is None
            or not 2 <= int(match[1]) <= MOST_HOSTS
            or match[2] == "0"
        ):
            raise BadInput(
                f"a network is HOSTSxRANKS-RATE, 2 to {MOST_HOSTS} hosts, a rate in kbit, mbit or gbit, such as "
                f"2x1-100mbit; got {text[:80]!r}"
            )
        return cls(int(match[1]), int(match[2]), match[3])

    def namespaces(self) -> list[str]:
        """Names of all namespaces, the switch first."""
        return [SWITCH, *(f"{HOST}{k}" for k in range(self.hosts))]

    def address(self, host: int) -> str:
        """The host's address."""
        return f"{SUBNET}{host + 1}"

    def built_by(self) -> list[list[str]]:
        """Commands that build it, in order."""
        words = [["ip", "netns", "add", name] for name in self.namespaces()]
        words += [_ip(SWITCH, "link add bridge0 type bridge"), _ip(SWITCH, "link set bridge0 up")]
        for k in range(self.hosts):
            words += self._link(k)
        return words

    def _link(self, k: int) -> list[list[str]]:
        host, port = f"{HOST}{k}", f"port{k}"
        shape = f"root tbf rate {self.rate} burst {BURST} latency {QUEUE}"
        return [
            _ip(host, f"link add eth0 type veth peer name {port} netns {SWITCH}"),
            _ip(host, f"addr add {self.address(k)}/24 dev eth0"),
            _ip(host, "link set lo up"),
            _ip(host, "link set eth0 up"),
            _ip(SWITCH, f"link set {port} master bridge0"),
            _ip(SWITCH, f"link set {port} up"),
            ["tc", "-n", host, "qdisc", "replace", "dev", "eth0", *shape.split()],
            ["tc", "-n", SWITCH, "qdisc", "replace", "dev", port, *shape.split()],
        ]

    def launches(self, module: str, arguments: tuple[str, ...], port: int) -> list[Launch]:
        """One launcher a host, each in its namespace, that meet at the first."""
        return [
            Launch(
                module, arguments, self.per_host, self.hosts, k, self.address(0), port,
                prefix=("ip", "netns", "exec", f"{HOST}{k}"), environment=(("GLOO_SOCKET_IFNAME", "eth0"),),
            )
            for k in range(self.hosts)
        ]  # fmt: skip


def _ip(namespace: str, words: str) -> list[str]:
    return ["ip", "-n", namespace, *words.split()]


def check_allowed() -> None:
    """Raises ``Unsupported`` naming what is missing: Linux' tools, or root."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise Unsupported(f"emulated clusters are built with {tool!r}, which is not installed; install iproute2")
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise Unsupported("emulated clusters need root, for network namespaces; run this command as root, or in a "
                          "container that may make them (CAP_SYS_ADMIN, CAP_NET_ADMIN)")  # fmt: skip


@contextmanager
def built(network: Network) -> Iterator[Network]:
    """The network while the block lasts; what an earlier run left under these names is taken down first.

    Raises ``Unsupported`` with the command that the kernel refused; nothing is left then.
    """
    check_allowed()
    take_down()
    try:
        for words in network.built_by():
            _run(words)
        yield network
    finally:
        take_down()


def _run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise Unsupported(f"this kernel refuses {' '.join(words)!r}: {done.stderr.strip()[:300]}")


def take_down() -> None:
    """Deletes every namespace of these names, and with them their links. Processes in them are not looked for."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False, timeout=30).stdout
    for line in listed.splitlines():
        name = line.split()[0] if line.split() else ""
        if name == SWITCH or re.fullmatch(rf"{re.escape(HOST)}\d+", name):
            _run(["ip", "netns", "delete", name])
