"""The catalogue: accelerators, hosts, fabrics, facilities, fleets, stores; a TOML file a part, sources on figures."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from topologies.errors import BadInput, UnknownName
from topologies.inside import Inside, wrong_ports
from topologies.records import Figure, Figures, Record, Source, Sparse, idle_within_board, validation_text
from topologies.toml_file import read_toml
from topologies.units import (
    Bytes,
    BytesPerSecond,
    FlopPerSecond,
    JoulesPerBit,
    Seconds,
    UsdPerHour,
    UsdPerKilowattHour,
    Watts,
)

CATALOGUE = Path(__file__).parent / "catalogue"
FEW_NAMES = 8
"""So many names of a kind are all told where one is not among them; of more the nearest."""


class Part(Record):
    """A named part of a machine: ``figures`` that all cite an entry of ``sources``."""

    name: str
    title: str
    sources: dict[str, Source]

    @model_validator(mode="after")
    def _every_figure_has_a_listed_source(self) -> Part:
        package = getattr(self, "package", None)
        figures = [*self.figures, *(package.figures if package else ())]  # type: ignore[attr-defined]
        cited = {field: figure.source for field, figure in figures if figure is not None}
        if package is not None and package.modes:
            cited["package.modes"] = package.modes_source
        if inside := getattr(self, "inside", None):
            cited["inside"] = inside.source
        unlisted = {field: key for field, key in cited.items() if key not in self.sources}
        if unlisted:
            raise ValueError(
                f"{kind_words(type(self))} {self.name!r}: figures cite sources that [sources] does not list: "
                f"{unlisted}; listed: {sorted(self.sources)}"
            )
        return self


class AcceleratorFigures(Figures):
    """Peaks are dense; bandwidths are one direction per device; power is board power."""

    memory_capacity: Figure[Bytes]
    memory_usable: Figure[Bytes] | None = None
    memory_bandwidth: Figure[BytesPerSecond]
    peak_fp32: Figure[FlopPerSecond]
    peak_tf32: Figure[FlopPerSecond] | None = None
    peak_fp16: Figure[FlopPerSecond] | None = None
    peak_bf16: Figure[FlopPerSecond] | None = None
    peak_fp8: Figure[FlopPerSecond] | None = None
    peak_fp4: Figure[FlopPerSecond] | None = None
    scale_up_bandwidth: Figure[BytesPerSecond]
    board_power: Figure[Watts]
    idle_power: Figure[Watts]
    price: Figure[UsdPerHour] | None = None


class SeenAs(Record):
    """How tools name the part, so that what they print is recognised; no price of anything depends on it.

    Of an accelerator ``pci`` is ``vendor:device``, ``units`` the compute units that a whole device reports,
    ``link_bandwidth`` one scale-up link and ``pcie_bandwidth`` the slot, one direction, before encoding.
    """

    names: tuple[str, ...] = ()
    pci: tuple[str, ...] = ()
    units: int | None = None
    link_bandwidth: BytesPerSecond | None = None
    pcie_bandwidth: BytesPerSecond | None = None
    sources: dict[str, Source]


class PackageFigures(Figures):
    """``bandwidth`` is one direction over one edge between two neighbouring dies; ``energy`` of what crosses it."""

    bandwidth: Figure[BytesPerSecond]
    latency: Figure[Seconds]
    energy: Figure[JoulesPerBit] | None = None


class Mode(Record):
    """A way to show one package as ``devices`` devices."""

    name: str
    devices: Annotated[int, Field(ge=1, le=64)]


class Package(Record):
    """What joins the dies of one accelerator, and its partition modes with their source, where it has some."""

    link: str
    modes: tuple[Mode, ...] = ()
    modes_source: str = ""
    figures: PackageFigures


class Accelerator(Part):
    """One device as software sees it: an NVIDIA GPU, an AMD OAM or a part of it, a Gaudi, a TPU chip, a CPU worker.

    ``partitions`` devices like this one are a package.
    """

    vendor: str
    family: str
    dies: int = 1
    announced: bool = False
    package: Package | None = Field(default=None, exclude=True)
    partitions: int = Field(default=1, exclude=True)
    seen_as: SeenAs | None = Field(default=None, exclude=True)
    figures: Annotated[AcceleratorFigures, AfterValidator(idle_within_board)]

    @property
    def whole(self) -> str:
        """Name of the whole package in the catalogue; kernels and clocks of its partitions are told by that."""
        return self.name.partition("/")[0]


class HostFigures(Figures):
    """``scale_up_latency`` is one hop inside the domain; ``power`` is everything but the devices, fans included.

    ``device_link`` joins one device and the host's memory, one direction; ``memory_bandwidth`` is reads and writes
    together, as a processor reaches it; ``nvme_bandwidth`` and ``nvme_write_bandwidth`` are of all drives.
    ``liquid_saves`` is what of ``power`` cold plates make unnecessary, fans above all; ``liquid_gain`` how much faster
    the devices run on them under a load that heats them most. ``scale_up_energy`` is between two devices of the domain,
    ``device_link_energy`` of what crosses ``device_link``, both ends, and ``memory_energy`` of what the host's memory
    itself reads and writes; all above what the machine draws at rest.
    """

    scale_up_latency: Figure[Seconds]
    nic_bandwidth: Figure[BytesPerSecond]
    memory_capacity: Figure[Bytes]
    memory_bandwidth: Figure[BytesPerSecond] | None = None
    device_link: Figure[BytesPerSecond] | None = None
    nvme_capacity: Figure[Bytes] | None = None
    nvme_bandwidth: Figure[BytesPerSecond] | None = None
    nvme_write_bandwidth: Figure[BytesPerSecond] | None = None
    power: Figure[Watts]
    rated_power: Figure[Watts] | None = None
    liquid_saves: Figure[Watts] | None = None
    liquid_gain: Figure[float] | None = None
    scale_up_energy: Figure[JoulesPerBit] | None = None
    device_link_energy: Figure[JoulesPerBit] | None = Field(default=None, exclude=True)
    memory_energy: Figure[JoulesPerBit] | None = Field(default=None, exclude=True)


class Torus(Record):
    """Devices in a grid of closed rings: ``axes`` innermost first, ``link_bandwidth`` of one link, one direction.

    Without it a device's scale-up bandwidth is shared by two links an axis.
    """

    axes: Annotated[tuple[Annotated[int, Field(strict=True, ge=2, le=4096)], ...], Field(min_length=1, max_length=6)]
    link_bandwidth: BytesPerSecond | None = None


class Host(Part):
    """A machine with its own operating system: ``devices`` accelerators and ``nics`` network ports for them.

    ``scale_up_devices`` is the number of devices that one scale-up network joins: 8 in a DGX, 72 in an
    NVL72 rack of eighteen 4-GPU hosts, 1 where devices only share PCIe. ``inside`` are its NUMA nodes and PCIe ports,
    where a source shows them.
    """

    accelerator: str
    devices: int
    nics: int
    scale_up_devices: int
    scale_up_link: str
    torus: Torus | None = Field(default=None, exclude=True)
    seen_as: SeenAs | None = Field(default=None, exclude=True)
    inside: Inside | None = Field(default=None, exclude=True)
    figures: HostFigures

    @model_validator(mode="after")
    def _ports_hold_what_the_host_has(self) -> Host:
        if self.inside is not None and (wrong := wrong_ports(self.inside, self.devices, self.nics)):
            raise ValueError(f"inside of host {self.name!r}: {wrong}")
        return self


class FabricFigures(Figures):
    """``latency`` is one way between the hosts farthest from each other, switches included; ``switch_latency`` is what
    one switch on that way takes. ``power_per_port`` is switch, optics and cable.

    ``energy`` is of what is sent, between two hosts.
    """

    latency: Figure[Seconds]
    switch_latency: Figure[Seconds] | None = Field(default=None, exclude=True)
    port_bandwidth: Figure[BytesPerSecond]
    power_per_port: Figure[Watts]
    energy: Figure[JoulesPerBit] | None = None


class Fabric(Part):
    """The network between hosts. ``oversubscription`` above 1 divides what a host gets across it."""

    kind: Literal["infiniband", "roce", "efa", "ethernet", "ici", "neuronlink"]
    oversubscription: float = 1.0
    figures: FabricFigures


class FacilityFigures(Figures):
    """``pue`` multiplies the power of hosts and network; it does not contain the hosts' own fans.

    ``rack_power`` is the most that a rack is cooled for; ``hot_hours_loss`` the part of its rate that a cluster loses
    while the day is hottest.
    """

    pue: Figure[float]
    rack_power: Figure[Watts] | None = None
    hot_hours_loss: Figure[float] | None = None
    electricity_price: Figure[UsdPerKilowattHour]


class Facility(Part):
    """A hall with its cooling."""

    cooling: Literal["air", "liquid", "immersion"]
    figures: FacilityFigures


class TierFigures(Figures):
    """Of one unit: a module of a host, or a pool that hosts share.

    ``bandwidth`` is what a host reads and writes together, or reads where ``write_bandwidth`` is given;
    ``pool_bandwidth`` what all hosts of a pool do. ``update_bandwidth`` is how fast a processor beside it reads and
    writes what an optimiser step touches; without it devices do that step. ``attention_bandwidth`` is how fast a
    processor inside it goes through keys and values that queries attend to; without it devices read them.
    """

    capacity: Figure[Bytes]
    bandwidth: Figure[BytesPerSecond]
    write_bandwidth: Figure[BytesPerSecond] | None = None
    pool_bandwidth: Figure[BytesPerSecond] | None = None
    latency: Figure[Seconds]
    update_bandwidth: Figure[BytesPerSecond] | None = None
    attention_bandwidth: Figure[BytesPerSecond] | None = None
    energy: Figure[JoulesPerBit] | None = None
    price: Figure[UsdPerHour] | None = None


class MemoryTier(Part):
    """Memory beyond a device's own: CXL modules, with processors or without, a pool, drives here or elsewhere."""

    kind: Literal["dram", "cxl", "cxl-pnm", "cxl-pool", "nvme", "nvme-remote"]
    figures: TierFigures


