"""Dollars a step: rented hosts by the hour, or electricity where the machines are one's own.

A tier is rented with every host in use, and a pool by all hosts in equal parts, whatever a plan keeps there.
"""

from __future__ import annotations

from typing import Any

from cost_models.power import hosts_used
from cost_models.rows import Rows
from topologies.cluster import Cluster


def price_per_device_hour(cluster: Cluster) -> float | None:
    """USD for one device and hour: the cluster's own price, else its accelerator's, else ``None``."""
    if cluster.price_usd_per_device_hour is not None:
        return cluster.price_usd_per_device_hour
    figure = cluster.accelerator.figures.price
    return None if figure is None else figure.value


def rental_usd_per_s(rows: Rows, cluster: Cluster) -> float | None:
    """USD a second for whole hosts in use, every device of them paid, ``[rows]``; ``None`` without a price."""
    return hosts_usd_per_s(hosts_used(rows, cluster), cluster)


def hosts_usd_per_s(hosts: Any, cluster: Cluster) -> Any:
    """USD a second for so many hosts with the memory tiers that a plan may use; ``None`` without a price."""
    price = price_per_device_hour(cluster)
    if price is None:
        return None
    tiers = sum(tier.usd_per_hour / (cluster.hosts if tier.pools else 1) for tier in cluster.tiers)
    return hosts * (cluster.devices_per_host * price + tiers) / 3600.0


def electricity_usd(joules: float, cluster: Cluster) -> float:
    """USD for that much energy at the facility's tariff."""
    return joules / 3.6e6 * cluster.facility.figures.electricity_price.value
