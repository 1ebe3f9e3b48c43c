"""Prices of rows: every quantity that ``estimate`` and the search add up, rounded up once to integers.

Times are in ticks (:class:`cost_models.ticks.Ticks`), sizes in bytes. A price belongs to a *kind* of layer, so arrays
are ``[rows, kinds]``; embedding and head stand in the last two columns of every such array, so that a
stage's totals are sums over columns.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration
from cost_models.clocks import FULL
from cost_models.communication import p2p_s
from cost_models.compute import layer_compute, optimizer_work, weight_gradient_s
from cost_models.layer_communication import LayerCommunication, Talk, layer_communication
from cost_models.memory import (
    STATES,
    buffer_bytes,
    logit_bytes,
    saved_bytes,
    shard_group,
    state_bytes,
    trained_parameters,
    workspace_bytes,
)
from cost_models.model_graph import Layer, ModelGraph, weight_tensors
from cost_models.offload import with_offloads
from cost_models.pools import Pool
from cost_models.rows import Rows
from cost_models.schedules import BIDIRECTIONAL, SPLIT
from cost_models.strategy import RECOMPUTE
from cost_models.ticks import Ticks
from cost_models.vocabulary import rows_of
from cost_models.work import LayerCompute, Work
from cost_models.workload import Training
from topologies.cluster import Cluster

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Prices:
    """What a row costs, per kind of layer. The last two kinds are the embedding and the head with the loss.

    ``forward``, ``backward`` and ``extra[recompute]`` are ticks a micro-batch, communication included.
    ``reduce``, ``gather`` and ``update`` are ticks a step. ``states[name]`` and ``saved[recompute]`` are bytes
    a layer (``saved`` a micro-batch, fragmentation included); ``fixed[name]`` bytes a device whatever it holds.
    ``joules_*`` are above idle, per device. ``parts`` splits ``forward + backward`` into named seconds. All of it is at
    full clock; ``slower[clock]`` holds the same rows at a lower one. Of rows that offload, ``tier_states[name]`` and
    ``tier_saved[name]`` are what lies in a memory tier, of which a device may fill ``tier_room[name]``, those of
    ``tier_pools`` also together with others, and ``tier_update`` the part of ``update`` that waits for it; ``nearer``
    prices layers that keep one class of states more (:mod:`cost_models.offload`), ``kept`` those that keep activations,
    if any may, and ``alike`` virtual stages, whose layers may not; ``sent[pass]`` is all of a layer's traffic, behind
    which a stage's pass cannot stay.
    ``weights`` is the part of ``backward`` that is weights' gradients, under schedules that split it off;
    ``hidden[pass]`` what a forward and a backward take less beside each other, under those that pair them.
    """

    rows: Rows
    ticks: Ticks
    forward: Ints
    backward: Ints
    extra: dict[str, Ints]
    hop: Ints
    reduce: Ints
    gather: Ints
    update: Ints
    overlap: float
    interference: float
    states: dict[str, Ints]
    saved: dict[str, Ints]
    fixed: dict[str, Ints]
    logits: Ints
    tied_states: dict[str, Ints]
    joules_pass: Floats
    joules_extra: dict[str, Floats]
    joules_step: Floats
    parts: dict[str, Floats]
    slower: dict[float, Prices] = field(default_factory=dict)
    tier_states: dict[str, Ints] = field(default_factory=dict)
    tier_saved: dict[str, Ints] = field(default_factory=dict)
    tier_tied: dict[str, Ints] = field(default_factory=dict)
    tier_room: dict[str, Ints] = field(default_factory=dict)
    tier_pools: dict[str, Pool] = field(default_factory=dict)
    tier_update: Ints | None = None
    sent: dict[str, Ints] = field(default_factory=dict)
    nearer: Prices | None = None
    kept: Prices | None = None
    alike: Prices | None = None
    weights: Ints | None = None
    hidden: dict[str, Ints] = field(default_factory=dict)

    @cached_property
    def clocks(self) -> tuple[float, ...]:
        """The clocks that are priced, as fractions of the full one, which comes first."""
        return (FULL, *self.slower)

    def at(self, clock: float) -> Prices:
        """The prices at one of ``clocks``; what does not depend on it is the same table."""
        return self if clock == FULL else self.slower[clock]

    def only(self, clock: float) -> Prices:
        """The prices at one of ``clocks``, no other to choose from."""
        alike = None if self.alike is None else self.alike.only(clock)
        return dataclasses.replace(self.at(clock), slower={}, alike=alike)

    @cached_property
    def least_joules_pass(self) -> Floats:
        """Joules of a pass at the clock that spends the fewest, ``[rows, kinds]``."""
        return np.minimum.reduce([self.at(clock).joules_pass for clock in self.clocks])

    @cached_property
    def state_bytes(self) -> Ints:
        """Bytes of all states a layer, ``[rows, kinds]``."""
        return sum(self.states.values())

    @cached_property
    def tied_bytes(self) -> Ints:
        """Bytes of a tied head's copy of the embedding, ``[rows]``."""
        return sum(self.tied_states.values())

    @cached_property
    def fixed_bytes(self) -> Ints:
        """Bytes a device holds whatever its layers are, ``[rows]``."""
        return sum(self.fixed.values())

    def take(self, index: NDArray) -> Prices:
        """The prices of some rows."""

        def some(value):
            if isinstance(value, dict):
                return {name: some(table) for name, table in value.items()}
            if isinstance(value, Prices):
                return value.take(index)
            return value[index] if isinstance(value, np.ndarray) else value

        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "rows"}
        return Prices(rows=self.rows.take(index), **{name: some(value) for name, value in fields.items()})

    @staticmethod
    def concat(parts: list[Prices]) -> Prices:
        """One table of several of the same grain and clocks."""

        def joined(values: list):
            if isinstance(values[0], Prices):
                return Prices.concat(values)
            if isinstance(values[0], dict):
                return {name: joined([value[name] for value in values]) for name in values[0]}
            return np.concatenate(values) if isinstance(values[0], np.ndarray) else values[0]

        names = [f.name for f in dataclasses.fields(Prices) if f.name != "rows"]
        return Prices(
            rows=Rows.concat([part.rows for part in parts]),
            **{name: joined([getattr(part, name) for part in parts]) for name in names},
        )

    def with_virtual(self, virtual: int) -> Prices:
        """The same rows with that many virtual stages a device: no price depends on it but where layers may differ."""
        it = self if virtual == 1 or self.alike is None else self.alike
        return it.with_rows(self.rows.scheduled(self.rows.schedule, virtual))

    def with_rows(self, rows: Rows) -> Prices:
        """The same prices of rows that differ in what no price depends on."""
        slower = {clock: it.with_rows(rows) for clock, it in self.slower.items()}
        return dataclasses.replace(self, rows=rows, slower=slower)

    def behind(self, window: Ints) -> Ints:
        """Ticks of communication that hide behind ``window`` ticks of compute."""
        return np.floor(self.overlap * window).astype(np.int64)


