"""The bound of a space derived again, by other means than the search: plain tables, path bounds, branching.

1. Every row of the space is written down by plain products over the levels and priced in full.
2. A row whose simple bound reaches the target is done. With work ``S = sum t_s`` of one micro-batch:

       S + (m - 1) S / pp + 2 (pp - 1) hop     1F1B, m > pp;  S + 2 (pp - 1) hop when m <= pp
       m ceil(L / pp) t_min                    the fullest device
       m S / pp + (pp - 1) hop                 interleaved: the mean device

3. The splits of every other 1F1B row are branched over stage by stage, from the last. A partial split is
   dropped when a path through its stages, the least work of the layers still free added, reaches the target:

       S + (m - pp + s) t_s + sum_{j>s} t_j + 2 (pp - 1 + pp - 1 - s) hop      m > pp - s
       S + (m - 1) max(f_s, b_s) + 2 (pp - 1) hop                              m <= pp - s
       sum_{j<s} t_j + m t_s + 2 s hop                                         any

   Complete splits that are left run through the schedule. Interleaved rows have few cuts; each is run.

The paths stand in :mod:`cost_models.pipeline`. Nothing comes from the search or its list of candidates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration
from cost_models.checkpoints import checkpoint_bytes
from cost_models.goodput import longer_by_failures
from cost_models.model_graph import ModelGraph
from cost_models.money import rental_usd_per_s
from cost_models.power import static_power
from cost_models.power_levels import wait_rates, wait_s, wait_s_per_joule
from cost_models.price import Prices, price
from cost_models.rows import AXIS_FACTORS, Rows
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner.checks.check_schedule import TWO_STAGES, V_SHAPED, can_run
from planner.checks.rederive_domains import whole_hosts
from planner.checks.rederive_offloads import cheapest_layers, layers_within, most_in_tiers, offloading
from planner.clocks import search_clocks
from planner.limits import power_limits, step_ceilings
from planner.objectives import minimised
from planner.options import Options
from topologies.cluster import Cluster

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
CHUNK = 50_000


@dataclass(frozen=True)
class Problem:
    """What is to be planned, with every limit."""

    model: ModelGraph
    cluster: Cluster
    workload: Training
    options: Options
    fits: Calibration
    ticks: Ticks

    @property
    def limit_bytes(self) -> int:
        """Bytes that a device may use."""
        return int(self.cluster.memory_bytes * (1 - self.options.headroom))

    def pinned(self, name: str, value: int) -> bool:
        """Whether the pins let ``name`` be ``value``."""
        return self.options.pins.get(name, value) == value

    @property
    def counts_joules(self) -> bool:
        """Whether fewer joules can be worth a longer step: in the objective, for power, or under a limit."""
        names = {minimised(self.options.objective), *step_ceilings(self.options)}
        return not names <= {"time", "goodput"} or bool(power_limits(self.options).given)

    def values(self, rows: Rows, step_ticks: Floats, dynamic_j: Floats, each_j: Floats | None = None) -> Floats:
        """The objective for every row, from the step's ticks and dynamic joules; infinite above a limit.

        With ``each_j``, ``[plans, pp]`` joules of a device by stage, of plans of the one row instead of a bound.
        """
        power = power_limits(self.options)
        if each_j is None:
            wait = wait_s_per_joule(rows, self.cluster, power, placed=True) * dynamic_j
        else:
            wait = wait_s(wait_rates(rows, 0, self.cluster, power), each_j)
        step_s = np.maximum(step_ticks * self.ticks.second, wait)
        value = self.quantity(minimised(self.options.objective), rows, step_s, dynamic_j)
        for name, limit in step_ceilings(self.options).items():
            used = self.quantity(name, rows, step_s, dynamic_j)
            value = np.where(used <= limit * (1 + 1e-12), value, np.inf)
        return value

    def quantity(self, name: str, rows: Rows, step_s: Floats, dynamic_j: Floats) -> Floats:
        """Seconds, facility joules or dollars of a step, limits left aside."""
        if name == "time":
            return step_s
        if name == "goodput":
            return step_s * longer_by_failures(rows, self.cluster, checkpoint_bytes(self.model, self.workload))
        static, rent = static_power(rows, self.cluster), rental_usd_per_s(rows, self.cluster)
        energy = static.facility_w * step_s + static.pue * dynamic_j
        if name == "energy":
            return energy
        if rent is not None:
            return rent * step_s
        return energy * self.cluster.facility.figures.electricity_price.value / 3.6e6


class TooManySplits(Exception):
    """A row has more open splits than are practical to hold; its simple bound stands."""


@dataclass
class Rederived:
    """What was looked at, the bound it proves, and the best complete plan that was met on the way."""

    target: float
    bound: float = 0.0
    complete: bool = False
    counter_example: str = ""
    counter_example_value: float = np.inf
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("rows", "bounded", "branched", "leaves", "interleaved"), 0)
    )


def rederive(it: Problem, target: float, *, time_limit_s: float = 60.0) -> Rederived:
    """Prove that no plan of the space has an objective below ``target``, as far as the time goes.

    ``bound`` is at most ``target``: less when a plan below it was met, or when time ran out first.
    """
    from planner.checks.branching import least_value

    deadline, answer = time.monotonic() + time_limit_s, Rederived(target)
    open_rows: list[tuple[float, int, Prices]] = []
    for rows in all_rows(it):
        answer.counts["rows"] += len(rows)
        open_rows += _below(it, rows, target)
        if time.monotonic() > deadline:
            return answer
    answer.counts["bounded"] = answer.counts["rows"] - len({id(prices) for _, _, prices in open_rows})
    answer.bound, partial = target, False
    for bound, virtual, prices in sorted(open_rows, key=lambda row: row[:2]):
        if bound >= answer.bound:
            break
        if time.monotonic() > deadline:
            answer.bound = min(answer.bound, bound)
            return answer
        try:
            value = least_value(it, prices, virtual, target, answer.counts)
        except TooManySplits:
            answer.bound, partial = min(answer.bound, bound), True
            continue
        if value < min(target, answer.counter_example_value):
            answer.bound, answer.counter_example_value = min(answer.bound, value), value
            answer.counter_example = described(prices, virtual)
    answer.complete = not partial
    return answer


def described(prices: Prices, virtual: int) -> str:
    """The first row of the prices in words, ``"tp=2, cp=1, ..., virtual_stages=1"``: what a counter-example is."""
    rows = prices.rows
    names = ("tp", "cp", "dp_shard", "dp_replicate", "pp", "ep", "etp", "zero", "micro_batch")
    return ", ".join(f"{name}={int(getattr(rows, name)[0])}" for name in names) + f", virtual_stages={virtual}"


def legal_axes(it: Problem) -> dict[str, list[int]]:
    """The legal values of every axis that the space lists, pins held."""
    model, devices, batch = it.model, it.cluster.devices, it.workload.global_batch
    upto, seq_len = range(1, devices + 1), it.workload.seq_len
    axes = {
        "tp": [
            t for t in upto
            if all(w % t == 0 for _, w in model.widths) and (model.kv_heads % t == 0 or t % model.kv_heads == 0)
        ],
        "cp": [c for c in upto if c == 1 or seq_len % (2 * c) == 0],
        "pp": [p for p in upto if p <= model.layers],
        "dp": [d for d in upto if batch % d == 0],
        "ep": [e for e in upto if max(1, model.experts) % e == 0],
        "etp": [e for e in upto if (model.expert_widths or e == 1) and all(w % e == 0 for _, w in model.expert_widths)],
        "zero": [0, 1, 2, 3],
    }  # fmt: skip
    return {name: [v for v in values if it.pinned(name, v)] for name, values in axes.items()}


def all_rows(it: Problem) -> Iterator[Rows]:
    """Every 1F1B row of the space, in tables of bounded size."""
    axes, dense = legal_axes(it), _dense_table(it)
    experts: dict[tuple[int, ...], Ints] = {}
    parts, waiting = [], 0
    for row in dense:
        stage, tp = tuple(int(x) for x in row[:4].prod(axis=0)), int(row[0].prod())
        if (tp, *stage) not in experts:
            experts[tp, *stage] = _expert_table(stage, axes, tp if it.model.modules else 0)
        table = _scheduled(it, row, experts[tp, *stage], axes["zero"])
        parts.append(table)
        waiting += len(table)
        if waiting >= CHUNK:
            yield from offloading(it.cluster, _as_rows(it, np.concatenate(parts)))
            parts, waiting = [], 0
    if waiting:
        yield from offloading(it.cluster, _as_rows(it, np.concatenate(parts)))


def _dense_table(it: Problem) -> Ints:
    """``[rows, 5, levels]`` factors of (tp, cp, dp_shard, dp_replicate, pp) that are legal and have room."""
    axes = legal_axes(it)
    table = np.ones((1, 5, 0), dtype=np.int64)
    for k, level in enumerate(it.cluster.levels):
        here = np.array(list(_products(level.fanout, 5)), dtype=np.int64)
        old, new = np.divmod(np.arange(len(table) * len(here)), len(here))
        table = np.concatenate([table[old], here[new][:, :, None]], axis=2)
        table = table[_could_be_legal(axes, table.prod(axis=2))]
        if k + 1 == it.cluster.domain_levels:
            table = table[whole_hosts(it.cluster, table.prod(axis=1))]
    degree = table.prod(axis=2)
    return table[_is_legal(it, axes, degree)]


def _products(most: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All tuples of ``parts`` numbers from 1 whose product is at most ``most``."""
    if parts == 0:
        yield ()
        return
    for first in range(1, most + 1):
        for rest in _products(most // first, parts - 1):
            yield (first, *rest)


def _could_be_legal(axes: dict[str, list[int]], degree: Ints) -> NDArray[np.bool_]:
    """Rows whose factors so far divide some legal degree."""
    legal = (axes["tp"], axes["cp"], axes["dp"], axes["dp"], axes["pp"])
    upto = range(1, int(degree.max(initial=1)) + 1)
    possible = [np.array([any(v % f == 0 for v in values) for f in upto]) for values in legal]
    return np.all([possible[k][degree[:, k] - 1] for k in range(5)], axis=0)


def _is_legal(it: Problem, axes: dict[str, list[int]], degree: Ints) -> NDArray[np.bool_]:
    tp, cp, shard, replicate, pp = degree.T
    keep = np.isin(tp, axes["tp"]) & np.isin(cp, axes["cp"]) & np.isin(pp, axes["pp"])
    keep &= np.isin(shard * replicate, axes["dp"])
    if ends := it.options.pins.get("vocab_tp"):
        keep &= (int(ends) % tp == 0) & (tp * cp % int(ends) == 0)
    for name, values in (("dp_shard", shard), ("dp_replicate", replicate), ("devices", degree.prod(axis=1))):
        if name in it.options.pins:
            keep &= values == it.options.pins[name]
    return keep


def _expert_table(stage: tuple[int, ...], axes: dict[str, list[int]], tp: int) -> Ints:
    """``[meshes, 3, levels]`` factors of (etp, ep, edp) whose product on every level is the stage's.

    Unless ``tp`` is 0, the experts are a module's, spread over the ranks of the stage with other tokens.
    """
    table = np.ones((1, 3, 0), dtype=np.int64)
    for size in stage:
        here = np.array([(a, b, size // a // b) for a, b in _products(size, 2) if size % (a * b) == 0], dtype=np.int64)
        old, new = np.divmod(np.arange(len(table) * len(here)), len(here))
        table = np.concatenate([table[old], here[new][:, :, None]], axis=2)
    degree = table.prod(axis=2)
    legal = np.isin(degree[:, 0], axes["etp"]) & np.isin(degree[:, 1], axes["ep"])
    if tp:
        away = np.where(tp % degree[:, 0] == 0, 1, degree[:, 0]) * degree[:, 1]
        legal &= math.prod(stage) // tp % away == 0
    return table[legal]


def _scheduled(it: Problem, dense: Ints, experts: Ints, stages: list[int]) -> Ints:
    """``[rows, 2 + 8 levels]``: zero, micro-batch and all factors, for one dense mesh."""
    _, cp, shard, replicate, _ = (int(d) for d in dense.prod(axis=1))
    zeros = [z for z in stages if (shard == 1 if z == 0 else shard * cp > 1)]
    rest = it.workload.global_batch // (shard * replicate)
    micros = [b for b in range(1, rest + 1) if rest % b == 0 and it.pinned("micro_batch", b)]
    factors = np.concatenate([np.broadcast_to(dense, (len(experts), *dense.shape)), experts], axis=1)
    flat = factors.reshape(len(experts), math.prod(factors.shape[1:]))
    head = np.array([(z, b) for z in zeros for b in micros], dtype=np.int64).reshape(-1, 2)
    a, b = np.divmod(np.arange(len(head) * len(flat)), max(1, len(flat)))
    return np.concatenate([head[a], flat[b]], axis=1)


def _as_rows(it: Problem, table: Ints) -> Rows:
    levels = len(it.cluster.levels)
    factors = {axis: table[:, 2 + k * levels : 2 + (k + 1) * levels] for k, axis in enumerate(AXIS_FACTORS)}
    degree = {axis: np.prod(values, axis=1) for axis, values in factors.items() if axis != "edp"}
    data = degree["dp_shard"] * degree["dp_replicate"] * table[:, 1]
    return Rows(
        **degree, zero=table[:, 0], micro_batch=table[:, 1], micro_batches=it.workload.global_batch // data,
        virtual=np.ones(len(table), dtype=np.int64), factors=factors, vocab_tp=int(it.options.pins.get("vocab_tp", 0)),
    )  # fmt: skip


def layer_counts(model: ModelGraph) -> Ints:
    """How often every kind of layer occurs, embedding and head last."""
    counts = [sum(1 for kind in model.order if kind == k) for k in range(len(model.kinds))]
    return np.array([*counts, 1, 1], dtype=np.int64)


def _below(it: Problem, rows: Rows, target: float) -> list[tuple[float, int, Prices]]:
    """``(bound, virtual stages, prices of one row)`` of all rows whose bounds are below ``target``."""
    from planner.checks.whole_layers import values_of_whole_layers

    clocks, kind = search_clocks(it.options), it.options.pins.get("schedule")
    rows = rows if kind is None else rows.scheduled(str(kind), 2 if kind in V_SHAPED else 1)
    prices = price(it.model, it.cluster, it.workload, rows, it.fits, it.ticks, clocks=clocks)
    fits, found, single = may_fit(it, prices), [], {}
    for virtual, bound in values_by_schedule(it, prices).items():
        here = np.flatnonzero(fits & (bound < target))
        if rows.schedule == "1f1b" and len(here):
            bound[here] = np.maximum(bound[here], values_of_whole_layers(it, prices.take(here), virtual))
        for r in here[bound[here] < target]:
            if r not in single:
                single[r] = prices.take(np.array([r]))
            found.append((float(bound[r]), virtual, single[r]))
    return found


def values_by_schedule(it: Problem, prices: Prices) -> dict[int, Floats]:
    """For every number of virtual stages the objective no plan of a row beats.

    One stage, and virtual ones, have one clock: each clock by itself. Stages of 1F1B may differ: the ticks of the
    quickest clock, the joules of the thriftiest one.
    """
    counts, free = layer_counts(it.model), cheapest_layers(prices)
    alone = [_values_at(it, prices.only(clock), counts) for clock in prices.clocks]
    least = {virtual: np.minimum.reduce([values[virtual] for values in alone]) for virtual in alone[0]}
    if 1 in least:
        if free is not prices:
            least[1] = np.minimum.reduce([_values_at(it, free.only(clock), counts)[1] for clock in free.clocks])
        least[1] = np.where(prices.rows.pp == 1, least[1], _values_at(it, free, counts)[1])
    return least


def _values_at(it: Problem, prices: Prices, counts: Ints) -> dict[int, Floats]:
    rows = prices.rows
    dynamic = rows.micro_batches * (prices.least_joules_pass @ counts) + prices.joules_step @ counts
    return {
        virtual: it.values(rows, ticks * (1 - 1e-12), dynamic * rows.stage_size)
        for virtual, ticks in _simple_bounds(it, prices, counts)
    }


def _simple_bounds(it: Problem, prices: Prices, counts: Ints) -> Iterator[tuple[int, Floats]]:
    """For every number of virtual stages the ticks no plan of a row can beat; infinite where there is none."""
    rows, both = prices.rows, prices.forward + prices.backward
    pp, m, work = rows.pp, rows.micro_batches, both @ counts
    least, layers = both[:, :-2].min(axis=1), it.model.layers
    if "schedule" in it.options.pins:
        work = work - sum(less @ counts for less in prices.hidden.values())
        once = work if prices.weights is None else work - prices.weights @ counts
        yield int(rows.virtual[0]), np.where(can_run(rows), np.maximum(m * (work / pp), once), np.inf)
        return
    if it.pinned("virtual_stages", 1):
        passes = work + np.where(m > pp, (m - 1) * (work / pp), 0) + 2 * (pp - 1) * prices.hop
        yield 1, np.maximum(passes, m * -(-layers // pp) * least)
    for virtual in range(2, layers // 2 + 1):
        legal = (pp > 1) & (m % pp == 0) & (pp * virtual <= layers) & (-layers % (pp * virtual) <= 2)
        if it.pinned("virtual_stages", virtual) and legal.any():
            yield virtual, np.where(legal, np.maximum(m * (work / pp) + (pp - 1) * prices.hop, work), np.inf)


def may_fit(it: Problem, prices: Prices) -> NDArray[np.bool_]:
    """Rows whose layers fit the stages when each holds as many as it can, recomputing all it may, within its tiers.

    Where devices have one stage no schedule holds less than 1F1B; else the cuts themselves are asked.
    """
    kind = it.options.pins.get("recompute", "full")
    rows, saved, state = prices.rows, prices.saved[kind][:, :-2].min(axis=1), prices.state_bytes
    if rows.schedule in TWO_STAGES:
        return np.ones(len(rows), dtype=bool)
    room = it.limit_bytes - prices.fixed_bytes
    held = np.zeros(len(rows), dtype=np.int64)
    for s in range(int(rows.pp.max(initial=1))):
        flight = np.clip(rows.pp - s, 1, rows.micro_batches)
        ends = np.where(s == 0, state[:, -2] + flight * prices.saved["none"][:, -2], 0)
        head = state[:, -1] + prices.logits + flight * prices.saved["none"][:, -1]
        ends = ends + np.where(s == rows.pp - 1, head, 0)
        most = layers_within(room - ends, state[:, :-2].min(axis=1) + flight * saved)
        most = np.minimum(most, most_in_tiers(prices, s, flight, room - ends))
        held += np.where(s < rows.pp, np.clip(most, 0, it.model.layers), 0)
    return held >= it.model.layers


def ticks_below(it: Problem, prices: Prices, target: float) -> int:
    """Whole ticks from which on a step of this one row cannot stay below ``target``, whatever is recomputed."""
    counts, rows, prices = layer_counts(it.model), prices.rows, cheapest_layers(prices)
    dynamic = float((rows.micro_batches * (prices.least_joules_pass @ counts) + prices.joules_step @ counts)[0])
    name = minimised(it.options.objective)
    base = float(it.quantity(name, rows, np.zeros(1), np.array([dynamic * float(rows.stage_size[0])]))[0])
    slope = float(it.quantity(name, rows, np.ones(1), np.zeros(1))[0]) * it.ticks.second
    return max(0, math.ceil(min((target - base) / slope * (1 + 1e-12), 2.0**60)))
