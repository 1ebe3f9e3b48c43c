"""A drawn cluster as the TOML file that a person could have written, every figure with its source, and as a Cluster.

What no file tells comes from the host of the catalogue that is nearest, and says so.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from topologies import catalogue
from topologies.catalogue import Fabric, Host
from topologies.cluster import Cluster
from topologies.errors import BadInput
from topologies.readers.drawn import Asked, Drawn
from topologies.readers.facts import CLOSE, Fact
from topologies.readers.inside import PortSeen
from topologies.readers.nearest import nearest_host, nics_for, shared_nic_bytes_per_s
from topologies.readers.seen import Memory
from topologies.readers.slower import Slower
from topologies.readers.toml_text import Commented, toml_text
from topologies.ready import CLUSTERS, cluster_names, cluster_of_tables
from topologies.units import parse_quantity

CXL_MODULE = "cxl-expander"
_FABRIC_KINDS = {"infiniband": ("infiniband",), "ethernet": ("roce", "ethernet"), "efa": ("efa",)}


def cluster_text(drawn: Drawn, asked: Asked) -> str:
    """The TOML file. Raises ``BadInput`` where the catalogue has no host to take the rest from."""
    like = nearest_host(drawn.shape, asked.like)
    sources = {f"file-{k + 1}": source for k, source in enumerate(drawn.sources)}
    sources |= {"option": "an option of the command"}
    fabric, why = _fabric(drawn, asked, like)
    facility = asked.facility or _ready_part(like.name, "facility") or "air"
    files = "file" if len(drawn.sources) == 1 else "files"
    tables: dict[str, Any] = {
        "name": asked.name or f"read-{drawn.shape.accelerator.value}",
        "title": f"{drawn.shape.text()}, read from {len(drawn.sources)} {files}",
        "fabric": Commented(fabric, why),
        "facility": Commented(facility, "--facility" if asked.facility else f"as for {like.name}; no file tells"),
        "hosts": _commented(drawn.hosts),
        "host": _host(drawn, like, sources),
    }
    if drawn.shape.partition is not None:
        tables = {"partition": _commented(drawn.shape.partition), **tables}
    if switches := _switches(drawn, like):
        tables["switches"] = switches
    if tiers := _tiers(drawn, like, sources):
        tables["tiers"] = tiers
    if drawn.slower:
        tables["exceptions"] = [_exception(it) for it in drawn.slower]
        tables["host_names"] = _host_names(drawn)
    accelerator = _accelerator(drawn, asked, sources)
    if accelerator is not None:
        tables["accelerator"] = accelerator
    heads = [f"Written from {', '.join(drawn.sources)}"]
    heads += [f"odd: {text}" for text in drawn.oddities] + [f"left out: {text}" for text in drawn.lost]
    return toml_text(tables, heads)


def cluster_of(drawn: Drawn, asked: Asked) -> Cluster:
    """The cluster that the file describes. Raises what :func:`cluster_text` and a cluster's file raise."""
    return cluster_of_text(cluster_text(drawn, asked), ", ".join(drawn.sources))


def cluster_of_text(text: str, origin: str) -> Cluster:
    """The cluster of a file's text."""
    return cluster_of_tables(tomllib.loads(text), origin)


