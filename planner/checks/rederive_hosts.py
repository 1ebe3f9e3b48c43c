"""The bound of a space on hosts that differ, as in :mod:`planner.checks.rederive`, with every packing of hosts.

Rates come from the widths of all pairs of hosts, not from the blocks of the search's cluster. For a row of ``G`` groups
of ``H`` hosts with enough devices, and hops at a rate of at least ``r``:

1. All groups lie in one component of the pairs of width ``r``. Those of its components of a higher width ``q`` hold
   ``sum floor(n / H)`` groups at that rate.
2. Or the groups lie across such components, ``min(n, G) / G`` whole hosts of each for every group, which then are as
   slow as the pairs between them: one rate ``q < r`` for all, of a component of width ``q`` that offers ``H`` to each.

A row is bounded once a packing, by its fastest group and its hops. The plans that are left are branched over, each
stage at any of its packing's rates as far as there are groups of that rate; interleaved ones are run in every order of
groups that the space allows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

import networkx
import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.placed import placed_chain, with_hop
from cost_models.price import Prices, price
from cost_models.rows import Rows
from planner.apart import Domain, domains_of
from planner.checks.branching import Groups, least_of_stages
from planner.checks.branching_points import even_cuts, value_of_cut
from planner.checks.rederive import Problem, Rederived, TooManySplits, all_rows, described, may_fit, values_by_schedule
from planner.clocks import search_clocks
from topologies.irregular import Irregular

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Packed:
    """Rates of groups, fastest first, one each; the rate of all hops."""

    groups: tuple[float, ...]
    hop: float


@dataclass(frozen=True)
class Hosts:
    """The widths of all pairs of hosts."""

    of: Irregular

    @cached_property
    def width(self) -> NDArray[np.float64]:
        """``[hosts, hosts]``: the part of the scale-out bandwidth that two hosts have between them."""
        every = np.arange(len(self.of.numbers))
        return np.stack([self.of.pair_rates(np.full_like(every, host), every) for host in every])

    @cached_property
    def widths(self) -> list[float]:
        """Distinct ones of two different hosts, fastest first; 1 of a single host."""
        upper = self.width[np.triu_indices(len(self.width), 1)]
        return sorted(set(upper.tolist()), reverse=True) or [1.0]

    def components(self, hosts: frozenset[int], width: float) -> list[frozenset[int]]:
        """Which of these hosts are joined by pairs of at least that width."""
        graph, at = networkx.Graph(), sorted(hosts)
        graph.add_nodes_from(at)
        a, b = np.nonzero(np.triu(self.width[np.ix_(at, at)] >= width, 1))
        graph.add_edges_from((at[i], at[j]) for i, j in zip(a.tolist(), b.tolist(), strict=True))
        return [frozenset(part) for part in networkx.connected_components(graph)]

    def packings(self, devices: int, hosts: int, groups: int) -> list[Packed]:
        """Every packing worth a look, best or not: what one of them cannot do, none can."""
        able = frozenset(h for h, n in enumerate(self.of.devices) if n >= devices)
        if hosts * groups > len(self.of.numbers) - self.of.spare_hosts:
            return []
        if groups == 1:
            rates = [q for q in self.widths if any(len(part) >= hosts for part in self.components(able, q))]
            return [Packed((rates[0],), self.widths[0])] if rates else []
        found = []
        for hop in self.widths:
            for part in self.components(able, hop):
                found += self._within(part, hop, hosts, groups)
            found += self._across(able, hop, hosts, groups)
        return list(dict.fromkeys(found))

    def _within(self, part: frozenset[int], hop: float, hosts: int, groups: int) -> list[Packed]:
        rates: list[float] = []
        for q in self.widths:
            if q >= hop:
                room = sum(len(one) // hosts for one in self.components(part, q))
                rates += [q] * (min(room, groups) - len(rates))
        return [Packed(tuple(rates), hop)] if len(rates) == groups else []

    def _across(self, able: frozenset[int], hop: float, hosts: int, groups: int) -> list[Packed]:
        for q in self.widths:
            if q < hop:
                parts = [self.components(part, hop) for part in self.components(able, q)]
                if any(sum(len(one) // groups for one in some) >= hosts for some in parts):
                    return [Packed((q,) * groups, hop)]
        return []


@dataclass(frozen=True)
class _Open:
    """A row with a packing whose bound is below the target."""

    bound: float
    virtual: int
    rows: Rows
    packed: Packed
    stages: int

    @property
    def order(self) -> tuple[float, int]:
        return self.bound, self.virtual


def rederive_hosts(it: Problem, target: float, *, time_limit_s: float = 60.0) -> Rederived:
    """What :func:`planner.checks.rederive.rederive` does, on hosts that differ."""
    again = _Again(it, target)
    deadline, answer = time.monotonic() + time_limit_s, Rederived(target)
    waiting: list[_Open] = []
    for rows in all_rows(it):
        answer.counts["rows"] += len(rows)
        waiting += again.below(rows)
        if time.monotonic() > deadline:
            return answer
    answer.counts["bounded"] = answer.counts["rows"] - len({id(one.rows) for one in waiting})
    answer.bound, partial = target, False
    for one in sorted(waiting, key=lambda one: one.order):
        if one.bound >= answer.bound:
            break
        if time.monotonic() > deadline:
            answer.bound = min(answer.bound, one.bound)
            return answer
        try:
            value = again.least_value(one, answer.counts)
        except TooManySplits:
            answer.bound, partial = min(answer.bound, one.bound), True
            continue
        if value < min(target, answer.counter_example_value):
            answer.bound, answer.counter_example_value = min(answer.bound, value), value
            answer.counter_example = described(again.priced(one.rows, 1.0), one.virtual)
    answer.complete = not partial
    return answer


class _Again:
    """One derivation; packings are worked out once a shape."""

    def __init__(self, it: Problem, target: float) -> None:
        self.it, self.target, self.hosts = it, target, Hosts(it.cluster.irregular)
        self.known: dict[tuple[int, ...], list[Packed]] = {}
        self.domains = domains_of(it.cluster, it.options)

    def priced(self, rows: Rows, rate: float) -> Prices:
        it, cluster = self.it, self.it.cluster.at_rate(rate)
        return price(it.model, cluster, it.workload, rows, it.fits, it.ticks, clocks=search_clocks(it.options))

    def below(self, rows: Rows) -> list[_Open]:
        """Rows with every packing whose simple bound is below the target."""
        by_packing, single, found = self._by_packing(rows), dict[int, Rows](), list[_Open]()
        for (best, hop), packings in _alike(by_packing).items():
            index = np.unique(np.concatenate([by_packing[packed] for packed in packings]))
            prices = self._with_hop(rows.take(index), self.priced(rows.take(index), best), hop)
            fits, bounds = may_fit(self.it, prices), values_by_schedule(self.it, prices)
            for packed in packings:
                mine = np.searchsorted(index, by_packing[packed])
                for virtual, bound in bounds.items():
                    for k in mine[fits[mine] & (bound[mine] < self.target)].tolist():
                        r = int(index[k])
                        one = single.setdefault(r, rows.take(np.array([r])))
                        found.append(_Open(float(bound[k]), virtual, one, packed, int(rows.factors["pp"][r, 0])))
        return found

    def _by_packing(self, rows: Rows) -> dict[Packed, Ints]:
        """Positions of the rows that each packing holds."""
        shapes, inverse = np.unique(_shapes(rows), axis=0, return_inverse=True)
        found: dict[Packed, list[Ints]] = {}
        for k, shape in enumerate(map(tuple, shapes.tolist())):
            if shape not in self.known:
                held = not self.domains or stand_apart(self.hosts.of, self.domains, *shape)
                self.known[shape] = self.hosts.packings(*shape[:3]) if held else []
            for packed in self.known[shape]:
                found.setdefault(packed, []).append(np.flatnonzero(inverse.ravel() == k))
        return {packed: np.sort(np.concatenate(parts)) for packed, parts in found.items()}

    def _with_hop(self, rows: Rows, prices: Prices, rate: float) -> Prices:
        return with_hop(prices, self.priced(rows, rate).hop)

    def least_value(self, one: _Open, counts: dict[str, int]) -> float:
        """The least objective below the target of a row with one packing."""
        rates = list(dict.fromkeys(one.packed.groups))
        tables = [self._with_hop(one.rows, self.priced(one.rows, rate), one.packed.hop) for rate in rates]
        if one.virtual > 1:
            return self._least_interleaved(one, dict(zip(rates, tables, strict=True)), counts)
        at_least = tuple(sum(rate >= least for rate in one.packed.groups) for least in rates)
        chains = [Chain(self.it.model, table, 0) for table in tables]
        return least_of_stages(self.it, chains, self.target, counts, Groups(one.stages, at_least))

    def _least_interleaved(self, one: _Open, by_rate: dict[float, Prices], counts: dict[str, int]) -> float:
        groups, best = one.packed.groups, np.inf
        for order in dict.fromkeys(groups[k:] + groups[:k] for k in range(len(groups))):
            rates = [rate for rate in order for _ in range(one.stages)]
            for clock in by_rate[rates[0]].clocks:
                tables = {rate: it.only(clock).with_virtual(one.virtual) for rate, it in by_rate.items()}
                for cut in even_cuts(Chain(self.it.model, tables[rates[0]], 0)):
                    chain = placed_chain(self.it.model, tables, rates, np.diff(cut).tolist(), tables[rates[0]].hop)
                    best = min(best, value_of_cut(self.it, chain, cut, counts))
        return best


def _alike(by_packing: dict[Packed, Ints]) -> dict[tuple[float, float], list[Packed]]:
    """Packings with the same fastest group and hops."""
    found: dict[tuple[float, float], list[Packed]] = {}
    for packed in by_packing:
        found.setdefault((packed.groups[0], packed.hop), []).append(packed)
    return found


def _shapes(rows: Rows) -> Ints:
    """Devices a host, hosts a group, groups, replicas over hosts and inside one: of every row, ``[rows, 5]``."""
    axes = ("tp", "cp", "dp_shard", "dp_replicate")
    inside = np.prod([rows.factors[axis][:, 0] for axis in (*axes, "pp")], axis=0)
    across = np.prod([rows.factors[axis][:, 1:].prod(axis=1) for axis in axes], axis=0)
    groups = rows.factors["pp"][:, 1:].prod(axis=1)
    replicas = rows.factors["dp_replicate"]
    return np.stack([inside, across, groups, replicas[:, 1:].prod(axis=1), replicas[:, 0]], axis=1)


def stand_apart(
    it: Irregular, domains: tuple[Domain, ...], devices: int, across: int, groups: int, replicas: int, inside: int
) -> bool:
    """Whether replicas find their hosts one after the other, walking over all hosts once."""
    guests: dict[tuple[str, int], int] = {}
    begun, missing, mine = 0, 0, set[tuple[str, int]]()
    for number, working in zip(it.numbers, it.devices, strict=True):
        if working < devices:
            continue
        here = {(domain.limit, number // domain.hosts) for domain in domains}
        if not missing:
            full = any(guests.get((d.limit, number // d.hosts), 0) + inside > d.most for d in domains)
            if begun == replicas or full:
                continue
            begun, missing, mine = begun + 1, across * groups // replicas, set()
        for domain in here - mine:
            guests[domain] = guests.get(domain, 0) + inside
        mine |= here
        missing -= 1
    return begun == replicas and not missing
