"""Where the KV cache of a model that decodes lies on a cluster, and what that does to the time of one token.

One row of :class:`cost_models.kv_cache.DecodeRows` is asked, what does not stay on the device going to the quickest
tier first or to all at once, whichever makes the quicker token; and beside it the same with all of that in each tier
alone, and with device memory that is large enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration, calibrate
from cost_models.decoding import DecodedToken, decoded_token
from cost_models.kv_cache import (
    DecodeRows,
    Held,
    balanced_shares,
    cache_bytes_per_token,
    check_decoder,
    decode_rates,
    held,
    logit_bytes,
    shares,
)
from cost_models.model_graph import ModelGraph
from cost_models.money import hosts_usd_per_s
from cost_models.tiers import TierRates
from cost_models.workload import PRECISIONS, Precision
from planner.errors import BadInput, InfeasiblePlan
from planner.options import tiers_of
from planner.read_model import read_model
from topologies.cluster import Cluster
from topologies.ready import read_cluster
from topologies.tiers import with_tiers
from topologies.units import quantity_text

Floats = NDArray[np.float64]
MOST = 2**24
ON_DEVICE = "device memory"


@dataclass(frozen=True, slots=True)
class Place:
    """Device memory or a tier: room for the cache, what of it lies there, and what a token reads; bytes of a device.

    ``alone_s`` is the token if all that does not stay on the device lay here, ``None`` where it has no room; of device
    memory the token if it held everything. ``attends`` says that queries go there instead of the cache coming.
    """

    name: str
    room_bytes: float
    holds_bytes: float
    share: float
    alone_s: float | None
    attends: bool = False


@dataclass(frozen=True, slots=True)
class KvCache:
    """The answer: places, seconds of one token by term, joules and money of a copy a token of every sequence.

    ``most_context`` and ``most_batch`` are what stays on the device with the other as asked, the former no more than
    the model's ``max_positions`` where it has a limit.
    """

    model: str
    cluster: str
    batch: int
    context: int
    tp: int
    pp: int
    copies: int
    weights: Precision
    cache: Precision
    bytes_per_token: float
    weight_bytes: float
    places: tuple[Place, ...]
    terms: dict[str, float]
    joules: float
    usd_per_s: float | None
    most_context: int
    most_batch: int
    max_positions: int | None

    @property
    def token_s(self) -> float:
        """Seconds from one token of a sequence to its next."""
        return sum(self.terms.values())

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of all copies."""
        return self.copies * self.batch / self.token_s

    @property
    def copies_of_keys(self) -> int:
        """Devices of one copy of the model that hold the same keys and values; 1 where each is held once."""
        whole = sum(place.holds_bytes for place in self.places) * self.tp * self.pp
        return max(1, round(whole / (self.bytes_per_token * self.batch * self.context)))

    @property
    def joules_per_token(self) -> float:
        """Joules at the facility's meter for one token of one sequence."""
        return self.joules / self.batch

    @property
    def usd_per_million(self) -> float | None:
        """Rent for a million tokens; ``None`` without a price."""
        return None if self.usd_per_s is None else 1e6 * self.usd_per_s / self.tokens_per_s

    def as_json(self) -> dict[str, Any]:
        """The answer as one JSON object."""
        derived = ("token_s", "tokens_per_s", "joules_per_token", "usd_per_million")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}


def kv_cache(
    model: Any, cluster: str | Cluster, *, context: int, batch: int, tp: int | None = None, pp: int | None = None,
    tiers: Any = "all", weights: Precision = "bf16", cache: Precision = "bf16", headroom: float = 0.05,
) -> KvCache:  # fmt: skip
    """Where the cache of ``batch`` sequences of ``context`` tokens lies, for each copy of a model on ``cluster``.

    Copies of ``tp * pp`` devices fill the cluster. ``tp`` is by default what a host holds and the model's sizes let,
    ``pp`` the fewest stages whose weights fit. ``tiers`` are words as of :func:`planner.plan`; ``all`` may be none.

    Raises ``BadInput`` for numbers that are none, ``InfeasiblePlan`` where weights or cache have no place.
    """
    graph, machine = read_model(model), _machine(cluster, tiers)
    check_decoder(graph)
    _check(graph, context=context, batch=batch, weights=weights, cache=cache, headroom=headroom)
    fits, ranks = calibrate(machine), _ranks(graph, machine, tp)
    asked = DecodeRows.of(batch, context, ranks, weights=weights, cache=cache)
    rows = _staged(graph, machine, asked, pp, fits, headroom)
    asking = _Asking(graph, machine, rows, fits, headroom)
    return asking.answer()


