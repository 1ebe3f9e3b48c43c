"""Every plan of one row that could be below a target, found by branching over its stages, from the last.

A partial split holds layers ``i`` to ``L - 1``. What it costs at least is, with ``P_s(i)`` the least work of the
first ``s`` stages on the layers before ``i``, and ``G_s(i)`` the least value of their worst path term:

    U = sum of t of the stages held      W = worst path term of the stages held
    bound = P_s(i) + U + max(W, U + G_s(i)) + 2 (pp - 1) hop + least tail of the first stage

Path terms and their conditions stand in :mod:`planner.checks.rederive`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.price import Prices
from planner.checks.rederive import Problem, TooManySplits, ticks_below
from planner.checks.rederive_offloads import offloading_layers
from planner.checks.weighing import Weighing

Ints = NDArray[np.int64]
NOTHING = -(2**60)
NEVER = 2**60
MOST_PARTIAL = 4_000_000
LEAVES_AT_ONCE = 4096


def least_value(it: Problem, prices: Prices, virtual: int, target: float, counts: dict[str, int]) -> float:
    """The least objective of the row's plans below ``target``; infinite when there is none.

    Raises ``TooManySplits`` when more partial splits stay open than are practical to hold.
    """
    if prices.rows.schedule != "1f1b":
        from planner.checks.branching_schedules import least_under_schedule

        return least_under_schedule(it, prices, target, counts)
    if virtual > 1:
        from planner.checks.branching_points import least_interleaved

        return least_interleaved(it, prices.with_virtual(virtual), counts)
    return least_of_stages(it, [Chain(it.model, prices, 0)], target, counts)


@dataclass(frozen=True)
class Groups:
    """Groups of neighbouring stages on hosts of one rate: so many stages each, and how many groups there are of the
    rates of the first one, two, ... chains."""

    stages: int
    at_least: tuple[int, ...]


def least_of_stages(
    it: Problem, chains: list[Chain], target: float, counts: dict[str, int], groups: Groups | None = None
) -> float:
    """The least objective below ``target`` of a 1F1B row's plans, each stage priced by one of ``chains``.

    They differ by the bandwidth of hosts, most first; ``groups`` says how many stages may have which.
    """
    counts["branched"] += 1
    chain = chains[0]
    most = ticks_below(it, chain.prices, target)
    stages = _stages(it, chains, most)
    if stages is None:
        return np.inf
    splits = _complete(chain, stages, most, Weighing.of(it, chain, stages, target), groups)
    counts["leaves"] += len(splits)
    return least_run(it, chain, stages, splits)


@dataclass(frozen=True)
class Held:
    """What one stage may hold, ``[choices]``: layers ``i`` to ``j - 1``, ticks, dynamic joules of one device, chain.

    Layers from ``x`` on keep one class of states more on the device than those before, from ``y`` on activations.
    """

    i: Ints
    j: Ints
    forward: Ints
    backward: Ints
    tail: Ints
    joules: NDArray[np.float64]
    rate: Ints
    weights: Ints
    x: Ints
    y: Ints

    @property
    def ticks(self) -> Ints:
        """Forward and backward of one micro-batch."""
        return self.forward + self.backward

    def take(self, index: NDArray) -> Held:
        """Some choices."""
        return Held(*(getattr(self, name)[index] for name in Held.__dataclass_fields__))

    @staticmethod
    def concat(parts: list[Held]) -> Held:
        """All choices of several."""
        return Held(*(np.concatenate([getattr(one, name) for one in parts]) for name in Held.__dataclass_fields__))


def _stages(it: Problem, chains: list[Chain], most: int) -> list[Held] | None:
    """Choices of every stage, those too long for any split below ``most`` left out; ``None`` when one has none.

    Segments are asked first as if bytes had prices (:mod:`planner.checks.whole_layers`), and written out if they stay.
    """
    segments = _short_enough(chains[0], _as_if_priced(it, chains), most)
    if segments is None:
        return None
    held = [_at_every_rate(it, chains, s, most, (one.i, one.j)) for s, one in enumerate(segments)]
    return _short_enough(chains[0], held, most)


def _as_if_priced(it: Problem, chains: list[Chain]) -> list[Held]:
    """Every segment of every stage with the least ticks that it takes at any price of bytes, by any of ``chains``."""
    from planner.checks.whole_layers import stages_of

    found, zero = [], np.zeros(1, dtype=np.int64)
    filled = [stages_of(it, chain.prices.take(zero + chain.row)) for chain in chains]
    for s in range(chains[0].pp):
        i, j = _segments(chains[0], s)
        least = np.min([some[s].ticks(i, j, zero) for some in filled], axis=0) * (1 - 1e-9)
        ticks = np.ceil(np.maximum(least, 0)).astype(np.int64)
        none = np.zeros_like(i)
        found.append(Held(i, j, ticks // 2, ticks - ticks // 2, none, none.astype(float), none, none, j, i))
    return found


def _short_enough(chain: Chain, held: list[Held], most: int) -> list[Held] | None:
    """Choices whose paths through the least of all others are below ``most``; ``None`` when a stage has none."""
    before, after = _least_work(chain, held)
    for s, stage in enumerate(held):
        rest_before, rest_after = before[s][stage.i], after[s + 1][stage.j]
        work = rest_before + stage.ticks + rest_after
        paths = work + np.maximum(_own_term(chain, s, stage), _return_term(chain, s, stage.ticks, rest_after))
        device = rest_before + chain.micro_batches * stage.ticks + 2 * s * chain.hop
        keep = np.maximum(paths + 2 * (chain.pp - 1) * chain.hop, device) < most
        held[s] = stage.take(np.flatnonzero(keep))
    return held if all(len(stage.i) for stage in held) else None


def _choices(it: Problem, chain: Chain, s: int, most: int, segments: tuple[Ints, Ints] | None = None) -> Held:
    """Segments of stage ``s``, all where none are said, with each recompute that is quickest, or least in joules where
    these count."""
    i, j = _segments(chain, s) if segments is None else segments
    passes = chain.forward(i, j, j, i) + chain.backward(i, j, j, i)
    if chain.nearer is not None:
        passes = np.minimum(passes, chain.forward(i, j, i, i) + chain.backward(i, j, i, i))
    short = chain.micro_batches * passes < most
    room, flight = it.limit_bytes - chain.fixed_bytes, _flight(chain, s)
    segments = offloading_layers(chain, i[short], j[short], room, flight, it.options.pins.get("recompute"))
    parts = [
        _recomputed(it, chain, s, *(column[at : at + 512] for column in segments))
        for at in range(0, max(1, len(segments[0])), 512)
    ]
    i, j, x, y, begin, full, selective = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    a, b = begin + full, begin + full + selective
    forward, extra = chain.forward(i, j, x, y), chain.recompute("full", begin, a) + chain.recompute("selective", a, b)
    backward = chain.backward(i, j, x, y) + extra
    weights = chain.weights(i, j)
    tail = chain.tail(chain.tail_parts(i, j, x), forward, backward if weights is None else weights)
    late = np.zeros_like(i) if weights is None else weights
    joules = _joules(chain, i, j, x, y) + chain.micro_batches * _joules_again(chain, begin, a, b)
    return Held(i, j, forward, backward, tail, joules, np.zeros_like(i), late, x, y)


def _at_every_rate(it: Problem, chains: list[Chain], s: int, most: int, segments: tuple[Ints, Ints]) -> Held:
    """Choices of stage ``s`` by every chain; of equal ones the one that asks for the least bandwidth."""
    found = [at_every_clock(it, chain, s, most, segments) for chain in chains]
    if len(found) == 1:
        return found[0]
    every = Held.concat([dataclasses.replace(one, rate=one.rate + k) for k, one in enumerate(found)])
    table = np.stack([every.i, every.j, every.x, every.y, every.forward, every.backward, every.tail, every.joules])
    order = np.lexsort((-every.rate, *table[::-1]))
    fresh = np.append(True, (np.diff(table[:, order], axis=1) != 0).any(axis=0))[: len(order)]
    return every.take(np.sort(order[fresh]))


def at_every_clock(it: Problem, chain: Chain, s: int, most: int, segments: tuple[Ints, Ints] | None = None) -> Held:
    """Choices of stage ``s`` at every clock; of a segment's those that none of its own which offloads alike equals in
    ticks and joules.
    """
    held = [_choices(it, chain.at(clock), s, most, segments) for clock in chain.clocks]
    if len(held) == 1:
        return held[0]
    every = Held.concat(held)
    order = np.lexsort((every.joules, every.ticks, every.y, every.x, every.j, every.i))
    keep, best, last = [], np.inf, None
    for k in order.tolist():
        segment = (int(every.i[k]), int(every.j[k]), int(every.x[k]), int(every.y[k]))
        best = np.inf if segment != last else best
        if every.joules[k] < best:
            keep.append(k)
            best = float(every.joules[k])
        last = segment
    return every.take(np.array(keep, dtype=np.int64))


def _segments(chain: Chain, s: int) -> tuple[Ints, Ints]:
    first = np.array([0]) if s == 0 else np.arange(s, chain.layers - (chain.pp - 1 - s))
    last = np.array([chain.layers]) if s == chain.pp - 1 else np.arange(s + 1, chain.layers - (chain.pp - 2 - s))
    i, j = (a.ravel() for a in np.meshgrid(first, last, indexing="ij"))
    return i[j > i], j[j > i]


def _joules(chain: Chain, i: Ints, j: Ints, x: Ints, y: Ints) -> NDArray[np.float64]:
    return chain.micro_batches * chain.joules_pass(i, j, x, y) + chain.joules_step(i, j, x)


def _joules_again(chain: Chain, begin: Ints, a: Ints, b: Ints) -> NDArray[np.float64]:
    extra = chain.prices.joules_extra
    return chain.total(extra["full"], begin, a, ends=False) + chain.total(extra["selective"], a, b, ends=False)


def _recomputed(it: Problem, chain: Chain, s: int, i: Ints, j: Ints, x: Ints, y: Ints) -> tuple[Ints, ...]:
    """Segments with where recompute begins and their useful (full, selective) counts that fit."""
    keeping, begin = chain.kept or chain, i if chain.kept is None or "recompute" in it.options.pins else y
    full, selective = recompute_pairs(it, int((j - begin).max(initial=0)))
    legal = full + selective <= (j - begin)[:, None]
    if "recompute" in it.options.pins:
        full, selective = np.minimum(full, (j - i)[:, None]), np.minimum(selective, (j - i)[:, None])
        legal = np.ones_like(full, dtype=bool)
    full, selective = np.broadcast_arrays(full, selective)
    full, selective = np.broadcast_to(full, legal.shape), np.broadcast_to(selective, legal.shape)
    a = np.minimum(begin[:, None] + full, j[:, None])
    b = np.minimum(a + selective, j[:, None])
    first = begin[:, None] if chain.kept is None else y[:, None]
    full_to, selective_to = np.maximum(a, first), np.maximum(b, first)
    kept = keeping.saved("full", first, full_to) + keeping.saved("selective", full_to, selective_to)
    kept = kept + keeping.saved("none", selective_to, j[:, None])
    flight = _flight(chain, s)
    fixed = chain.state_bytes(i, j, x) + chain.fixed_bytes + chain.logit_bytes(i, j) + flight * chain.saved_ends(i, j)
    fits = legal & (fixed[:, None] + flight * kept <= it.limit_bytes) & chain.tiers_hold(i, j, flight, x, y)[:, None]
    extra = chain.recompute("full", begin[:, None], a) + chain.recompute("selective", a, b)
    time = np.where(fits, extra, NEVER)
    if not it.counts_joules:
        pick = np.argmin(time, axis=1)
        fits = fits & (np.arange(fits.shape[1]) == pick[:, None])
    else:
        fits = fits & _not_worse(chain, begin[:, None], a, b, time, fits)
    row, at = np.nonzero(fits)
    return i[row], j[row], x[row], y[row], begin[row], full[row, at], selective[row, at]


def _flight(chain: Chain, s: int) -> int:
    """Micro-batches that a device of one stage holds at most."""
    first = {"zb-h1": chain.pp, "eager-1f1b": min(chain.schedule.in_flight - s, 2 * (chain.pp - s) - 1)}
    return min(chain.micro_batches, first.get(chain.schedule.kind, chain.pp - s))


def recompute_pairs(it: Problem, most: int) -> tuple[Ints, Ints]:
    """``(full, selective)`` counts, ``[1, pairs]``."""
    pin = it.options.pins.get("recompute")
    if pin is not None:
        return np.array([[most * (pin == "full")]]), np.array([[most * (pin == "selective")]])
    pairs = np.array([(a, b) for a in range(most + 1) for b in range(most + 1 - a)], dtype=np.int64)
    return pairs[None, :, 0], pairs[None, :, 1]


def _not_worse(chain: Chain, begin: Ints, a: Ints, b: Ints, time: Ints, fits: NDArray) -> NDArray[np.bool_]:
    """Pairs that no quicker one equals or beats in joules."""
    spent = np.where(fits, _joules_again(chain, begin, a, b), np.inf)
    order = np.lexsort((spent, time), axis=1)
    ranked = np.take_along_axis(spent, order, axis=1)
    before = np.concatenate([np.full((len(ranked), 1), np.inf), np.minimum.accumulate(ranked, axis=1)[:, :-1]], axis=1)
    keep = np.zeros_like(fits)
    np.put_along_axis(keep, order, ranked < before, axis=1)
    return keep


def _least_work(chain: Chain, held: list[Held]) -> tuple[list[Ints], list[Ints]]:
    """Least ticks of the stages below ``s`` on the layers below ``i``, and of the others on the others."""
    size, pp = chain.layers + 1, chain.pp
    before, after = [np.full(size, NEVER) for _ in range(pp + 1)], [np.full(size, NEVER) for _ in range(pp + 1)]
    before[0][0] = after[pp][chain.layers] = 0
    for s in range(pp):
        np.minimum.at(before[s + 1], held[s].j, np.minimum(before[s][held[s].i] + held[s].ticks, NEVER))
    for s in range(pp - 1, -1, -1):
        np.minimum.at(after[s], held[s].i, np.minimum(after[s + 1][held[s].j] + held[s].ticks, NEVER))
    return before, after


def _own_term(chain: Chain, s: int, stage: Held) -> Ints:
    """``(m - 1) max(f_s, b_s)`` where all of a stage's forwards come first, else nothing."""
    if chain.micro_batches > chain.pp - s:
        return np.zeros_like(stage.i)
    return (chain.micro_batches - 1) * np.maximum(stage.forward, stage.backward)


