"""One row's layers in a line: what any segment of them costs, by prefix sums.

A segment is layers ``i`` to ``j - 1``; the first one also holds the embedding, the last one the head. Where a row's
layers may offload differently (:mod:`cost_models.offload`) those from ``x`` on keep one class of states more on the
device, those from ``y`` on their activations.
Everything is integer ticks and bytes from :class:`Prices`, so sums are exact and the search and
``estimate`` agree to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.clocks import FULL
from cost_models.memory import STATES
from cost_models.model_graph import ModelGraph
from cost_models.offload import LAYERS_DIFFER_IN
from cost_models.price import Prices
from cost_models.schedules import Schedule, schedule_of
from cost_models.strategy import Stage

Ints = NDArray[np.int64]


class Chain:
    """The layers of one row of a price table. Segment arguments ``i`` and ``j`` broadcast as arrays."""

    def __init__(self, model: ModelGraph, prices: Prices, row: int) -> None:
        self.layers = model.layers
        self.order = np.array(model.order, dtype=np.int64)
        self.model, self.prices, self.row = model, prices, row
        self.pp = int(prices.rows.pp[row])
        self.virtual = int(prices.rows.virtual[row])
        self.micro_batches = int(prices.rows.micro_batches[row])
        self.hop = int(prices.hop[row])
        self.alone = (False, False)
        self.copied_kind = -2
        self._sums: dict[int, tuple[NDArray, NDArray]] = {}
        self._slower: dict[float, Chain] = {}

    @cached_property
    def schedule(self) -> Schedule:
        """The order of its work."""
        rows = self.prices.rows
        return schedule_of(rows.schedule, self.pp, self.virtual, self.micro_batches, rows.in_flight)

    @cached_property
    def nearer(self) -> Chain | None:
        """The same layers with one class of states more on the device, where single ones may keep it."""
        return self._beside(self.prices.nearer)

    @cached_property
    def kept(self) -> Chain | None:
        """The same layers with their activations on the device, where single ones may keep these."""
        return self._beside(self.prices.kept)

    def _beside(self, prices: Prices | None) -> Chain | None:
        if prices is None or not any((a[self.row] != b[self.row]).any() for a, b in _differing(self.prices, prices)):
            return None
        other = Chain(self.model, prices, self.row)
        other.order = self.order
        return other

    def of(self, index: Any) -> Chain:
        """The layers of some of the segments that it is asked about: of one row they all are of the same."""
        return self

    def flight(self, stage: Ints) -> Ints:
        """Micro-batches in flight at most on devices of one virtual stage each."""
        return self.schedule.flight(stage)

    @property
    def clocks(self) -> tuple[float, ...]:
        """The clocks that its stages may have, the full one first."""
        return self.prices.clocks

    def at(self, clock: float) -> Chain:
        """The same layers with every stage at that clock."""
        if clock == FULL:
            return self
        if clock not in self._slower:
            other = self._slower[clock] = Chain(self.model, self.prices.at(clock), self.row)
            other.order, other.copied_kind = self.order, self.copied_kind
        self._slower[clock].alone = self.alone
        return self._slower[clock]

    @cached_property
    def places(self) -> Ints:
        """For each boundary between layers, the class of what follows it, ``[L + 1]``.

        From some layer on, kinds repeat with a period (1 where the layers left are alike). Boundaries a period
        apart are of one class: segments of equal length that begin there cost the same and end alike.
        """
        start, period = repetition(tuple(self.order.tolist()))
        boundary = np.arange(self.layers + 1)
        return np.where(boundary < start, boundary, start + (boundary - start) % period)

    def _prefix(self, table: NDArray) -> NDArray:
        key = id(table)
        if key not in self._sums:
            values = table[self.row][self.order]
            # The table is kept too: were it freed, another could take its id.
            self._sums[key] = table, np.concatenate([np.zeros(1, values.dtype), np.cumsum(values)])
        return self._sums[key][1]

    def _until(self, table: NDArray, j: NDArray | int) -> NDArray:
        """Sum of a table over the first ``j`` layers."""
        return self._prefix(table)[j]

    def total(self, table: NDArray, i: NDArray | int, j: NDArray | int, *, ends: bool = True) -> NDArray:
        """Sum of a ``[rows, kinds]`` table over a segment, with embedding and head where it holds them."""
        inside = self._until(table, j) - self._until(table, i)
        if not ends:
            return inside
        first, last = table[self.row, -2], table[self.row, -1]
        return inside + np.where(self._first(i, j), first, 0) + np.where(self._last(i, j), last, 0)

    def kept_nearer(
        self, table: Callable[[Prices], NDArray], x: Ints | None, j: Ints, y: Ints | None = None
    ) -> NDArray | int:  # fmt: skip
        """What a sum grows by when layers ``x`` to ``j - 1`` keep one class of states more, and those from ``y`` on
        activations; nothing without ``x`` and ``y``.
        """
        grown = self._more(self.nearer, table, x, j)
        if y is None or self.kept is None:
            return grown
        grown = grown + self._more(self.kept, table, y, j)
        if x is None or self.nearer is None:
            return grown
        both = np.maximum(x, y)
        again = self.kept._more(self.kept.nearer, table, both, j) - self._more(self.nearer, table, both, j)
        return grown + again

    def _more(
        self, other: Chain | None, table: Callable[[Prices], NDArray], x: Ints | None, j: Ints
    ) -> NDArray | int:  # fmt: skip
        """What a sum grows by when layers ``x`` to ``j - 1`` are priced as another chain prices them."""
        if x is None or other is None:
            return 0
        more = other.total(table(other.prices), x, j, ends=False)
        return more - self.total(table(self.prices), x, j, ends=False)

    def _first(self, i: NDArray | int, j: NDArray | int) -> NDArray:
        """Which segments hold the embedding: where it has a stage to itself, the empty one alone."""
        return np.equal(i, 0) & (np.equal(j, 0) | (not self.alone[0]))

    def _last(self, i: NDArray | int, j: NDArray | int) -> NDArray:
        """Which segments hold the head."""
        return np.equal(j, self.layers) & (np.equal(i, self.layers) | (not self.alone[1]))

    def forward(self, i: Ints, j: Ints, x: Ints | None = None, y: Ints | None = None) -> Ints:
        """Ticks of one micro-batch forward."""
        return self._pass("forward", i, j, x, y)

    def backward(self, i: Ints, j: Ints, x: Ints | None = None, y: Ints | None = None) -> Ints:
        """Ticks of one micro-batch backward with nothing recomputed: what is does not hide traffic."""
        return self._pass("backward", i, j, x, y)

    def _pass(self, name: str, i: Ints, j: Ints, x: Ints | None, y: Ints | None) -> Ints:
        """The work of all layers, or all their traffic where that is longer and spread over them."""
        work = self.total(getattr(self.prices, name), i, j) + self.kept_nearer(lambda it: getattr(it, name), x, j)
        if not self.prices.sent:
            return work
        sent = self.total(self.prices.sent[name], i, j) + self.kept_nearer(lambda it: it.sent[name], x, j, y)
        return np.maximum(work, sent)

    def waited(self, i: Ints, j: Ints) -> Ints:
        """Ticks that forward and backward of a segment last longer than the work of its layers."""
        both = self.total(self.prices.forward, i, j) + self.total(self.prices.backward, i, j)
        return self.forward(i, j) + self.backward(i, j) - both

    @cached_property
    def least_passes(self) -> Ints:
        """Ticks of forward and backward of each kind of layer, offloading as is quickest, ``[rows, kinds]``."""
        found = self.prices.forward + self.prices.backward
        if self.nearer is not None:
            nearer = self.nearer.prices.forward + self.nearer.prices.backward
            found[:, :-2] = np.minimum(found, nearer)[:, :-2]
        return found

    def joules_pass(self, i: Ints, j: Ints, x: Ints | None = None, y: Ints | None = None) -> NDArray[np.float64]:
        """Joules above idle of one micro-batch with nothing recomputed."""
        return self.total(self.prices.joules_pass, i, j) + self.kept_nearer(lambda it: it.joules_pass, x, j, y)

    def joules_step(self, i: Ints, j: Ints, x: Ints | None = None) -> NDArray[np.float64]:
        """Joules above idle of what comes once a step."""
        return self.total(self.prices.joules_step, i, j) + self.kept_nearer(lambda it: it.joules_step, x, j)

    def weights(self, i: Ints, j: Ints) -> Ints | None:
        """Ticks of one micro-batch's backward that are the weights' gradients, where the schedule splits them off."""
        return None if self.prices.weights is None else self.total(self.prices.weights, i, j)

    def hidden(self, i: Ints, j: Ints) -> tuple[Ints, Ints] | None:
        """Ticks that a forward and an input's gradient take less beside each other, where the schedule pairs them."""
        if not self.prices.hidden:
            return None
        return self.total(self.prices.hidden["forward"], i, j), self.total(self.prices.hidden["backward"], i, j)

    def recompute(self, choice: str, i: Ints, j: Ints) -> Ints:
        """Ticks that recomputing a segment in that way adds to its backward."""
        return self.total(self.prices.extra[choice], i, j, ends=False)

    def saved(self, choice: str, i: Ints, j: Ints) -> Ints:
        """Bytes a micro-batch that layers ``i`` to ``j - 1`` keep under that choice, without embedding and head."""
        return self.total(self.prices.saved[choice], i, j, ends=False)

    def reach(self, more: str, less: str, a: Ints, saving_bytes: Ints) -> Ints:
        """The first boundary up to which layers from ``a`` on save that under ``less`` instead of ``more``.

        ``L + 1`` where all of them do not.
        """
        saving = self._prefix(self.prices.saved[more]) - self._prefix(self.prices.saved[less])
        return np.searchsorted(saving, saving[a] + saving_bytes)

    def saved_ends(self, i: Ints, j: Ints) -> Ints:
        """Bytes a micro-batch that embedding and head keep."""
        table = self.prices.saved["none"]
        first, last = table[self.row, -2], table[self.row, -1]
        return np.where(self._first(i, j), first, 0) + np.where(self._last(i, j), last, 0)

    def states(self, i: Ints, j: Ints) -> dict[str, Ints]:
        """Bytes of weights, gradients and optimiser states, a tied head's copy included."""
        prices = self.prices
        return {
            name: self.total(prices.states[name], i, j)
            + np.where(self._last(i, j) & np.not_equal(i, 0), prices.tied_states[name][self.row], 0)
            for name in STATES
        }

    def state_bytes(self, i: Ints, j: Ints, x: Ints | None = None) -> Ints:
        """Bytes of all states of a segment."""
        states, tied = self.total(self.prices.state_bytes, i, j), self.prices.tied_bytes[self.row]
        states = states + self.kept_nearer(lambda it: it.state_bytes, x, j)
        return states + np.where(self._last(i, j) & np.not_equal(i, 0), tied, 0) if np.any(tied) else states

    @cached_property
    def fixed_bytes(self) -> int:
        """Bytes a device holds whatever its layers are: buffers, workspace, reserve."""
        return int(self.prices.fixed_bytes[self.row])

    def logit_bytes(self, i: Ints, j: Ints) -> Ints:
        """Bytes of logits where a segment ends with the head."""
        return np.where(self._last(i, j), self.prices.logits[self.row], 0)

    def tier_states(self, name: str, i: Ints, j: Ints, x: Ints | None = None) -> Ints:
        """Bytes of a segment's states that lie in a memory tier."""
        copy = self._last(i, j) & np.not_equal(i, 0)
        tied = np.where(copy, self.prices.tier_tied[name][self.row], 0)
        nearer = self.kept_nearer(lambda it: it.tier_states[name], x, j)
        return self.total(self.prices.tier_states[name], i, j) + tied + nearer

    def tier_saved(self, name: str, i: Ints, j: Ints, y: Ints | None = None) -> Ints:
        """Bytes a micro-batch that a segment keeps in a memory tier."""
        kept = self.kept_nearer(lambda it: it.tier_saved[name], None, j, y)
        return self.total(self.prices.tier_saved[name], i, j) + kept

    def tier_bytes(self, name: str, i: Ints, j: Ints, flight: Ints, x: Ints | None, y: Ints | None) -> Ints:
        """Bytes in a memory tier of a segment with ``flight`` micro-batches of what it keeps there."""
        return self.tier_states(name, i, j, x) + flight * self.tier_saved(name, i, j, y)

    def tiers_hold(
        self, i: Ints, j: Ints, flight: Ints, x: Ints | None = None, y: Ints | None = None
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Segments for which every memory tier has room, with ``flight`` micro-batches of what they keep."""
        held = np.ones(np.broadcast_shapes(np.shape(i), np.shape(j), np.shape(flight)), dtype=bool)
        for name, room in self.prices.tier_room.items():
            held &= self.tier_bytes(name, i, j, flight, x, y) <= room[self.row]
        return held

    @cached_property
    def pools(self) -> dict[str, tuple[Ints, int]]:
        """Of every memory tier of pools the devices of each rank in every pool, ``[pools, pp]``, and a pool's bytes."""
        return {
            name: (pool.devices(self.prices.rows, self.row), pool.capacity_bytes)
            for name, pool in self.prices.tier_pools.items()
        }

    def pools_hold(self, used: dict[str, Ints]) -> NDArray[np.bool_]:
        """Plans whose ranks' devices keep ``used[name]`` bytes each, ``[..., pp]``, for which all pools have room."""
        held = [(used[name] @ devices.T <= most).all(axis=-1) for name, (devices, most) in self.pools.items()]
        return np.logical_and.reduce(held) if held else np.bool_(True)

    def tail_parts(self, i: Ints, j: Ints, x: Ints | None = None) -> dict[str, Ints]:
        """Ticks a step of reducing, updating and gathering, before overlap, with the least exposed part of each.

        The bucket that is ready last (the segment's first layer, or the embedding) and the one that is needed
        first cannot hide. A tied head's copy is reduced, updated and gathered as the embedding is; that first
        and last stage also add up their two gradients, once a step, is left out.
        """
        prices, row = self.prices, self.row
        kind = np.where(self._first(i, j), prices.reduce.shape[1] - 2, self.order[np.minimum(i, self.layers - 1)])
        kind = np.where(np.equal(i, self.layers), prices.reduce.shape[1] - 1, kind)
        tied = prices.tied_bytes[row] + sum(table[row] for table in prices.tier_tied.values()) > 0
        copy = self._last(i, j) & np.not_equal(i, 0) & tied
        tables = {"reduce": prices.reduce, "update": prices.update, "gather": prices.gather}
        parts = {
            name: self.total(table, i, j) + np.where(copy, table[row, self.copied_kind], 0)
            for name, table in tables.items()
        }
        return {
            **parts,
            "update": parts["update"] + self.kept_nearer(lambda it: it.update, x, j),
            "last_bucket": prices.reduce[row, kind],
            "first_bucket": prices.gather[row, kind],
        }

    def tail(self, parts: dict[str, Ints], forward: Ints, backward: Ints) -> Ints:
        """Exposed ticks after a device's last backward, given one micro-batch's forward and backward on it.

        Reduction hides behind ``window`` times that backward and gathering behind as much of the next step's
        first forward, both of which they slow down. Of the last virtual stage to finish, one in ``v``, only the
        last micro-batch's own share hides anything; so of the first to be gathered.
        """
        slowed = self.prices.interference * (parts["reduce"] + parts["gather"])
        reduce = np.maximum(self._exposed(parts["reduce"], backward), parts["last_bucket"])
        gather = np.maximum(self._exposed(parts["gather"], forward), parts["first_bucket"])
        return reduce + parts["update"] + gather + np.ceil(slowed).astype(np.int64)

    def _exposed(self, sent: Ints, work: Ints) -> Ints:
        """What ``sent`` ticks of all virtual stages stick out: behind the window, and of one stage behind its own."""
        alone = np.ceil((sent - self.prices.behind(work)) / self.schedule.stages_a_device).astype(np.int64)
        return np.maximum(sent - self.prices.behind(self.window * work), alone)

    @cached_property
    def window(self) -> float:
        """Micro-batches' work between a device's first gradients that are whole and its last: ``(1 + pp (v - 1)) / v``.

        An interleaved schedule ends with ``pp`` micro-batches through the last virtual stage, then as many through
        the one before; only within the first stage is there but the last micro-batch, as there is without stages.
        Where weights' gradients are split off, only those of the last micro-batch and stage hide anything. Weights are
        gathered in the mirror image. Source: NVIDIA/Megatron-LM megatron/core/pipeline_parallel/schedules.py,
        ``is_last_microbatch_for_model_chunk`` and ``grad_sync_func``.
        """
        stages = self.schedule.stages_a_device
        return (1 + (0 if self.schedule.split else self.pp * (stages - 1))) / stages

    def runs(self, stages: tuple[Stage, ...]) -> list[list[tuple[str, int, int]]]:
        """Each virtual stage's runs as ``(recompute, i, j)`` in model order; sets ``alone``: ends with own stages."""
        at, result = 0, []
        self.alone = (not sum(run.count for run in stages[0].runs), not sum(run.count for run in stages[-1].runs))
        for stage in stages:
            here = []
            for run in stage.runs:
                here.append((run.choice.recompute, at, at + run.count))
                at += run.count
            result.append(here)
        return result


def _differing(one: Prices, other: Prices) -> Iterator[tuple[NDArray, NDArray]]:
    """The tables in which layers that offload differently may differ."""
    yield from ((getattr(one, name), getattr(other, name)) for name in ("state_bytes", *LAYERS_DIFFER_IN))
    yield from ((one.tier_states[name], other.tier_states[name]) for name in one.tier_states)
    yield from ((one.tier_saved[name], other.tier_saved[name]) for name in one.tier_saved)
    yield from ((one.sent[name], other.sent[name]) for name in one.sent)


@lru_cache(maxsize=256)
def repetition(order: tuple[int, ...]) -> tuple[int, int]:
    """Where a sequence of kinds begins to repeat, and with which period; the earliest start plus period."""
    best = (len(order), 1)
    for period in range(1, min(len(order), 64) + 1):
        differing = [k for k in range(len(order) - period) if order[k] != order[k + period]]
        start = differing[-1] + 1 if differing else 0
        if start + period < sum(best):
            best = (start, period)
    return best


def joules(
    chain: Chain, choices: list[list[tuple[str, int, int]]], clocks: tuple[float, ...] = ()
) -> np.ndarray:  # fmt: skip
    """Dynamic joules a step on one device of each pipeline rank, ``[pp]``; at full clock without ``clocks``."""
    schedule, found = chain.schedule, np.zeros(len(choices))
    for c, runs in enumerate(choices):
        at, i, j = chain.at(clocks[schedule.devices[c]] if clocks else FULL), runs[0][1], runs[-1][2]
        once = at.total(at.prices.joules_pass, i, j)
        again = sum(at.total(at.prices.joules_extra[choice], a, b, ends=False) for choice, a, b in runs)
        found[c] = schedule.rounds * (once + again) + at.joules_step(i, j)
    return schedule.by_device(found).sum(axis=0)
