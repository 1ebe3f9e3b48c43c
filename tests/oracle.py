"""Enumeration of every plan of a small instance: own legality, no bound, no pruning; prices from the cost models.

Nothing here comes from the search or its candidates, so that the two can disagree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from oracle_cuts import device_need, even_cuts, joules_of, runs_of
from oracle_quantities import device_in_domain, objective_values, quantities
from oracle_tiers import in_pools, in_tiers, offloading, partly_out

from cost_models.calibration import Calibration
from cost_models.chain import Chain
from cost_models.estimate import evaluate
from cost_models.model_graph import ModelGraph
from cost_models.pipeline import in_flight, step_ticks
from cost_models.power import hosts_used
from cost_models.price import Prices, price
from cost_models.rows import AXIS_FACTORS, Rows
from cost_models.ticks import Ticks
from cost_models.workload import Training
from topologies.cluster import Cluster

COLUMNS = ("zero", "micro_batch", *AXIS_FACTORS)
Row = tuple[int, int, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Instance:
    """One planning problem with every limit."""

    model: ModelGraph
    cluster: Cluster
    workload: Training
    fits: Calibration
    ticks: Ticks
    objective: str = "time"
    headroom: float = 0.05
    power_cap_w: float | None = None
    pins: tuple[tuple[str, int | str], ...] = ()
    clocks: tuple[float, ...] = (1.0,)
    limits: tuple[tuple[str, float], ...] = ()

    @property
    def limit_bytes(self) -> int:
        """Bytes that a rank may use."""
        return int(self.cluster.memory_bytes * (1 - self.headroom))

    def pinned(self, name: str, value: int | str) -> bool:
        """Whether the pins let ``name`` be ``value``."""
        return dict(self.pins).get(name, value) == value


@dataclass
class Answer:
    """The least objective of all plans and of every row, infinite where there is none; how much was looked at."""

    value: float = math.inf
    plans: int = 0
    rows: Rows | None = None
    prices: Prices | None = None
    by_row: list[float] = field(default_factory=list)
    keep: bool = False
    met: list[np.ndarray] = field(default_factory=list)

    def add(self, values: np.ndarray) -> None:
        """Count plans of the current row."""
        least = float(values.min())
        self.plans += len(values)
        self.value = min(self.value, least)
        self.by_row[-1] = min(self.by_row[-1], least)

    def meet(self, it: Instance, rows: Rows, steps: np.ndarray, dynamic_j: np.ndarray, each_j: np.ndarray) -> None:
        """Note time, money, energy and devices (whole hosts) of plans of the current row, where they are to be kept."""
        if not self.keep:
            return
        found = quantities(it, rows, steps, dynamic_j, each_j)
        devices = hosts_used(rows, it.cluster)[0] * it.cluster.devices_per_host
        kept = np.isfinite(objective_values(it, rows, steps, dynamic_j, each_j))
        table = [found["time"], found["money"], found["energy"], np.full(len(steps), float(devices))]
        self.met.append(np.stack(table, axis=1)[kept])


def best_of_all(it: Instance, *, keep: bool = False) -> Answer:
    """Look at every plan, and ``keep`` what each takes."""
    answer, found = Answer(keep=keep), list(all_rows(it))
    if not found:
        return answer
    answer.rows = offloading(it.cluster, rows_of(it, found))
    answer.prices = price(it.model, it.cluster, it.workload, answer.rows, it.fits, it.ticks, clocks=it.clocks)
    for r in range(len(answer.rows)):
        one, pp = answer.prices.take(np.array([r])), int(answer.rows.pp[r])
        answer.by_row.append(math.inf)
        if it.pinned("virtual_stages", 1):
            _plain(it, one, answer)
        for virtual in range(2, it.model.layers // pp + 1):
            if it.pinned("virtual_stages", virtual):
                _interleaved(it, one.with_virtual(virtual), answer)
    return answer


def all_rows(it: Instance) -> Iterator[Row]:
    """``(zero, micro_batch, factors)`` of every legal row, factors in the order of ``AXIS_FACTORS``."""
    for dense in _dense_meshes(it):
        cp, shard, replicate = (math.prod(f) for f in dense[1:4])
        stage = tuple(math.prod(axis[k] for axis in dense[:4]) for k in range(len(it.cluster.levels)))
        for experts in _expert_meshes(it, stage, math.prod(dense[0])):
            for zero in range(4):
                sharded = shard * cp > 1 if zero else shard == 1
                if not (sharded and it.pinned("zero", zero)):
                    continue
                for micro in range(1, it.workload.global_batch + 1):
                    whole = it.workload.global_batch % (shard * replicate * micro) == 0
                    if whole and it.pinned("micro_batch", micro):
                        yield zero, micro, (*dense, *experts)


def _dense_meshes(it: Instance) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Factors of (tp, cp, dp_shard, dp_replicate, pp) on every level, legal by degree and by room."""
    levels, devices = it.cluster.levels, it.cluster.devices
    every = [
        [c for c in itertools.product(range(1, min(level.fanout, devices) + 1), repeat=5)
         if math.prod(c) <= level.fanout]
        for level in levels
    ]  # fmt: skip
    for parts in itertools.product(*every):
        factors = tuple(zip(*parts, strict=True))
        if not _whole_hosts(it.cluster, [math.prod(part) for part in parts]):
            continue
        if _legal_degrees(it, *(math.prod(f) for f in factors)):
            yield factors


