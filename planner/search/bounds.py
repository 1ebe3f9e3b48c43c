"""Lower bounds and memory tests of whole tables of rows, before any row is looked at by itself.

For a row with work ``S = S_f + S_b`` of one micro-batch over all stages, nothing recomputed:

    1F1B, m > pp      step >= S + (m - 1) S / pp + (3 + 2 r) (pp - 1) hop     convex combination of the return paths
    1F1B, m <= pp     step >= S (1 + (m - 1) beta / (pp - m + 1 + (m - 1) beta)) + 2 (pp - 1) hop
    interleaved       step >= m S / pp + (pp - 1) (chunk / 2 + hop)   mean of the device paths
                      step >= m t_last + (pp - 1) chunk + ...         the last device, virtual stages being even
    1F1B, m > pp      step >= (1 + r) (S + 2 (pp - 1) hop) + (m - 1 - r pp) k t - (pp k - n) t
                      k = ceil(n / pp), for every kind of layer, with r or with 0 in its place
    any               step >= m t_head-stage, m ceil(L / pp) t_min    the fullest device alone

``beta`` is the least share of backward in a layer's work, ``chunk`` the least work of one virtual stage. A return path
``S + (m - pp + s) t_s + sum_{j>s} t_j`` may go ``r`` times round all stages instead of staying with its own for
``r pp`` micro-batches, which takes ``r (S + 2 (pp - 1) hop)``; every one may ``r = floor((m - pp - 1) / pp)`` times.
The bound of whole layers: among ``n`` layers of one kind and work ``t`` some stage ``s`` holds at least ``k``; take the
last that holds the most, put it into the return path, and note that the stages below it lack at most ``pp k - n``
layers of it. The paths stand in :mod:`cost_models.critical_paths`; property tests hold every bound against the
recurrence.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.goodput import longer_by_failures
from cost_models.model_graph import ModelGraph
from cost_models.money import rental_usd_per_s
from cost_models.power import StaticPower, static_power
from cost_models.power_levels import PowerLimits, wait_rates, wait_s_per_joule
from cost_models.price import Prices
from cost_models.rows import Rows
from planner.errors import PlannerBug
from planner.limits import RELATIVE, power_limits, step_ceilings
from planner.objectives import minimised
from planner.options import Options
from topologies.cluster import Cluster

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Ceiling:
    """What a step may take at most of one quantity: ``weight * step + per_joule * dynamic joules <= limit``."""

    name: str
    weight: Floats
    per_joule: float
    limit: float

    def exceeded(self, step_s: Floats, dynamic_j: Floats) -> NDArray[np.bool_]:
        """Rows above the limit by more than rounding may add."""
        return ~(self.weight * step_s + self.per_joule * dynamic_j <= self.limit * (1 + RELATIVE))


@dataclass(frozen=True)
class Objective:
    """``weight * step + per_joule * dynamic joules`` for every row; ``weight`` is per second, ``[rows]``.

    ``wait_s_per_j`` is what limits on power make a step last at least for every dynamic joule, ``[rows]``;
    ``ceilings`` are limits on other quantities.
    """

    name: str
    weight: Floats
    per_joule: float
    static: StaticPower
    cluster: Cluster
    power: PowerLimits
    wait_s_per_j: Floats
    ceilings: tuple[Ceiling, ...] = ()
    by_stage: bool = True
    """Whether waits are known stage by stage; of many rows in one only the whole is."""

    @property
    def counts_joules(self) -> bool:
        """Whether fewer joules can be worth a longer step."""
        return self.per_joule > 0 or bool(self.power.given) or any(it.per_joule > 0 for it in self.ceilings)

    def value(self, step_s: Floats, dynamic_j: Floats) -> Floats:
        """The least objective of steps that long at least, waits for power limits included; infinite above a limit."""
        step_s = np.maximum(step_s, self.least_step_s(dynamic_j))
        value = self.cost(step_s, dynamic_j)
        for ceiling in self.ceilings:
            value = np.where(ceiling.exceeded(step_s, dynamic_j), np.inf, value)
        return value

    def cost(self, step_s: Floats, dynamic_j: Floats) -> Floats:
        """The objective of steps of that length, whatever the limits are."""
        return self.weight * step_s + self.per_joule * dynamic_j

    def take(self, index: NDArray) -> Objective:
        """The objective of some rows."""
        static = StaticPower(
            *(getattr(self.static, n)[index] for n in ("devices", "hosts", "network")), self.static.pue
        )
        ceilings = tuple(dataclasses.replace(it, weight=it.weight[index]) for it in self.ceilings)
        return dataclasses.replace(
            self, weight=self.weight[index], static=static, wait_s_per_j=self.wait_s_per_j[index], ceilings=ceilings
        )

    def least_step_s(self, dynamic_j: Floats) -> Floats:
        """Seconds that limits on power make a step last at least; infinite where idling exceeds one."""
        if not self.power.given:
            return np.zeros_like(dynamic_j)
        with np.errstate(invalid="ignore"):
            waits = self.wait_s_per_j * dynamic_j
        return np.where(np.isnan(waits), np.inf, waits)

    def wait_rates(self, rows: Rows, r: int) -> Floats:
        """``[lines, pp]``: what one row's step lasts at least by the joules of its stages; no line without a limit."""
        if self.by_stage:
            return wait_rates(rows, r, self.cluster, self.power)
        lines = 1 if self.power.given else 0
        return np.full((lines, int(rows.pp[r])), float(self.wait_s_per_j[0] * rows.stage_size[r]))

    def most_step_s(self) -> float:
        """Seconds of the longest step that its limits allow the one row this is of."""
        return min(
            (it.limit * (1 + RELATIVE) / float(it.weight[0]) for it in self.ceilings if it.weight[0] > 0),
            default=np.inf,
        )