@dataclass(frozen=True)
class _Asking:
    """One row on one machine."""

    model: ModelGraph
    machine: Cluster
    rows: DecodeRows
    fits: Calibration
    headroom: float

    def answer(self) -> KvCache:
        it, rates = held(self.model, self.machine, self.rows, self.fits, self.headroom), self._rates(self.rows)
        share = shares(it, rates)
        self._check_placed(it, share, rates)
        found = [(self._token(one, rates), one) for one in (share, balanced_shares(it, rates))]
        token, share = min(found, key=lambda pair: float(pair[0].seconds[0]))
        rows, number = self.rows, {name: int(getattr(self.rows, name)[0]) for name in ("tp", "pp", "copies")}
        rent = hosts_usd_per_s(float(rows.hosts(self.machine)[0]), self.machine)
        batch, context = int(rows.batch[0]), int(rows.context[0])
        return KvCache(
            model=self.model.name, cluster=self.machine.name, batch=batch, context=context, **number,
            weights=rows.weights, cache=rows.cache,
            bytes_per_token=cache_bytes_per_token(self.model, context, rows.cache),
            weight_bytes=float(it.weights.max()),
            places=self._places(it, share, rates),
            terms={name: float(seconds[0]) for name, seconds in token.terms.items()},
            joules=float(token.joules[0]), usd_per_s=rent,
            most_context=_most(lambda n: self._stays(context=n), self.model.max_positions or MOST),
            most_batch=_most(lambda b: self._stays(batch=b), MOST),
            max_positions=self.model.max_positions or None,
        )  # fmt: skip

    def _token(self, share: Floats, rates: TierRates) -> DecodedToken:
        return decoded_token(self.model, self.machine, self.rows, share, rates, self.fits)

    def _rates(self, rows: DecodeRows) -> TierRates:
        return decode_rates(rows, self.machine.tiers, self.machine)

    def _stays(self, **changed: int) -> bool:
        """Whether the cache stays on the device with another batch or context."""
        rows = dataclasses.replace(self.rows, **{name: np.array([float(n)]) for name, n in changed.items()})
        return bool(held(self.model, self.machine, rows, self.fits, self.headroom).kept[0] >= 1)

    def _places(self, it: Held, share: Floats, rates: TierRates) -> tuple[Place, ...]:
        """Device memory first, then the tiers as the cluster has them."""
        whole, spilled = float(it.cache.max()), float(1 - it.kept[0])
        alone = self._alone(spilled, len(self.machine.tiers))
        room = [float(it.room.min()), *(float(size) for size in rates.room_bytes[0])]
        parts = [1 - float(share.sum()), *share[0].tolist()]
        fits = [True, *(size >= whole * spilled for size in room[1:])]
        attends = [False, *np.isfinite(rates.attend[0]).tolist()]
        names = [ON_DEVICE, *(tier.name for tier in self.machine.tiers)]
        return tuple(
            Place(name, room[k], whole * parts[k], parts[k], float(alone[k]) if fits[k] else None, attends[k])
            for k, name in enumerate(names)
        )

    def _alone(self, spilled: float, tiers: int) -> Floats:
        """Seconds of a token with everything on the device, then with what spills in each tier alone."""
        share = np.concatenate([np.zeros((1, tiers)), spilled * np.eye(tiers)])
        columns = {name: np.repeat(getattr(self.rows, name), 1 + tiers) for name in _COLUMNS}
        rows = dataclasses.replace(self.rows, **columns)
        return decoded_token(self.model, self.machine, rows, share, self._rates(rows), self.fits).seconds

    def _check_placed(self, it: Held, share: Floats, rates: TierRates) -> None:
        """Raises ``InfeasiblePlan`` where device memory and tiers together do not hold the cache."""
        kept, whole = float(it.kept[0]), float(it.cache.max())
        if kept + float(share.sum()) >= 1 - 1e-9:
            return
        rooms = [f"{t.name} {quantity_text(float(size), 'B')}"
                 for t, size in zip(self.machine.tiers, rates.room_bytes[0], strict=True)]  # fmt: skip
        staged = f"{quantity_text(float(it.staged[0]), 'B')} for {int(self.rows.together[0])} sequences of a pass"
        beside = f" (two layers on their way need {staged})" if rooms else ""
        raise InfeasiblePlan(
            f"{int(self.rows.batch[0])} sequences of {int(self.rows.context[0])} tokens keep "
            f"{quantity_text(whole, 'B')} a device; weights leave {quantity_text(max(0.0, float(it.room.min())), 'B')} "
            f"of device memory{beside}, tiers {', '.join(rooms) or 'none'}. Any of: fewer --batch, shorter --context, "
            "--cache fp8, more --pp or --tp, --tiers such as cxl-expander:8"
        )


_COLUMNS = ("batch", "context", "tp", "pp", "copies")


def _most(stays: Callable[[int], bool], limit: int) -> int:
    """The largest number up to ``limit`` for which the cache stays, 0 for none; more never stays where fewer do not."""
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if stays(middle) else (low, middle)
    return low


def _machine(cluster: str | Cluster, tiers: Any) -> Cluster:
    machine, words = read_cluster(cluster), tiers_of(tiers)
    if machine.irregular is not None:
        raise BadInput(
            f"hosts of {machine.name!r} differ, and copies of a model are alike; name a cluster of equal hosts"
        )
    return machine if words == ("all",) and not machine.present_tiers else with_tiers(machine, words)