def _switches(drawn: Drawn, like: Host) -> list[dict[str, Any]]:
    """Levels between the scale-up domain and the whole cluster that hold whole domains.

    Uneven ones become switches of one domain each, which are no level and still take what their uplinks take.
    """
    domain = max(1, _domain_devices(drawn, like).value // drawn.shape.devices.value)
    found = []
    for level in drawn.levels:
        hosts = domain if level.hosts is None else level.hosts
        ratio = level.oversubscription
        if level.groups < 2 or hosts % domain or (hosts == domain and ratio in (None, 1.0)):
            continue
        name = f"{level.kind} of {hosts} hosts" if level.hosts is not None else f"uneven {level.kind}"
        found.append({"name": name, "hosts": Commented(hosts, level.source)})
        if ratio is not None:
            found[-1]["oversubscription"] = Commented(round(ratio, 4), level.source)
    return found


def _host_names(drawn: Drawn) -> list[str]:
    """What launch files call the hosts, in the exceptions' order; none where one is called as no launch file may."""
    from topologies.host_table import is_host_name

    return list(drawn.names) if all(map(is_host_name, drawn.names)) else []


def _exception(it: Slower) -> dict[str, Any]:
    """Hosts with less than the others, by number; who they are is in the note too."""
    found = {"hosts": Commented(",".join(map(str, it.numbers)), it.source)}
    found |= {name: value for name in ("devices", "nics") if (value := getattr(it, name)) is not None}
    if it.nic_bytes_per_s is not None:
        found["nic_bandwidth"] = f"{it.nic_bytes_per_s * 8 / 1e9:.12g} Gb/s"
    return found | {"note": f"{', '.join(it.names[:8])}{' and more' if len(it.names) > 8 else ''}"}


def _host(drawn: Drawn, like: Host, sources: dict[str, str]) -> dict[str, Any]:
    shape = drawn.shape
    raw = _raw("hosts", like.name)
    nics = shape.nics or Fact(nics_for(like, shape.devices.value), f"as {like.name}; no file tells")
    domain = _domain_devices(drawn, like)
    figures = {name: dict(figure) for name, figure in raw["figures"].items()}
    if shape.devices.value != like.devices:
        figures["power"] |= {"kind": "assumed", "note": f"of {like.name} with {like.devices} devices"}
    if shape.nic_bytes_per_s is not None:
        figures["nic_bandwidth"] = _figure(shape.nic_bytes_per_s, "b/s", sources)
    elif (share := shared_nic_bytes_per_s(shape, like)) is not None:
        note = f"the NICs of {like.name}, shared by the {nics.value} that are shown without speeds"
        value = f"{share * 8 / 1e9:.12g} Gb/s"
        figures["nic_bandwidth"] |= {"value": value, "kind": "assumed", "note": note}
    if shape.memory_bytes is not None:
        figures["memory_capacity"] = _figure(shape.memory_bytes, "B", sources)
    if (speed := _bytes_per_s(shape.memories, "DRAM")) is not None:
        figures["memory_bandwidth"] = _figure(speed, "B/s", sources)
    inside = _inside(drawn, figures, sources)
    cited = {figure["source"] for figure in figures.values()} | ({inside["source"]} if inside else set())
    listed = {key: dict(source) for key, source in raw["sources"].items() if key in cited}
    listed |= {key: {"title": text} for key, text in sources.items() if key in cited}
    return {
        "name": f"like-{like.name}", "title": f"As read, the rest as {like.title}",
        "accelerator": _commented(shape.accelerator), "devices": _commented(shape.devices), "nics": _commented(nics),
        "scale_up_devices": _commented(domain), "scale_up_link": shape.scale_up_link if shape.scale_up_link == "PCIe"
        else like.scale_up_link, "sources": listed, "figures": figures,
    } | ({"inside": inside} if inside else {})  # fmt: skip


def _inside(drawn: Drawn, figures: dict[str, Any], sources: dict[str, str]) -> dict[str, Any]:
    """The ports that a file shows; of one that carries other than a device's link, how much."""
    ports, link = drawn.shape.inside, figures.get("device_link")
    if not ports:
        return {}
    key = next((key for key, source in sources.items() if source == ports[0].source), "option")
    return {"source": key, "ports": [_port(port, link) for port in ports]}


def _port(port: PortSeen, link: dict[str, Any] | None) -> dict[str, Any]:
    told: dict[str, Any] = {"numa": port.numa, "devices": list(port.devices)}
    told |= ({"nics": list(port.nics)} if port.nics else {}) | ({"through": port.through} if port.through else {})
    carried = None if link is None else port.bytes_per_s(parse_quantity(link["value"], "B/s"))
    if carried is not None:
        told["bandwidth"] = f"{carried:.9g} B/s"
    return told


def _bytes_per_s(memories: Sequence[Memory], kind: str) -> Fact[float] | None:
    """What all NUMA nodes of a kind do together, where every one tells its bandwidth."""
    nodes = [memory for memory in memories if memory.kind == kind]
    speeds = [memory.bytes_per_s for memory in nodes if memory.bytes_per_s]
    return Fact(sum(speeds), nodes[0].source) if nodes and len(speeds) == len(nodes) else None


def _tiers(drawn: Drawn, like: Host, sources: dict[str, str]) -> list[dict[str, Any]]:
    """CXL memory that is a NUMA node, as one memory tier of every host; what no file tells is a catalogue module's."""
    nodes = [memory for memory in drawn.shape.memories if memory.kind == "CXL-DRAM"]
    if not nodes or like.figures.device_link is None:
        return []
    raw, source = _raw("tiers", CXL_MODULE), nodes[0].source
    told = _bytes_per_s(nodes, "CXL-DRAM")
    module = catalogue.load("tiers", CXL_MODULE).figures.bandwidth.value  # type: ignore[attr-defined]
    speed = told or Fact(module * len(nodes), source, "assumed", f"{len(nodes)} times a {CXL_MODULE}'s")
    figures = {
        "capacity": _figure(Fact(sum(node.capacity_bytes for node in nodes), source), "B", sources),
        "bandwidth": _figure(speed, "B/s", sources),
        "latency": raw["figures"]["latency"],
        "update_bandwidth": _figure(replace(speed, kind="derived", note="a processor goes through it"), "B/s", sources),
    }
    cited = {figure["source"] for figure in figures.values()}
    listed = raw["sources"] | {key: {"title": text} for key, text in sources.items()}
    title = f"CXL memory of {len(nodes)} NUMA nodes"
    kept = {key: value for key, value in listed.items() if key in cited}
    return [{"name": "cxl", "title": title, "kind": "cxl", "sources": kept, "figures": figures}]


def _domain_devices(drawn: Drawn, like: Host) -> Fact[int]:
    devices = drawn.shape.devices.value
    if drawn.domain_hosts is not None:
        return Fact(drawn.domain_hosts.value * devices, drawn.domain_hosts.source, note=drawn.domain_hosts.note)
    if like.scale_up_devices > like.devices and devices == like.devices:
        return Fact(like.scale_up_devices, f"as {like.name}; no file names cliques")
    return Fact(devices, drawn.shape.devices.source)


def _accelerator(drawn: Drawn, asked: Asked, sources: dict[str, str]) -> dict[str, Any] | None:
    """The accelerator as a table where its links are not those of the catalogue."""
    fact = drawn.shape.scale_up_bytes_per_s
    if asked.scale_up_bytes_per_s is not None:
        fact = Fact(asked.scale_up_bytes_per_s, "option", "published", "--scale-up-bandwidth")
    if fact is None:
        return None
    name = drawn.shape.accelerator.value
    unwanted = ("seen_as",) if drawn.shape.partition is not None else ("seen_as", "package")
    raw = {key: value for key, value in _raw("accelerators", name).items() if key not in unwanted}
    figures = raw["figures"] | {"scale_up_bandwidth": _figure(fact, "B/s", sources)}
    listed = raw["sources"] | {key: {"title": text} for key, text in sources.items()}
    package = raw.get("package", {"figures": {}, "modes_source": ""})
    cited = {figure["source"] for figure in (*figures.values(), *package["figures"].values())}
    cited.add(package["modes_source"])
    return raw | {"figures": figures, "sources": {k: v for k, v in listed.items() if k in cited}}


def _figure(fact: Fact[float], unit: str, sources: dict[str, str]) -> dict[str, str]:
    key = next((key for key, source in sources.items() if source == fact.source), "option")
    value = f"{fact.value * 8 / 1e9:.12g} Gb/s" if unit == "b/s" else f"{fact.value:.15g} {unit}"
    figure = {"value": value, "source": key, "kind": fact.kind}
    return figure | ({"note": fact.note} if fact.note else {})


def _commented(fact: Fact) -> Commented:
    return Commented(fact.value, f"{fact.source}{': ' + fact.note if fact.note else ''}")


def _fabric(drawn: Drawn, asked: Asked, like: Host) -> tuple[str, str]:
    """A fabric of the catalogue for the NICs' kind and speed, and why."""
    if asked.fabric is not None:
        catalogue.load("fabrics", asked.fabric)
        return asked.fabric, "--fabric"
    usual, speed = _ready_part(like.name, "fabric"), drawn.shape.nic_bytes_per_s
    kinds = _FABRIC_KINDS.get(drawn.shape.nic_kind)
    if kinds is None or speed is None:
        if usual is None:
            raise BadInput(f"no file and no ready cluster of {like.name} tells the fabric; name one with --fabric NAME")
        return usual, f"as for {like.name}; no file tells"
    fits = _fits(kinds, speed.value)
    name = usual if usual in fits else fits[0] if fits else None
    if name is None:
        raise BadInput(
            f"{speed.source}: no fabric of the catalogue is {drawn.shape.nic_kind} with ports of "
            f"{speed.value * 8 / 1e9:g} Gb/s; name one with --fabric: {', '.join(catalogue.names('fabrics'))}"
        )
    return name, f"{drawn.shape.nic_kind} at {speed.value * 8 / 1e9:g} Gb/s: {speed.source}"


def _fits(kinds: Sequence[str], speed: float) -> list[str]:
    """Fabrics of these kinds whose ports carry that speed, the slowest that do."""
    fabrics = [catalogue.load("fabrics", name) for name in catalogue.names("fabrics")]
    ports = {
        fabric.name: fabric.figures.port_bandwidth.value
        for fabric in fabrics
        if isinstance(fabric, Fabric) and fabric.kind in kinds and fabric.oversubscription == 1
        and not fabric.name.startswith(("omni-path", "loopback", "gpudirect"))
    }  # fmt: skip
    enough = {name: port for name, port in ports.items() if port >= speed * (1 - CLOSE)}
    least = min(enough.values(), default=0.0)
    return [name for name, port in enough.items() if port == least]


def _ready_part(host: str, what: str) -> str | None:
    """The fabric or facility of the ready cluster of that host."""
    return _ready_parts().get((host, what))


@lru_cache(maxsize=1)
def _ready_parts() -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for name in cluster_names():
        tables = catalogue.read_toml(Path(CLUSTERS) / f"{name}.toml")
        for what in ("fabric", "facility"):
            if isinstance(tables[what], str):
                found.setdefault((tables["host"], what), tables[what])
    return found


@lru_cache(maxsize=64)
def _raw(folder: str, name: str) -> dict[str, Any]:
    """The tables of a part as its file writes them, units included. Not to be changed."""
    return catalogue.read_toml(catalogue.CATALOGUE / folder / f"{name}.toml")
