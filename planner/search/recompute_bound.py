"""How long the slowest stage of a row is at least, when memory makes stages recompute.

Stage ``s`` holds ``flight_s`` micro-batches of what its layers keep, beside their states, in ``room_s`` bytes. Each
way to recompute a layer keeps ``saved`` bytes a micro-batch and takes ``extra`` ticks. At any price ``q`` of a byte, in
ticks, a stage whose layers work ``w`` ticks a micro-batch therefore lasts

    t >= w        t >= w / R_q - q room / flight
    R_q = max_kind  work / (work + min_choice (extra + q saved) + q state / flight)

so that ``w <= min(t, R_q (t + q room / flight))``: concave in ``t``. The prices taken are the slopes of each kind's
lower hull of ``(saved, extra)``, where the bound is as high as any price makes it for layers of that kind. Where layers
may keep one class of states more on the device (:mod:`cost_models.offload`), that is one more choice of each, ``work``
the lesser of both and ``work + q state / flight`` the least of what either takes; its price is the ticks that letting
the class go costs over the bytes a micro-batch in flight that it frees, ``(state' - state) / flight``. No split has
every stage at most ``t`` long where these do not sum to the work of all layers. Newton's steps from the balanced split
reach the least such ``t`` from below, so each of them is a bound. With ``t`` the longest stage, ``S`` the work of all
stages, and ``m`` micro-batches:

    any schedule      step >= m t
    1F1B, m > pp      step >= (1 + r) (S + 2 (pp - 1) hop) + S + (m - pp - 1 - r pp) t + tail_0

The second is the return path of the longest stage ``s``, ``S + (m - pp + s) t + sum_{j>s} t_j``, in which the stages up
to ``s`` take at most ``(s + 1) t`` of ``S``. Virtual stages keep no less than 1F1B does (:mod:`planner.search.bounds`).

Interleaved, every device but the first and the last has ``L / pp`` layers at least, in ``v`` equal parts, of which it
holds ``min(m v, 2 (pp - d - 1) + (v - 1) pp + 1)`` at its fullest moment. Where all layers are alike these are

    flight_d = min(m, pp + (pp - 2 d - 1) / v)        t_d >= L / pp (work / R_q) - q room / flight_d
    step >= m t_d + d (chunk + 2 hop)

since the first parts of the devices before ``d`` come first and go back last. Of a range of ``v`` the one that keeps
the least is taken. Where layers differ, parts do, and 1F1B's ``flight`` stays.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.model_graph import ModelGraph
from cost_models.offload import lightest
from cost_models.price import Prices
from cost_models.rows import Rows
from cost_models.strategy import RECOMPUTE
from planner.search.bounds import ROWS_AT_ONCE, Stages, first_part, kind_counts, rounds_of, stages_of, tail_bound
from planner.search.tier_bound import least_step

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
NEWTON_STEPS = 5


@dataclass(frozen=True)
class ForcedRecompute:
    """The two bounds of the module in ticks, ``[rows]``."""

    any_schedule: Floats
    one_f_one_b: Floats


def forced_recompute(prices: Prices, model: ModelGraph, limit_bytes: int, *, buffers: bool) -> ForcedRecompute:
    """Ticks that no split of a row's layers, and no recompute that fits, can beat; ``buffers`` where they are known.

    Where layers may offload differently that of 1F1B is :func:`planner.search.tier_bound.least_step`.
    """
    parts = np.array_split(np.arange(len(prices.rows)), max(1, -(-len(prices.rows) // ROWS_AT_ONCE)))
    some = (prices if len(parts) == 1 else prices.take(part) for part in parts)
    slowest = np.concatenate([longest_stage(it, model, limit_bytes, buffers=buffers) for it in some])
    m, pp, light = prices.rows.micro_batches, prices.rows.pp, lightest(prices)
    work, tail = (light.forward + light.backward) @ kind_counts(model), tail_bound(light, model)
    once = work + 2 * (pp - 1) * prices.hop
    filled = once + work + (m - pp - 1) * slowest + tail + np.maximum(rounds_of(pp, m) * (once - pp * slowest), 0)
    alone = m * slowest + np.where(pp == 1, tail, 0.0)
    plain = np.maximum(alone, np.where(m > pp, filled, 0.0))
    if prices.kept is not None:
        plain = least_step(prices, model, limit_bytes, plain, slowest, buffers=buffers)
    return ForcedRecompute(m * slowest, plain)


def longest_stage(prices: Prices, model: ModelGraph, limit_bytes: int, *, buffers: bool) -> Floats:
    """Ticks a micro-batch that the slowest stage lasts at least, ``[rows]``."""
    counts = kind_counts(model)
    present = np.flatnonzero(counts[:-2])
    light = lightest(prices)
    each = (light.forward + light.backward)[:, present].astype(float)
    work, ends = each @ counts[present], prices.forward[:, -2:] + prices.backward[:, -2:]
    stages = stages_of(prices, limit_bytes, buffers=buffers)
    own = np.zeros(stages.flight.shape)
    own[0] = ends[:, 0]
    own[prices.rows.pp - 1, np.arange(len(own[0]))] += ends[:, 1]
    every = [*_prices_of_a_byte(prices, present), *_prices_of_states(prices, present, stages)]
    lines = [_line(prices, light, present, stages, price) for price in every]
    least = (work + ends.sum(axis=1)) / prices.rows.pp
    for _ in range(NEWTON_STEPS):
        reached, slope = _held(lines, least - own)
        reached = np.where(stages.exists, reached, 0.0).sum(axis=0)
        slope = np.where(stages.exists, slope, 0.0).sum(axis=0)
        least = least + np.maximum(work - reached, 0.0) / slope
    return least


def forced_interleaved(
    prices: Prices, model: ModelGraph, limit_bytes: int, virtual: tuple[Ints, Ints], *, buffers: bool
) -> Floats:
    """Ticks that no interleaved schedule with ``virtual`` (fewest, most) stages a device can beat, ``[rows]``."""
    parts = np.array_split(np.arange(len(prices.rows)), max(1, -(-len(prices.rows) // ROWS_AT_ONCE)))
    return np.concatenate(
        [_interleaved(prices.take(at), model, limit_bytes, tuple(v[at] for v in virtual), buffers) for at in parts]
    )


def _interleaved(
    prices: Prices, model: ModelGraph, limit_bytes: int, virtual: tuple[Ints, Ints], buffers: bool
) -> Floats:
    present = np.flatnonzero(kind_counts(model)[:-2])
    stages, rows = stages_of(prices, limit_bytes, buffers=buffers), prices.rows
    device = np.arange(len(stages.flight))[:, None]
    if len(present) == 1:
        stages = dataclasses.replace(stages, flight=np.maximum(stages.flight, least_in_flight(device, rows, virtual)))
    busiest = np.zeros(stages.flight.shape)
    for price in _prices_of_a_byte(prices, present):
        least = np.minimum.reduce([_work_and_held(prices, kind, stages, price) for kind in present])
        busiest = np.maximum(busiest, model.layers / rows.pp * least - price * stages.room / stages.flight)
    chunk = (prices.forward + prices.backward)[:, present].min(axis=1) * first_part(model, rows.pp, virtual[1])
    middle = (device > 0) & (device < rows.pp - 1)
    return np.where(middle, rows.micro_batches * busiest + device * (chunk + 2 * prices.hop), 0.0).max(axis=0)


def least_in_flight(device: Ints, rows: Rows, virtual: tuple[Ints, Ints]) -> Floats:
    """``flight_d`` in micro-batches of all a device's layers, ``[devices, rows]``: least over the range of ``v``."""
    beyond = rows.pp - 2 * device - 1
    return np.minimum(rows.micro_batches, rows.pp + beyond / np.where(beyond > 0, virtual[1], virtual[0]))


