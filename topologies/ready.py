"""Ready clusters by name, and a user's own from a TOML file.

A cluster file names a host, a fabric and a facility of the catalogue, or carries them as tables.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import Field, ValidationError

from topologies import catalogue
from topologies.catalogue import Accelerator, Fabric, Facility, Fleet, Host, MemoryTier, Part, Store, Torus
from topologies.cluster import Cluster
from topologies.errors import BadInput, PlannerError
from topologies.exceptions import Exceptions, HostException
from topologies.partitions import partitioned
from topologies.records import Record, validation_text
from topologies.shapes import MOST_DEVICES, Count, Dragonfly, Optical, Outside, Switches, regular_levels
from topologies.tiers import Tier, own_tiers, read_tiers, tier_of
from topologies.toml_file import file_text, read_toml

if TYPE_CHECKING:
    from topologies.mixed import MixedCluster

CLUSTERS = Path(__file__).parent / "clusters"
DUMPS = (".xml", ".json", ".yaml", ".yml", ".conf", ".txt", ".out", ".log")
"""Endings of files that :mod:`topologies.readers` is asked to read."""
_COUNTED = re.compile(r"(?s)(?P<base>.*):(?P<count>[^:/\\]*)")
_COUNT = re.compile(r"[0-9]{1,18}")
# Figures that may be nothing: a loopback has no switch to feed, a lent machine no price.
_MAY_BE_ZERO = frozenset(
    {
        "power",
        "power_per_port",
        "idle_power",
        "price",
        "electricity_price",
        "energy",
        "restart_time",
        "repair_time",
        "replaced",
    }
    | {f"{cause}_failures" for cause in (*catalogue.CAUSES, *catalogue.SHARED_CAUSES)}
)
USUAL_FLEET, USUAL_STORE = "llama-3", "superpod"

P = TypeVar("P", bound=Part)
R = TypeVar("R", bound=Record)


class ClusterFile(Record):
    """What a cluster file says. ``NAME:COUNT`` means COUNT units of ``hosts_per_unit`` hosts; ``hosts`` is the default.

    A part is a name of the catalogue or a table with the part's own fields; ``accelerator`` replaces the
    host's, ``price_usd_per_device_hour`` the accelerator's. ``fleet`` says how its parts fail, ``store`` where
    checkpoints go. ``tiers`` are memory tiers beside the host's own. ``calibration`` is the path, from the file's own
    folder, of constants that ``meshwright calibrate`` measured on such machines.
    """

    name: str
    title: str = ""
    host: str | dict
    fabric: str | dict
    facility: str | dict
    accelerator: str | dict | None = None
    fleet: str | dict | None = None
    store: str | dict | None = None
    hosts: Count = 1
    hosts_per_unit: Count = 1
    unit: str = "host"
    partition: str = ""
    """How a package is shown as devices, by a mode that its accelerator lists: ``"CPX/NPS4"``."""
    torus: dict | None = None
    """Scale-up domains that are tori: ``axes``, innermost first, and the ``link_bandwidth`` of one link one way."""
    switches: Annotated[tuple[Switches, ...], Field(max_length=8)] = ()
    """Levels between hosts, from the inside out."""
    dragonfly: Dragonfly | None = None
    optical: Optical | None = None
    """Networks of other shapes between hosts (:mod:`topologies.shapes`)."""
    price_usd_per_device_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    tiers: tuple[str | dict, ...] = ()
    hosts_per_rack: Count | None = None
    hosts_per_feed: Count | None = None
    racks_per_row: Count | None = None
    hosts_per_leaf: Count | list[Count] | None = None
    spare_hosts: Annotated[int, Field(strict=True, ge=0, le=MOST_DEVICES)] = 0
    host_names: str | list[str] = ""
    calibration: str | None = None
    exceptions: list[HostException] = Field(default_factory=list)

    @property
    def differing(self) -> Exceptions:
        """What makes hosts differ."""
        return Exceptions(self.exceptions, self.hosts_per_leaf, self.spare_hosts, self.host_names)


def cluster_names() -> list[str]:
    """Names of the ready clusters, sorted."""
    return sorted(path.stem for path in CLUSTERS.glob("*.toml"))


def read_cluster(what: str | Path | Cluster) -> Cluster:
    """The regular cluster that ``what`` means, as :func:`read_any_cluster` reads it.

    Raises ``BadInput`` for a mixed one too, which plans, fronts and sweeps take.
    """
    from topologies.mixed import MixedCluster

    found = read_any_cluster(what)
    if isinstance(found, MixedCluster):
        names = ", ".join(part.name for part in found.parts)
        raise BadInput(
            f"{found.name!r} is a mixed cluster, which plan(), pareto() and sweeps take; name one of its parts: {names}"
        )
    return found


def read_any_cluster(what: str | Path | Cluster | MixedCluster) -> Cluster | MixedCluster:
    """The cluster that ``what`` means: ``"dgx-h100"``, ``"dgx-h100:4"``, a path to a TOML file, or itself.

    Text is a path when it ends in ``.toml`` or holds a path separator, before any ``:COUNT``. Names joined by ``+``
    and files with ``parts`` are mixed clusters (:mod:`topologies.mixed`); files that a tool wrote are read as such
    (:mod:`topologies.readers`), COUNT then being hosts.

    Raises ``UnknownName`` with the nearest names, ``BadInput`` for a count, a file or a field that is wrong.
    """
    from topologies import mixed

    if isinstance(what, Cluster | mixed.MixedCluster):
        return what
    if not isinstance(what, str | Path):
        raise BadInput(f"a cluster is a name, NAME:COUNT or a path; got {type(what).__name__} {str(what)[:80]!r}")
    base, count = split_count(str(what))
    if "+" in base + (count or "").lstrip("+") and not Path(base).is_file():
        return mixed.mixed_by_name(str(what))
    if _is_dump(base):
        return _of_dump(base, count)
    path = Path(base) if _is_path(base) else _ready_path(base)
    if count is None and _is_path(base) and "parts" in (tables := _tables(path)):
        return mixed.mixed_by_file(tables, str(path))
    file = _cluster_file(path)
    if count is not None and file.differing:
        raise BadInput(
            f"{base[:80]!r} says which of its {file.hosts} hosts differ, so that it has no other number of them; leave "
            f"':{count[:80]}' out, or write a file of your own"
        )
    hosts = file.hosts if count is None else _units(count, base, file.unit) * file.hosts_per_unit
    return _cluster(file, hosts, file.name if count is None else f"{file.name}:{int(count)}", str(path))


def split_count(text: str) -> tuple[str, str | None]:
    """NAME and COUNT of ``"NAME:COUNT"``; ``None`` where there is no COUNT."""
    match = _COUNTED.fullmatch(text)
    return (match["base"], match["count"]) if match else (text, None)


def _is_path(text: str) -> bool:
    return text.endswith(".toml") or "/" in text or "\\" in text


def _is_dump(text: str) -> bool:
    return text.endswith(DUMPS) and Path(text).is_file()


def _of_dump(base: str, count: str | None) -> Cluster:
    """The cluster that a file shows which no person wrote, ``count`` hosts where it names none."""
    from topologies.readers import Asked, read_files

    hosts = None if count is None else _units(count, base, "host")
    name = Path(base).stem if count is None else f"{Path(base).stem}:{hosts}"
    return read_files([base], Asked(hosts=hosts, name=name))[1]


def _ready_path(name: str) -> Path:
    known = cluster_names()
    if name not in known:
        raise catalogue.unknown("cluster", name[:80], known)
    return CLUSTERS / f"{name}.toml"


def _units(count: str, base: str, unit: str) -> int:
    """COUNT of ``NAME:COUNT`` as a number. Raises ``BadInput`` unless it is a whole number from 1."""
    if _COUNT.fullmatch(count) is None or int(count) < 1:
        raise BadInput(
            f"{base[:80]}:COUNT is a number of {unit[:20]}s, a whole one from 1; got {count[:80]!r}; "
            f"write for example {base[:80] + ':4'!r}"
        )
    return int(count)


def _cluster_file(path: Path) -> ClusterFile:
    return _file_of(_tables(path), str(path))


def cluster_of_tables(tables: dict, origin: str) -> Cluster:
    """The cluster of a file's tables. Raises ``BadInput`` naming ``origin`` and every field that is wrong."""
    file = _file_of(tables, origin)
    return _cluster(file, file.hosts, file.name, origin)


