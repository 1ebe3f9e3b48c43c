"""Hosts that have less than most and are otherwise alike: exceptions of a cluster's file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from topologies.errors import BadInput
from topologies.readers.nearest import nearest_host
from topologies.readers.shape import Shape


@dataclass(frozen=True, slots=True)
class Slower:
    """Hosts by their number and name, and what they have less of; ``None`` for what they have as the others do."""

    numbers: tuple[int, ...]
    names: tuple[str, ...]
    source: str
    devices: int | None
    nics: int | None
    nic_bytes_per_s: float | None

    def text(self) -> str:
        """Who they are and what they have, on one line."""
        speed = None if self.nic_bytes_per_s is None else f"NICs of {self.nic_bytes_per_s * 8 / 1e9:g} Gb/s"
        counts = [f"{n} {what}" for n, what in ((self.devices, "devices"), (self.nics, "NICs")) if n is not None]
        named = ", ".join(self.names[:4]) + (f" and {len(self.names) - 4} more" if len(self.names) > 4 else "")
        return f"{named} with {', '.join([*counts, *([speed] if speed else [])])}: {self.source}"


def less_of(regular: Shape, other: Shape) -> dict[str, float] | None:
    """What ``other`` has less of, by the field of :class:`Slower`; ``None`` where it differs in anything else."""
    alike = (regular.accelerator.value, _value(regular.scale_up_bytes_per_s), _value(regular.partition))
    if alike != (other.accelerator.value, _value(other.scale_up_bytes_per_s), _value(other.partition)):
        return None
    found = {}
    for name in ("devices", "nics", "nic_bytes_per_s"):
        here, there = _value(getattr(regular, name)), _value(getattr(other, name))
        if here == there:
            continue
        if here is None or there is None or not 0 < there < here:
            return None
        found[name] = there
    return found


def _value(fact: object) -> object:
    return None if fact is None else fact.value  # type: ignore[attr-defined]


def slower_hosts(regular: Shape, others: Sequence[tuple[Shape, list[str]]], order: Sequence[str]) -> list[Slower]:
    """``others``, all of which have less than a regular host, numbered by their place in ``order``."""
    place = {name: number for number, name in enumerate(order)}
    found = []
    for shape, names in others:
        if less := less_of(regular, shape):
            every = {"devices": None, "nics": None, "nic_bytes_per_s": None, **less}
            found.append(Slower(tuple(place[name] for name in names), tuple(names), shape.devices.source, **every))
    return found


def host_is_a_domain(shape: Shape, like: str | None) -> bool:
    """Whether exceptions may name hosts of this kind: where several make a scale-up domain they may not."""
    try:
        host = nearest_host(shape, like)
    except BadInput:
        return False
    return host.scale_up_devices == host.devices
