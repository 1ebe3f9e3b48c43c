"""Enumeration of every pipeline of a small mixed instance: own legality and own simulation of 1F1B.

Prices come from the cost models, nothing from the search, so that the two can disagree.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from mixed_power_oracle import Limits, waits_s
from oracle_tiers import every_share

from cost_models.chain import Chain
from cost_models.mixed import Machine, MixedStage


@dataclass(frozen=True)
class MixedInstance:
    """A machine, the bytes that a stage may use on each part, pins, and the clocks that a stage may have."""

    machine: Machine
    limits: tuple[int, ...]
    pins: tuple[tuple[str, int | str], ...] = ()
    clocks: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Option:
    """A stage that fits: its ticks, what it reserves, its sides of a hop, its joules above idle at the meter."""

    stage: MixedStage
    forward: int
    backward: int
    tail: int
    size: int
    same: int
    across: int
    joules: float


@dataclass(frozen=True)
class Way:
    """A way to run a stage, without its layers."""

    stage: MixedStage
    chain: Chain
    size: int
    sides: tuple[int, int]


Value = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def just_the_step(step: np.ndarray, hosts: np.ndarray, joules: np.ndarray) -> np.ndarray:
    """Time is what counts, whatever the hosts and the joules are."""
    return step


def best_step(
    it: MixedInstance, value: Value = just_the_step, *, joules: bool = False, power: Limits | None = None
) -> tuple[float, int]:
    """The least step in ticks of all pipelines, infinite where there is none; and how many were looked at.

    ``value`` makes another figure of steps ``[pipelines]``, hosts in use, ``[parts, pipelines]``, and joules of all
    stages, which ask for more than the quickest recompute where ``joules`` says that they count. Under ``power``, most
    watts by level, steps wait.
    """
    best, seen, batch = math.inf, 0, it.machine.workload.global_batch
    for size in (b for b in range(1, batch + 1) if batch % b == 0):
        ways = [way for part in range(len(it.limits)) for way in _ways(it, part, size)]
        for pp in range(2, it.machine.model.layers + 1):
            for cut in itertools.combinations(range(1, it.machine.model.layers), pp - 1):
                ends = (0, *cut, it.machine.model.layers)
                found, count = _best_of_cut(it, ways, batch // size, ends, value, joules, power or {})
                best, seen = min(best, found), seen + count
    return best, seen


def _best_of_cut(
    it: MixedInstance, ways: list[Way], m: int, cut: tuple[int, ...], value: Value, joules: bool, power: Limits
) -> tuple[float, int]:  # fmt: skip
    pp, parts = len(cut) - 1, range(len(it.limits))
    options = [_options(it, ways, m, pp, s, cut[s], cut[s + 1], joules) for s in range(pp)]
    if not all(options):
        return math.inf, 0
    picked = [a.ravel() for a in np.meshgrid(*(np.arange(len(o)) for o in options), indexing="ij")]

    def of(name: str) -> np.ndarray:
        return np.stack(
            [np.array([getattr(o, name) for o in mine])[k] for mine, k in zip(options, picked, strict=True)]
        )

    part = np.stack([np.array([o.stage.part for o in mine])[k] for mine, k in zip(options, picked, strict=True)])
    room = [it.machine.cluster.parts[k].devices for k in parts]
    used = np.stack([np.where(part == k, of("size"), 0).sum(axis=0) for k in parts])
    fits = np.all([used[k] <= room[k] for k in parts], axis=0)
    if not fits.any():
        return math.inf, 0
    alike = part[:-1] == part[1:]
    hop = np.where(alike, np.maximum(of("same")[:-1], of("same")[1:]), np.maximum(of("across")[:-1], of("across")[1:]))
    step = simulated(m, *(of(name)[:, fits] for name in ("forward", "backward", "tail")), hop[:, fits])
    each = np.array([it.machine.cluster.parts[k].devices_per_host for k in parts])[:, None]
    spent, hosts = of("joules")[:, fits], np.ceil(used[:, fits] / each)
    if power:
        devices = np.stack(
            [np.array([o.stage.devices for o in mine])[k] for mine, k in zip(options, picked, strict=True)]
        )
        waits = waits_s(it.machine, power, hosts, *(of_all[:, fits] for of_all in (part, of("size"), devices)), spent)
        step = np.maximum(step, np.ceil(waits / it.machine.ticks.second * (1 - 1e-12)))
    return float(value(step, hosts, spent.sum(axis=0)).min()), int(fits.sum())


def simulated(m: int, forward: np.ndarray, backward: np.ndarray, tail: np.ndarray, hop: np.ndarray) -> np.ndarray:
    """Steps of many pipelines, run as a machine would: every stage takes its next piece of work when both are ready."""
    pp = len(forward)
    todo = []
    for s in range(pp):
        ahead = min(m, pp - s)
        order = [("F", i) for i in range(ahead)]
        for i in range(m):
            order += [("B", i)] + ([("F", i + ahead)] if i + ahead < m else [])
        todo.append(order)
    done, free = {}, [np.zeros(forward.shape[1], dtype=np.int64) for _ in range(pp)]
    while any(todo):
        for s in range(pp):
            if not todo[s]:
                continue
            kind, i = todo[s][0]
            before = (kind, s - 1, i) if kind == "F" else (kind, s + 1, i)
            if kind == "B" and s == pp - 1:
                before = ("F", s, i)
            if 0 <= before[1] < pp and before not in done:
                continue
            ready = done.get(before, 0)
            if before[1] != s and 0 <= before[1] < pp:
                ready = ready + hop[min(s, before[1])]
            free[s] = np.maximum(free[s], ready) + (forward if kind == "F" else backward)[s]
            done[kind, s, i] = free[s]
            todo[s].pop(0)
    return np.max([free[s] + tail[s] for s in range(pp)], axis=0)


def _options(
    it: MixedInstance, ways: list[Way], m: int, pp: int, s: int, i: int, j: int, joules: bool
) -> list[Option]:  # fmt: skip
    """Every way and every recompute of one stage that fits; of those alike in all but recompute the quickest, or all
    where ``joules`` count, and one of ways that differ in nothing but what they offload and take the same."""
    found = {}
    for way in ways:
        fitting = list(_recomputes(it, way, m, min(m, pp - s), i, j))
        if fitting and not joules:
            fitting = [min(fitting, key=lambda one: one.backward)]
        for one in fitting:
            found.setdefault((one.stage, one.forward, one.backward, one.tail, one.joules * joules), one)
    return list(found.values())


def _recomputes(it: MixedInstance, way: Way, m: int, flight: int, i: int, j: int) -> Iterator[Option]:
    chain, stage, pinned = way.chain, way.stage, dict(it.pins).get("recompute")
    at = np.array([i]), np.array([j])
    fixed = int(chain.fixed_bytes + chain.state_bytes(*at)[0] + chain.logit_bytes(*at)[0])
    if not _has_room(it, chain, stage.part, flight, i, j):
        return
    for full, selective in itertools.product(range(j - i + 1), repeat=2):
        a, b = i + full, i + full + selective
        whole = {"full": full, "selective": selective, "none": j - b}
        if b > j or (pinned is not None and whole[pinned] != j - i):
            continue
        runs = (("full", i, a), ("selective", a, b), ("none", b, j))
        kept = sum(int(chain.saved(kind, np.array([x]), np.array([y]))[0]) for kind, x, y in runs)
        if fixed + flight * (kept + int(chain.saved_ends(*at)[0])) > it.limits[stage.part]:
            continue
        again = sum(int(chain.recompute(kind, np.array([x]), np.array([y]))[0]) for kind, x, y in runs)
        forward, backward = chain.forward(*at), chain.backward(*at) + again
        tail = chain.tail(chain.tail_parts(*at), forward, backward)
        spent = _joules(it, way, m, runs, i, j)
        yield Option(stage, int(forward[0]), int(backward[0]), int(tail[0]), way.size, *way.sides, spent)


def _joules(it: MixedInstance, way: Way, m: int, runs: tuple[tuple[str, int, int], ...], i: int, j: int) -> float:
    """Joules above idle of all devices of a stage, layer by layer, with its site's cooling."""
    prices, model = way.chain.prices, it.machine.model
    kinds = [*model.order[i:j], *[-2] * (i == 0), *[-1] * (j == model.layers)]
    once = sum(float(prices.joules_pass[0, k]) for k in kinds)
    for name, x, y in runs:
        if name != "none":
            once += sum(float(prices.joules_extra[name][0, k]) for k in model.order[x:y])
    each = m * once + sum(float(prices.joules_step[0, k]) for k in kinds)
    facility = it.machine.cluster.parts[way.stage.part].facility.figures
    return each * way.stage.devices * facility.pue.value