def price(
    model: ModelGraph, cluster: Cluster, workload: Training, rows: Rows, fits: Calibration, ticks: Ticks, *,
    relaxed: bool = False, devices: int | None = None, clocks: tuple[float, ...] = (FULL,), loosely: bool = False,
) -> Prices:  # fmt: skip
    """Prices of every row, and of the same rows at every lower clock of ``clocks``.

    ``relaxed`` leaves out all communication of data parallelism, which makes a price that is never above
    that of any row with the same degrees and placements at least as good. ``devices`` are those that a step waits
    for, where they are not the row's own: stages of other kinds of devices stand beside it. ``loosely`` counts what
    offloading takes out of device memory and not what it costs.
    """
    kinds = (*model.kinds, model.embedding, model.head)
    rows_talk = Talk(model, rows, cluster, workload, fits)
    updates = [_update(kind, rows, cluster, workload, fits) for kind in kinds]
    works = [
        _works(kinds, rows_talk, updates, _Columns(ticks), cluster, clock, devices, relaxed=relaxed)
        for clock in (FULL, *(clock for clock in clocks if clock != FULL))
    ]
    full = Prices(
        rows=rows,
        ticks=ticks,
        hop=ticks.up(_hop_s(model, rows, cluster, workload, fits)),
        overlap=fits.overlap["dp"] if workload.stack.dp_overlap else 0.0,
        interference=fits.interference if workload.stack.dp_overlap else 0.0,
        **works[0].times(),
        **works[0].joules(),
        **_bytes(model, kinds, rows, workload, fits, works[0].columns),
    )
    slower = {it.clock: dataclasses.replace(full, **it.times(), **it.joules()) for it in works[1:]}
    return with_offloads(dataclasses.replace(full, slower=slower), cluster, workload, relaxed=loosely)


