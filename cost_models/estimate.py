"""What a strategy costs: step time by the schedule's own recurrence, bytes by class, joules, money, goodput.

step     the longest path of the schedule (:mod:`cost_models.pipeline`), or the power cap's wait
memory   per pipeline rank and tensor class, against what the device leaves
energy   PUE (T P_static + dynamic joules)
goodput  what failures leave of the step's rate (:mod:`cost_models.goodput`)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration, calibrate
from cost_models.chain import Chain, joules
from cost_models.clocks import FULL
from cost_models.estimate_text import estimate_text
from cost_models.goodput import USUAL_CARE, Care, Goodput, goodput
from cost_models.intervals import interval, kind_of
from cost_models.model_graph import ModelGraph
from cost_models.money import electricity_usd, rental_usd_per_s
from cost_models.placed import strategy_chain
from cost_models.power import StaticPower, hosts_used, static_power
from cost_models.power_levels import PowerLimits, wait_rates, wait_s, watts_by_level
from cost_models.rows import Rows
from cost_models.schedules import Schedule
from cost_models.strategy import RECOMPUTE, Strategy
from cost_models.ticks import Ticks
from cost_models.workload import Training
from topologies.cluster import Cluster

Ints = NDArray[np.int64]
Runs = list[list[tuple[str, int, int]]]


@dataclass(frozen=True)
class Evaluation:
    """One row with its stages, in ticks and bytes.

    ``forward`` and ``backward`` are ``[pp v]``, ``tail`` and ``need`` ``[pp]``, so is what lies in each memory tier.
    ``weights`` is the part of ``backward`` that the schedule splits off, where it does; ``hidden`` what a forward and a
    backward take less beside each other, where it pairs them.
    """

    forward: Ints
    backward: Ints
    tail: Ints
    step: int
    need: Ints
    tiers: dict[str, Ints] = field(default_factory=dict)
    weights: Ints | None = None
    hidden: tuple[Ints, Ints] | None = None

    def fits(self, chain: Chain, limit_bytes: int) -> bool:
        """Whether every device, every memory tier and every pool has room."""
        room = chain.prices.tier_room
        held = all(int(need.max()) <= room[name][chain.row] for name, need in self.tiers.items())
        return held and int(self.need.max()) <= limit_bytes and bool(chain.pools_hold(self.tiers))


@dataclass(frozen=True)
class TierUse:
    """Bytes that one device of every pipeline rank keeps in a memory tier, and the most that it may.

    Where hosts share pools ``pool_bytes`` is what the fullest of them holds, of ``pool_room_bytes``.
    """

    name: str
    need_bytes: tuple[int, ...]
    room_bytes: int
    pool_bytes: int | None = None
    pool_room_bytes: int | None = None


@dataclass(frozen=True)
class Estimate:
    """Everything about one strategy; times in seconds, sizes in bytes, power in watts at the facility's meter.

    ``time`` and ``memory[rank]`` are named terms whose sums are the step and the need. ``interval_s`` is the
    range of nine in ten published steps of its stack and kind, each predicted with its model and accelerator left out.
    """

    step_s: float
    step_ticks: int
    tick_s: float
    interval_s: tuple[float, float]
    lower_bound_s: float
    time: tuple[tuple[str, float], ...]
    memory: tuple[dict[str, float], ...]
    memory_limit_bytes: float
    watts: dict[str, float]
    level_watts: dict[str, float]
    joules: float
    usd: float | None
    hosts_used: int
    devices_used: int
    tokens_per_s_per_device: float
    model_flop_utilisation: float
    goodput: Goodput
    tiers: tuple[TierUse, ...] = ()

    @property
    def need_bytes(self) -> tuple[float, ...]:
        """Bytes on each device of every pipeline rank."""
        return tuple(sum(classes.values()) for classes in self.memory)

    @property
    def headroom_fraction(self) -> float:
        """Part of the device memory that the fullest rank leaves free; negative when it does not fit."""
        return 1.0 - max(self.need_bytes) / self.memory_limit_bytes

    def __str__(self) -> str:
        return estimate_text(self)


def estimate(
    model: ModelGraph,
    cluster: Cluster,
    workload: Training,
    strategy: Strategy,
    *,
    fits: Calibration | None = None,
    ticks: Ticks | None = None,
    power_cap_w: float | None = None,
    care: Care = USUAL_CARE,
    limits: PowerLimits | None = None,
) -> Estimate:
    """Price one strategy, legal or not: whether it fits is for the caller to ask.

    Memory of a rank is the largest over the moments of the schedule. ``power_cap_w`` is a limit on the site;
    ``limits`` holds it and those on other levels.
    """
    fits = fits or calibrate(cluster, workload.stack)
    ticks = ticks or Ticks.of(model, cluster, workload)
    rows = Rows.of(strategy)
    chain, clocks = strategy_chain(model, cluster, workload, strategy, fits, ticks), strategy.clocks
    runs = chain.runs(strategy.stages)
    found = evaluate(chain, runs, clocks)
    each = joules(chain, runs, clocks)
    dynamic = float(each.sum() * rows.stage_size[0])
    static = static_power(rows, cluster)
    rates = wait_rates(rows, 0, cluster, limits or PowerLimits(site_w=power_cap_w))
    step_s = max(found.step * ticks.second, float(wait_s(rates, each)))
    devices, hosts = int(rows.world_size[0]), int(hosts_used(rows, cluster)[0])
    return Estimate(
        step_s=step_s,
        step_ticks=found.step,
        tick_s=ticks.second,
        interval_s=_interval_s(model, cluster, workload, strategy, step_s, hosts),
        lower_bound_s=_lower_bound(chain, found) * ticks.second,
        time=_time_terms(chain, runs, clocks, found, step_s),
        memory=memory_classes(chain, runs),
        memory_limit_bytes=cluster.memory_bytes,
        watts=mean_watts(static, dynamic, step_s),
        level_watts=watts_by_level(rows, cluster, each, step_s),
        **_bill(rows, cluster, static, dynamic, step_s),
        hosts_used=hosts,
        devices_used=devices,
        tokens_per_s_per_device=workload.tokens / step_s / devices,
        model_flop_utilisation=_utilisation(model, cluster, workload, step_s, devices),
        goodput=goodput(model, cluster, workload, rows, step_s, care),
        tiers=tier_uses(chain, runs),
    )


def _bill(rows: Rows, cluster: Cluster, static: StaticPower, dynamic: float, step_s: float) -> dict[str, float | None]:
    """``joules`` of a step at the facility's meter, and ``usd``, rent where there is one."""
    energy = static.pue * dynamic + float(static.facility_w[0]) * step_s
    rent = rental_usd_per_s(rows, cluster)
    return {"joules": energy, "usd": electricity_usd(energy, cluster) if rent is None else float(rent[0]) * step_s}