def objective_of(rows: Rows, cluster: Cluster, options: Options, *, placed: bool = True) -> Objective:
    """The user's objective for every row: seconds, with failures or without, facility joules, or dollars.

    With every limit but memory's.

    Rows that are not ``placed`` stand side by side, and what is bounded holds for every placement of them.
    """
    static, power = static_power(rows, cluster), power_limits(options)
    ceilings = tuple(
        Ceiling(name, *_weights(name, rows, cluster, options, static, placed=placed), limit)
        for name, limit in step_ceilings(options).items()
    )
    weight, per_joule = _weights(minimised(options.objective), rows, cluster, options, static, placed=placed)
    waits = wait_s_per_joule(rows, cluster, power, placed=placed)
    return Objective(options.objective, weight, per_joule, static, cluster, power, waits, ceilings)


def _weights(
    name: str, rows: Rows, cluster: Cluster, options: Options, static: StaticPower, *, placed: bool
) -> tuple[Floats, float]:
    """What a second of every row and a dynamic joule weigh in seconds, facility joules or dollars."""
    if name == "time":
        return np.ones(len(rows)), 0.0
    if name == "goodput" and not options.checkpoint_bytes:
        raise PlannerBug("goodput is asked for, and nothing says how large a checkpoint is")
    if name == "goodput":
        return longer_by_failures(rows, cluster, options.checkpoint_bytes, placed=placed), 0.0
    rent = rental_usd_per_s(rows, cluster) if name == "money" else None
    if rent is not None:
        return rent, 0.0
    unit = cluster.facility.figures.electricity_price.value / 3.6e6 if name == "money" else 1.0
    return unit * static.facility_w, unit * static.pue


def kind_counts(model: ModelGraph) -> Ints:
    """How often each kind of layer occurs, embedding and head last."""
    return np.concatenate([np.bincount(model.order, minlength=len(model.kinds)), [1, 1]]).astype(np.int64)


def dynamic_joules(prices: Prices, model: ModelGraph) -> Floats:
    """Least dynamic joules of a step over all devices: nothing recomputed, the thriftiest clock."""
    counts, rows = kind_counts(model), prices.rows
    per_device = rows.micro_batches * (prices.least_joules_pass @ counts) + prices.joules_step @ counts
    return per_device * rows.stage_size


