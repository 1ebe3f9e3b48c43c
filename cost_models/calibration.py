"""Fitted efficiencies: how far real kernels, collectives and devices fall short of their data sheets.

The fits live in ``calibration/*.toml``, each with the data behind it and its residual. A
:class:`Calibration` is the set of them for one cluster under one stack; how far prices made with it may be off is
:mod:`cost_models.intervals`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cost_models.clocks import ClockCurve
from cost_models.kernel_tables import kernels_of
from cost_models.kernels import AttentionKernel, GemmKernel, MovingKernel
from cost_models.measured import replaced
from cost_models.stack import RUNTIME, Stack
from topologies.cluster import Cluster
from topologies.units import parse_quantity

Changes = Mapping[str, float]
OVERLAPS = ("dp", "tp", "cp", "ep", "ep_alone")
"""Axes whose communication hides behind compute; ``ep_alone`` where experts are layers of their own."""
FOLDER = Path(__file__).parent / "calibration"


@dataclass(frozen=True, slots=True)
class Collective:
    """``t = t0_s + alpha_s steps + sqrt_s sqrt(W / 1 MB) + W / (bandwidth_fraction link)``.

    ``multicast`` is the bandwidth of an all-reduce in the switch over that of a ring; 0 where there is none.
    ``crowding`` is how much longer a byte takes in a group twice as large, beyond what the formula says of it.
    ``own`` is what a device's own share of the buffer, copied beside the wire, counts of one that travels.
    """

    t0_s: float
    alpha_s: float
    sqrt_s: float
    bandwidth_fraction: float
    residual: float
    multicast: float = 0.0
    crowding: float = 0.0
    own: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """Every fitted constant, for one cluster under one stack."""

    gemm: dict[str, GemmKernel]
    flash: AttentionKernel
    moving: MovingKernel
    grouped_fraction: float
    expert_imbalance: float
    quantise_share: float
    expert_quantise_share: float
    scan_fraction: float
    dropped_attention: float
    odd_product: float
    even_product: float
    unaligned_attention: float
    eager_traffic: float
    scale_up: dict[str, Collective]
    scale_out: dict[str, Collective]
    overlap: dict[str, float]
    interference: float
    host_s: float
    host_scatter: float
    tp_wait: float
    dp_wait: float
    ring_blocks: float
    moe_host_s: float
    expert_host_s: float
    pointwise: float
    slowest: float
    step_s: float
    broadcast_hop_s: float
    sustained: float
    fp8_attention: float
    block_scaled: float
    p2p_fraction: float
    p2p_launch_s: float
    context_bytes: float
    communicator_bytes: float
    fragmentation_fraction: float
    logit_bytes: float
    fused_logit_bytes: float | None
    graph_bytes: float
    step_bytes: float
    power_fraction: dict[str, float]
    clock: ClockCurve
    tensor_s: float = 0.0
    """Host seconds of the optimiser's step for each weight tensor of a device, beside what it moves."""
    split_tensor_s: float = 0.0
    """The same where the tensor is one of a mesh's (sharded, or split over tp)."""
    repeat_full_s: float = 0.0
    """Host seconds that full recompute takes for each operator of a layer, beside those of its forward pass."""
    repeat_selective_s: float = 0.0
    """The same of selective recompute."""
    split_logit_bytes: float | None = None
    """Bytes of a logit where the loss runs on each tp rank's part of the vocabulary, if that is not ``logit_bytes``."""
    domain_levels: int = 1
    """Levels that are inside a scale-up domain."""

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with any constant."""
        content = dataclasses.asdict(self)
        for name, usual in LATER.items():
            if content[name] == usual:
                del content[name]
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def collective(self, operation: str, level: int) -> Collective:
        """The fit of ``operation`` on network level ``level``, those of the scale-up domain being the first."""
        return (self.scale_up if level < self.domain_levels else self.scale_out)[operation]


LATER = {"domain_levels": 1, "split_logit_bytes": None, "repeat_full_s": 0.0, "repeat_selective_s": 0.0}
"""Constants that calibrations without them are digested without, so that plans saved before still verify."""


@lru_cache(maxsize=8)
def _tables(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def forget() -> None:
    """Reads the files again at the next calibration: they were written anew."""
    _tables.cache_clear()


def calibrate(cluster: Cluster, stack: Stack | None = None, changes: Changes | None = None) -> Calibration:
    """The central calibration for a cluster under a stack, with latencies divided by the cluster's ``rate_scale``.

    ``changes`` replaces constants by their path, file first: ``{"stacks.default.overlap_tp": 0.5}``. What was measured
    on the cluster itself (:mod:`cost_models.measured`) goes before everything.
    """
    family = cluster.accelerator.family
    changes, stack = changes or {}, stack or Stack()
    reached, kernels = _reached(stack, changes), kernels_of(cluster)
    compute, memory = _tables("compute"), _tables("memory")
    links, shared = _tables("collectives"), _tables("collectives")["shared"]
    scale = cluster.rate_scale
    bytes_of = {**memory["shared"], **memory.get(family, {}), **memory["stacks"].get(stack.name, {})}
    fits = Calibration(
        gemm=kernels.gemm,
        flash=_flash(kernels.attention[stack.attention_kernel], stack, cluster, changes),
        moving=kernels.moving,
        **_shared(compute["shared"], stack, changes, reached["expert_casts"]),
        scale_up=_inside(_collectives(links["scale_up"], _wire(cluster), scale), cluster),
        scale_out=_collectives(links["scale_out"], family if family == "cpu" else cluster.fabric.kind, scale),
        **_stack(_graphed(reached, stack), scale),
        interference=_interference(reached["interference"], cluster, changes),
        fp8_attention=_by_device(compute["fp8_attention"], cluster, "compute.fp8_attention", changes)
        * reached.get(f"fp8_attention_{family}", 1.0),
        grouped_fraction=_by_device(compute["grouped"], cluster, "compute.grouped", changes),
        block_scaled=_by_device(compute["block_scaled"], cluster, "compute.block_scaled", changes),
        sustained=_by_device(compute["sustained"], cluster, "compute.sustained", changes)
        * reached["kernels"]
        * reached.get(f"kernels_{family}", 1.0),
        p2p_fraction=shared["p2p_fraction"]["value"],
        p2p_launch_s=(shared["p2p_launch_us"]["value"] * 1e-6 + reached["p2p_ms"] * 1e-3) / scale,
        context_bytes=parse_quantity(bytes_of["context_bytes"]["value"], "B"),
        communicator_bytes=parse_quantity(bytes_of["communicator_bytes"]["value"], "B"),
        fragmentation_fraction=bytes_of["fragmentation_fraction"]["value"],
        logit_bytes=parse_quantity(bytes_of["logit_bytes"]["value"], "B"),
        split_logit_bytes=bytes_of.get("split_logit_bytes", {}).get("value"),
        graph_bytes=parse_quantity(bytes_of["graph_bytes"]["value"], "B"),
        fused_logit_bytes=bytes_of.get("fused_logit_bytes", {}).get("value"),
        step_bytes=parse_quantity(bytes_of.get("step_bytes", {"value": "0 B"})["value"], "B"),
        power_fraction={k: row["value"] for k, row in _tables("power")["shared"].items()},
        clock=ClockCurve.of(_tables("power")["clock"]),
        domain_levels=cluster.domain_levels,
    )
    return replaced(fits, cluster, stack.name == RUNTIME) if cluster.calibration else fits


def _flash(kernel: AttentionKernel, stack: Stack, cluster: Cluster, changes: Changes) -> AttentionKernel:
    """The stack's fused attention; one whose tables are a paper's range, at the rate that published steps show."""
    rates = _tables("compute").get(stack.attention_kernel)
    if rates is None:
        return kernel
    rate = _by_device(rates, cluster, f"compute.{stack.attention_kernel}", changes)
    return dataclasses.replace(kernel, compute_fraction=rate * kernel.compute_fraction)


def _shared(rows: dict[str, Any], stack: Stack, changes: Changes, expert_casts: float) -> dict[str, float]:
    """Constants of every device; experts are equally busy, and their operands cast, as the stack makes them so."""
    values = {name: changes.get(f"compute.shared.{name}", row["value"]) for name, row in rows.items()}
    values["expert_quantise_share"] *= expert_casts
    return values | ({"expert_imbalance": 1.0} if stack.balanced_routing else {})


def _reached(stack: Stack, changes: Changes) -> dict[str, float]:
    """Constants of a stack: the defaults, then the stack's own, then those of a table for its release."""
    tables, value = _tables("stacks"), {}
    for name in ("default", stack.name, *_eras(stack)):
        rows = {key: row for key, row in tables.get(name, {}).items() if isinstance(row, dict)}
        value |= {key: changes.get(f"stacks.{name}.{key}", row["value"]) for key, row in rows.items()}
    return value


