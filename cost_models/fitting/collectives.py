"""Re-fits ``calibration/collectives.toml`` to the times in ``calibration/data/collectives.csv``.

The model is the one that prices plans (:mod:`cost_models.communication`), not a copy. Per place (family of
accelerators inside a host, kind of fabric between hosts) and operation four constants, inside a host five, six where
the switch adds, minimise a soft L1 norm of log errors, with a weak prior that decides what
they leave open: a fabric measured on two hosts only does not say what is a start and what a step.

Tried, and not kept because it did not pay on data left out (fitted to 2 and 4 devices and asked for 8, mean of five
systems and four operations, before a device's own share counted): two protocols of which the quicker is taken, 15.8 %,
and a square root that grows with the steps of every operation, 21.2 %, where this form had 12.5 %.
"""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import FOLDER, Collective
from cost_models.communication import all_to_all_s, collective_s
from topologies.cluster import Level

Floats = NDArray[np.float64]
OPERATIONS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all")
INSIDE = {
    "ampere": ("a100",),
    "hopper": ("h100", "h200", "switch-h200"),
    "blackwell": ("b200", "b300", "gb200", "gb300", "nvl72", "switch-b200", "coreweave"),
    "pcie": ("l40s", "rtx-pro-6000", "rtx-4090", "rtx-5090"),
    "xe": ("b60",),
}
SWITCHED = ("hopper", "blackwell")
BETWEEN = {
    "efa": ("p5", "p6"),
    "ethernet": ("a3-mega",),
    "default": ("ndv4", "nebius", "coreweave", "hdr4", "hdr-pairs", "h100x16", "h100-ring", "h800"),
}
AMPERE = ("ndv4", "hdr4", "hdr-pairs")
BLACKWELL_LINK = 900.0
CHECKS = {
    ("nvl72", "all_to_all"), ("coreweave", "all_reduce", 20), *(("l40s", operation, 4, 8) for operation in OPERATIONS)
}  # fmt: skip
"""Not fitted, by members inside a host or hosts: in an all-to-all of a rack NCCL 2.23 took 8.5 us a peer, later ones
0.2 us on hosts of the same devices; an all-reduce over 20 racks starts 4 ms later than any tree of that depth explains;
four and eight L40S of one host reach 5 and 2 GB/s over PCIe, two of it and all of others 20 and more."""
PRIOR = {"t0_us": 15.0, "alpha_us": 15.0, "sqrt_us": 30.0, "bandwidth_fraction": 0.8, "multicast": 0.8, "own": 0.3}
"""A hop over a NIC in NCCL's tuning constants: 4 us (LL128), 14 us (Simple)."""
PRIOR_INSIDE = PRIOR | {"t0_us": 6.0, "alpha_us": 1.0, "sqrt_us": 6.0}
PRIOR_WEIGHT = 0.05
LINE_RATE = 0.96
"""Most of a port that payload can have: NCCL's maintainers expect 46 to 48 of 50 GB/s, 24 of 25."""
ONE_GROUP = 0.3
"""Assumed residual of what was measured on one group only."""
LATENCY_US = (5.0, 1.9)
"""Of InfiniBand and of NVLink in the catalogue, which a send is charged besides."""

SOURCES = {
    "nvlink": "aiconfigurator-core 0.12.0 NCCL and oneCCL tables (Apache-2.0), 2, 4 and 8 devices, 1 KiB to 512 MiB; "
    "aiconfigurator 0.4.0 (Apache-2.0), GB200 NVL72, 8 to 64 devices; for the switch stas00/ml-engineering (CC BY-SA)",
    "pcie": "aiconfigurator-core 0.12.0 (Apache-2.0), two L40S and two to eight RTX PRO 6000, 1 KiB to 512 MiB; "
    "nccl-tests of four RTX 4090 (tinygrad/open-gpu-kernel-modules issue 36) and four and eight RTX 5090 (NVIDIA/nccl "
    "issue 1639)",
    "efa": "crazyguitar/aws-gpu-communication-benchmark@fd167f9 (CC BY 4.0), H100, 2 to 32 hosts, 32 MiB to 8 GiB, and "
    "stas00/ml-engineering (CC BY-SA), B200, 4 hosts; a reduce-scatter is taken as an all-gather",
    "infiniband": "published runs of nccl-tests on HDR and NDR, 2 to 128 hosts, listed in data/collectives.csv; gather "
    "and scatter are fitted together; RoCE and every other fabric without a table take these values",
    "tcpxo": "lessizzmore/create-a3mega-ztan-fork, all-reduce on 2 hosts, GPUDirect-TCPXO; rings take it over",
    "vidur": "microsoft/vidur data/profiling (MIT), send and receive between two H100 on two hosts, PyTorch",
    "none": "no table: assumed",
}  # fmt: skip
ASSUMED = {
    "cpu": (200.0, 100.0, 0.0, 0.7, 0.5),
    "default": (7.0, 1.3, 10.0, 0.7, 0.2),
}
ASSUMED_OPERATION = {
    ("default", "all_reduce"): (7.0, 6.0, 10.0, 0.7, 0.2),
    ("default", "all_to_all"): (10.0, 1.0, 10.0, 0.6, 0.2),
}
NAMES = ("t0_us", "alpha_us", "sqrt_us", "bandwidth_fraction", "residual")
Row = dict[str, Any]
Tables = dict[str, dict[str, dict[str, Row]]]


