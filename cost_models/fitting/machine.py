"""Constants of one machine from its own benchmarks: what ``meshwright calibrate`` makes of what it measured.

The forms are those that price plans. Constants minimise a soft L1 norm of log errors with a weak prior, as for the
published kernels (:mod:`cost_models.fitting.kernels`); beside each stands its relative standard deviation, from the
fit's own curvature scaled by its errors, and the mean absolute relative error of the fit. Times are medians of repeats.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Collective
from cost_models.communication import all_to_all_s, collective_s
from cost_models.fitting.kernels import PLAIN_FLASH, gemm_kernel, in_seconds
from cost_models.kernels import MovingKernel, attention_s, moving_s, product_s
from topologies.cluster import Level

Floats = NDArray[np.float64]
Point = dict[str, Any]
Spans = dict[str, tuple[float, float, float, float]]
"""By constant: typical value, its standard deviation, least and largest value."""
CPU_GRAIN = 0.125
"""Tiles of 8 x 16 elements: a register block of 16-wide vectors, against 64 x 128 of tensor cores."""
NOISE = 0.1
"""Log error from which a point counts linearly."""

GEMM: Spans = {
    "launch_us": (5.0, 20.0, 0.1, 500.0), "compute_fraction": (0.8, 0.3, 0.02, 1.0),
    "memory_fraction": (0.8, 0.3, 0.02, 1.0), "sharpness": (3.0, 2.0, 1.2, 12.0), "waste": (0.05, 0.1, 0.0, 1.5),
    "softness": (0.7, 0.3, 0.0, 1.0), "ramp": (50.0, 100.0, 0.0, 1500.0), "split_us": (20.0, 20.0, 0.0, 500.0),
}  # fmt: skip
MOVING: Spans = {
    "launch_us": (5.0, 20.0, 0.1, 500.0), "root_us": (5.0, 20.0, 0.0, 1000.0), "memory_fraction": (0.6, 0.3, 0.02, 1.0),
}  # fmt: skip
ATTENTION: Spans = {
    "launch_us": (20.0, 50.0, 0.1, 5000.0), "compute_fraction": (0.4, 0.3, 0.005, 1.0),
    "half_length": (50.0, 100.0, 0.0, 6000.0), "head_64": (0.8, 0.2, 0.2, 1.5),
    "backward_fraction": (0.7, 0.2, 0.1, 1.05), "backward_length": (1.0, 0.5, 0.2, 6.0),
}  # fmt: skip
COLLECTIVE: Spans = {
    "t0_us": (100.0, 300.0, 0.1, 50000.0), "alpha_us": (50.0, 300.0, 0.0, 50000.0),
    "sqrt_us": (50.0, 300.0, 0.0, 50000.0), "bandwidth_fraction": (0.7, 0.3, 0.01, 1.0),
    "crowding": (0.0, 0.5, 0.0, 5.0),
}  # fmt: skip
SEND: Spans = {"p2p_launch_us": (100.0, 300.0, 0.0, 50000.0), "p2p_fraction": (0.7, 0.3, 0.005, 1.0)}


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Constants by name, their relative standard deviations, and the mean absolute relative error on the points."""

    values: dict[str, float]
    spreads: dict[str, float]
    residual: float

    def rows(self, source: str = "here") -> dict[str, dict[str, Any]]:
        """As a calibration file has them."""
        return {
            name: {"value": value, "spread": self.spreads[name], "residual": self.residual, "source": source}
            for name, value in self.values.items()
        }


def median_s(point: Point) -> float:
    """Seconds of a point: the median of its repeats."""
    return statistics.median(point["seconds"])


def fit(
    spans: Spans, predicted_s: Callable[[dict[str, float]], Floats], measured_s: Floats,
    starts: tuple[float, ...] = (1.0, 0.3),
) -> Fitted:  # fmt: skip
    """The constants of ``spans`` for which ``predicted_s`` is nearest to ``measured_s``.

    ``starts`` are where to begin, in parts of the typical values.
    """
    from scipy.optimize import least_squares

    centre, width, low, high = (np.array(part) for part in zip(*spans.values(), strict=True))

    def logs(point: Floats) -> Floats:
        return np.log(np.maximum(predicted_s(dict(zip(spans, point, strict=True))), 1e-12) / measured_s)

    def misfit(point: Floats) -> Floats:
        return np.concatenate([logs(point) / NOISE, (point - centre) / width])

    inside = (np.clip(centre * scale, low + 1e-3 * width, high - 1e-3 * width) for scale in starts)
    best = min(
        (
            least_squares(misfit, start, bounds=(low, high), x_scale=width, loss="soft_l1", diff_step=1e-3, max_nfev=60)
            for start in inside
        ),
        key=lambda result: result.cost,
    )
    errors = np.abs(np.expm1(logs(best.x)))
    values = {name: float(f"{value:.4g}") for name, value in zip(spans, best.x, strict=True)}
    return Fitted(values, _spreads(best, logs(best.x), values), float(f"{errors.mean():.3g}"))


def _spreads(best: Any, errors: Floats, values: dict[str, float]) -> dict[str, float]:
    """Relative standard deviations from ``(J'J)^-1``, times the errors' size where they exceed the noise taken."""
    scale = max(1.0, float(np.sqrt(np.mean(errors**2))) / NOISE)
    covariance = np.linalg.pinv(best.jac.T @ best.jac)
    deviations = scale * np.sqrt(np.maximum(np.diag(covariance), 0.0))
    return {
        name: float(f"{min(deviation / max(abs(value), 1e-3), 99.0):.2g}")
        for (name, value), deviation in zip(values.items(), deviations, strict=True)
    }