def evaluate(chain: Chain, runs: Runs, clocks: tuple[float, ...] = ()) -> Evaluation:
    """Durations, step and memory of one row under given stages; at full clock without ``clocks`` of pipeline ranks."""
    spans = _Spans.of(chain, runs)
    forward, backward = spans.durations(clocks)
    weights = spans.weights(clocks)
    tail = device_tails(chain, spans.i, spans.j, forward, backward if weights is None else weights)
    hidden, hop = spans.hidden(clocks), np.array([chain.hop])
    split, less = None if weights is None else weights[None], None if hidden is None else tuple(h[None] for h in hidden)
    step = chain.schedule.step_ticks(forward[None], backward[None], split, hop, tail[None], less)[0]
    return Evaluation(forward, backward, tail, int(step), spans.need(), spans.tiers(), weights, hidden)


def activation_bytes(chain: Chain, runs: Runs) -> tuple[Ints, Ints]:
    """Bytes a micro-batch that every virtual stage keeps, ``[pp v]``, and at a rank's fullest moment, ``[pp]``."""
    spans = _Spans.of(chain, runs)
    return spans.kept(), spans.activations()


def tier_uses(chain: Chain, runs: Runs) -> tuple[TierUse, ...]:
    """What every pipeline rank keeps in each memory tier that the row names."""
    room = chain.prices.tier_room
    found = _Spans.of(chain, runs).tiers() if room else {}
    return tuple(
        TierUse(name, tuple(need.tolist()), int(room[name][chain.row]), *_fullest_pool(chain, name, need))
        for name, need in found.items()
    )


def _fullest_pool(chain: Chain, name: str, need: Ints) -> tuple[int | None, int | None]:
    """Bytes in the fullest pool of a tier, and what it holds; nothing where hosts share none."""
    devices, most = chain.pools.get(name, (None, None))
    return (None, None) if devices is None else (int((devices @ need).max()), most)


