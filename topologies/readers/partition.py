"""Devices that are parts of a package: which mode of the catalogue shows so many of them, and how many packages.

A tool names the mode of a package's first partition alone (ROCm/amdsmi issue 100), or only the compute units that each
device has; modes that the tool leaves open cost the same, so the first that fits is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from topologies import catalogue
from topologies.catalogue import Accelerator, Mode
from topologies.errors import BadInput
from topologies.readers.facts import Fact
from topologies.readers.recognised import seen_as
from topologies.readers.seen import Device


def partition_of(name: str, devices: Sequence[Device], every: Sequence[Device], asked: bool) -> Fact[str] | None:
    """The mode of ``name`` in which a host's ``devices`` are shown; ``None`` where they are whole.

    ``every`` are the devices of all descriptions of the host. Raises ``BadInput`` for parts of no mode that the
    catalogue knows (MIG), for several modes at once, and for parts that make no whole packages. Where the user named
    the accelerator (``asked``), parts that are told by their units alone count as whole, as he insists.
    """
    told = sorted({device.partition for device in every if device.partition})
    units = _units(name, every)
    if not told and (units is None or asked):
        return None
    source, count = devices[0].source, len(devices)
    shown = ", ".join(told) or f"{units} of {_whole_units(name)} compute units each"
    modes = [mode for mode in _modes(name) if mode.devices > 1 and _fits(mode, name, told, units)]
    if asked and not modes:
        return None
    if not modes:
        known = ", ".join(mode.name for mode in _modes(name) if mode.devices > 1) or "none"
        raise BadInput(
            f"{source}: the devices are partitions ({shown[:120]}) of {name}, and partition modes known of that are "
            f"{known}; switch to whole devices (MIG off, SPX), or insist with --accelerator {name}"
        )
    mode = modes[0]
    if count % mode.devices:
        raise BadInput(
            f"{source}: {count} partitions of {name} in {mode.name} are no whole packages of {mode.devices}; was the "
            "text cut, or are packages shown in different ways?"
        )
    return Fact(mode.name, source, note=f"{count} devices, {mode.devices} a package: {shown[:80]}")


def devices_a_package(name: str, mode: Fact[str] | None) -> int:
    """Devices as which a mode shows one package; 1 where devices are whole."""
    return next((it.devices for it in _modes(name) if mode is not None and it.name == mode.value), 1)


def _modes(name: str) -> tuple[Mode, ...]:
    part = catalogue.load("accelerators", name)
    return part.package.modes if isinstance(part, Accelerator) and part.package else ()


def _whole_units(name: str) -> int:
    seen = seen_as(name)
    return (seen.units or 0) if seen is not None else 0


def _units(name: str, every: Sequence[Device]) -> int | None:
    """Compute units of a device where they are at most half of a whole one's."""
    units = {device.units for device in every if device.units}
    return max(units) if units and max(units) <= _whole_units(name) / 2 else None


def _fits(mode: Mode, name: str, told: Sequence[str], units: int | None) -> bool:
    """Whether every word that is told, ``CPX`` or ``CPX/NPS4``, and the units are this mode's."""
    by_name = all(word.upper() in (mode.name.upper(), mode.name.upper().partition("/")[0]) for word in told)
    return by_name and (units is None or units * mode.devices == _whole_units(name))