def _whole_hosts(cluster: Cluster, used: list[int]) -> bool:
    """Whether all hosts of a domain run equally many ranks, on the devices that they count first."""
    on: dict[int, set[int]] = {}
    for digits in itertools.product(*(range(u) for u in used[: cluster.domain_levels])):
        host, local = divmod(device_in_domain(cluster, digits), cluster.devices_per_host)
        on.setdefault(host, set()).add(local)
    return all(local == set(range(len(on[0]))) for local in on.values())


def _legal_degrees(it: Instance, tp: int, cp: int, shard: int, replicate: int, pp: int) -> bool:
    model, dp = it.model, shard * replicate
    named = {"tp": tp, "cp": cp, "pp": pp, "dp": dp, "dp_shard": shard, "dp_replicate": replicate}
    return (
        all(width % tp == 0 for _, width in model.widths)
        and (model.kv_heads % tp == 0 or tp % model.kv_heads == 0)
        and (cp == 1 or it.workload.seq_len % (2 * cp) == 0)
        and pp <= model.layers
        and it.workload.global_batch % dp == 0
        and all(it.pinned(name, value) for name, value in named.items())
        and dict(it.pins).get("vocab_tp", tp) in {tp * part for part in range(1, cp + 1) if cp % part == 0}
        and it.pinned("devices", tp * cp * dp * pp)
    )