def _return_term(chain: Chain, s: int, ticks: Ints, above: Ints) -> Ints:
    """``(m - pp + s) t_s + sum_{j>s} t_j + 2 (pp - 1 - s) hop`` for ``m > pp - s``, else nothing."""
    times = chain.micro_batches - chain.pp + s
    if times <= 0:
        return np.full_like(ticks, NOTHING)
    return times * ticks + above + 2 * (chain.pp - 1 - s) * chain.hop


def _least_worst(chain: Chain, held: list[Held]) -> list[Ints]:
    """``G_s(i)``: the least worst return term of stages below ``s`` on layers below ``i``, work above not added."""
    worst = [np.full(chain.layers + 1, NEVER) for _ in range(chain.pp + 1)]
    worst[0][0] = NOTHING
    for s, stage in enumerate(held):
        own = _return_term(chain, s, stage.ticks, np.zeros_like(stage.i))
        below = worst[s][stage.i]
        through = np.where(below == NOTHING, NOTHING, np.minimum(stage.ticks + below, NEVER))
        np.minimum.at(worst[s + 1], stage.j, np.where(below == NEVER, NEVER, np.maximum(own, through)))
    return worst


def _complete(chain: Chain, held: list[Held], most: int, weighing: Weighing, groups: Groups | None) -> Ints:
    """``[splits, pp]`` positions in ``held`` of every complete split whose bounds are below ``most`` and the target."""
    asked = np.zeros((1, 1 if groups is None else len(groups.at_least)), dtype=np.int64)
    rate = np.zeros(1, dtype=np.int64)
    before, _ = _least_work(chain, held)
    least_worst = _least_worst(chain, held)
    fixed = 2 * (chain.pp - 1) * chain.hop + int(held[0].tail.min())
    picked, at = np.zeros((1, 0), dtype=np.int64), np.array([chain.layers])
    work, worst, spent = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), np.zeros((1, len(weighing.fixed)))
    for s in range(chain.pp - 1, -1, -1):
        old, new = joined(at, held[s])
        stage = held[s].take(new)
        term = np.maximum(_own_term(chain, s, stage), _return_term(chain, s, stage.ticks, work[old]))
        worst, work, at = np.maximum(worst[old], term), work[old] + stage.ticks, stage.i
        ends = stage.tail - int(held[0].tail.min()) if s == 0 else 0
        bound = before[s][at] + work + np.maximum(worst, work + least_worst[s][at]) + fixed + ends
        weighed = weighing.held[s][new] + spent[old]
        may = (bound < most) & weighing.below(s, at, weighed)
        if groups is not None:
            asked, free = _asked(groups, s, asked[old], rate[old], stage.rate)
            may &= free
        keep = np.flatnonzero(may)
        spent, rate = weighed[keep], stage.rate[keep]
        asked = asked[keep] if groups is not None else asked
        picked = np.concatenate([new[keep][:, None], picked[old[keep]]], axis=1)
        at, work, worst = at[keep], work[keep], worst[keep]
        if len(keep) > MOST_PARTIAL:
            raise TooManySplits(f"{len(keep)} partial splits of one row stay open")
    return picked


