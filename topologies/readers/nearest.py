"""The host of the catalogue that is most like one that was read, for what no file tells: power, latency, storage."""

from __future__ import annotations

from functools import lru_cache

from topologies import catalogue
from topologies.catalogue import Host
from topologies.errors import BadInput
from topologies.readers.facts import CLOSE
from topologies.readers.recognised import plain
from topologies.readers.shape import Shape


def nics_unlike(shape: Shape, like: str | None) -> list[str]:
    """What differs in NICs from the nearest host of the catalogue with as many devices: fewer, or more of no speed."""
    if shape.nics is None:
        return []
    try:
        host = nearest_host(shape, like)
    except BadInput:
        return []
    shown = f"{shape.nics.source}: {shape.nics.value} of the"
    if host.devices == shape.devices.value and shape.nics.value < host.nics:
        return [f"{shown} {host.nics} NICs that {host.name} of the catalogue has"]
    if (share := shared_nic_bytes_per_s(shape, host)) is None:
        return []
    speed = host.figures.nic_bandwidth.value
    return [
        f"{shape.nics.source}: {shape.nics.value} NICs of untold speed; they are taken for ports of "
        f"{shape.nics.value * share / speed:.0f} cards of {speed * 8 / 1e9:g} Gb/s, as {host.name} of the catalogue "
        "has (--nics says how many count)"
    ]


def shared_nic_bytes_per_s(shape: Shape, host: Host) -> float | None:
    """Bytes a second of each NIC where a file shows more than ``host`` has and no speeds; ``None`` otherwise.

        = bandwidth of a NIC of the host . max(its NICs, devices) / NICs shown

    NICs beyond one a device are ports or planes of the same cards: 16 of 200 Gb/s in Oracle's H100 hosts, 16 of 400 in
    a B300's. Up to one a device they are cards.
    """
    if shape.nics is None or shape.nics.source == "--nics" or shape.nic_bytes_per_s is not None:
        return None
    cards = max(nics_for(host, shape.devices.value), shape.devices.value)
    return host.figures.nic_bandwidth.value * cards / shape.nics.value if shape.nics.value > cards else None


def nics_for(host: Host, devices: int) -> int:
    """NICs that ``devices`` of the host's use: all, or their part where they are fewer."""
    return host.nics if devices >= host.devices else max(1, host.nics * devices // host.devices)


def holds_tiers(shape: Shape, like: str | None) -> bool:
    """Whether the host that the rest is taken from says how fast a device reaches memory outside itself."""
    try:
        return nearest_host(shape, like).figures.device_link is not None
    except BadInput:
        return False


def nearest_host(shape: Shape, like: str | None) -> Host:
    """The host called ``like``, else the nearest with that accelerator.

    Raises ``BadInput`` where the catalogue has none, ``UnknownName`` for a name that it does not have.
    """
    if like is not None:
        return _loaded(like)
    name = shape.accelerator.value
    hosts = [host for host in map(_loaded, catalogue.names("hosts")) if host.accelerator == name]
    if not hosts:
        raise BadInput(
            f"no host of the catalogue holds {name}, so its power, latency and memory are unknown; name one to take "
            f"them from with --like HOST: {', '.join(catalogue.names('hosts')[:6])}, ..."
        )
    return min(hosts, key=lambda host: _distance(host, shape))


def _loaded(name: str) -> Host:
    host = catalogue.load("hosts", name)
    if not isinstance(host, Host):
        raise catalogue.unknown("host", name, catalogue.names("hosts"))
    return host


def _distance(host: Host, shape: Shape) -> tuple:
    """How unlike a host is: the machine's name, devices, whether a cloud rents it out, NICs and their speed."""
    names = [plain(text) for text in host.seen_as.names] if host.seen_as else []
    speed = host.figures.nic_bandwidth.value
    told = shape.nic_bytes_per_s.value if shape.nic_bytes_per_s is not None else speed
    return (
        not (shape.machine and plain(shape.machine) in names),
        abs(host.devices - shape.devices.value),
        (host.name in _rented()) != (shape.nic_kind == "efa"),
        0 if shape.nics is None else abs(host.nics - shape.nics.value),
        abs(told / speed - 1) > CLOSE,
        host.name,
    )


@lru_cache(maxsize=1)
def _rented() -> frozenset[str]:
    """Hosts that clouds rent out: those known by the name of an instance type."""
    hosts = map(_loaded, catalogue.names("hosts"))
    types = {"instance-types", "machine-types", "sizes"}
    return frozenset(host.name for host in hosts if host.seen_as and types & host.seen_as.sources.keys())