CAUSES = ("device", "host", "network", "software")
SHARED_CAUSES = {"rack": "racks", "switch": "switches", "feed": "feeds"}
"""Failures that take several hosts at once, by what of a fleet says how many such units it has."""


class FleetFigures(Sparse, Figures):
    """What stopped jobs in ``observed``, by cause, and how long they stood.

    ``restart_time`` is from a failure to the first step but for reading the states; ``replaced`` the part of failures
    after which a host is taken out, and ``repair_time`` how long it is away. Failures of racks, leaf switches and power
    feeds are those not counted among the others; all their hosts are away for ``outage_time``.
    """

    observed: Figure[Seconds]
    device_failures: Figure[float]
    host_failures: Figure[float]
    network_failures: Figure[float]
    software_failures: Figure[float]
    rack_failures: Figure[float] | None = None
    switch_failures: Figure[float] | None = None
    feed_failures: Figure[float] | None = None
    outage_time: Figure[Seconds] | None = None
    restart_time: Figure[Seconds]
    repair_time: Figure[Seconds]
    replaced: Figure[Annotated[float, Field(ge=0, le=1)]]

    @model_validator(mode="after")
    def _something_failed(self) -> FleetFigures:
        counts = {cause: getattr(self, f"{cause}_failures").value for cause in CAUSES}
        if not (min(counts.values()) >= 0 and sum(counts.values()) > 0):
            raise ValueError(f"failures are counts from 0, not all of them 0; got {counts}")
        return self