def _held(lines: list[tuple[Floats, Floats]], t: Floats) -> tuple[Floats, Floats]:
    """Work that fits into ``t`` ticks, ``[stages, rows]``, and how fast that grows with ``t``."""
    held, slope = t, np.ones_like(t)
    for rate, credit in lines:
        limited = rate * (t + credit)
        slope = np.where(limited < held, rate, slope)
        held = np.minimum(held, limited)
    return held, slope


def _line(prices: Prices, light: Prices, present: Ints, stages: Stages, price: Floats) -> tuple[Floats, Floats]:
    """``R_q`` and ``q room / flight``, ``[stages, rows]``, for a ``price`` of a byte, ``[rows]`` or of every stage.

    ``light`` are the lightest of ``prices``.
    """
    rate = np.zeros(stages.flight.shape)
    for kind in present:
        work = light.forward[:, kind] + light.backward[:, kind]
        rate = np.maximum(rate, work / _work_and_held(prices, kind, stages, price))
    return rate, price * stages.room / stages.flight


def _work_and_held(prices: Prices, kind: int, stages: Stages, price: Floats) -> Floats:
    """``work / R_q`` of one kind: its ticks, recompute and kept bytes at their price, ``[stages, rows]``."""
    ways = [prices.extra[choice][:, kind] + price * prices.saved[choice][:, kind] for choice in RECOMPUTE]
    sorts = [prices] if prices.nearer is None else [prices, prices.nearer]
    passes = [
        it.forward[:, kind] + it.backward[:, kind] + price * it.state_bytes[:, kind] / stages.flight for it in sorts
    ]
    return np.minimum.reduce(passes) + np.minimum.reduce(ways)


def _prices_of_a_byte(prices: Prices, present: NDArray[np.int64]) -> list[Floats]:
    """Slopes of the lower hull of ``(saved, extra)`` of each kind of layer, in ticks a byte, ``[rows]`` each.

    From keeping all to the cheapest way a byte, then on to recomputing in full; 0 where there is nothing to save.
    """
    found = []
    for kind in present:
        none, selective, full = (prices.saved[choice][:, kind].astype(float) for choice in RECOMPUTE)
        some, all_ = prices.extra["selective"][:, kind], prices.extra["full"][:, kind]
        found.append(np.minimum(_slope(some, none - selective), _slope(all_, none - full)))
        found.append(_slope(all_ - some, selective - full))
    return [np.where(np.isfinite(price), np.maximum(price, 0.0), 0.0) for price in found]


def _prices_of_states(prices: Prices, present: Ints, stages: Stages) -> list[Floats]:
    """Ticks a byte of each kind of layer that lets one class of states go, ``[stages, rows]`` each; 0 where it may not.

    A layer takes its ways to recompute and to keep states independently, so the slopes of both hulls are all there are.
    """
    nearer, found = prices.nearer, []
    for kind in present if nearer is not None else ():
        ticks = (prices.forward + prices.backward - nearer.forward - nearer.backward)[:, kind]
        slope = _slope(np.maximum(ticks, 0), (nearer.state_bytes - prices.state_bytes)[:, kind])
        found.append(np.where(np.isfinite(slope), slope, 0.0) * stages.flight)
    return found


def _slope(ticks: Floats, saved_bytes: Floats) -> Floats:
    return np.where(saved_bytes > 0, ticks / np.maximum(saved_bytes, 1.0), np.inf)