def _has_room(it: MixedInstance, chain: Chain, part: int, flight: int, i: int, j: int) -> bool:
    """Whether each tier's even part for a device holds what a stage keeps there, layer by layer."""
    prices, cluster, model = chain.prices, it.machine.cluster.parts[part], it.machine.model
    kinds = [*model.order[i:j], *[-2] * (i == 0), *[-1] * (j == model.layers)]
    for name, states in prices.tier_states.items():
        tier = next(tier for tier in cluster.tiers if tier.name == name)
        held = sum(int(states[0, k]) + flight * int(prices.tier_saved[name][0, k]) for k in kinds)
        held += int(prices.tier_tied[name][0]) * (i > 0 and j == model.layers)
        sharers = cluster.devices_per_host * (math.ceil(cluster.hosts / tier.pools) if tier.pools else 1)
        if held > tier.capacity_bytes / sharers:
            return False
    return True


def _ways(it: MixedInstance, part: int, batch: int) -> list[Way]:
    """Every legal way to run a stage on one part, priced at every clock by itself."""
    found = []
    shares = every_share(len(it.machine.cluster.parts[part].tiers))
    for legal, clock in itertools.product(_legal(it, part, batch), it.clocks):
        stage = dataclasses.replace(legal, clock=clock)
        setup = np.array([[stage.tp, stage.cp, stage.dp, stage.ep, stage.zero, stage.micro_batch]])
        inside, tokens = it.machine.prices(part, setup, (clock,)), batch * it.machine.workload.seq_len
        sides = [int(it.machine.side(part, tokens, np.array([stage.devices]), across=a)[0]) for a in (False, True)]
        size = _reserved(it, part, stage.devices, stage.tp * stage.cp)
        for share in shares:
            prices = it.machine.offloading(part, inside, share[None]) if share.any() else inside
            found.append(Way(stage, Chain(it.machine.model, prices, 0), size, (sides[0], sides[1])))
    return found