def _works(
    kinds: tuple[Layer, ...], rows_talk: Talk, updates: list[Work], columns: _Columns, cluster: Cluster, clock: float,
    devices: int | None, *, relaxed: bool,
) -> _Works:  # fmt: skip
    """Compute at one clock, and the communication that sticks out behind it."""
    rows, workload, fits = rows_talk.rows, rows_talk.workload, rows_talk.fits
    waiting = waiting_factor(rows.world_size if devices is None else np.full(len(rows), devices), fits)
    compute = [layer_compute(kind, rows, cluster, workload, fits, clock).slowed(waiting) for kind in kinds]
    talk = [layer_communication(kind, rows_talk, compute[i], relaxed=relaxed) for i, kind in enumerate(kinds)]
    split = rows.schedule in SPLIT
    weights = [weight_gradient_s(kind, rows, cluster, workload, fits, clock) * waiting for kind in kinds if split]
    return _Works(compute, talk, updates, columns, clock, weights, rows.schedule in BIDIRECTIONAL)


def waiting_factor(devices: Ints, fits: Calibration) -> Floats:
    """How much longer compute lasts when every step waits for the slowest device: ``1 + c log2(N)`` on ``N`` devices.

    The mean of the largest of ``N`` nearly normal times grows about as fast as ``sqrt(2 ln N)``; from 8 devices to
    16,384 a logarithm is within 15 % of it. ``c`` is the stack's and fabric's jitter, fitted on weak scaling.
    """
    return 1.0 + fits.slowest * np.log2(devices)


@dataclass(frozen=True)
class _Works:
    """Compute, communication and optimiser of every kind of layer, on their way into tables."""

    compute: list[LayerCompute]
    talk: list[LayerCommunication]
    updates: list[Work]
    columns: _Columns
    clock: float = FULL
    weights: list[Floats] = field(default_factory=list)
    paired: bool = False

    def times(self) -> dict[str, Any]:
        """Ticks, and the seconds by cause behind them."""
        both, columns = list(zip(self.compute, self.talk, strict=True)), self.columns
        forward = columns.ticks(c.forward.seconds + t.forward.seconds for c, t in both)
        backward = columns.ticks(c.backward.seconds + t.backward.seconds for c, t in both)
        weights = np.minimum(columns.ticks(self.weights), backward) if self.weights else None
        return {
            "forward": forward,
            "backward": backward,
            "weights": weights,
            "hidden": self._hidden(forward, backward - weights) if self.paired else {},
            "extra": {
                "none": np.zeros_like(forward),
                "selective": columns.ticks(c.selective_s + t.repeated_selective.seconds for c, t in both),
                "full": columns.ticks(c.full.seconds + t.repeated.seconds for c, t in both),
            },
            "reduce": columns.ticks(t.reduce_s for t in self.talk),
            "gather": columns.ticks(t.gather_s for t in self.talk),
            "update": columns.ticks(u.seconds + t.broadcast_s for u, t in zip(self.updates, self.talk, strict=True)),
            "parts": _parts(self.compute, self.talk, columns),
        }

    def _hidden(self, forward: Ints, inputs: Ints) -> dict[str, Ints]:
        """Ticks, rounded down, that a forward and an input's gradient take less beside each other."""
        less = [self.columns.whole_ticks(each) for each in zip(*(t.hidden_s for t in self.talk), strict=True)]
        return {"forward": np.minimum(less[0], forward), "backward": np.minimum(less[1], inputs)}

    def joules(self) -> dict[str, Any]:
        """Joules above idle: of a forward and backward pass, of recomputing, of a step's end."""
        both, columns = list(zip(self.compute, self.talk, strict=True)), self.columns
        passes = columns.plain(
            c.forward.joules + c.backward.joules + t.forward.joules + t.backward.joules for c, t in both
        )
        return {
            "joules_pass": passes,
            "joules_extra": {
                "none": np.zeros_like(passes),
                "selective": columns.plain(c.selective.joules + t.repeated_selective.joules for c, t in both),
                "full": columns.plain(c.full.joules + t.repeated.joules for c, t in both),
            },
            "joules_step": columns.plain(t.step_j + u.joules for t, u in zip(self.talk, self.updates, strict=True)),
        }