@dataclass(frozen=True)
class _Spans:
    """Runs of layers as arrays: virtual stage ``c`` is layers ``i[c]`` to ``j[c] - 1``, run ``r`` in ``stage[r]``."""

    chain: Chain
    i: Ints
    j: Ints
    stage: Ints
    choice: NDArray
    a: Ints
    b: Ints

    @staticmethod
    def of(chain: Chain, runs: Runs) -> _Spans:
        flat = [(c, choice, a, b) for c, stage in enumerate(runs) for choice, a, b in stage]
        stage, choice, a, b = zip(*flat, strict=True)
        i = np.array([stage_runs[0][1] for stage_runs in runs], dtype=np.int64)
        j = np.array([stage_runs[-1][2] for stage_runs in runs], dtype=np.int64)
        return _Spans(chain, i, j, np.array(stage), np.array(choice), np.array(a), np.array(b))

    def _per_stage(self, of: Callable[[str, Ints, Ints], Ints]) -> Ints:
        """Sum over runs of a quantity that depends on the choice, by stage."""
        total = np.zeros(len(self.i), dtype=np.int64)
        for choice in RECOMPUTE:
            mine = self.choice == choice
            if mine.any():
                np.add.at(total, self.stage[mine], of(choice, self.a[mine], self.b[mine]))
        return total

    def durations(self, clocks: tuple[float, ...]) -> tuple[Ints, Ints]:
        """Forward and backward ticks of every virtual stage."""
        forward, backward = self._at(FULL)
        for clock in set(clocks) - {FULL}:
            mine = self._ranks_at(clock, clocks)
            slow = self._at(clock)
            forward, backward = (np.where(mine, new, old) for new, old in zip(slow, (forward, backward), strict=True))
        return forward, backward

    def hidden(self, clocks: tuple[float, ...]) -> tuple[Ints, Ints] | None:
        """Ticks that every virtual stage's passes take less beside others; ``None`` where none run so."""
        found = self.chain.hidden(self.i, self.j)
        for clock in set(clocks) - {FULL} if found is not None else ():
            mine, slow = self._ranks_at(clock, clocks), self.chain.at(clock).hidden(self.i, self.j)
            found = tuple(np.where(mine, new, old) for new, old in zip(slow, found, strict=True))
        return found

    def weights(self, clocks: tuple[float, ...]) -> Ints | None:
        """Ticks of weights' gradients of every virtual stage; ``None`` where they are not split off."""
        found = self.chain.weights(self.i, self.j)
        for clock in set(clocks) - {FULL} if found is not None else ():
            found = np.where(self._ranks_at(clock, clocks), self.chain.at(clock).weights(self.i, self.j), found)
        return found

    def _ranks_at(self, clock: float, clocks: tuple[float, ...]) -> NDArray[np.bool_]:
        """Virtual stages whose device runs at that clock."""
        return (np.array(clocks) == clock)[list(self.chain.schedule.devices)]

    def _at(self, clock: float) -> tuple[Ints, Ints]:
        chain = self.chain.at(clock)
        backward = chain.backward(self.i, self.j) + self._per_stage(chain.recompute)
        return chain.forward(self.i, self.j), backward

    def kept(self) -> Ints:
        """Bytes a micro-batch that every virtual stage keeps."""
        return self._per_stage(self.chain.saved) + self.chain.saved_ends(self.i, self.j)

    def activations(self) -> Ints:
        """Bytes of activations on every pipeline rank at its fullest moment."""
        return self._fullest(self.kept())

    def tiers(self) -> dict[str, Ints]:
        """Bytes in each memory tier of one device of every pipeline rank."""
        chain, found = self.chain, {}
        for name in chain.prices.tier_room:
            states = chain.schedule.by_device(chain.tier_states(name, self.i, self.j)).sum(axis=0)
            found[name] = states + self._fullest(chain.tier_saved(name, self.i, self.j))
        return found

    def _fullest(self, kept: Ints) -> Ints:
        """Bytes of every pipeline rank when most micro-batches are in flight, each stage keeping ``kept`` of one."""
        schedule = self.chain.schedule
        held = schedule.by_device(kept)
        return np.array(
            [max(int(np.dot(moment, held[:, s])) for moment in schedule.moments(s)) for s in range(schedule.pp)]
        )

    def need(self) -> Ints:
        """Bytes on every pipeline rank."""
        chain = self.chain
        states = chain.state_bytes(self.i, self.j) + chain.logit_bytes(self.i, self.j)
        return chain.schedule.by_device(states).sum(axis=0) + chain.fixed_bytes + self.activations()


def memory_classes(chain: Chain, runs: Runs) -> tuple[dict[str, float], ...]:
    """Bytes by tensor class on one device of every pipeline rank; each sums to the need."""
    spans = _Spans.of(chain, runs)
    columns = {**chain.states(spans.i, spans.j), "logits": chain.logit_bytes(spans.i, spans.j)}
    columns = {name: chain.schedule.by_device(sizes).sum(axis=0) for name, sizes in columns.items()}
    columns["activations"] = spans.activations()
    fixed = {name: float(sizes[chain.row]) for name, sizes in chain.prices.fixed.items()}
    return tuple({**{name: float(sizes[s]) for name, sizes in columns.items()}, **fixed} for s in range(chain.pp))