def _legal(it: MixedInstance, part: int, batch: int) -> list[MixedStage]:
    """Every legal (tp, cp, dp, ep, zero) on one part, by the rules of the space's restrictions."""
    machine, pins = it.machine, dict(it.pins)
    cluster, model, found = machine.cluster.parts[part], machine.model, []
    room = cluster.levels[0].fanout
    for tp, cp, dp in itertools.product(range(1, room + 1), range(1, room + 1), range(1, cluster.devices + 1)):
        if tp * cp > room or batch % dp or tp * cp * dp > cluster.devices:
            continue
        if any(width % tp for _, width in model.widths) or (model.kv_heads % tp and tp % model.kv_heads):
            continue
        if cp > 1 and machine.workload.seq_len % (2 * cp):
            continue
        if _reserved(it, part, tp * cp * dp, tp * cp) == 0:
            continue
        for ep, zero in itertools.product(range(1, max(1, model.experts) + 1), range(4)):
            if max(1, model.experts) % ep or (tp * cp * dp) % ep or (zero and cp * dp == 1):
                continue
            named = {"tp": tp, "cp": cp, "ep": ep, "zero": zero}
            if all(pins.get(name, value) == value for name, value in named.items()):
                found.append(MixedStage(part, tp, cp, dp, ep, zero, batch // dp, ()))
    return found


def _reserved(it: MixedInstance, part: int, devices: int, group: int = 1) -> int:
    """Devices that a stage reserves; 0 where groups of ``group`` have no equal place. For one host a domain."""
    cluster = it.machine.cluster.parts[part]
    room = cluster.levels[0].fanout
    chain = [room]
    while chain[-1] > 1:
        chain.append(max(d for d in range(1, chain[-1]) if chain[-1] % d == 0))
    if devices <= room:
        return min(size for size in chain if size >= devices)
    domains = [d for d in range(2, cluster.devices // room + 1) if devices % d == 0 and devices // d <= room]
    return min((d for d in domains if (devices // d) % group == 0), default=0) * room