def _expert_meshes(it: Instance, stage: tuple[int, ...], tp: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Factors of (etp, ep, edp) whose product on every level is the stage's; a module's as the runtime can run them."""
    by_level = [
        [(a, b, c) for a, b, c in itertools.product(range(1, s + 1), repeat=3) if a * b * c == s] for s in stage
    ]
    for parts in itertools.product(*by_level):
        etp, ep, edp = zip(*parts, strict=True)
        wide, many = math.prod(etp), math.prod(ep)
        legal_wide = all(width % wide == 0 for _, width in it.model.expert_widths)
        legal_wide &= wide == 1 or bool(it.model.expert_widths)
        if it.model.modules:
            on_other_tokens = many if tp % wide == 0 else many * wide
            legal_wide &= math.prod(stage) // tp % on_other_tokens == 0
        if legal_wide and max(1, it.model.experts) % many == 0 and it.pinned("etp", wide) and it.pinned("ep", many):
            yield etp, ep, edp


def rows_of(it: Instance, found: list[Row]) -> Rows:
    """The rows as arrays."""
    factors = {axis: np.array([row[2][k] for row in found]) for k, axis in enumerate(AXIS_FACTORS)}
    degree = {axis: values.prod(axis=1) for axis, values in factors.items() if axis != "edp"}
    micro = np.array([row[1] for row in found])
    dp = degree["dp_shard"] * degree["dp_replicate"]
    return Rows(
        **degree, zero=np.array([row[0] for row in found]), micro_batch=micro,
        micro_batches=it.workload.global_batch // (dp * micro), virtual=np.ones_like(micro), factors=factors,
        vocab_tp=int(dict(it.pins).get("vocab_tp", 0)),
    )  # fmt: skip


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    for inner in itertools.combinations(range(1, total), parts - 1):
        cuts = (0, *inner, total)
        yield tuple(b - a for a, b in itertools.pairwise(cuts))


def _counts(it: Instance, layers: int) -> list[tuple[int, int]]:
    """Every (full, selective) of a stage with that many layers, as far as the pins let it."""
    free = [(a, b) for a in range(layers + 1) for b in range(layers + 1 - a)]
    pin = dict(it.pins).get("recompute")
    return free if pin is None else [(layers * (pin == "full"), layers * (pin == "selective"))]


def _plain(it: Instance, prices: Prices, answer: Answer) -> None:
    """Every split and recompute of one 1F1B row."""
    chain = Chain(it.model, prices, 0)
    tables = {}
    for sizes in _compositions(it.model.layers, chain.pp):
        stages, at = [], 0
        for s, n in enumerate(sizes):
            key = (s, at, at + n)
            if key not in tables:
                tables[key] = _fitting(it, chain, *key)
            stages.append(tables[key])
            at += n
        if all(len(table["forward"]) for table in stages):
            _judge_all(it, chain, stages, answer)


def _fitting(it: Instance, chain: Chain, stage: int, i: int, j: int) -> dict[str, np.ndarray]:
    """Ticks, tail and joules of every recompute that fits, and every clock, of one stage."""
    found = [_fitting_at(it, Chain(it.model, chain.prices.at(c), 0), stage, i, j) for c in it.clocks]
    return {name: np.concatenate([table[name] for table in found]) for name in found[0]}


def _fitting_at(it: Instance, chain: Chain, stage: int, i: int, j: int) -> dict[str, np.ndarray]:
    """Every recompute, with every number of layers that offload what others keep.

    Layers whose activations leave recompute nothing, unless all must.
    """
    pinned = "recompute" in dict(it.pins)
    found = [
        _fitting_out(it, some, stage, i, i if pinned else begin, j) for some, begin in partly_out(it.model, chain, i, j)
    ]
    return {name: np.concatenate([table[name] for table in found]) for name in found[0]}


def _fitting_out(it: Instance, chain: Chain, stage: int, i: int, begin: int, j: int) -> dict[str, np.ndarray]:
    pairs = np.array(_counts(it, j - begin))
    a, b = begin + pairs[:, 0], begin + pairs[:, 0] + pairs[:, 1]
    one, start = np.full(len(pairs), i), np.full(len(pairs), begin)
    first, last = (i == 0), (j == chain.layers)
    runs = (("none", one, start), ("full", start, a), ("selective", a, b), ("none", b, np.full(len(pairs), j)))
    kept = sum(chain.saved(kind, x, y) for kind, x, y in runs)
    ends = chain.prices.saved["none"][0]
    kept = kept + first * ends[-2] + last * ends[-1]
    flight = min(chain.micro_batches, chain.pp - stage)
    need = flight * kept + chain.state_bytes(i, j) + chain.fixed_bytes + last * chain.prices.logits[0]
    backward = chain.backward(i, j) + sum(chain.recompute(kind, x, y) for kind, x, y in runs)
    forward = np.full(len(pairs), chain.forward(i, j))
    tail = chain.tail(chain.tail_parts(one, np.full(len(pairs), j)), forward, backward)
    again = sum(chain.total(chain.prices.joules_extra[kind], x, y, ends=False) for kind, x, y in runs)
    passes = chain.micro_batches * (chain.total(chain.prices.joules_pass, i, j) + again)
    joules = passes + chain.total(chain.prices.joules_step, i, j)
    fits = (need <= it.limit_bytes) & in_tiers(chain, i, j, flight)
    found = {"forward": forward, "backward": backward, "tail": tail, "joules": joules}
    for name in chain.prices.tier_pools:
        use = int(chain.tier_states(name, i, j)) + flight * int(chain.tier_saved(name, i, j))
        found[f"in {name}"] = np.full(len(pairs), use)
    return {name: values[fits] for name, values in found.items()}


def _judge_all(it: Instance, chain: Chain, stages: list[dict[str, np.ndarray]], answer: Answer) -> None:
    pick = np.indices([len(table["forward"]) for table in stages]).reshape(len(stages), -1)
    columns = {name: np.stack([table[name][pick[s]] for s, table in enumerate(stages)], axis=1) for name in stages[0]}
    used = {name: columns.pop(f"in {name}") for name in chain.prices.tier_pools}
    fits = in_pools(it.cluster, chain, used) & np.ones(pick.shape[1], dtype=bool)
    if not fits.any():
        return
    columns = {name: values[fits] for name, values in columns.items()}
    hop = np.full(int(fits.sum()), chain.hop)
    steps = step_ticks(chain.pp, 1, chain.micro_batches, columns["forward"], columns["backward"], hop, columns["tail"])
    dynamic = columns["joules"].sum(axis=1) * int(chain.prices.rows.stage_size[0])
    each = columns["joules"]
    answer.add(objective_values(it, chain.prices.rows, steps, dynamic, each))
    answer.meet(it, chain.prices.rows, steps, dynamic, each)


def _interleaved(it: Instance, prices: Prices, answer: Answer) -> None:
    """Every even cut of one row with virtual stages; a device recomputes alike in all its own, all have one clock."""
    for clock in it.clocks:
        _interleaved_at(it, prices.at(clock), answer)


def _interleaved_at(it: Instance, prices: Prices, answer: Answer) -> None:
    chain = Chain(it.model, prices, 0)
    if chain.pp == 1 or chain.micro_batches % chain.pp:
        return
    for cut in even_cuts(it.model.layers, chain.pp, chain.virtual):
        choices = [_quickest(it, chain, cut, device) for device in range(chain.pp)]
        if None not in choices:
            runs = [runs_of(cut[c], cut[c + 1], *choices[c % chain.pp]) for c in range(len(cut) - 1)]
            found = evaluate(chain, runs)
            if not in_pools(it.cluster, chain, {name: found.tiers[name][None] for name in prices.tier_pools}).all():
                continue
            each = joules_of(chain, runs)[None]
            plan = (np.array([found.step]), each.sum(axis=1) * int(prices.rows.stage_size[0]), each)
            answer.add(objective_values(it, prices.rows, *plan))
            answer.meet(it, prices.rows, *plan)


def _quickest(it: Instance, chain: Chain, cut: list[int], device: int) -> tuple[int, int] | None:
    mine = range(device, chain.pp * chain.virtual, chain.pp)
    spans = [(cut[c], cut[c + 1]) for c in mine]
    found = []
    for name, room in chain.prices.tier_room.items():
        states = sum(int(chain.tier_states(name, i, j)) for i, j in spans)
        saved = [int(chain.tier_saved(name, i, j)) for i, j in spans]
        moments = in_flight(chain.pp, chain.virtual, chain.micro_batches, device)
        if states + max(sum(f * k for f, k in zip(m, saved, strict=True)) for m in moments) > int(room[0]):
            return None
    for full, selective in _counts(it, max(j - i for i, j in spans)):
        runs = [runs_of(i, j, full, selective) for i, j in spans]
        if device_need(chain, spans, runs, device) <= it.limit_bytes:
            again = sum(int(chain.recompute(kind, x, y)) for here in runs for kind, x, y in here)
            found.append((again, full, selective))
    return min(found)[1:] if found else None