class Fleet(Sparse, Part):
    """Machines whose failures somebody counted: how many of them, and what failed in how long."""

    devices: Annotated[int, Field(ge=1)]
    hosts: Annotated[int, Field(ge=1)]
    ports: Annotated[int, Field(ge=1)]
    racks: Annotated[int, Field(ge=1)] | None = None
    switches: Annotated[int, Field(ge=1)] | None = None
    feeds: Annotated[int, Field(ge=1)] | None = None
    figures: FleetFigures

    @model_validator(mode="after")
    def _shared_failures_are_of_something(self) -> Fleet:
        for cause, units in SHARED_CAUSES.items():
            counted = getattr(self.figures, f"{cause}_failures")
            if counted is not None and (getattr(self, units) is None or self.figures.outage_time is None):
                raise ValueError(f"{cause}_failures needs {units}, how many the fleet has, and figures.outage_time")
            if counted is not None and counted.value < 0:
                raise ValueError(f"{cause}_failures is a count from 0; got {counted.value}")
        return self


class StoreFigures(Figures):
    """``write_bandwidth`` and ``read_bandwidth`` are of the whole store, or of a unit of it; none: hosts alone limit.

    ``snapshot_bandwidth`` is what a device copies into its host's memory.
    """

    host_write_bandwidth: Figure[BytesPerSecond]
    host_read_bandwidth: Figure[BytesPerSecond]
    write_bandwidth: Figure[BytesPerSecond] | None = None
    read_bandwidth: Figure[BytesPerSecond] | None = None
    snapshot_bandwidth: Figure[BytesPerSecond]


