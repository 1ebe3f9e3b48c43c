"""A drawn cluster as the TOML file that a person could have written, every figure with its source, and as a Cluster.

What no file tells comes from the host of the catalogue that is nearest, and says so.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from topologies import catalogue
from topologies.catalogue import Fabric, Host
from topologies.cluster import Cluster
from topologies.errors import BadInput
from topologies.readers.drawn import Asked, Drawn
from topologies.readers.facts import CLOSE, Fact
from topologies.readers.recognised import plain
from topologies.readers.toml_text import Commented, toml_text
from topologies.ready import CLUSTERS, cluster_names, cluster_of_tables

_NEEDED = ("scale_up_latency", "power")
_FABRIC_KINDS = {"infiniband": ("infiniband",), "ethernet": ("roce", "ethernet"), "efa": ("efa",)}


def cluster_text(drawn: Drawn, asked: Asked) -> str:
    """The TOML file. Raises ``BadInput`` where the catalogue has no host to take the rest from."""
    like = _like(drawn, asked)
    sources = {f"file-{k + 1}": source for k, source in enumerate(drawn.sources)}
    sources |= {"option": "an option of the command"}
    fabric, why = _fabric(drawn, asked, like)
    facility = asked.facility or _ready_part(like.name, "facility") or "air"
    tables: dict[str, Any] = {
        "name": asked.name or f"read-{drawn.shape.accelerator.value}",
        "title": f"{drawn.shape.text()}, read from {len(drawn.sources)} files",
        "fabric": Commented(fabric, why),
        "facility": Commented(facility, "--facility" if asked.facility else f"as for {like.name}; no file tells"),
        "hosts": _commented(drawn.hosts),
        "host": _host(drawn, like, sources),
    }
    switches = [
        {"name": f"{level.kind} of {level.hosts} hosts", "hosts": Commented(level.hosts, level.source),
         **({"oversubscription": Commented(round(level.oversubscription, 4), level.source)}
            if level.oversubscription is not None else {})}
        for level in _upper(drawn)
    ]  # fmt: skip
    if switches:
        tables["switches"] = switches
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


def _upper(drawn: Drawn) -> list:
    """Levels between the scale-up domain and the whole cluster."""
    domain = drawn.domain_hosts.value if drawn.domain_hosts is not None else 1
    return [level for level in drawn.levels if domain <= level.hosts and level.groups > 1 and level.hosts > 1]


def _like(drawn: Drawn, asked: Asked) -> Host:
    """The host of the catalogue that the rest is taken from."""
    if asked.like is not None:
        return _loaded(asked.like)
    name = drawn.shape.accelerator.value
    hosts = [host for host in map(_loaded, catalogue.names("hosts")) if host.accelerator == name]
    if not hosts:
        raise BadInput(
            f"no host of the catalogue holds {name}, so its power, latency and memory are unknown; name one to take "
            f"them from with --like HOST: {', '.join(catalogue.names('hosts')[:6])}, ..."
        )
    return min(hosts, key=lambda host: _distance(host, drawn))


def _loaded(name: str) -> Host:
    host = catalogue.load("hosts", name)
    if not isinstance(host, Host):
        raise catalogue.unknown("host", name, catalogue.names("hosts"))
    return host


def _distance(host: Host, drawn: Drawn) -> tuple:
    """How unlike a host is: the machine's name, devices, whether a cloud rents it out, NICs and their speed."""
    shape, names = drawn.shape, [plain(text) for text in host.seen_as.names] if host.seen_as else []
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


def _host(drawn: Drawn, like: Host, sources: dict[str, str]) -> dict[str, Any]:
    shape = drawn.shape
    raw = catalogue.read_toml(catalogue.CATALOGUE / "hosts" / f"{like.name}.toml")
    per_host = (
        like.nics if shape.devices.value >= like.devices else max(1, like.nics * shape.devices.value // like.devices)
    )
    nics = shape.nics or Fact(per_host, f"as {like.name}; no file tells")
    domain = _domain_devices(drawn, like)
    figures = {name: dict(figure) for name, figure in raw["figures"].items()}
    if shape.devices.value != like.devices:
        for name in _NEEDED[1:]:
            figures[name] |= {"kind": "assumed", "note": f"of {like.name} with {like.devices} devices"}
    if shape.nic_bytes_per_s is not None:
        figures["nic_bandwidth"] = _figure(shape.nic_bytes_per_s, "b/s", sources)
    if shape.memory_bytes is not None:
        figures["memory_capacity"] = _figure(shape.memory_bytes, "B", sources)
    cited = {figure["source"] for figure in figures.values()}
    listed = {key: dict(source) for key, source in raw["sources"].items() if key in cited}
    listed |= {key: {"title": text} for key, text in sources.items() if key in cited}
    return {
        "name": f"like-{like.name}", "title": f"As read, the rest as {like.title}",
        "accelerator": _commented(shape.accelerator), "devices": _commented(shape.devices), "nics": _commented(nics),
        "scale_up_devices": _commented(domain), "scale_up_link": shape.scale_up_link if shape.scale_up_link == "PCIe"
        else like.scale_up_link, "sources": listed, "figures": figures,
    }  # fmt: skip


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
    raw = catalogue.read_toml(catalogue.CATALOGUE / "accelerators" / f"{name}.toml")
    raw.pop("seen_as", None)
    figures = raw["figures"] | {"scale_up_bandwidth": _figure(fact, "B/s", sources)}
    listed = raw["sources"] | {key: {"title": text} for key, text in sources.items()}
    cited = {figure["source"] for figure in figures.values()}
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
    for name in cluster_names():
        tables = catalogue.read_toml(Path(CLUSTERS) / f"{name}.toml")
        if tables["host"] == host and isinstance(tables[what], str):
            return tables[what]
    return None
