"""Kernel constants of an accelerator from ``calibration/kernels.toml``: its own, its family's, or the default's."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from cost_models.kernels import AttentionKernel, GemmKernel, MovingKernel
from cost_models.stack import AttentionKind
from topologies.cluster import Cluster
from topologies.errors import BadInput

FILE = Path(__file__).parent / "calibration" / "kernels.toml"
OF_ONE_KIND = 0.15
"""Residual of a machine entry up to which it is like its measured accelerator in everything."""
SCALES_IN_HARDWARE = ("blackwell", "rubin", "cdna4")


@dataclass(frozen=True)
class Kernels:
    """Every kernel of one accelerator; ``gemm`` by data type, ``attention`` by kind (``fused``, ``flash2``)."""

    gemm: dict[str, GemmKernel]
    attention: dict[str, AttentionKernel]
    moving: MovingKernel


@cache
def _file() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def kernels_of(cluster: Cluster) -> Kernels:
    """Kernels of the cluster's accelerator: a partition's are its package's, on its share of the units."""
    part = cluster.accelerator
    return kernels_for(part.whole, part.family, cluster.rate_scale, part.partitions)


@cache
def kernels_for(accelerator: str, family: str, rate_scale: float = 1.0, partitions: int = 1) -> Kernels:
    """Kernels of ``accelerator`` (a catalogue name), else of ``family``, else the default; starts over ``rate_scale``.

    One of ``partitions`` devices of a package has so much fewer units.
    An accelerator without tables behaves like the one its ``machine`` entry names, its rates scaled by the ratio
    of their best shapes. fp16, fp32 and tf32 use bf16's constants.
    """
    machines, shared = _file()["machine"], _file()["shared"]
    machine = machines.get(accelerator) or machines.get(family) or machines["default"]
    machine = machine | {"units": max(1, machine["units"] // partitions)}
    gemm = _gemm(machine, machines[machine["like"]], rate_scale)
    if "fp8" in gemm:
        part = 1.0 if family in SCALES_IN_HARDWARE else shared["block_scaled_fraction"]["value"]
        plain = gemm["fp8"]
        gemm["fp8_block"] = dataclasses.replace(plain, compute_fraction=plain.compute_fraction * part)
    return Kernels(
        gemm | dict.fromkeys(("fp16", "fp32", "tf32"), gemm["bf16"]),
        {kind: _attention(machine, family, kind, rate_scale) for kind in get_args(AttentionKind)},
        _moving(accelerator, machine, rate_scale),
    )


def gemm_kernel(kernels: Kernels, dtype: str) -> GemmKernel:
    """Constants of the products in ``dtype``. Raises ``BadInput`` for a data type without any."""
    if dtype not in kernels.gemm:
        known = ", ".join(sorted(kernels.gemm))
        raise BadInput(f"no kernel times for matrix products in {dtype!r}; this accelerator has {known}")
    return kernels.gemm[dtype]


def _gemm(machine: dict[str, Any], like: dict[str, Any], scale: float) -> dict[str, GemmKernel]:
    """Products by data type, ``compute_fraction`` times ``best_fraction`` over that of the accelerator it is like."""
    best = machine["best_fraction"] / like["best_fraction"]
    found = {}
    for dtype, row in _file()["gemm"][machine["like"]].items():
        fraction = min(1.0, row["compute_fraction"] * best)
        residual = max(row["residual"], machine["residual"])
        moved = {"compute_fraction": fraction, "residual": residual, "units": float(machine["units"])}
        found[dtype] = GemmKernel(**_quantised(_seconds(row | moved, scale)))
    return found


def _quantised(row: dict[str, float]) -> dict[str, float]:
    return {"quantise_launch_s": 0.0, "quantise_bytes": 0.0, "quantise_row": 0.0} | row


def _attention(machine: dict[str, Any], family: str, kind: str, scale: float) -> AttentionKernel:
    """Default, then the accelerator it is like, then what its family says; a kind without tables is ``fused``."""
    tables, keys = _file()["attention"], (machine.get("attention_like", machine["like"]), family)
    kind = kind if any(kind in tables.get(key, {}) for key in keys) else "fused"
    row = dict(tables["default"]["fused"])
    for key in keys:
        row |= tables.get(key, {}).get(kind, {})
    row |= {"units": float(machine["units"])}
    return AttentionKernel(**_seconds({k: v for k, v in row.items() if k != "prepare_passes"}, scale))


def _moving(accelerator: str, machine: dict[str, Any], scale: float) -> MovingKernel:
    """Its own, else that of the accelerator it is like if both are of one kind, else the default."""
    tables = _file()["moving"]
    keys = (accelerator, machine.get("attention_like"), machine["like"] if machine["residual"] <= OF_ONE_KIND else "")
    return MovingKernel(**_seconds(next((tables[key] for key in keys if key in tables), tables["default"]), scale))


def _seconds(row: dict[str, Any], scale: float) -> dict[str, float]:
    """Without its source, and ``..._us`` as ``..._s``, shorter by ``scale``."""
    return {
        name.removesuffix("_us") + "_s" if name.endswith("_us") else name: value * 1e-6 / scale
        if name.endswith("_us")
        else value
        for name, value in row.items()
        if name != "source"
    }