def _eras(stack: Stack) -> list[str]:
    """Names of the tables whose ``stack`` and ``releases`` fit."""
    return [
        name
        for name, table in _tables("stacks").items()
        if table.get("stack") == stack.name
        and any(fnmatch.fnmatchcase(stack.release, pattern) for pattern in table["releases"])
    ]


def _graphed(value: dict[str, float], stack: Stack) -> dict[str, float]:
    """The constants where experts run from a whole step's graph: stacks send tokens beside compute only there."""
    overlap = value.get("overlap_ep_graphed") if stack.cuda_graphs and stack.expert_graphs else None
    return value if overlap is None else {**value, "overlap_ep": overlap}


def _stack(value: dict[str, float], scale: float) -> dict[str, Any]:
    """What the stack reaches, by field of :class:`Calibration`."""
    return {
        "overlap": {axis: value[f"overlap_{axis}"] for axis in OVERLAPS},
        "host_s": value["host_us"] * 1e-6 / scale,
        "host_scatter": value["host_scatter"],
        "tp_wait": value["tp_wait"],
        "dp_wait": value["dp_wait"],
        "ring_blocks": value["ring_blocks"],
        "moe_host_s": value["moe_host_ms"] * 1e-3 / scale,
        "expert_host_s": value["expert_host_us"] * 1e-6 / scale,
        "pointwise": value["pointwise"],
        "slowest": value["slowest"],
        "step_s": value["step_ms"] * 1e-3 / scale,
        "broadcast_hop_s": value["broadcast_hop_us"] * 1e-6 / scale,
    }