def _file_of(tables: dict, origin: str) -> ClusterFile:
    return _validated(ClusterFile, tables, origin)


def _validated(kind: type[R], tables: dict, origin: str) -> R:
    """The tables as a record. Raises ``BadInput`` naming where they stand and every field that is wrong."""
    try:
        return kind.model_validate(tables)
    except ValidationError as error:
        what = "a cluster file holds" if kind is ClusterFile else "it holds"
        fields = ", ".join(kind.model_fields)
        raise BadInput(f"{origin}: {validation_text(error)}; {what}: {fields}") from error


def _tables(path: Path) -> dict:
    """The file's tables. A pipe or a device is refused unread: reading one could wait forever."""
    try:
        return read_toml(path)
    except PlannerError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise BadInput(f"{str(path)[:200]!r} cannot be read as a cluster file: {error}") from error


def _cluster(file: ClusterFile, hosts: int, name: str, origin: str) -> Cluster:
    host = _part(Host, "hosts", file.host, origin)
    accelerator = _part(Accelerator, "accelerators", file.accelerator or host.accelerator, origin)
    fabric = _part(Fabric, "fabrics", file.fabric, origin)
    facility = _part(Facility, "facilities", file.facility, origin)
    accelerator, host = _divided(file, accelerator, host, origin)
    _check_host(host)
    check_hosts(hosts, host)
    _check_ratios(fabric, facility)
    _check_racks(file, host, origin)
    price = file.price_usd_per_device_hour
    if price is None and accelerator.figures.price is not None:
        price = accelerator.figures.price.value
    outside = Outside(file.switches, file.dragonfly, file.optical)
    several = outside != Outside() or bool(file.partition or host.torus)
    differing = file.differing.among(hosts, host, fabric, f"{origin}: ", switches=several)
    usable = len(differing.numbers) if differing else hosts
    busy = usable - differing.spare_hosts if differing else hosts
    levels = regular_levels(accelerator, host, fabric, busy)
    inside = len(levels) - (busy * host.devices // host.scale_up_devices > 1)
    return Cluster(
        name=name,
        accelerator=accelerator,
        host=host,
        fabric=fabric,
        facility=facility,
        hosts=usable,
        levels=outside.levels(levels, inside, host, fabric, origin),
        price_usd_per_device_hour=price,
        present_tiers=_tiers(file.tiers, host, origin),
        fleet=None if file.fleet is None else _part(Fleet, "fleets", file.fleet, origin),
        hosts_per_rack=file.hosts_per_rack,
        hosts_per_leaf=file.hosts_per_leaf if isinstance(file.hosts_per_leaf, int) else None,
        hosts_per_feed=file.hosts_per_feed,
        racks_per_row=file.racks_per_row,
        store=None if file.store is None else _part(Store, "stores", file.store, origin),
        irregular=differing,
        calibration="" if file.calibration is None else file_text(Path(origin).parent / file.calibration),
    )


def _divided(file: ClusterFile, accelerator: Accelerator, host: Host, origin: str) -> tuple[Accelerator, Host]:
    """The device and the host that the file's ``partition`` or ``torus`` make of those it names."""
    if file.torus is not None:
        torus = _validated(Torus, file.torus, f"{origin} [torus]")
        host = host.model_copy(update={"torus": torus, "scale_up_devices": math.prod(torus.axes)})
    if file.partition and host.torus is not None:
        raise BadInput(f"{origin}: a torus of partitions is not described; leave partition or torus out")
    if file.partition:
        accelerator, host = partitioned(accelerator, host, file.partition)
    return accelerator, host.model_copy(update={"accelerator": accelerator.name})


def _tiers(listed: tuple[str | dict, ...], host: Host, origin: str) -> tuple[Tier, ...]:
    """The host's own memory tiers, then those listed: words of the catalogue (``"cxl-pool:2"``) or tables."""
    own = own_tiers(host)
    words = tuple(word for word in listed if isinstance(word, str))
    tables = [_part(MemoryTier, "tiers", table, origin) for table in listed if not isinstance(table, str)]
    found = (*own, *read_tiers(words, (), host), *(tier_of(table, 1, host) for table in tables))
    names = [tier.name for tier in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"{origin}: memory tier {twice[0][:80]!r} is there twice; give each a name of its own")
    return found


def fleet_of(cluster: Cluster) -> Fleet:
    """Machines that fail as those of the cluster: its own, or the usual ones."""
    return cluster.fleet or catalogue.load("fleets", USUAL_FLEET)


def store_of(cluster: Cluster) -> Store:
    """Where the cluster writes checkpoints: its own store, or the usual one."""
    return cluster.store or catalogue.load("stores", USUAL_STORE)


def _part(kind: type[P], folder: str, value: str | dict, origin: str) -> P:
    """The part that a name of the catalogue or an inline table describes, its figures checked."""
    if isinstance(value, str):
        part = catalogue.load(folder, value)
    else:
        part = catalogue.parse_part(kind, value, f"{origin} [{catalogue.kind_words(kind)}]")
    _check_figures(part)
    return part


def _check_figures(part: Part) -> None:
    """Raises ``BadInput`` for a figure that is infinite, or zero where something is divided by it."""
    for field, figure in part.figures:
        if figure is None or (field in _MAY_BE_ZERO and figure.value == 0):
            continue
        if not (math.isfinite(figure.value) and figure.value > 0):
            what = f"{field} of {catalogue.kind_words(type(part))} {part.name!r}"
            raise BadInput(f"{what} is a finite number above 0; got {figure.value}")


def _check_host(host: Host) -> None:
    for field, least in (("devices", 1), ("nics", 0), ("scale_up_devices", 1)):
        count = getattr(host, field)
        if not least <= count <= MOST_DEVICES:
            shown = count if abs(count) < 10**18 else "beyond 10**18"
            raise BadInput(f"{field} of host {host.name!r} is from {least} to {MOST_DEVICES}; got {shown}")
    if host.scale_up_devices < host.devices or host.scale_up_devices % host.devices:
        raise BadInput(
            f"a scale-up domain is made of whole hosts: host {host.name!r} has devices = {host.devices} but "
            f"scale_up_devices = {host.scale_up_devices}; make it a multiple, or describe a smaller host"
        )


def check_hosts(hosts: int, host: Host) -> None:
    """Raises ``BadInput`` for more than 2,097,152 devices in so many hosts, naming how many hosts there may be."""
    if hosts * host.devices > MOST_DEVICES:
        raise BadInput(
            f"{hosts} hosts x {host.devices} devices = {hosts * host.devices} devices is absurd; "
            f"the limit is {MOST_DEVICES}: at most {MOST_DEVICES // host.devices} hosts of {host.name!r}"
        )


def _check_racks(file: ClusterFile, host: Host, origin: str) -> None:
    hosts_per_rack = file.hosts_per_rack
    if hosts_per_rack is None and file.racks_per_row:
        raise BadInput(f"{origin}: racks_per_row counts racks of hosts_per_rack hosts; give that too")
    domain = host.scale_up_devices // host.devices
    if hosts_per_rack is not None and hosts_per_rack % domain and domain % hosts_per_rack:
        raise BadInput(
            f"racks hold whole scale-up domains or whole parts of one: hosts_per_rack = {hosts_per_rack}, but a domain "
            f"of host {host.name!r} is {domain} hosts; make one a multiple of the other"
        )


def _check_ratios(fabric: Fabric, facility: Facility) -> None:
    if not (math.isfinite(fabric.oversubscription) and fabric.oversubscription >= 1):
        raise BadInput(
            f"oversubscription of fabric {fabric.name!r} is a finite ratio from 1; got {fabric.oversubscription}"
        )
    if facility.figures.pue.value < 1:
        raise BadInput(f"pue of facility {facility.name!r} is at least 1; got {facility.figures.pue.value}")
