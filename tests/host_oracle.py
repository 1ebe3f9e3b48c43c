"""Enumeration of every plan on hosts that differ: every order of hosts, rates by walking the tree of switches.

Rates come from the widest path of a graph; nothing here comes from packings, blocks or the search.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import networkx
import numpy as np
from hypothesis import strategies as st
from oracle import (
    Answer,
    Instance,
    _compositions,
    _fitting,
    _quickest,
    all_rows,
    rows_of,
)
from oracle_cuts import even_cuts, runs_of
from oracle_quantities import objective_values
from oracle_tiers import in_pools, offloading
from strategies import small_cluster

from cost_models.chain import Chain
from cost_models.estimate import device_tails
from cost_models.pipeline import step_ticks
from cost_models.price import Prices, price
from topologies.cluster import Cluster
from topologies.irregular import Irregular, Switch

Signature = tuple[tuple[float, ...], float]


@st.composite
def irregular_hosts(draw: st.DrawFn, *, most_hosts: int = 5, devices: int = 2) -> Irregular:
    """Hosts with slow cards and missing devices below switches with narrow uplinks, one inside the other or apart."""
    hosts = draw(st.integers(2, most_hosts))
    rate = st.sampled_from([1.0, 1.0, 1.0, 0.5, 0.1])
    order = draw(st.permutations(range(hosts)))
    cut = draw(st.integers(1, hosts))
    groups = draw(
        st.sampled_from([[], [order[:cut]], [order[:cut], order[cut:]], [order[:cut], order[: (cut + 1) // 2]]])
    )
    groups = list(dict.fromkeys(tuple(sorted(g)) for g in groups if g))
    uplink = st.sampled_from([1.0, 0.5, 0.35, 0.05])
    return Irregular(
        numbers=tuple(range(hosts)),
        devices=tuple(draw(st.sampled_from([devices, devices, max(1, devices - 1)])) for _ in range(hosts)),
        nic=tuple(draw(rate) for _ in range(hosts)),
        switches=tuple(Switch(f"s{k}", group, draw(uplink)) for k, group in enumerate(groups)),
        spare_hosts=draw(st.sampled_from([0, 0, 0, 1])),
    )  # fmt: skip


def with_hosts(cluster: Cluster, irregular: Irregular, bandwidth_bytes_per_s: float) -> Cluster:
    """A small cluster of the base's parts whose hosts differ so, on a network so slow that tiny models feel it."""
    busy = len(irregular.numbers) - irregular.spare_hosts
    whole = small_cluster(cluster.devices_per_host, busy)
    outer = [dataclasses.replace(it, bandwidth_bytes_per_s=bandwidth_bytes_per_s) for it in whole.levels[1:]]
    levels = (whole.levels[0], *outer)
    return Cluster(
        "small", cluster.accelerator, whole.host, cluster.fabric, cluster.facility, len(irregular.numbers), levels,
        irregular=irregular,
    )  # fmt: skip


def pair_rates(it: Irregular) -> np.ndarray:
    """Rate of every pair of hosts, by the widest path through the tree of switches; 1 of a host with itself."""
    graph = networkx.Graph()
    for host, nic in enumerate(it.nic):
        above = [s for s in it.switches if host in s.hosts]
        innermost = min(above, key=lambda s: len(s.hosts)).name if above else "spine"
        graph.add_edge(host, innermost, rate=nic)
    for switch in it.switches:
        above = [s for s in it.switches if set(switch.hosts) < set(s.hosts)]
        graph.add_edge(
            switch.name, min(above, key=lambda s: len(s.hosts)).name if above else "spine", rate=switch.uplink
        )
    hosts = range(len(it.nic))
    return np.array([[1.0 if a == b else _narrowest(graph, a, b) for b in hosts] for a in hosts])


def _narrowest(graph: networkx.Graph, a: int, b: int) -> float:
    path = networkx.shortest_path(graph, a, b)
    return min(1.0, *(float(graph.edges[edge]["rate"]) for edge in itertools.pairwise(path)))


def signatures(it: Irregular, devices: int, hosts: int, groups: int) -> set[Signature]:
    """Rates of the groups in order, and of the worst hop, of every order of able hosts."""
    rates = pair_rates(it)
    able = [h for h, n in enumerate(it.devices) if n >= devices]
    if hosts * groups > len(it.devices) - it.spare_hosts:
        return set()
    return {_signature(rates, order, hosts) for order in itertools.permutations(able, hosts * groups)}


def _signature(rates: np.ndarray, order: tuple[int, ...], hosts: int) -> Signature:
    parts = [order[k : k + hosts] for k in range(0, len(order), hosts)]
    inside = tuple(min((rates[a, b] for a, b in itertools.combinations(part, 2)), default=1.0) for part in parts)
    hops = [rates[a, b] for one, other in itertools.pairwise(parts) for a, b in zip(one, other, strict=True)]
    return inside, min(hops, default=1.0)


def best_placed(it: Instance) -> Answer:
    """Look at every plan on every order of hosts."""
    answer, found = Answer(), list(all_rows(it))
    if not found:
        return answer
    rows, tables = offloading(it.cluster, rows_of(it, found)), {}
    for r in range(len(rows)):
        one = rows.take(np.array([r]))
        factors = {axis: values[0].tolist() for axis, values in one.factors.items()}
        used = math.prod(factors[axis][0] for axis in ("tp", "cp", "dp_shard", "dp_replicate", "pp"))
        outside = math.prod(math.prod(factors[axis][1:]) for axis in ("tp", "cp", "dp_shard", "dp_replicate"))
        groups = math.prod(factors["pp"][1:])
        answer.by_row.append(math.inf)
        for inside, hop in signatures(it.cluster.irregular, used, outside, groups):
            for rate in {*inside, hop} - tables.keys():
                cluster = it.cluster.at_rate(rate)
                tables[rate] = price(it.model, cluster, it.workload, rows, it.fits, it.ticks, clocks=it.clocks)
            stage_rates = [rate for rate in inside for _ in range(factors["pp"][0])]
            prices = {rate: tables[rate].take(np.array([r])) for rate in {*inside, hop}}
            _every_cut(it, prices, stage_rates, hop, answer)
    return answer