def device_tails(chain: Chain, i: Ints, j: Ints, forward: Ints, backward: Ints) -> Ints:
    """Exposed end-of-step ticks of each pipeline rank, ``[pp]``, over all its virtual stages."""
    parts = chain.tail_parts(i, j)
    by_device = {name: chain.schedule.by_device(values) for name, values in parts.items()}
    totals = {name: by_device[name].sum(axis=0) for name in ("reduce", "update", "gather")}
    totals |= {name: by_device[name][0] for name in ("last_bucket", "first_bucket")}
    work = [chain.schedule.by_device(values).sum(axis=0) for values in (forward, backward)]
    return chain.tail(totals, *work)


def _interval_s(
    model: ModelGraph, cluster: Cluster, workload: Training, strategy: Strategy, step_s: float, hosts: int
) -> tuple[float, float]:
    part, known = cluster.accelerator, {"hosts": hosts, "full_recompute": strategy.recomputes_whole_layers}
    return interval("time", step_s, workload.stack.name, kind_of(model, workload), part.family, part.whole, **known)


def _lower_bound(chain: Chain, found: Evaluation) -> int:
    durations = (found.forward, found.backward, chain.hop, found.tail, found.weights, found.hidden)
    return max(path.ticks(*durations) for path in chain.schedule.seed_paths())


def _time_terms(
    chain: Chain, runs: Runs, clocks: tuple[float, ...], found: Evaluation, step_s: float
) -> tuple[tuple[str, float], ...]:  # fmt: skip
    """The busiest rank's seconds by cause; what is left of the step is waiting for other stages (the bubble)."""
    tick, schedule, rounds = chain.prices.ticks.second, chain.schedule, chain.schedule.rounds
    busy = busy_ticks(schedule, found)
    device = int(np.argmax(busy))
    slow = chain.at(clocks[device])
    mine = schedule.stages_of(device).tolist()
    spans = [(runs[c][0][1], runs[c][-1][2]) for c in mine]
    terms = {
        name: rounds * sum(float(slow.total(table, i, j)) for i, j in spans)
        for name, table in slow.prices.parts.items()
    }
    terms["expert parallel"] -= float(_saved_ticks(schedule, found)[device]) * tick
    terms["memory tiers"] = terms.get("memory tiers", 0.0) + rounds * sum(int(slow.waited(*it)) for it in spans) * tick
    again = sum(int(slow.recompute(choice, a, b)) for c in mine for choice, a, b in runs[c])
    terms["recompute"] = rounds * again * tick
    parts = [chain.tail_parts(i, j) for i, j in spans]
    terms["optimizer"] = sum(float(p["update"]) for p in parts) * tick
    terms["gradients and weights"] = float(found.tail[device]) * tick - terms["optimizer"]
    if slow.prices.tier_update is not None:
        waited = sum(float(slow.total(slow.prices.tier_update, i, j)) for i, j in spans) * tick
        terms["memory tiers"], terms["optimizer"] = terms["memory tiers"] + waited, terms["optimizer"] - waited
    terms["pipeline bubble"] = max(0.0, found.step * tick - float(busy[device]) * tick)
    terms["power cap"] = max(0.0, step_s - found.step * tick)
    return tuple((name, value) for name, value in terms.items() if value > 0)


def busy_ticks(schedule: Schedule, found: Evaluation) -> Ints:
    """Ticks that a device of every pipeline rank works in a step, its tail included, ``[pp]``."""
    passes = schedule.by_device(found.forward + found.backward).sum(axis=0)
    return schedule.rounds * passes - _saved_ticks(schedule, found) + found.tail


def _saved_ticks(schedule: Schedule, found: Evaluation) -> Ints:
    """Ticks that every rank's passes take less in a step because they run beside each other, ``[pp]``."""
    if found.hidden is None:
        return np.zeros(schedule.pp, dtype=np.int64)
    saved = sum(count * less for count, less in zip(schedule.beside(), found.hidden, strict=True))
    return schedule.by_device(saved).sum(axis=0)


def mean_watts(static: StaticPower, dynamic: float, step_s: float) -> dict[str, float]:
    """Mean watts by consumer; ``facility`` is the sum."""
    watts = {
        "devices": float(static.devices[0]) + dynamic / step_s,
        "hosts": float(static.hosts[0]),
        "network": float(static.network[0]),
    }
    total = sum(watts.values())
    return {**watts, "cooling": (static.pue - 1) * total, "facility": static.pue * total}


def _utilisation(model: ModelGraph, cluster: Cluster, workload: Training, step_s: float, devices: int) -> float:
    """Model FLOP utilisation: 3 times the forward FLOP (no recomputation) over what the devices could do."""
    flop = 3 * model.forward_flop_per_token(workload.seq_len) * workload.tokens
    return flop / (step_s * devices * cluster.peak_flop_per_s(workload.recipe.compute))