def _columns(points: Sequence[Point], *names: str) -> tuple[Floats, ...]:
    return tuple(np.array([float(point[name]) for point in points]) for name in names)


def _seconds(points: Sequence[Point]) -> Floats:
    return np.array([median_s(point) for point in points])


def best_flop_per_s(points: Sequence[Point]) -> float:
    """The most FLOP a second that any product reached."""
    m, n, k = _columns(points, "m", "n", "k")
    return float((2 * m * n * k / _seconds(points)).max())


def best_bytes_per_s(points: Sequence[Point]) -> float:
    """The most bytes a second that any transfer of a megabyte and more reached."""
    large = [point for point in points if point["bytes"] >= 2**20] or list(points)
    return float((_columns(large, "bytes")[0] / _seconds(large)).max())


def fit_products(points: Sequence[Point], peak: float, bandwidth: float, element_bytes: float, units: float) -> Fitted:
    """Constants of matrix products; one unit is a thread of a processor."""
    m, n, k = _columns(points, "m", "n", "k")
    fixed = {"units": units} | ({"grain": CPU_GRAIN} if units == 1 else {})

    def predicted(values: dict[str, float]) -> Floats:
        sizes = (element_bytes, element_bytes, element_bytes)
        return product_s(m, n, k, *sizes, gemm_kernel(values | fixed, units), peak, bandwidth)

    found = fit(GEMM, predicted, _seconds(points))
    return dataclasses.replace(found, values=found.values | fixed, spreads=found.spreads | dict.fromkeys(fixed, 0.0))


def fit_transfers(points: Sequence[Point], bandwidth: float) -> Fitted:
    """Constants of memory-bound operators."""
    moved = _columns(points, "bytes")[0]

    def predicted(values: dict[str, float]) -> Floats:
        return moving_s(moved, MovingKernel(**in_seconds(values), residual=0.0), bandwidth)

    return fit(MOVING, predicted, _seconds(points))


def fit_attentions(points: Sequence[Point], peak: float, units: float) -> Fitted:
    """Constants of causal attention, forward and backward."""
    heads, length, size = _columns(points, "heads", "length", "size")
    back = np.array([point["pass"] == "backward" for point in points])
    shapes = list(zip(heads, length, size, strict=True))
    fixed = {"occupancy": 0.0, "units": units, "full_length": PLAIN_FLASH.full_length, "head_256": 1.0}

    def predicted(values: dict[str, float]) -> Floats:
        kernel = dataclasses.replace(PLAIN_FLASH, **in_seconds(values), **fixed)
        ways = [
            np.array([float(attention_s(h, s, s, d, kernel, peak, backward=way)) for h, s, d in shapes])
            for way in (False, True)
        ]
        return np.where(back, ways[1], ways[0])

    found = fit(ATTENTION, predicted, _seconds(points))
    still = dict.fromkeys(fixed, 0.0)
    return dataclasses.replace(found, values=found.values | fixed, spreads=found.spreads | still)


@dataclasses.dataclass(frozen=True)
class _Fits:
    """Collectives of every level, as the pricing code asks for them."""

    levels: tuple[Collective, ...]
    domain_levels: int = 1

    def collective(self, operation: str, level: int) -> Collective:
        return self.levels[level]


def fit_collective(points: Sequence[Point], levels: tuple[Level, ...], inner: Collective | None) -> Fitted:
    """Constants of one operation on the outermost of ``levels``; ``inner`` are those of the level inside it."""
    volume = _columns(points, "bytes")[0]
    factors = np.array([point["factors"][: len(levels)] for point in points])
    operation = points[0]["operation"]
    members = set(factors[:, -1].tolist()) - {1}
    spans = COLLECTIVE if len(members) > 1 else {n: span for n, span in COLLECTIVE.items() if n != "crowding"}
    before = () if len(levels) == 1 else (inner or Collective(0.0, 0.0, 0.0, 1.0, 0.0),)

    def predicted(values: dict[str, float]) -> Floats:
        fits = _Fits((*before, Collective(**in_seconds(values), residual=0.0)))
        if operation == "all_to_all":
            return all_to_all_s(volume, factors, levels, fits)
        return collective_s(operation, volume, factors, levels, fits)

    return fit(spans, predicted, _seconds(points))


def fit_sends(points: Sequence[Point], level: Level) -> Fitted:
    """Start and part of the link of a message between neighbours, beyond the level's own latency."""
    size = _columns(points, "bytes")[0]

    def predicted(values: dict[str, float]) -> Floats:
        rate = values["p2p_fraction"] * level.bandwidth_bytes_per_s
        return values["p2p_launch_us"] * 1e-6 + level.latency_s + size / rate

    return fit(SEND, predicted, _seconds(points))


def link_bytes_per_s(points: Sequence[Point], level: int) -> float:
    """The most bytes a second that one rank sent over a level in any collective or message that only uses it."""
    alone = [it for it in points if it["factors"][level] > 1 and sum(f > 1 for f in it["factors"]) == 1]
    passes = {"all_reduce": 2.0, "send": None}
    rates = []
    for point in alone:
        n = point["factors"][level]
        share = passes.get(point["operation"], 1.0)
        moved = point["bytes"] if share is None else point["bytes"] * share * (n - 1) / n
        rates.append(moved / median_s(point))
    return max(rates)
