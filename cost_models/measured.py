"""Constants that were measured on a machine itself, and how they replace the ones that come along.

``meshwright calibrate`` writes them as ``calibration.toml``; a cluster's file names it (``calibration =``). Tables are
those of ``calibration/*.toml`` for one machine; each constant has its ``spread`` (a standard deviation, relative), the
``residual`` of the fit that it came from (mean absolute relative error on what was measured) and its source:

    [gemm.fp32]  [attention.fused]  [moving]        names and forms: cost_models/kernels.py
    [scale_up.all_gather] ... [scale_out. ...]      cost_models/calibration.py, Collective
    [p2p]                                           p2p_fraction, p2p_launch_us
    [stack]                                         host_us, pointwise, overlaps of the runtime that was measured

Fractions are of the rates under ``[machine.rates]``; on a cluster whose file says other figures they are converted, so
that what was measured stays what it was. A device that was measured under the load of all ranks of its host is charged
for no sustained load besides.
"""

from __future__ import annotations

import dataclasses
import tomllib
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError

from cost_models.kernels import AttentionKernel, GemmKernel, MovingKernel
from topologies.errors import BadInput
from topologies.records import Record, validation_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cost_models.calibration import Calibration
    from topologies.cluster import Cluster

OPERATIONS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all")
DTYPES = ("fp32", "tf32", "bf16", "fp16", "fp8", "fp4")
P2P = ("p2p_fraction", "p2p_launch_us")
OVERLAPS = tuple(f"overlap_{name}" for name in ("dp", "tp", "cp", "ep", "ep_alone"))
REPEATS = ("repeat_full_us", "repeat_selective_us")
STACK = ("host_us", "host_scatter", "pointwise", "tensor_us", "split_tensor_us", *REPEATS, *OVERLAPS)
FRACTIONS = ("compute_fraction", "memory_fraction", "bandwidth_fraction", "p2p_fraction")
DIVIDING = (*FRACTIONS, "sharpness", "units", "grain", "head_64", "head_256", "backward_fraction")
"""Constants that something is divided by."""
NOT_FITTED = {"quantise_launch_us": 0.0, "quantise_bytes": 0.0, "quantise_row": 0.0}


class Constant(Record):
    """One fitted number. ``spread`` is its relative standard deviation, ``residual`` the fit's mean relative error."""

    value: float = Field(ge=0, allow_inf_nan=False)
    spread: float = Field(ge=0, allow_inf_nan=False)
    residual: float = Field(ge=0, allow_inf_nan=False)
    source: str


Constants = dict[str, Constant]
Filled = Annotated[Constants, Field(min_length=1)]


class Machine(Record):
    """What was measured: the accelerator's catalogue name, processes and hosts that took part, and when.

    ``rates`` are what fractions are parts of: FLOP/s by data type, bytes a second of ``memory`` and of network levels.
    """

    accelerator: str
    processes: int = Field(ge=1)
    hosts: int = Field(ge=1)
    backend: str
    measured_on: date
    took_s: float = Field(ge=0)
    rates: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)


class Measured(Record):
    """A calibration file."""

    sources: dict[str, str]
    machine: Machine
    gemm: dict[str, Filled] = Field(min_length=1)
    attention: dict[str, Filled] = Field(default_factory=dict)
    moving: Filled
    scale_up: dict[str, Filled] = Field(default_factory=dict)
    scale_out: dict[str, Filled] = Field(default_factory=dict)
    p2p: Constants = Field(default_factory=dict)
    stack: Constants = Field(default_factory=dict)
    power: Constants = Field(default_factory=dict)


@lru_cache(maxsize=16)
def read_measured(text: str) -> Measured:
    """The constants of a calibration file's text. Raises ``BadInput`` naming every field that is wrong."""
    try:
        found = Measured.model_validate(tomllib.loads(text))
        _made(found)
    except ValidationError as error:
        raise BadInput(f"the calibration is not one: {validation_text(error)}; measure again") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"the calibration is no TOML: {error}; measure again") from error
    except (TypeError, KeyError) as error:
        raise BadInput(f"the calibration lacks a constant or has an unknown one: {error}; measure again") from error
    return found


def _made(found: Measured) -> None:
    """Makes every kernel once, so that a constant that is missing is said when the file is read."""
    _check_names(found)
    _check_positive(found)
    for rows in found.gemm.values():
        _gemm(rows, 1.0)
    for rows in found.attention.values():
        _kernel(AttentionKernel, rows, 1.0)
    _kernel(MovingKernel, found.moving, 1.0)
    for side in (found.scale_up, found.scale_out):
        for rows in side.values():
            _collective(rows, 1.0)


def _check_names(found: Measured) -> None:
    _check_known("gemm", found.gemm, DTYPES)
    _check_known("attention", found.attention, ("fused",))
    _check_known("p2p", found.p2p, P2P)
    _check_known("stack", found.stack, STACK)
    _check_known("machine.rates", found.machine.rates, (*DTYPES, "memory", "scale_up", "scale_out"))
    for name in ("scale_up", "scale_out"):
        side = getattr(found, name)
        _check_known(name, side, OPERATIONS)
        if side and (missing := sorted(set(OPERATIONS) - set(side))):
            raise BadInput(f"the calibration's [{name}] lacks {', '.join(missing)}; measure again")


def _check_known(table: str, names: Iterable[str], known: tuple[str, ...]) -> None:
    if unknown := sorted(set(names) - set(known)):
        raise BadInput(
            f"the calibration's [{table}] has {', '.join(unknown)[:200]}, but may only have {', '.join(known)}; "
            "measure again"
        )