def step_bound(prices: Prices, model: ModelGraph, virtual: Ints) -> Floats:
    """Ticks that no split of the layers can beat, ``[rows]``, for 2 to ``virtual`` stages a device, or for 1."""
    counts, rows = kind_counts(model), prices.rows
    forward, backward = prices.forward @ counts, prices.backward @ counts
    work, pp, m, hop = forward + backward, rows.pp, rows.micro_batches, prices.hop
    least = (prices.forward + prices.backward)[:, :-2].min(axis=1)
    plain = work * fill_factor(prices) + hop_ticks(prices)
    plain = np.maximum(plain, whole_layers_bound(prices, model, work))
    chunk = least * first_part(model, pp, virtual)
    last = m * (least * (model.layers // pp) + (prices.forward + prices.backward)[:, -1])
    interleaved = np.maximum(m * work / pp + (pp - 1) * (chunk / 2 + hop), work + 2 * (2 * pp - 1) * hop)
    interleaved = np.maximum(interleaved, last + (pp - 1) * (chunk + 2 * hop))
    bound = np.where(virtual == 1, plain, interleaved)
    head = (prices.forward + prices.backward)[:, -1] + least * virtual
    fullest = m * np.maximum(head, -(-model.layers // pp) * least)
    return np.maximum(bound, fullest) + tail_bound(prices, model)


def first_part(model: ModelGraph, pp: Ints, virtual: Ints) -> Ints:
    """Layers that a device's first virtual stage has at least, of up to ``virtual``: an end may lack one."""
    return (-(-model.layers // (pp * virtual)) - 1).clip(min=1)


def fill_factor(prices: Prices) -> Floats:
    """:func:`fill_of_share` of every row, with the least share of backward in any layer."""
    work = prices.forward + prices.backward
    share = np.where(work > 0, prices.backward / np.maximum(work, 1), 1.0).min(axis=1)
    return fill_of_share(prices.rows.pp, prices.rows.micro_batches, share)


def fill_of_share(pp: Ints | int, m: Ints | int, share: Floats | float) -> Floats:
    """What the work of one micro-batch is at least multiplied by in a 1F1B step, ``m`` being micro-batches.

    ``1 + (m - 1) / pp`` for ``m > pp``; else, with ``h = pp - m + 1`` stages whose return path does not exist and
    ``beta`` the least ``share`` of backward in any stage, ``1 + (m - 1) beta / (h + (m - 1) beta)``: either the last
    ``m - 1`` stages hold much (return path of the first of them: ``S + sum t_s``) or the first ``h`` do
    (``S + (m - 1) b_s``).
    """
    early = (m - 1) * share / np.maximum(pp - m + 1 + (m - 1) * share, 1e-9)
    return 1 + np.where(m > pp, (m - 1) / pp, early)


def hop_ticks(prices: Prices) -> Ints:
    """Ticks of hops at least in a 1F1B step, beside its work times :func:`fill_factor`, ``[rows]``."""
    rows = prices.rows
    crossings = np.where(rows.micro_batches > rows.pp, 3 + 2 * rounds_of(rows.pp, rows.micro_batches), 2)
    return crossings * (rows.pp - 1) * prices.hop


def rounds_of(pp: Ints | int, micro_batches: Ints | int) -> Ints:
    """How often every return path of 1F1B may go round all stages, for ``m > pp``; else -1."""
    return (np.maximum(micro_batches, pp) - pp - 1) // pp


def whole_layers_bound(prices: Prices, model: ModelGraph, work: Ints | Floats) -> Floats:
    """The 1F1B bound in ticks that counts whole layers, ``work`` being that of one micro-batch; 0 where ``m <= pp``."""
    rows, counts = prices.rows, kind_counts(model)[:-2]
    each = prices.forward[:, :-2] + prices.backward[:, :-2]
    pairs = [(int(n), each[:, kind]) for kind, n in enumerate(counts)]
    pairs.append((model.layers, each[:, counts > 0].min(axis=1)))
    pp, m = rows.pp, rows.micro_batches
    once, best = work + 2 * (pp - 1) * prices.hop, np.zeros(len(rows))
    for n, t in pairs:
        k = -(-n // pp)
        round_gains = rounds_of(pp, m) * (once - pp * k * t)
        best = np.maximum(best, once + (m - 1) * k * t - (pp * k - n) * t + np.maximum(round_gains, 0))
    return np.where(m > pp, best, 0.0)


def tail_bound(prices: Prices, model: ModelGraph) -> Floats:
    """Ticks of the first device's end of step: exact parts that no overlap can hide."""
    rows, counts = prices.rows, kind_counts(model)
    update = prices.update[:, :-2].min(axis=1) + prices.update[:, -2]
    passes = prices.backward @ counts + prices.extra["full"] @ counts
    reduce = np.where(rows.pp == 1, prices.reduce @ counts - prices.overlap * passes, 0)
    gather = np.where(rows.pp == 1, prices.gather @ counts - prices.overlap * (prices.forward @ counts), 0)
    update = np.where(rows.pp == 1, prices.update @ counts, update)
    return update + np.maximum(reduce, 0) + np.maximum(gather, 0)


def fits_somehow(
    prices: Prices, model: ModelGraph, limit_bytes: float, recompute: str, *, buffers: bool
) -> NDArray[np.bool_]:
    """Rows for which some split fits with every layer recomputed that way; exact for 1F1B with ``buffers``.

    Each stage takes the longest run of layers that its memory allows and that leaves one to every stage after it:
    no other cut gets further. Virtual stages keep at least as much, so a row that fails fails with them too.
    """
    test = _enough_layers if len(set(model.order)) == 1 else _reaches_the_end
    parts = np.array_split(np.arange(len(prices.rows)), max(1, -(-len(prices.rows) // ROWS_AT_ONCE)))
    some = (prices if len(parts) == 1 else prices.take(part) for part in parts)
    return np.concatenate([test(it, model, int(limit_bytes), recompute, buffers) for it in some])


@dataclass(frozen=True)
class Stages:
    """What 1F1B's stages have, ``[stages, rows]``: whether a row has the stage, micro-batches in flight, and the
    bytes left for layers, embedding and head taken off."""

    exists: NDArray[np.bool_]
    flight: Ints
    room: Ints


def stages_of(prices: Prices, limit: int, buffers: bool) -> Stages:
    """Every stage of every row; ``buffers`` says whether communication buffers are known."""
    rows, states, kept = prices.rows, prices.state_bytes, prices.saved["none"]
    fixed = sum(size for name, size in prices.fixed.items() if buffers or name != "buffers")
    s = np.arange(int(rows.pp.max(initial=1)))[:, None]
    flight = np.minimum(rows.micro_batches, rows.pp - s).clip(min=1)
    head = states[:, -1] + prices.tied_bytes + flight * kept[:, -1] + prices.logits
    room = limit - fixed - np.where(s == rows.pp - 1, head, 0)
    room[0] -= states[:, -2] + flight[0] * kept[:, -2]
    return Stages(s < rows.pp, flight, room)


def _enough_layers(prices: Prices, model: ModelGraph, limit: int, recompute: str, buffers: bool) -> NDArray[np.bool_]:
    """The test where all layers are alike: only their number counts."""
    kind, stages = model.order[0], stages_of(prices, limit, buffers)
    each = prices.state_bytes[:, kind] + stages.flight * prices.saved[recompute][:, kind]
    layers = np.where(each > 0, stages.room // np.maximum(each, 1), np.where(stages.room < 0, -1, model.layers))
    held = np.where(stages.exists, layers, 0).sum(axis=0)
    return (~stages.exists | (layers >= 1)).all(axis=0) & (held >= model.layers)


def _reaches_the_end(prices: Prices, model: ModelGraph, limit: int, recompute: str, buffers: bool) -> NDArray[np.bool_]:
    """The test where layers differ: how far the stages reach one after the other."""
    rows, stages = prices.rows, stages_of(prices, limit, buffers)
    state_sum, kept_sum = (_prefix(table, model) for table in (prices.state_bytes, prices.saved[recompute]))
    at, possible = np.zeros(len(rows), dtype=np.int64), np.ones(len(rows), dtype=bool)
    for s, (exists, flight, room) in enumerate(zip(stages.exists, stages.flight, stages.room, strict=True)):
        some = np.flatnonzero(exists & possible)
        upto = _furthest(state_sum, kept_sum, some, at[some], flight[some], room[some])
        possible[some] = upto > at[some]
        most = model.layers - (rows.pp[some] - 1 - s).clip(min=0)
        at[some] = np.minimum(upto, most).clip(min=0)
    return possible & (at == model.layers)


def _furthest(state_sum: Ints, kept_sum: Ints, rows: Ints, at: Ints, flight: Ints, room: Ints) -> Ints:
    """Layers up to which some rows' stages reach that begin at ``at``, by bisection; below it where none has room."""

    def held(upto: Ints) -> Ints:
        return state_sum[rows, upto] + flight * kept_sum[rows, upto]

    most = held(at) + room
    low, high = np.full(len(rows), -1), np.full(len(rows), state_sum.shape[1] - 1)
    while (open_ := low < high).any():
        middle = (low + high + 1) // 2
        fits = held(middle) <= most
        low, high = np.where(open_ & fits, middle, low), np.where(open_ & ~fits, middle - 1, high)
    return low


def _prefix(table: Ints, model: ModelGraph) -> Ints:
    """Sums of a ``[rows, kinds]`` table over the first layers, ``[rows, L + 1]``."""
    ahead = np.zeros((len(table), model.layers + 1), dtype=np.int64)
    np.cumsum(table[:, np.array(model.order)], axis=1, out=ahead[:, 1:])
    return ahead
