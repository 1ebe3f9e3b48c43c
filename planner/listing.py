"""Tables of what the planner knows: parts with their sources, ready clusters, preset models."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from planner.host_order import shortened
from topologies import catalogue
from topologies.catalogue import Accelerator, Part, unknown
from topologies.irregular import Irregular
from topologies.ready import cluster_names, fleet_of, read_cluster, store_of
from topologies.units import duration_text, quantity_text

UNITS = {
    "memory_capacity": "B", "memory_usable": "B", "nvme_capacity": "B", "capacity": "B",
    "price": "USD/h", "electricity_price": "USD/kWh",
    "latency": "s", "scale_up_latency": "s", "switch_latency": "s", "pue": "",
    "rack_power": "W", "hot_hours_loss": "", "liquid_gain": "", "liquid_saves": "W",
    "scale_up_energy": "J/b", "energy": "J/b",
    "observed": "s", "restart_time": "s", "repair_time": "s", "outage_time": "s", "replaced": "",
    **{f"{cause}_failures": "" for cause in (*catalogue.CAUSES, *catalogue.SHARED_CAUSES)},
}  # fmt: skip
KINDS = (*catalogue.KINDS, "clusters")


def parts_view(kind: str) -> Table:
    """All parts of a kind, a line each. Raises ``UnknownName`` for a kind that does not exist."""
    if kind not in KINDS:
        raise unknown("kind of part", kind, list(KINDS))
    if kind == "accelerators":
        return _accelerators()
    if kind == "clusters":
        return _clusters()
    return _table(("name", "what"), [(name, catalogue.load(kind, name).title) for name in catalogue.names(kind)])


def part_view(kind: str, name: str) -> Group:
    """One part: every figure with its kind, source and note; of a cluster its levels and parts."""
    if kind not in KINDS:
        raise unknown("kind of part", kind, list(KINDS))
    if kind == "clusters":
        return _cluster(name)
    part = catalogue.load(kind, name)
    rows = [
        (field, _figure(field, figure.value), figure.kind, figure.source, figure.note)
        for field, figure in part.figures
        if figure is not None
    ]
    sources = [(key, source.title, source.url, str(source.read_on or "")) for key, source in part.sources.items()]
    return Group(
        Text(f"{part.name}: {part.title}", style="bold"),
        _table(("figure", "value", "kind", "source", "note"), rows),
        _table(("source", "title", "url", "read on"), sources),
    )


def models_view() -> Table:
    """Preset models with their sizes."""
    from planner.read_model import preset_names, read_model

    rows = []
    for model in map(read_model, preset_names()):
        sizes = (model.layers, model.hidden, model.heads, model.experts or "", model.max_positions)
        rows.append((model.name, f"{model.parameters:,}", f"{model.active_parameters:,}", *map(str, sizes)))
    return _table(("model", "parameters", "active", "layers", "hidden", "heads", "experts", "positions"), rows)


def _accelerators() -> Table:
    rows = []
    for name in catalogue.names("accelerators"):
        part = catalogue.load("accelerators", name)
        if isinstance(part, Accelerator):
            f = part.figures
            peak = f.peak_bf16 or f.peak_fp16 or f.peak_fp32
            price = "" if f.price is None else f"{f.price.value:.2f}"
            figures = (
                (f.memory_capacity, "B"), (f.memory_bandwidth, "B/s"), (peak, "FLOP/s"), (f.scale_up_bandwidth, "B/s"),
                (f.board_power, "W"),
            )  # fmt: skip
            shown = (quantity_text(figure.value, unit) for figure, unit in figures)
            family = f"{part.family}, announced" if part.announced else part.family
            rows.append((name, family, *shown, price, _sure(part)))
    return _table(
        ("accelerator", "family", "memory", "bandwidth", "16-bit peak", "scale-up", "power", "USD/h", "assumed"), rows
    )


def _sure(part: Part) -> str:
    assumed = [figure for _, figure in part.figures if figure is not None and figure.kind == "assumed"]
    return f"{len(assumed)} of {sum(figure is not None for _, figure in part.figures)}"


def _clusters() -> Table:
    rows = []
    for name in cluster_names():
        one = read_cluster(name)
        rows.append((name, str(one.devices), one.accelerator.name, one.host.name, one.fabric.name, one.facility.name))
    return _table(("cluster", "devices in :1", "accelerator", "host", "fabric", "facility"), rows)


def _cluster(name: str) -> Group:
    """A ready cluster: what it is made of, and its network levels."""
    if name not in cluster_names():
        raise unknown("cluster", name, cluster_names())
    one = read_cluster(name)
    levels = [
        (level.name, str(level.fanout), quantity_text(level.bandwidth_bytes_per_s, "B/s"),
         quantity_text(level.latency_s, "s"), level.link)
        for level in one.levels
    ]  # fmt: skip
    parts = {
        "accelerators": one.accelerator, "hosts": one.host, "fabrics": one.fabric, "facilities": one.facility,
        "fleets": fleet_of(one), "stores": store_of(one),
    }  # fmt: skip
    return Group(
        Text(f"{one.name}: {one.hosts} hosts of {one.devices_per_host} devices", style="bold"),
        _table(
            ("kind", "part", "what"),
            [(kind, part.name, part.title) for kind, part in parts.items()],
        ),
        _table(("level", "members", "bandwidth a device", "latency", "link"), levels),
        *([_differing(one.irregular)] if one.irregular else []),
    )


def _differing(it: Irregular) -> Table:
    """The classes of hosts that differ, the largest first."""
    rows = []
    for kind in sorted(set(it.classes.tolist()), key=lambda kind: (-it.classes.tolist().count(kind), kind)):
        hosts = [h for h, other in enumerate(it.classes.tolist()) if other == kind]
        above = min((s.uplink for s in it.switches if hosts[0] in s.hosts), default=1.0)
        names = shortened([it.name(h) for h in hosts])
        rows.append((str(len(hosts)), names, str(it.devices[hosts[0]]), f"{it.nic[hosts[0]]:.3g}", f"{above:.3g}"))
    return _table(("hosts", "which", "devices", "part of the NICs", "part of the uplinks"), rows)


def _figure(field: str, value: float) -> str:
    unit = UNITS.get(field)
    if unit is None:
        unit = "W" if "power" in field else ("FLOP/s" if field.startswith("peak") else "B/s")
    if unit == "s" and value >= 120:
        return duration_text(value)
    return quantity_text(value, unit) if unit in ("B", "B/s", "FLOP/s", "W", "s") else f"{value:g} {unit}".strip()


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for k, head in enumerate(heads):
        table.add_column(head, no_wrap=k == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
