"""Prices of a strategy whose stages lie on hosts that differ.

Each group of hosts is priced as if its network had the rate of its worst pair throughout: right for rings, pessimistic
for a group whose collectives stay away from that pair. All hops between stages cost what the slowest pair of them does.

A stage's prices are those of the regular cluster at its rate. One row with stages at several rates is again a row of a
price table: the layers of every rate are kinds of their own, so that chains, schedules and estimates stay as they are.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration
from cost_models.chain import Chain
from cost_models.model_graph import ModelGraph
from cost_models.offload import sorts
from cost_models.price import Prices, price
from cost_models.rows import Rows
from cost_models.side_by_side import Leaving, chain_of_tables, partly_offloaded, side_by_side, sort_of_layers
from cost_models.strategy import Strategy
from cost_models.ticks import Ticks
from cost_models.workload import Training
from topologies.cluster import Cluster
from topologies.errors import BadInput

Ints = NDArray[np.int64]
GROUPED = ("tp", "cp", "dp_shard", "dp_replicate")


def devices_a_host(rows: Rows) -> Ints:
    """Devices that a row uses on each of its hosts, ``[rows]``, where a scale-up domain is one host."""
    return rows.used()[:, 0]


def hosts_a_group(rows: Rows) -> Ints:
    """Hosts that share a stage, ``[rows]``: the product of ``tp cp dp`` over the levels outside a host."""
    outside = np.prod([rows.factors[axis][:, 1:] for axis in GROUPED], axis=0)
    return np.prod(outside, axis=1, dtype=np.int64)


def groups_of_stages(rows: Rows) -> Ints:
    """Groups of hosts that stages lie on, ``[rows]``: ``pp`` over the levels outside a host."""
    return np.prod(rows.factors["pp"][:, 1:], axis=1, dtype=np.int64)


def with_hop(prices: Prices, hop: Ints) -> Prices:
    """The prices with other hops, ``[rows]``, at every clock and of every sort of layer."""
    slower = {clock: with_hop(it, hop) for clock, it in prices.slower.items()}
    every = {name: getattr(prices, name) for name in ("nearer", "kept", "alike")}
    others = {name: None if it is None else with_hop(it, hop) for name, it in every.items()}
    return dataclasses.replace(prices, hop=hop, slower=slower, **others)


def placed_chain(
    model: ModelGraph, by_rate: dict[float, Prices], rates: list[float], sizes: list[int], hop: Ints,
    leaving: Leaving = (),
) -> Chain:  # fmt: skip
    """The chain of one row whose pipeline rank ``s`` lies on hosts of rate ``rates[s]``.

    ``by_rate`` prices the row at every rate, ``sizes`` counts the layers of each virtual stage, ``hop`` is ``[1]``,
    ``leaving`` as in :func:`cost_models.side_by_side.partly_offloaded`; empty where all layers offload alike.
    """
    used = list(dict.fromkeys(rates))
    tables = [by_rate[r] for r in used]
    stage_rate = np.array([used.index(r) for r in rates])[np.arange(len(sizes)) % len(rates)]
    at = np.repeat(stage_rate, sizes)
    if tables[0].nearer is not None and leaving:
        at = at + len(used) * sort_of_layers(sizes, leaving)
        tables = [table for sort in zip(*(sorts(table) for table in tables), strict=True) for table in sort]
    return chain_of_tables(model, side_by_side(tables, by_rate[rates[0]], by_rate[rates[-1]], hop), at)


def strategy_chain(
    model: ModelGraph, cluster: Cluster, workload: Training, strategy: Strategy, fits: Calibration, ticks: Ticks
) -> Chain:
    """The chain of a strategy, on the hosts that it names where the cluster is irregular.

    Raises ``BadInput`` where some layers of a stage keep what others offload and no prices tell them apart.
    """
    _refuse_layers_without_prices(strategy)
    rows, clocks = Rows.of(strategy), tuple(dict.fromkeys(strategy.clocks))
    sizes, leaving = [stage.layers for stage in strategy.stages], [stage.leaving for stage in strategy.stages]
    if cluster.irregular is None:
        chain = Chain(model, price(model, cluster, workload, rows, fits, ticks, clocks=clocks), 0)
        return partly_offloaded(chain, sizes, leaving)
    rates, hop_rate = stage_rates(cluster, strategy)
    by_rate = {
        rate: price(model, cluster.at_rate(rate), workload, rows, fits, ticks, clocks=clocks)
        for rate in dict.fromkeys((*rates, hop_rate))
    }
    return placed_chain(model, by_rate, rates, sizes, by_rate[hop_rate].hop, leaving)


def _refuse_layers_without_prices(strategy: Strategy) -> None:
    if strategy.offloads and strategy.schedule.kind == "1f1b":
        return
    for s, stage in enumerate(strategy.stages):
        for out in stage.leaving:
            if out not in (None, stage.layers):
                raise BadInput(
                    f"stage {s} offloads {out} of its {stage.layers} layers; they may differ under 1F1B, where "
                    "the strategy offloads states or activations whole; let all of them do as one"
                )


def stage_rates(cluster: Cluster, strategy: Strategy) -> tuple[list[float], float]:
    """The rate of every pipeline rank's hosts, and of the slowest pair that a hop uses.

    An interleaved schedule's hops from the last stage to the first need no look: in an ultrametric no pair is slower
    than the slowest step on a way between its two hosts, and the stages between are one.
    """
    irregular, rows = cluster.irregular, Rows.of(strategy)
    hosts = np.array(strategy.hosts or hosts_in_order(cluster, rows)).reshape(groups_of_stages(rows)[0], -1)
    each = [irregular.worst_rate(group) for group in hosts]
    hops = [float(irregular.pair_rates(a, b).min()) for a, b in itertools.pairwise(hosts)]
    return np.repeat(each, int(rows.factors["pp"][0, 0])).tolist(), min(hops, default=1.0)


def hosts_in_order(cluster: Cluster, rows: Rows) -> tuple[int, ...]:
    """The first hosts, by position, that have the devices one row needs: where a job lands that nobody placed.

    Raises ``BadInput`` when there are too few.
    """
    devices, needed = int(devices_a_host(rows)[0]), int((hosts_a_group(rows) * groups_of_stages(rows))[0])
    able = np.flatnonzero(np.array(cluster.irregular.devices) >= devices)
    if len(able) < needed:
        raise BadInput(
            f"the strategy needs {needed} hosts with {devices} working devices, but {cluster.name!r} has {len(able)}; "
            "lower a degree, or use fewer devices of a host"
        )
    return tuple(able[:needed].tolist())