def _check_positive(found: Measured) -> None:
    """Raises ``BadInput`` for a constant that divides and is 0."""
    tables = [*found.gemm.values(), *found.attention.values(), found.moving, found.p2p]
    tables += [*found.scale_up.values(), *found.scale_out.values()]
    zero = {name for rows in tables for name, row in rows.items() if name in DIVIDING and row.value == 0}
    if zero:
        raise BadInput(f"the calibration has {', '.join(sorted(zero))} = 0, which must be above 0; measure again")


def replaced(fits: Calibration, cluster: Cluster, runtime: bool) -> Calibration:
    """``fits`` with what the cluster's own calibration measured; ``runtime`` where its stack is the one measured.

    Raises ``BadInput`` for a calibration of another accelerator than the cluster's, and for a cluster with several
    levels in a scale-up domain.
    """
    found, scale = read_measured(cluster.calibration), cluster.rate_scale
    if found.machine.accelerator != cluster.accelerator.name:
        raise BadInput(
            f"the calibration was measured on {found.machine.accelerator!r}, but the cluster {cluster.name!r} has "
            f"{cluster.accelerator.name!r}; measure there, or plan without it"
        )
    refuse_levels_in_a_domain(cluster)
    found = converted(found, cluster)
    gemm = {dtype: _gemm(rows, scale) for dtype, rows in found.gemm.items()}
    new: dict[str, Any] = {"gemm": fits.gemm | gemm, "moving": _kernel(MovingKernel, found.moving, scale)}
    if found.attention:
        new["flash"] = _kernel(AttentionKernel, found.attention["fused"], scale)
    for side in ("scale_up", "scale_out"):
        if rows := getattr(found, side):
            new[side] = {name: _collective(row, scale) for name, row in rows.items()}
    new |= in_seconds(_values(found.p2p), scale)
    if runtime:
        new |= _of_the_stack(fits, _values(found.stack), scale)
    return dataclasses.replace(fits, sustained=1.0, **new)


def refuse_levels_in_a_domain(cluster: Cluster) -> None:
    """Raises ``BadInput`` naming the levels of a scale-up domain that has several: a calibration knows one."""
    if cluster.domain_levels > 1:
        names = " and ".join(level.name for level in cluster.levels[: cluster.domain_levels])
        raise BadInput(
            f"a calibration has one level inside a scale-up domain, but the cluster {cluster.name!r} has {names}; "
            "leave its partition or torus out, or plan without the calibration"
        )


def converted(found: Measured, cluster: Cluster) -> Measured:
    """The same constants as fractions of the cluster's own figures."""
    of = {name: rate / _figure(cluster, name) for name, rate in found.machine.rates.items()}
    memory, outer = of.get("memory", 1.0), of.get("scale_out", of.get("scale_up", 1.0))
    first = of.get(next(iter(found.gemm), ""), 1.0)
    return found.model_copy(
        update={
            "gemm": {name: _times(rows, of.get(name, 1.0), memory) for name, rows in found.gemm.items()},
            "attention": {name: _times(rows, first, memory) for name, rows in found.attention.items()},
            "moving": _times(found.moving, 1.0, memory),
            "scale_up": {name: _times(rows, of.get("scale_up", 1.0), 1.0) for name, rows in found.scale_up.items()},
            "scale_out": {name: _times(rows, of.get("scale_out", 1.0), 1.0) for name, rows in found.scale_out.items()},
            "p2p": _times(found.p2p, outer, 1.0),
        }
    )


def _figure(cluster: Cluster, name: str) -> float:
    """The cluster's own rate of that name, of the machine as it is."""
    levels = dict(zip(("scale_up", "scale_out"), cluster.levels, strict=False))
    if name in ("scale_up", "scale_out"):
        level = levels.get(name, cluster.levels[-1])
        return level.bandwidth_bytes_per_s / cluster.rate_scale
    whole = cluster.memory_bandwidth_bytes_per_s if name == "memory" else cluster.peak_flop_per_s(name)
    return whole / cluster.rate_scale


def _times(rows: Constants, compute: float, memory: float) -> Constants:
    """Fractions times ``compute``, that of memory times ``memory``."""
    factor = {name: memory if name == "memory_fraction" else compute for name in FRACTIONS}
    return {
        name: row.model_copy(update={"value": row.value * factor[name]}) if name in factor else row
        for name, row in rows.items()
    }


def _of_the_stack(fits: Calibration, values: dict[str, float], scale: float) -> dict[str, Any]:
    overlap = {name.removeprefix("overlap_"): value for name, value in values.items() if name.startswith("overlap_")}
    rest = {name: value for name, value in values.items() if not name.startswith("overlap_")}
    return in_seconds(rest, scale) | {"overlap": fits.overlap | overlap}


def _values(rows: Constants) -> dict[str, float]:
    return {name: row.value for name, row in rows.items()}


def in_seconds(values: dict[str, float], scale: float) -> dict[str, float]:
    """Constants under their names in the file as fields of what prices: ``launch_us`` and the like as ``launch_s``,
    shorter by ``scale``."""
    micro = {
        f"{name.removesuffix('_us')}_s": value * 1e-6 / scale for name, value in values.items() if name[-3:] == "_us"
    }
    return micro | {name: value for name, value in values.items() if name[-3:] != "_us"}


def _residual(rows: Constants) -> float:
    return max(row.residual for row in rows.values())


def _kernel(kind: type, rows: Constants, scale: float) -> Any:
    return kind(**in_seconds(_values(rows), scale), residual=_residual(rows))


def _gemm(rows: Constants, scale: float) -> GemmKernel:
    return GemmKernel(**in_seconds(NOT_FITTED | _values(rows), scale), residual=_residual(rows))


def _collective(rows: Constants, scale: float) -> Any:
    from cost_models.calibration import Collective

    return Collective(**in_seconds(_values(rows), scale), residual=_residual(rows))
