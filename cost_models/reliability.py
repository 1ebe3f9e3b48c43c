"""Failures of a job, what they cost, and how often to write a checkpoint; everything over arrays.

    rate      lambda = sum over causes of (failures a unit and second) x (units of the job)
              units: devices, hosts, network ports; software by the host; racks, switches, feeds with their hosts
    cycle     L = tau + C       tau seconds of work, then C seconds in which the step waits for a checkpoint
    goodput   tau exp(-(R + W) / M) / (M (exp(L / M) - 1))       with M = 1 / lambda

``W`` is how long a checkpoint takes, behind the steps, until a restart can use it, and ``R`` what lies between a
failure and the first new step. A failure comes after a time ``F`` with mean ``M`` from the beginning of a restart,
whatever the job is at; what it leaves is ``floor((F - R - W) / L)`` whole cycles of ``tau`` useful seconds, on the
mean ``exp(-(R + W) / M) / (exp(L / M) - 1)``. With ``W = 0`` it is Daly's complete form, failures in restarts included.

Hosts away are a Poisson number of single ones and, of each kind of unit that several share, as many times its hosts,
all of the job's units of that kind at the most.

Left out: failures that come together otherwise (a cooling loop), slow devices that fail nothing.

Source: J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation
Computer Systems 22 (2006); J. W. Young, Communications of the ACM 17 (1974).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cost_models.rows import Rows
from topologies.catalogue import CAUSES, SHARED_CAUSES, Fleet, load, names
from topologies.cluster import Cluster
from topologies.ready import MOST_DEVICES

Floats = NDArray[np.float64]
LEAST_RATE = 1e-12
"""Failures a second that a job has at least, one in 30,000 years: nothing divides by 0 where nothing fails."""
NINE_OF_TEN = 1.645
"""Standard deviations on either side that hold nine of ten of a normal."""
COUNTED_BY = {"device": "devices", "host": "hosts", "network": "ports", "software": "hosts"}


def failures_per_s(
    fleet: Fleet, devices: ArrayLike, hosts: ArrayLike, ports: ArrayLike, sizes: dict[str, int] | None = None
) -> dict[str, Floats]:
    """Failures a second of a job with so many devices, hosts and ports, by cause, if it fails like ``fleet``.

    ``sizes`` are the hosts of one rack, switch or feed of the job's cluster; hosts stand side by side in them.
    """
    units = {"devices": devices, "hosts": hosts, "ports": ports}
    rates = {
        cause: np.asarray(units[COUNTED_BY[cause]], dtype=np.float64) * failures_per_unit_s(fleet, cause)
        for cause in CAUSES
    }
    shared = {cause: size for cause, size in (sizes or {}).items() if counts_shared(fleet, cause)}
    return rates | {
        cause: np.ceil(np.asarray(hosts, dtype=np.float64) / size) * failures_per_unit_s(fleet, cause)
        for cause, size in shared.items()
    }


def counts_shared(fleet: Fleet, cause: str) -> bool:
    """Whether somebody counted how often such units of several hosts fail."""
    return cause in SHARED_CAUSES and getattr(fleet.figures, f"{cause}_failures") is not None


def failures_per_unit_s(fleet: Fleet, cause: str) -> float:
    """Failures a second of one device, host, port, rack, switch or feed: those counted, over units and time."""
    counted = getattr(fleet.figures, f"{cause}_failures").value
    return counted / (getattr(fleet, {**COUNTED_BY, **SHARED_CAUSES}[cause]) * fleet.figures.observed.value)


def host_ports(cluster: Cluster) -> int:
    """Network ports of a host that a failure can take; none where all devices are in one scale-up domain."""
    return cluster.ports


def mean_time_between_failures_s(rates: dict[str, Floats]) -> Floats:
    """Seconds between failures of the job, whatever the cause."""
    return 1.0 / np.maximum(sum(rates.values()), LEAST_RATE)


@lru_cache(maxsize=1)
def rate_factor() -> float:
    """:func:`spread_factor` of all fleets of the catalogue."""
    return spread_factor([load("fleets", name) for name in names("fleets")])


def spread_factor(fleets: list[Fleet]) -> float:
    """By that much the rate of a fleet nobody counted may be above or below what is expected, in nine of ten cases.

    ``exp(1.645 s)`` with ``s`` the standard deviation of the logarithm of failures a host between fleets.
    """
    logs = [math.log(_failures_per_host_s(fleet)) for fleet in fleets]
    return math.exp(NINE_OF_TEN * float(np.std(logs, ddof=1)))


def predicted_failures(
    fleets: list[Fleet], devices: int, hosts: int, ports: int, seconds: float
) -> tuple[float, float, float]:
    """How often a job is expected to fail in a time, as fleets did, with the range of nine in ten.

    The geometric mean over the fleets; the range has their spread ``s``, the error of a mean of so few, and chance:

        mean exp(-+ 1.645 sqrt(s^2 (1 + 1 / fleets) + 1 / mean))
    """
    counts = [
        float(sum(rate * seconds for rate in failures_per_s(fleet, devices, hosts, ports).values())) for fleet in fleets
    ]
    logs = np.log(counts)
    mean = math.exp(logs.mean())
    wide = NINE_OF_TEN * math.sqrt(float(logs.var(ddof=1)) * (1 + 1 / len(fleets)) + 1 / mean)
    return mean, mean * math.exp(-wide), mean * math.exp(wide)


def _failures_per_host_s(fleet: Fleet) -> float:
    return sum(failures_per_unit_s(fleet, cause) * getattr(fleet, COUNTED_BY[cause]) for cause in CAUSES) / fleet.hosts


def goodput_fraction(
    interval_s: ArrayLike, blocked_s: ArrayLike, behind_s: ArrayLike, restart_s: ArrayLike, mtbf_s: ArrayLike
) -> Floats:
    """Part of the time that is spent on work which is kept: ``tau``, ``C``, ``W``, ``R``, ``M`` above, in seconds."""
    interval, mtbf = np.asarray(interval_s, dtype=np.float64), np.asarray(mtbf_s, dtype=np.float64)
    cycle = (interval + blocked_s) / mtbf
    # exp(-a) / (exp(b) - 1) = exp(-a - b) / (1 - exp(-b)): no overflow, whatever the failures.
    return interval / mtbf * np.exp(-(np.asarray(restart_s) + behind_s) / mtbf - cycle) / -np.expm1(-cycle)


def restarting_fraction(restart_s: ArrayLike, mtbf_s: ArrayLike) -> Floats:
    """Part of the time spent on restarts: the mean of ``min(F, R)`` over ``M``, ``1 - exp(-R / M)``."""
    return -np.expm1(-np.asarray(restart_s, dtype=np.float64) / mtbf_s)


def young_interval_s(blocked_s: ArrayLike, mtbf_s: ArrayLike) -> Floats:
    """Seconds of work between checkpoints, to first order: ``sqrt(2 C M)``."""
    return np.sqrt(2.0 * np.asarray(blocked_s, dtype=np.float64) * mtbf_s)


def daly_interval_s(blocked_s: ArrayLike, mtbf_s: ArrayLike) -> Floats:
    """Seconds of work between checkpoints, to higher order.

    ``sqrt(2 C M) (1 + sqrt(C / 2 M) / 3 + C / 18 M) - C`` for ``C < 2 M``, else ``M``. Source: Daly (2006), eq. 37.
    """
    blocked, mtbf = np.asarray(blocked_s, dtype=np.float64), np.asarray(mtbf_s, dtype=np.float64)
    part = blocked / (2.0 * mtbf)
    series = young_interval_s(blocked, mtbf) * (1 + np.sqrt(part) / 3 + part / 9) - blocked
    return np.where(blocked < 2.0 * mtbf, series, mtbf)


def best_interval_s(blocked_s: ArrayLike, mtbf_s: ArrayLike) -> Floats:
    """Seconds of work between checkpoints at which :func:`goodput_fraction` is largest, whatever ``R`` and ``W`` are.

    The root ``x = tau / M`` of ``ln(1 - x) + x + C / M = 0``, by Newton's method from the right, where the function
    is concave and falls, so that no step goes past the root.
    """
    mtbf = np.asarray(mtbf_s, dtype=np.float64)
    cost = np.asarray(blocked_s, dtype=np.float64) / mtbf
    x = np.minimum(np.sqrt(2.0 * cost), -np.expm1(-(1.0 + cost)))
    for _ in range(20):
        with np.errstate(invalid="ignore", divide="ignore"):
            step = (np.log1p(-x) + x + cost) * (1.0 - x) / x
        x = np.where(x > 0, x + np.nan_to_num(step, nan=0.0), x)
    return mtbf * x


def hosts_away(rates: dict[str, Floats], fleet: Fleet) -> Floats:
    """Hosts in repair on the mean: taken out at ``replaced`` of the failures, back after ``repair_time``.

    Those of racks, switches and feeds are not among them: they go and come back together (:func:`outages`).
    """
    figures = fleet.figures
    alone = sum(rate for cause, rate in rates.items() if cause not in SHARED_CAUSES)
    return alone * figures.replaced.value * figures.repair_time.value


Outages = tuple[tuple[int, float, int], ...]
"""Hosts that go at once, how many such outages there are at a time on the mean, and how many units can be out."""


def outages(rates: dict[str, float], fleet: Fleet, sizes: dict[str, int], hosts: int) -> Outages:
    """Racks, switches and feeds of a job of so many hosts that are out, of those whose failures the rates hold."""
    length = fleet.figures.outage_time
    return tuple(
        (min(size, hosts), rates[cause] * length.value, -(-hosts // size))
        for cause, size in sizes.items()
        if cause in rates and length
    )


def enough_spares(away: float, spares: int, together: Outages = ()) -> float:
    """Part of the time in which at most ``spares`` hosts are away.

    A Poisson number of single hosts with mean ``away``, and of each kind of outage with its own, times its hosts.
    More outages than units count as all of them.
    """
    return float(_away_parts(away, together)[: spares + 1].sum())


def spares_needed(away: float, part: float = 0.999, together: Outages = ()) -> int:
    """Fewest spare hosts with which no host is missing in that part of the time."""
    return int(np.argmax(np.cumsum(_away_parts(away, together)) >= part))


def _away_parts(away: float, together: Outages) -> Floats:
    """Chances of 0, 1, ... hosts away."""
    parts = _poisson_parts(away)
    for size, mean, units in together:
        each = _poisson_parts(mean)
        each = np.append(each[:units], each[units:].sum()) if len(each) > units else each
        hosts = np.zeros((len(each) - 1) * size + 1)
        hosts[::size] = each
        parts = _of_the_sum(parts, hosts)
    return parts


def _of_the_sum(a: Floats, b: Floats) -> Floats:
    """Chances of 0, 1, ... of the sum of two independent numbers, to 1e-15: their transforms' product."""
    length = len(a) + len(b) - 1
    padded = 1 << (length - 1).bit_length()
    return np.clip(np.fft.irfft(np.fft.rfft(a, padded) * np.fft.rfft(b, padded), padded)[:length], 0.0, 1.0)