@dataclass(frozen=True)
class Times:
    """Measured microseconds, one array an element of the data file's columns."""

    source: NDArray[np.str_]
    operation: NDArray[np.str_]
    inner: NDArray[np.int64]
    outer: NDArray[np.int64]
    inner_gbs: Floats
    outer_gbs: Floats
    bytes: Floats
    us: Floats

    def where(self, kept: NDArray[np.bool_]) -> Times:
        """Some of the times."""
        return Times(*(getattr(self, field.name)[kept] for field in dataclasses.fields(self)))

    def of(self, sources: tuple[str, ...], operations: tuple[str, ...], *, inside: bool) -> Times:
        """The times of some sources and operations, inside hosts or between them."""
        kept = np.isin(self.source, sources) & np.isin(self.operation, operations)
        members = self.inner if inside else self.outer
        for source, operation, *unlike in CHECKS:
            kept &= (self.source != source) | (self.operation != operation) | ~np.isin(members, unlike or members)
        return self.where(kept & ((self.outer == 1) == inside))

    @cached_property
    def alike(self) -> list[tuple[str, str, float, float, NDArray[np.bool_]]]:
        """Family, operation, both link rates, and which times have them: what is priced together."""
        families = np.array([_family(*pair) for pair in zip(self.source, self.inner_gbs.tolist(), strict=True)])
        columns = (families, self.operation, self.inner_gbs, self.outer_gbs)
        keys = list(zip(*(column.tolist() for column in columns), strict=True))
        return [(*key, np.array([it == key for it in keys])) for key in dict.fromkeys(keys)]


