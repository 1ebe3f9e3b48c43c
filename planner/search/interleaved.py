"""Rows under another schedule than 1F1B: few legal cuts, one fitting recompute each, so each is a point, not a choice.

Virtual stages hold equally many layers, where the embedding, the head or both may count as one layer
(``L``, ``L + 1`` or ``L + 2`` divided by ``pp v``), as Megatron-LM cuts them; so do stages of the schedules of
:mod:`cost_models.schedules` that have one a device. Each device recomputes in the
same way in all its virtual stages, and takes the quickest (full, selective) counts that fit. All devices have one
clock.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.clocks import FULL
from cost_models.critical_paths import Path
from cost_models.estimate import Runs, device_tails
from cost_models.long_paths import longest_path
from planner.search.bounds import Objective
from planner.search.incumbent import Found, judge

Ints = NDArray[np.int64]
PATTERNS = ((0, 0), (0, 1), (1, 0), (1, 1))
MOST_KNOWN, MOST_NODES = 24, 40_000
"""Paths that are learned of schedules of one shape, and nodes of a schedule whose path is looked for, at most."""


@lru_cache(maxsize=4096)
def even_cuts(layers: int, pp: int, virtual: int) -> tuple[tuple[int, ...], ...]:
    """Boundaries of every legal cut of ``layers`` into ``pp * virtual`` equal parts, ends counted or not."""
    chunks, found = pp * virtual, []
    for first, last in PATTERNS:
        size, rest = divmod(layers + first + last, chunks)
        if rest == 0 and size > max(first, last):
            sizes = [size] * chunks
            sizes[0] -= first
            sizes[-1] -= last
            found.append((0, *np.cumsum(sizes).tolist()))
    return tuple(found)


@lru_cache(maxsize=1024)
def legal_virtual(layers: int, pp: int) -> tuple[int, ...]:
    """Numbers of virtual stages a device, above 1, for which some cut is even."""
    return tuple(v for v in range(2, layers // pp + 1) if even_cuts(layers, pp, v)) if pp > 1 else ()


def point(
    chain: Chain, cut: Ints, objective: Objective, stage_size: int, limit_bytes: int, pinned: str | None, beat: float,
    clock: float = FULL, known: list[Path] | None = None,
) -> Found | None:  # fmt: skip
    """The plan of one cut at one clock, or ``None`` when it does not fit or must be worse than ``beat``.

    ``known`` are paths learned from others of the same pp, virtual stages and micro-batches, by which it may be seen to
    be worse without running the schedule; it grows by those of plans that turn out to be.
    """
    runs = worth_running(chain, cut, objective, limit_bytes, pinned, beat, clock, known)
    if runs is None:
        return None
    found = judge(chain, runs, objective, stage_size, limit_bytes, (clock,) * chain.pp)
    if known is not None and found is not None and found.value > beat:
        _learn(chain, found, known)
    return found


def worth_running(
    chain: Chain, cut: Ints, objective: Objective, limit_bytes: int, pinned: str | None, beat: float,
    clock: float = FULL, known: list[Path] | None = None,
) -> Runs | None:  # fmt: skip
    """The layers and recompute of one cut at one clock; ``None`` where :func:`point` needs no schedule to say so."""
    chain, choices = chain.at(clock), []
    for device in range(chain.pp):
        choice = device_recompute(chain, cut, device, limit_bytes, pinned)
        if choice is None or _busy(chain, cut, device, choice, objective) * (1 - 1e-12) > beat:
            return None
        choices.append(choice)
    runs = [_runs(cut, c, choices[device]) for c, device in enumerate(chain.schedule.devices)]
    return None if _bound(chain, cut, runs, objective, known or []) * (1 - 1e-12) > beat else runs


def _learn(chain: Chain, found: Found, known: list[Path]) -> None:
    """Add the longest path of a plan to those that are known, where schedule and list are not too long."""
    window = min(chain.micro_batches, 2 * chain.schedule.settling)
    if len(known) < MOST_KNOWN and 2 * chain.pp * chain.virtual * window <= MOST_NODES:
        e = found.evaluation
        known.append(longest_path(chain.schedule, e.forward, e.backward, chain.hop, e.tail, e.weights, e.hidden))


def best_point(
    chain: Chain, cut: Ints, objective: Objective, stage_size: int, limit_bytes: int, pinned: str | None, beat: float
) -> Found | None:
    """The plan of one cut at the clock that suits it best; ``None`` as :func:`point`."""
    plans = [point(chain, cut, objective, stage_size, limit_bytes, pinned, beat, clock) for clock in chain.clocks]
    return min((plan for plan in plans if plan is not None), key=lambda plan: plan.value, default=None)


def _busy(chain: Chain, cut: Ints, device: int, choice: tuple[int, int], objective: Objective) -> float:
    """The objective's least value by the work of one device alone."""
    mine = chain.schedule.stages_of(device)
    i, j = cut[mine], cut[mine + 1]
    a = np.minimum(i + choice[0], j)
    b = np.minimum(a + choice[1], j)
    again = chain.recompute("full", i, a) + chain.recompute("selective", a, b)
    ticks = chain.schedule.rounds * int((chain.forward(i, j) + chain.backward(i, j) + again).sum())
    if (hidden := chain.hidden(i, j)) is not None:
        ticks -= sum(int(times[mine] @ less) for times, less in zip(chain.schedule.beside(), hidden, strict=True))
    return float(objective.weight[0]) * ticks * chain.prices.ticks.second