def _poisson_parts(mean: float) -> Floats:
    """Chances of 0, 1, ... so far that what is left out is below 1e-9."""
    mean = min(mean, float(MOST_DEVICES))
    if mean == 0:
        return np.ones(1)
    k = np.arange(1, math.ceil(mean + 8 * math.sqrt(mean) + 24))
    return np.exp(-mean + np.concatenate([[0.0], np.cumsum(np.log(mean / k))]))


def replicas_hit(rows: Rows, lost: int, domain_levels: int = 1) -> NDArray[np.int64]:
    """Copies of the model that lose a rank when ``lost`` neighbouring devices of a scale-up domain fail, ``[rows]``.

    Ranks of a level stand in the order tp, cp, dp, pp; copies that share it lie ``tp cp`` members apart.
    """
    f = rows.factors
    return _copies_met(rows, lost, domain_levels, f["tp"] * f["cp"], f["dp_shard"] * f["dp_replicate"])


def states_survive(rows: Rows, lost: int, domain_levels: int = 1) -> NDArray[np.bool_]:
    """Whether every shard that ``lost`` neighbouring devices hold has a copy elsewhere, ``[rows]``.

    Sharded states have ``dp_replicate`` copies, unsharded ones ``dp cp``.
    """
    f, sharded = rows.factors, (rows.zero >= 1)[:, None]
    apart = f["tp"] * np.where(sharded, f["cp"] * f["dp_shard"], 1)
    here = np.where(sharded, 1, f["cp"] * f["dp_shard"]) * f["dp_replicate"]
    copies = np.where(rows.zero >= 1, rows.dp_replicate, rows.dp * rows.cp)
    return copies > _copies_met(rows, lost, domain_levels, apart, here)


def _copies_met(
    rows: Rows, lost: int, domain_levels: int, apart: NDArray[np.int64], copies: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Of ``copies [rows, levels]`` that lie ``apart`` members from each other, those among ``lost`` neighbours.

    Neighbours fill a level before they reach the next one.
    """
    used, left = rows.used(), np.full(len(rows), lost)
    met = np.ones(len(rows), dtype=np.int64)
    for k in range(domain_levels):
        met = met * np.minimum(copies[:, k], -(-left // apart[:, k]))
        left = -(-left // used[:, k])
    return met