@cache
def measured() -> Times:
    """All times that the project carries."""
    with (FOLDER / "data" / "collectives.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    kinds = {"source": str, "operation": str, "inner": np.int64, "outer": np.int64}
    names = (field.name for field in dataclasses.fields(Times))
    return Times(*(np.array([row[name] for row in rows]).astype(kinds.get(name, np.float64)) for name in names))


@dataclass(frozen=True)
class Fits:
    """What the pricing code asks of a calibration."""

    scale_up: dict[str, Collective]
    scale_out: dict[str, Collective]
    domain_levels: int = 1

    def collective(self, operation: str, level: int) -> Collective:
        """As :meth:`cost_models.calibration.Calibration.collective`."""
        return (self.scale_up if level == 0 else self.scale_out)[operation]


def predicted_us(times: Times, tables: Tables, inside: str | None = None, between: str = "default") -> Floats:
    """Microseconds that the tables give for each time; the family is the source's own unless it is given."""
    found = np.zeros(len(times.us))
    between_fits = _collectives(tables["scale_out"].get(between, {}))
    for family, operation, up, out, at in times.alike:
        fits = Fits(_collectives(tables["scale_up"][inside or family]), between_fits)
        levels = (Level("", 1024, up * 1e9, 0.0, ""), Level("", 1024, out * 1e9 or 1.0, 0.0, ""))
        found[at] = 1e6 * _seconds(operation, times.where(at), levels, fits)
    return found


def _seconds(operation: str, times: Times, levels: tuple[Level, Level], fits: Fits) -> Floats:
    factors = np.stack([times.inner, times.outer], axis=1)
    if (times.outer == 1).all():
        factors, levels = factors[:, :1], levels[:1]
    if operation == "all_to_all":
        return all_to_all_s(times.bytes, factors, levels, fits)
    return collective_s(operation, times.bytes, factors, levels, fits)


def _family(source: str, inner_gbs: float) -> str:
    for family, sources in INSIDE.items():
        if source in sources and family != "blackwell":
            return family
    if inner_gbs == BLACKWELL_LINK:
        return "blackwell"
    return "ampere" if source in AMPERE else "hopper"


def _collectives(rows: dict[str, Row]) -> dict[str, Collective]:
    return {
        name: Collective(
            row["t0_us"] * 1e-6, row["alpha_us"] * 1e-6, row["sqrt_us"] * 1e-6, row["bandwidth_fraction"],
            row["residual"], multicast=row.get("multicast", 0.0), own=row.get("own", 0.0),
        )
        for name, row in rows.items()
    }  # fmt: skip


def fit(times: Times, tables: Tables, place: Place, source: str) -> Row:
    """The constants of one place for its operations together, three digits each; their residual is not known yet."""
    from scipy.optimize import least_squares

    prior = PRIOR_INSIDE if place.inside else PRIOR
    switched = place.inside and place.name in SWITCHED and "all_reduce" in place.operations
    left_out = {"multicast": not switched, "own": not place.inside}
    names = [name for name in prior if not left_out.get(name)]
    weights, centre = _weights(times.source), np.log([prior[name] for name in names])

    def residuals(logs: Floats) -> Floats:
        row = dict(zip(names, np.exp(logs), strict=True)) | {"residual": 0.0}
        error = np.log(place.predicted_us(times, place.with_row(tables, row)) / times.us)
        return np.concatenate([weights * error, PRIOR_WEIGHT * (logs - centre)])

    most = np.log(
        [{"own": 1.0, "bandwidth_fraction": 1.0 if place.inside else LINE_RATE}.get(n, np.inf) for n in names]
    )
    best = least_squares(residuals, centre, bounds=(-10.0, most), loss="soft_l1", f_scale=0.1)
    row: Row = {name: float(f"{np.exp(v):.3g}") for name, v in zip(names, best.x, strict=True)} | {"residual": 0.0}
    return row | {"source": source}


def _weights(source: NDArray[np.str_]) -> Floats:
    """Of rows, by the fourth root of their source's number: a source weighs as the square root of its rows."""
    _, index, counts = np.unique(source, return_inverse=True, return_counts=True)
    return (counts[index] / counts.max()) ** -0.25


def relative_error(predicted: Floats, times: Times) -> float:
    """Mean absolute relative error."""
    return float(np.abs(predicted / times.us - 1).mean())


@dataclass(frozen=True)
class Place:
    """One set of constants: a family inside hosts or a kind of fabric between them, and what they are for."""

    inside: bool
    name: str
    operations: tuple[str, ...]

    def times(self) -> Times:
        """What it is fitted to."""
        sources = (INSIDE if self.inside else BETWEEN)[self.name]
        return measured().of(sources, self.operations, inside=self.inside)

    def with_row(self, tables: Tables, row: Row) -> Tables:
        """The tables with ``row`` for the place's operations."""
        side = "scale_up" if self.inside else "scale_out"
        rows = tables[side].get(self.name, {}) | dict.fromkeys(self.operations, row)
        return {**tables, side: {**tables[side], self.name: rows}}

    def predicted_us(self, times: Times, tables: Tables) -> Floats:
        """Microseconds of its operations."""
        return predicted_us(times, tables, self.name if self.inside else None, self.name)


def places() -> list[Place]:
    """All sets of constants that have times; inside first, since those between hosts build on them."""
    inside = [Place(True, family, (operation,)) for family in INSIDE for operation in OPERATIONS]
    together = (("all_gather", "reduce_scatter"), ("all_reduce",), ("all_to_all",))
    between = [Place(False, kind, operations) for kind in BETWEEN for operations in together]
    return [place for place in (*inside, *between) if len(place.times().us)]


@cache
def refit() -> Tables:
    """Both tables of the calibration; what has no times takes the assumed rows, or those of another operation."""
    tables = _assumed()
    tables["scale_up"] |= {family: dict(tables["scale_up"]["default"]) for family in INSIDE}
    for place in places():
        inside = "pcie" if place.name == "pcie" else "nvlink"
        source = inside if place.inside else {"efa": "efa", "ethernet": "tcpxo"}.get(place.name, "infiniband")
        row = fit(place.times(), tables, place, source)
        tables = place.with_row(tables, row | {"residual": _residual(place, place.with_row(tables, row))})
    known = tables["scale_out"]
    for kind in BETWEEN:
        rest = dict.fromkeys(("all_gather", "reduce_scatter"), known[kind]["all_reduce"])
        rest["all_to_all"] = known["default"]["all_to_all"]
        known[kind] = {operation: known[kind].get(operation, rest.get(operation)) for operation in OPERATIONS}
    return tables


def _residual(place: Place, tables: Tables) -> float:
    """Mean relative error on the data, or on the largest group left out where that is more."""
    times = place.times()
    inside = relative_error(place.predicted_us(times, tables), times)
    groups = len(np.unique(times.inner * times.outer))
    outside = left_out_error(place, tables, by="group") if groups > 1 else ONE_GROUP
    return float(f"{min(max(inside, outside), 0.9):.2g}")


def left_out_error(place: Place, tables: Tables, *, by: str) -> float:
    """Mean relative error on times that the constants were not fitted to, where all but them are kept.

    ``by`` is ``"size"`` (every second power of two, both ways) or ``"group"`` (the largest group).
    """
    times = place.times()
    size = np.round(np.log2(times.bytes)).astype(int) % 2 == 0
    members = times.inner * times.outer
    folds = [size, ~size] if by == "size" else [members == members.max()]
    errors = []
    for out in folds:
        row = fit(times.where(~out), tables, place, "")
        left = times.where(out)
        errors.append(relative_error(place.predicted_us(left, place.with_row(tables, row)), left))
    return float(np.mean(errors))


def _assumed() -> Tables:
    rows = {
        place: {
            operation: dict(zip(NAMES, ASSUMED_OPERATION.get((place, operation), values), strict=True))
            | {"source": "none"}
            for operation in OPERATIONS
        }
        for place, values in ASSUMED.items()
    }
    return {"scale_up": dict(rows), "scale_out": {"cpu": rows["cpu"]}}


def point_to_point() -> dict[str, Row]:
    """Start and part of the link that a send reaches, on top of the catalogue's latency: two H100, near and far."""
    from scipy.optimize import least_squares

    every = measured()
    sends = every.where((every.source == "vidur-h100") & (every.operation == "p2p"))
    link = np.where(sends.outer > 1, sends.outer_gbs, sends.inner_gbs) * 1e3
    latency = np.where(sends.outer > 1, *LATENCY_US)

    def residuals(logs: Floats) -> Floats:
        start, fraction = np.exp(logs)
        return np.log((start + latency + sends.bytes / (fraction * link)) / sends.us)

    best = least_squares(residuals, np.log([15.0, 0.8]), loss="soft_l1", f_scale=0.1)
    start, fraction = (float(f"{v:.3g}") for v in np.exp(best.x))
    error = float(f"{np.abs(np.expm1(residuals(np.log([start, fraction])))).mean():.2g}")
    return {
        "p2p_fraction": {"value": fraction, "range": [0.4, 1.0], "residual": error, "source": "vidur"},
        "p2p_launch_us": {"value": start, "range": [2.0, 30.0], "residual": error, "source": "vidur"},
    }


HEAD = """\
# Collectives inside one scale-up domain, and across it. Written by cost_models/fitting/collectives.py.
#   t = t0 + alpha * steps + c * r * sqrt(W / 1 MB) + W / B
# W: bytes a device moves over a level, and of its own share of the buffer the part `own`; steps: hops of a ring for
# all-gather and reduce-scatter, peers for all-to-all, log2 of the members for all-reduce; r: 1, in an all-reduce the
# root of the steps inside a host and all of them between; several levels: see cost_models/communication.py.
# B is given as a part of the link's one-way bandwidth, so that it carries to other link speeds; multicast: the
# bandwidth of an all-reduce in the switch over that of a ring. residual: mean relative error on
# the data, or on the largest group when it is left out, whichever is more.
"""


def toml() -> str:
    """The text of ``calibration/collectives.toml``."""
    tables = refit()
    lines = [HEAD, "[sources]", *(f'{key} = "{text}"' for key, text in SOURCES.items())]
    for side in ("scale_up", "scale_out"):
        for place, rows in tables[side].items():
            lines += ["", f"[{side}.{place}]", *(f"{name:14} = {_inline(row)}" for name, row in rows.items())]
    lines += ["", "[shared]", *(f"{name} = {_inline(row)}" for name, row in point_to_point().items())]
    return "\n".join(lines) + "\n"


def _inline(row: Row) -> str:
    parts = (f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}" for name, value in row.items())
    return "{ " + ", ".join(parts) + " }"
