"""One package as several devices: what a partition mode leaves each of them.

    memory, its bandwidth, peaks, watts, price          a device has 1 / n of the package's
    scale-up bandwidth, NICs, the link to the host      the package's, shared by its n devices
    between devices of a package, one direction         min(edge, memory bandwidth / n / 2)

A ring through the devices of a package in the order of its dies crosses every edge between neighbouring dies once
each way, and what it brings is written to memory and read from there again.
"""

from __future__ import annotations

from topologies.catalogue import Accelerator, Host, Part, unknown
from topologies.cluster import Level
from topologies.errors import BadInput
from topologies.inside import divided

SHARED = (
    "memory_capacity", "memory_usable", "memory_bandwidth", "peak_fp32", "peak_tf32", "peak_fp16", "peak_bf16",
    "peak_fp8", "peak_fp4", "scale_up_bandwidth", "board_power", "idle_power", "price",
)  # fmt: skip


def partitioned(accelerator: Accelerator, host: Host, mode: str) -> tuple[Accelerator, Host]:
    """The package's share as a device, and the host with so many more devices.

    ``mode`` is a name that the accelerator's ``[package]`` lists, in any case: ``"CPX/NPS4"``. One with a single
    device changes nothing. Raises ``BadInput`` for a package without modes, ``UnknownName`` for a mode that is not
    among them.
    """
    modes = {one.name.lower(): one for one in accelerator.package.modes} if accelerator.package else {}
    if not modes:
        raise BadInput(f"partition = {mode[:40]!r}, but no partition modes of {accelerator.name!r} are known; "
                       "leave partition out")  # fmt: skip
    if mode.lower() not in modes:
        raise unknown(f"partition mode of {accelerator.name}", mode, [one.name for one in accelerator.package.modes])
    chosen = modes[mode.lower()]
    if chosen.devices == 1:
        return accelerator, host
    return _device(accelerator, chosen.name, chosen.devices), _host(host, chosen.devices)


def _device(package: Accelerator, mode: str, parts: int) -> Accelerator:
    return _share(package, SHARED, parts, mode).model_copy(
        update={
            "name": f"{package.name}/{mode.lower().replace('/', '-')}",
            "title": f"{package.title}, one of its {parts} devices in {mode}",
            "dies": max(1, package.dies // parts),
            "partitions": parts,
        }
    )


def _host(host: Host, parts: int) -> Host:
    more: dict[str, object] = {"devices": host.devices * parts, "scale_up_devices": host.scale_up_devices * parts}
    if host.inside is not None:
        link = host.figures.device_link
        more["inside"] = divided(host.inside, parts, None if link is None else link.value)
    return _share(host, ("device_link",), parts, "partitions").model_copy(update=more)


def _share(part: Part, names: tuple[str, ...], parts: int, mode: str) -> Part:
    """The part with a share of these figures; those that it does not have stay away."""
    found = {name: figure for name in names if (figure := getattr(part.figures, name)) is not None}
    changed = {
        name: figure.model_copy(
            update={"value": figure.value / parts, "kind": "derived", "note": f"1/{parts} of the package's ({mode})"}
        )
        for name, figure in found.items()
    }
    return part.model_copy(update={"figures": part.figures.model_copy(update=changed)})


def package_level(accelerator: Accelerator) -> Level:
    """The network level of the devices of one package."""
    package, figures = accelerator.package, accelerator.figures
    if package is None:
        raise BadInput(f"accelerator {accelerator.name!r} has no [package] that says how its partitions are joined")
    copied = figures.memory_bandwidth.value / 2
    return Level(
        name="package",
        fanout=accelerator.partitions,
        bandwidth_bytes_per_s=min(package.figures.bandwidth.value, copied),
        latency_s=package.figures.latency.value,
        link=package.link,
    )