def _bytes(
    model: ModelGraph, kinds: tuple[Layer, ...], rows: Rows, workload: Training, fits: Calibration, columns: _Columns
) -> dict[str, Any]:
    """Bytes a layer, a micro-batch and a device."""
    saved = [_saved(kind, model, rows, workload, fits, i < len(model.kinds)) for i, kind in enumerate(kinds)]
    states = [state_bytes(kind, rows, workload, fits) for kind in kinds]
    return {
        "states": {name: columns.whole(s[name] for s in states) for name in STATES},
        "saved": {choice: columns.whole(s[choice] for s in saved) for choice in RECOMPUTE},
        "fixed": _fixed(model, rows, workload, fits),
        "logits": _logits(model, rows, workload, fits),
        "tied_states": _tied(model, rows, workload, fits),
    }


class _Columns:
    """Stacks one array a kind into ``[rows, kinds]``, rounding on the way."""

    def __init__(self, ticks: Ticks) -> None:
        self._ticks = ticks

    def plain(self, arrays) -> Floats:
        return np.stack(list(arrays), axis=1)

    def ticks(self, arrays) -> Ints:
        return self._ticks.up(self.plain(arrays))

    def whole_ticks(self, arrays) -> Ints:
        return np.floor(self.plain(arrays) / self._ticks.second).astype(np.int64)

    def whole(self, arrays) -> Ints:
        return np.ceil(self.plain(arrays)).astype(np.int64)


def _hop_s(model: ModelGraph, rows: Rows, cluster: Cluster, workload: Training, fits: Calibration) -> Floats:
    """A hidden state's way to the next stage; sequence parallelism sends each tp rank's share."""
    tokens = rows.micro_batch * workload.seq_len / (rows.cp * rows.tp)
    message = tokens * model.crossing * workload.recipe.activation_bytes
    return p2p_s(message, rows.factors["pp"], cluster.levels, fits)


def _update(kind: Layer, rows: Rows, cluster: Cluster, workload: Training, fits: Calibration) -> Work:
    local, (dense, experts) = trained_parameters(kind, rows, workload), shard_group(rows_of(kind, rows))
    work = optimizer_work(local.dense / dense + local.experts / experts, cluster, workload, fits)
    each = np.where(rows.stage_size > 1, fits.split_tensor_s, fits.tensor_s)
    return Work(work.seconds + each * weight_tensors(kind), work.joules)


def _saved(
    kind: Layer, model: ModelGraph, rows: Rows, workload: Training, fits: Calibration, block: bool
) -> dict[str, Floats]:
    """Saved bytes with the allocator's share on top; embedding and head keep what they keep, whatever is recomputed."""
    saved = saved_bytes(kind, model.hidden, rows, workload, fits)
    if not block:
        saved = dict.fromkeys(RECOMPUTE, saved["none"])
    return {choice: size * (1 + fits.fragmentation_fraction) for choice, size in saved.items()}


def _fixed(model: ModelGraph, rows: Rows, workload: Training, fits: Calibration) -> dict[str, Ints]:
    workspace = workspace_bytes(model, rows, workload, fits)
    sizes = {
        "buffers": buffer_bytes(model, rows, workload, fits),
        "workspace": workspace,
        "reserve": fits.context_bytes + fits.fragmentation_fraction * workspace,
    }
    return {name: np.ceil(size).astype(np.int64) for name, size in sizes.items()}


def _logits(model: ModelGraph, rows: Rows, workload: Training, fits: Calibration) -> Ints:
    """What logits need beyond one layer's temporaries: they are gone before the first layer goes back."""
    beyond = logit_bytes(model, rows, workload, fits) - workspace_bytes(model, rows, workload, fits)
    return np.ceil(np.maximum(beyond, 0.0)).astype(np.int64)


def _tied(model: ModelGraph, rows: Rows, workload: Training, fits: Calibration) -> dict[str, Ints]:
    """States of the head's copy of a tied embedding, which the last stage holds when it is not the first."""
    states = state_bytes(model.embedding, rows, workload, fits)
    copied = model.tied & (rows.pp > 1)
    return {name: np.where(copied, np.ceil(states[name]), 0).astype(np.int64) for name in STATES}


def _parts(compute: list, talk: list[LayerCommunication], columns: _Columns) -> dict[str, Floats]:
    """Seconds of one forward and backward pass by cause, ``[rows, kinds]``."""
    spent = {name: columns.plain(t.parts[name] for t in talk) for name in talk[0].parts}
    return {"compute": columns.plain(c.forward.seconds + c.backward.seconds for c in compute), **spent}