class Store(Part):
    """Where checkpoints go. A store of units has one for every ``unit_hosts`` hosts; ``copies`` are written of each."""

    unit_hosts: Annotated[int, Field(ge=1)] | None = None
    copies: Annotated[int, Field(ge=1, le=16)] = 1
    figures: StoreFigures


KINDS: dict[str, type[Part]] = {
    "accelerators": Accelerator,
    "hosts": Host,
    "fabrics": Fabric,
    "facilities": Facility,
    "tiers": MemoryTier,
    "fleets": Fleet,
    "stores": Store,
}


def names(kind: str) -> list[str]:
    """Names of every part of a kind of :data:`KINDS` (``"accelerators"``, ``"hosts"``, ...), sorted."""
    return sorted(path.stem for path in (CATALOGUE / kind).glob("*.toml"))


@lru_cache(maxsize=256)
def load(kind: str, name: str) -> Part:
    """The part of that kind and name.

    Raises ``UnknownName`` with the nearest names, ``BadInput`` when its file breaks the schema.
    """
    if name not in names(kind):
        raise unknown(kind_words(KINDS[kind]), name, names(kind))
    return parse_part(KINDS[kind], read_toml(CATALOGUE / kind / f"{name}.toml"), f"{kind}/{name}.toml")


def kind_words(kind: type[Part]) -> str:
    """What a person calls a part of that class: ``memory tier`` for :class:`MemoryTier`."""
    return re.sub("(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()


def parse_part(kind: type[Part], tables: dict, origin: str) -> Part:
    """``tables`` as a part of that class. Raises ``BadInput`` naming every field that is wrong."""
    try:
        return kind.model_validate(tables)
    except ValidationError as error:
        raise BadInput(f"{origin}: " + validation_text(error)) from error


def unknown(what: str, name: str, known: list[str]) -> UnknownName:
    """The error for a name that is not among ``known``, with the nearest ones, or all of a few."""
    nearest = difflib.get_close_matches(name.lower(), known, n=4, cutoff=0.4) or known[:FEW_NAMES]
    said = f"there are: {', '.join(known)}" if len(known) <= FEW_NAMES else f"nearest: {', '.join(nearest)}"
    return UnknownName(f"no {what} {name[:80]!r} in the catalogue; {said}")