def _asked(groups: Groups, s: int, asked: Ints, above: Ints, rate: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Groups that splits with stage ``s`` at ``rate`` ask for, ``[splits, chains]``, and whether there are so many.

    A stage that is not the last of its group has the rate of the one ``above``.
    """
    if (s + 1) % groups.stages:
        return asked, rate == above
    asked = asked + (rate[:, None] <= np.arange(asked.shape[1]))
    return asked, (asked <= np.array(groups.at_least)).all(axis=1)


def joined(at: Ints, stage: Held) -> tuple[Ints, Ints]:
    """Pairs (partial split, choice) where the choice ends at the layer at which the split begins."""
    order = np.argsort(stage.j, kind="stable")
    ends = stage.j[order]
    low, high = np.searchsorted(ends, at, "left"), np.searchsorted(ends, at, "right")
    count = high - low
    old = np.repeat(np.arange(len(at)), count)
    within = np.arange(len(old)) - np.repeat(np.cumsum(count) - count, count)
    return old, order[low[old] + within]


def least_run(it: Problem, chain: Chain, held: list[Held], splits: Ints) -> float:
    """The least objective of complete splits, by the schedule itself."""
    best, size = np.inf, int(chain.prices.rows.stage_size[0])
    for at in range(0, len(splits), LEAVES_AT_ONCE):
        part = splits[at : at + LEAVES_AT_ONCE]
        column = {
            name: np.stack([getattr(stage, name)[part[:, s]] for s, stage in enumerate(held)], axis=1)
            for name in ("forward", "backward", "weights", "tail", "joules")
        }
        hop, split = np.full(len(part), chain.hop), column["weights"] if chain.schedule.split else None
        steps = chain.schedule.step_ticks(column["forward"], column["backward"], split, hop, column["tail"])
        values = it.values(chain.prices.rows, steps, column["joules"].sum(axis=1) * size, column["joules"])
        values[~_pools_hold(chain, held, part)] = np.inf
        best = min(best, float(values.min()))
    return best


def _pools_hold(chain: Chain, held: list[Held], splits: Ints) -> NDArray[np.bool_]:
    """Splits whose stages find room in every pool that they share."""
    fits = np.ones(len(splits), dtype=bool)
    for name, (devices, most) in chain.pools.items():
        total = np.zeros((len(splits), len(devices)), dtype=np.int64)
        for s, stage in enumerate(held):
            i, j, x, y = (column[splits[:, s]] for column in (stage.i, stage.j, stage.x, stage.y))
            flight = int(chain.schedule.flight(np.array([s]))[0])
            each = chain.tier_states(name, i, j, x) + flight * chain.tier_saved(name, i, j, y)
            total += each[:, None] * devices[:, s]
        fits &= (total <= most).all(axis=1)
    return fits