def _runs(cut: Ints, c: int, choice: tuple[int, int]) -> list[tuple[str, int, int]]:
    i, j = int(cut[c]), int(cut[c + 1])
    a = min(i + choice[0], j)
    b = min(a + choice[1], j)
    return [(kind, x, y) for kind, x, y in (("full", i, a), ("selective", a, b), ("none", b, j)) if y > x]


def _bound(chain: Chain, cut: Ints, runs: Runs, objective: Objective, known: list[Path]) -> float:
    """The objective's least value by the seed paths and known ones, without running the schedule."""
    i, j = cut[:-1], cut[1:]
    forward = chain.forward(i, j)
    again = np.array([sum(int(chain.recompute(kind, a, b)) for kind, a, b in stage) for stage in runs])
    backward = chain.backward(i, j) + again
    weights = chain.weights(i, j)
    tail = device_tails(chain, i, j, forward, backward if weights is None else weights)
    paths = (*chain.schedule.seed_paths(), *known)
    hidden = chain.hidden(i, j)
    ticks = max(path.ticks(forward, backward, chain.hop, tail, weights, hidden) for path in paths)
    return float(objective.weight[0]) * ticks * chain.prices.ticks.second


def device_recompute(
    chain: Chain, cut: Ints, device: int, limit_bytes: int, pinned: str | None
) -> tuple[int, int] | None:
    """The quickest (full, selective) layers of each virtual stage of a device that fit; ``None`` when none does."""
    mine = chain.schedule.stages_of(device)
    i, j = cut[mine], cut[mine + 1]
    size = int((j - i).max())
    full, selective = recompute_pairs(size, pinned)
    a = np.minimum(i[:, None] + full, j[:, None])
    b = np.minimum(a + selective, j[:, None])
    kept = chain.saved("full", i[:, None], a) + chain.saved("selective", a, b) + chain.saved("none", b, j[:, None])
    kept = kept + chain.saved_ends(i, j)[:, None]
    moments = np.array(chain.schedule.moments(device))
    states = int(chain.state_bytes(i, j).sum() + chain.logit_bytes(i, j).sum()) + chain.fixed_bytes
    fits = states + (moments @ kept).max(axis=0) <= limit_bytes
    if not fits.any() or not _tiers_hold(chain, i, j, moments):
        return None
    time = (chain.recompute("full", i[:, None], a) + chain.recompute("selective", a, b)).sum(axis=0)
    best = int(np.argmin(np.where(fits, time, np.iinfo(np.int64).max)))
    return int(full[best]), int(selective[best])


def _tiers_hold(chain: Chain, i: Ints, j: Ints, moments: Ints) -> bool:
    """Whether every memory tier has room for all virtual stages of a device."""
    return all(
        int(chain.tier_states(name, i, j).sum() + (moments @ chain.tier_saved(name, i, j)).max()) <= room[chain.row]
        for name, room in chain.prices.tier_room.items()
    )


@lru_cache(maxsize=1024)
def recompute_pairs(size: int, pinned: str | None) -> tuple[Ints, Ints]:
    """Every (full, selective) with ``full + selective <= size``; the one that is pinned."""
    if pinned is not None:
        return np.array([size * (pinned == "full")]), np.array([size * (pinned == "selective")])
    full, selective = (a.ravel() for a in np.meshgrid(np.arange(size + 1), np.arange(size + 1), indexing="ij"))
    legal = full + selective <= size
    return full[legal], selective[legal]
