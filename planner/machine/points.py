"""What a calibration job measured, read from its record, and the cluster of such hosts with the figures it saw."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from cost_models.fitting.machine import Point, best_bytes_per_s, best_flop_per_s, link_bytes_per_s
from planner.errors import BadInput, PlannerBug
from topologies import catalogue
from topologies.readers.toml_text import toml_text

USABLE = 0.9
"""Part of a host's memory that ranks on its processors are taken to have, the rest being the system's."""
CALIBRATION = "calibration.toml"


@dataclass(frozen=True)
class Measurement:
    """The record of a calibration job: points by kind, and what was said of the machine."""

    points: dict[str, list[Point]]
    facts: dict[str, Any]
    hosts: int
    processes: int
    took_s: float
    power: dict[str, float] | None
    measured_on: date

    @classmethod
    def of(cls, record: Path, measured_on: date) -> Measurement:
        """Reads a record. Raises ``PlannerBug`` for one that the job did not write so."""
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
            kinds = {name: rows for name, rows in found.items() if isinstance(rows, list)}
            return cls(kinds, found["facts"], found["hosts"], found["processes"], found["took_s"], found["power"],
                       measured_on)  # fmt: skip
        except (OSError, ValueError, KeyError) as error:
            raise PlannerBug(
                f"the calibration's processes ended well, but their record is no use: {error!r}"
            ) from error

    @property
    def per_host(self) -> int:
        """Ranks a host."""
        return self.processes // self.hosts

    @property
    def on_cpu(self) -> bool:
        """Whether ranks are processes on processors."""
        return self.facts["device_type"] == "cpu"

    def dtype_points(self, dtype: str) -> list[Point]:
        """Products in a data type, by torch's name of it."""
        return [point for point in self.points["products"] if point["dtype"] == dtype]

    def source(self) -> str:
        """One line that says where constants come from."""
        facts = self.facts
        where = f"{facts['device']}, {facts['cores']} cores" if self.on_cpu else facts["device"]
        return (
            f"meshwright calibrate, {self.measured_on.isoformat()}: {self.processes} processes on {self.hosts} "
            f"host{'s' if self.hosts > 1 else ''} ({where}), torch {facts['torch']}, {facts['backend']}, "
            f"{self.took_s:.0f} s, seed 0"
        )


def cluster_tables(found: Measurement, name: str) -> str:
    """The cluster file of hosts like the measured ones, ``found.hosts`` of them, as TOML text.

    Processors are described from what was measured; GPUs as ``meshwright detect`` finds them.
    """
    return _cpu_text(found, name) if found.on_cpu else _detected_text(found, name)


def _cpu_text(found: Measurement, name: str) -> str:
    sources = {"here": {"title": found.source()}}
    cpu = _raw("accelerators", "cpu")
    host = _raw("hosts", "cpu-host")
    bandwidth = best_bytes_per_s(found.points["transfers"])
    inside = _link(found, 0) or bandwidth
    figures = cpu["figures"] | {
        "memory_capacity": _figure(
            found.facts["memory_bytes"] * USABLE / found.per_host, "B", "its share of the host's"
        ),
        "memory_bandwidth": _figure(bandwidth, "B/s", "the best of any transfer from 1 MB"),
        "peak_fp32": _figure(best_flop_per_s(found.points["products"]), "FLOP/s", "the best of any product"),
        "scale_up_bandwidth": _figure(inside, "B/s", "the best of any collective or message"),
        **_watts(found),
    }
    across = _link(found, 1) if found.hosts > 1 else None
    nic = inside if across is None else across * found.per_host
    of_host = host["figures"] | {
        "scale_up_latency": _figure(_latency_s(found, 0), "s", "the quickest message"),
        "nic_bandwidth": _figure(nic, "B/s", "the best of any collective or message, of all its ranks"),
        "memory_capacity": _figure(found.facts["memory_bytes"], "B", "all of the host's"),
    }
    tables: dict[str, Any] = {
        "name": name, "title": f"{found.facts['device']}, {found.per_host} ranks a host, as measured",
        "fabric": _fabric(found, nic, sources) if across is not None else "loopback", "facility": "air-average",
        "hosts": found.hosts, "calibration": CALIBRATION,
        "host": host | {"name": "measured-host", "title": f"A host of {found.per_host} ranks",
                        "devices": found.per_host, "scale_up_devices": found.per_host, "nics": 1,
                        "sources": host["sources"] | sources, "figures": of_host},
        "accelerator": cpu | {"title": f"A rank on {found.facts['device']}", "sources": cpu["sources"] | sources,
                              "figures": figures},
    }  # fmt: skip
    return toml_text(tables, ["Written by meshwright calibrate"])


def _fabric(found: Measurement, nic: float, sources: dict[str, Any]) -> dict[str, Any]:
    raw = _raw("fabrics", "loopback")
    figures = raw["figures"] | {
        "latency": _figure(_latency_s(found, 1), "s", "the quickest message"),
        "port_bandwidth": _figure(nic, "B/s", "as of a host"),
    }
    return raw | {
        "name": "measured-network", "title": "As measured", "sources": raw["sources"] | sources, "figures": figures
    }  # fmt: skip


def _figure(value: float, unit: str, note: str) -> dict[str, str]:
    return {"value": f"{value:.4g} {unit}", "source": "here", "kind": "measured", "note": note}


def _watts(found: Measurement) -> dict[str, dict[str, str]]:
    """Power of one rank where the host told that of all."""
    if found.power is None:
        return {}
    share = found.per_host if found.on_cpu else 1
    names = {"board_power": "busy_w", "idle_power": "idle_w"}
    return {name: _figure(found.power[key] / share, "W", "mean over a second") for name, key in names.items()}


def _raw(folder: str, name: str) -> dict[str, Any]:
    return catalogue.read_toml(catalogue.CATALOGUE / folder / f"{name}.toml")


def at_level(points: Sequence[Point], level: int) -> list[Point]:
    """Points of groups that only use that network level."""
    return [it for it in points if it["factors"][level] > 1 and sum(f > 1 for f in it["factors"]) == 1]


def _link(found: Measurement, level: int) -> float | None:
    points = at_level([*found.points["collectives"], *found.points["sends"]], level)
    return link_bytes_per_s(points, level) if points else None


def _latency_s(found: Measurement, level: int) -> float:
    sends = at_level(found.points["sends"], level)
    return min((min(point["seconds"]) for point in sends), default=20e-6)


def _detected_text(found: Measurement, name: str) -> str:
    """The cluster of hosts like this one, as its tools show it, with the calibration named."""
    from topologies.readers.detect import detect
    from topologies.readers.drawn import Asked, draw
    from topologies.readers.tables import cluster_text

    asked = Asked(hosts=found.hosts, name=name)
    text = cluster_text(draw(detect()[0], asked), asked)
    devices = tomllib.loads(text)["host"]["devices"]
    if devices != found.per_host:
        raise BadInput(
            f"this host has {devices} devices, but {found.per_host} ranks a host were measured; calibrate with "
            f"--processes {devices}, or describe the cluster in a file of your own that names {CALIBRATION}"
        )
    return f'calibration = "{CALIBRATION}"\n{text}'