def _every_cut(it: Instance, prices: dict[float, Prices], rates: list[float], hop: float, answer: Answer) -> None:
    if it.pinned("virtual_stages", 1):
        _plain(it, prices, rates, int(prices[hop].hop[0]), answer)
    for virtual in range(2, it.model.layers // len(rates) + 1):
        if it.pinned("virtual_stages", virtual) and _one_of_the_orders(rates):
            for clock in it.clocks:
                some = {rate: table.at(clock).with_virtual(virtual) for rate, table in prices.items()}
                _interleaved(it, some, rates, int(prices[hop].hop[0]), answer)


def _one_of_the_orders(rates: list[float]) -> bool:
    """Interleaved plans have their groups in the order of their rates only, begun anywhere."""
    down = sorted(rates, reverse=True)
    return rates in [down[k:] + down[:k] for k in range(len(down))]


def _plain(it: Instance, prices: dict[float, Prices], rates: list[float], hop: int, answer: Answer) -> None:
    chains = {rate: Chain(it.model, table, 0) for rate, table in prices.items()}
    chain = chains[rates[0]]
    for sizes in _compositions(it.model.layers, chain.pp):
        ends = list(itertools.accumulate(sizes))
        stages = [_fitting(it, chains[rates[s]], s, ends[s] - n, ends[s]) for s, n in enumerate(sizes)]
        if not all(len(table["forward"]) for table in stages):
            continue
        pick = np.indices([len(table["forward"]) for table in stages]).reshape(len(stages), -1)
        columns = {name: np.stack([t[name][pick[s]] for s, t in enumerate(stages)], axis=1) for name in stages[0]}
        used = {name: columns[f"in {name}"] for name in chain.prices.tier_pools}
        fits = in_pools(it.cluster, chain, used) & np.ones(pick.shape[1], dtype=bool)
        if not fits.any():
            continue
        columns = {name: values[fits] for name, values in columns.items()}
        many = np.full(int(fits.sum()), hop)
        shape = (chain.pp, 1, chain.micro_batches)
        steps = step_ticks(*shape, columns["forward"], columns["backward"], many, columns["tail"])
        rows = chain.prices.rows
        dynamic = columns["joules"].sum(axis=1) * int(rows.stage_size[0])
        answer.add(objective_values(it, rows, steps, dynamic, columns["joules"]))


def _interleaved(it: Instance, prices: dict[float, Prices], rates: list[float], hop: int, answer: Answer) -> None:
    chains = {rate: Chain(it.model, table, 0) for rate, table in prices.items()}
    chain = chains[rates[0]]
    if chain.pp == 1 or chain.micro_batches % chain.pp:
        return
    for cut in even_cuts(it.model.layers, chain.pp, chain.virtual):
        choices = [_quickest(it, chains[rates[d]], cut, d) for d in range(chain.pp)]
        if None in choices:
            continue
        forward, backward, tail, each = _durations(chains, rates, cut, choices)
        shape = (chain.pp, chain.virtual, chain.micro_batches)
        step = step_ticks(*shape, forward[None], backward[None], np.array([hop]), tail[None])
        rows = chain.prices.rows
        dynamic = each.sum() * int(rows.stage_size[0])
        answer.add(objective_values(it, rows, step, np.array([dynamic]), each[None]))


def _durations(chains: dict[float, Chain], rates: list[float], cut: list[int], choices: list) -> tuple:
    pp, chunks = len(rates), len(cut) - 1
    i, j = np.array(cut[:-1]), np.array(cut[1:])
    forward, backward, each = np.zeros(chunks, dtype=np.int64), np.zeros(chunks, dtype=np.int64), np.zeros(pp)
    for c in range(chunks):
        chain, runs = chains[rates[c % pp]], runs_of(cut[c], cut[c + 1], *choices[c % pp])
        forward[c], backward[c] = chain.forward(i[c], j[c]), chain.backward(i[c], j[c])
        backward[c] += sum(int(chain.recompute(kind, a, b)) for kind, a, b in runs)
        extra = chain.prices.joules_extra
        again = sum(float(chain.total(extra[kind], a, b, ends=False)) for kind, a, b in runs)
        each[c % pp] += chain.micro_batches * (float(chain.total(chain.prices.joules_pass, i[c], j[c])) + again)
        each[c % pp] += float(chain.total(chain.prices.joules_step, i[c], j[c]))
    tails = {rate: device_tails(chain, i, j, forward, backward) for rate, chain in chains.items()}
    return forward, backward, np.array([tails[rate][d] for d, rate in enumerate(rates)]), each


def fronts(found: set[Signature]) -> Iterator[tuple[tuple[float, ...], float]]:
    """Sorted group rates and hop rate of the signatures that no other matches or beats in everything."""
    kept = {(tuple(sorted(inside, reverse=True)), hop) for inside, hop in found}
    for one in kept:
        if not any(
            o != one and o[1] >= one[1] and all(a >= b for a, b in zip(o[0], one[0], strict=True)) for o in kept
        ):
            yield one