def _check(model: ModelGraph, *, context: int, batch: int, weights: str, cache: str, headroom: float) -> None:
    """Raises ``BadInput`` naming what is wrong and its limits."""
    most = model.max_positions or MOST
    _check_whole("context", context, most, f"positions of {model.name!r}" if model.max_positions else "tokens")
    _check_whole("batch", batch, MOST, "sequences")
    for name, value in (("weights", weights), ("cache", cache)):
        if value not in PRECISIONS:
            raise BadInput(f"--{name} {str(value)[:40]!r} is none of {', '.join(PRECISIONS)}")
    if isinstance(headroom, bool) or not isinstance(headroom, int | float) or not 0 <= headroom < 1:
        raise BadInput(f"--headroom {str(headroom)[:40]!r} is no number from 0 to below 1; write 0.05 for 5%")


def _check_whole(name: str, value: object, most: int, what: str) -> None:
    """Raises ``BadInput`` unless the option is a whole number from 1 to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadInput(f"--{name} {str(value)[:40]!r} is no whole number; give one from 1 to {most}")
    if not 1 <= value <= most:
        given = value if abs(value) < 10**18 else "beyond 10**18"
        raise BadInput(f"--{name} {given} is outside 1 to {most}, {what}")


def _ranks(model: ModelGraph, machine: Cluster, tp: int | None) -> int:
    """The tensor-parallel degree: as asked, or the largest that a host holds. Raises ``BadInput`` for none that is."""
    most = min(machine.domain_devices, machine.devices)
    if tp is not None:
        _check_whole("tp", tp, most, f"devices of a scale-up domain of {machine.name!r}")
    inside = [level.fanout for level in machine.levels[: machine.domain_levels]]
    legal = [t for t in range(1, most + 1) if _fills(t, inside)
             and all(width % t == 0 for _, width in model.widths)]  # fmt: skip
    if tp is None:
        return max(t for t in legal if t <= machine.devices_per_host)
    if tp not in legal:
        raise BadInput(f"--tp {_illegal(model, machine, tp, inside)}; legal: {', '.join(map(str, legal))}")
    return tp


def _illegal(model: ModelGraph, machine: Cluster, tp: int, inside: list[int]) -> str:
    """Why that tensor-parallel degree is none: the model's sizes, or the scale-up domain."""
    if any(width % tp for _, width in model.widths):
        sizes = ", ".join(f"{width} {name}" for name, width in model.widths)
        return f"{tp} does not divide the sizes of {model.name!r} ({sizes})"
    domain = " x ".join(map(str, inside))
    return f"{tp} divides the sizes of {model.name!r}, but not a scale-up domain of {domain} devices"


def _fills(tp: int, inside: list[int]) -> bool:
    """Whether so many ranks lie on the levels of a domain, innermost first."""
    for fanout in inside:
        here = int(np.gcd(tp, fanout))
        tp //= here
        if tp > 1 and here < fanout:
            return False
    return tp == 1


def _staged(
    model: ModelGraph, machine: Cluster, asked: DecodeRows, pp: int | None, fits: Calibration, headroom: float
) -> DecodeRows:
    """The row with its stages, and copies that fill the cluster. Raises ``InfeasiblePlan`` where weights do not fit."""
    tp = int(asked.tp[0])
    most = min(machine.devices // tp, model.layers)
    if pp is not None:
        _check_whole("pp", pp, most, f"stages of {machine.devices} devices in groups of tp={tp}, {model.layers} layers")
    counts = np.arange(1, most + 1, dtype=float) if pp is None else np.array([float(pp)])
    every = {name: np.repeat(getattr(asked, name), len(counts)) for name in _COLUMNS}
    rows = dataclasses.replace(asked, **every | {"pp": counts, "copies": np.floor(machine.devices / tp / counts)})
    it = held(model, machine, rows, fits, headroom)
    fitting = np.flatnonzero(it.room.min(axis=1) > 0)
    if not len(fitting):
        raise _no_room(model, rows, it, machine.memory_bytes * (1 - headroom))
    first = fitting[:1]
    return dataclasses.replace(rows, **{name: getattr(rows, name)[first] for name in _COLUMNS})


def _no_room(model: ModelGraph, rows: DecodeRows, it: Held, there: float) -> InfeasiblePlan:
    """What takes the device's memory where it is nearest to enough, and what would make it less."""
    best = int(np.argmax(it.room.min(axis=1)))
    stage = int(np.argmin(it.room[best]))
    weights, logits = float(it.weights[best, stage]), float(logit_bytes(model, rows)[best])
    rest = there - float(it.room[best, stage]) - weights - logits
    takes = [
        (weights, f"weights of {model.name!r} in {rows.weights}"),
        (logits, f"one pass's logits of {int(rows.together[best])} sequences"),
        (rest, "the driver and communicators"),
    ]
    (first, what), *others = sorted(takes, reverse=True)
    ways = "fewer --batch, more --tp or --pp" if first == logits else "more hosts, more --pp or --tp, --weights fp8"
    return InfeasiblePlan(
        f"{what} take {quantity_text(first, 'B')} a device at tp={int(rows.tp[best])}, pp={int(rows.pp[best])}, "
        + ", ".join(f"{thing} {quantity_text(size, 'B')}" for size, thing in others)
        + f"; {quantity_text(there, 'B')} are there. Any of: {ways}"
    )