def _interference(stack: float, cluster: Cluster, changes: Changes) -> float:
    """Seconds that hidden collectives cost what they hide behind, over their own: a stack's times its device's."""
    device = _by_device(_tables("compute")["interference"], cluster, "compute.interference", changes)
    return min(stack * device, 1.0)


def _by_device(rows: dict[str, Any], cluster: Cluster, path: str, changes: Changes) -> float:
    """A constant of the accelerator, else of its family."""
    part = cluster.accelerator
    table = next(name for name in (part.whole, part.family, "default") if name in rows)
    return changes.get(f"{path}.{table}", rows[table]["value"])


def _wire(cluster: Cluster) -> str:
    """Whose collectives a host's devices have: those of PCIe, whatever is plugged in, or their family's."""
    return "pcie" if cluster.host.scale_up_link.startswith("PCIe") else cluster.accelerator.family


def _inside(found: dict[str, Collective], cluster: Cluster) -> dict[str, Collective]:
    """Collectives of a scale-up domain; one of several levels has no single switch that adds and multiplies."""
    if cluster.domain_levels == 1:
        return found
    return {operation: dataclasses.replace(one, multicast=0.0) for operation, one in found.items()}


def _collectives(tables: dict[str, Any], system: str, scale: float) -> dict[str, Collective]:
    rows = tables.get(system, tables["default"])
    return {
        operation: Collective(
            row["t0_us"] * 1e-6 / scale, row["alpha_us"] * 1e-6 / scale, row["sqrt_us"] * 1e-6 / scale,
            row["bandwidth_fraction"], row["residual"],
            multicast=row.get("multicast", 0.0), own=row.get("own", 0.0),
        )
        for operation, row in rows.items()
    }  # fmt: skip
