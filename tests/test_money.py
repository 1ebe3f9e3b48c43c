"""Dollars by hand."""

from __future__ import annotations

import dataclasses

import pytest
from costs import make_rows

from cost_models.money import electricity_usd, price_per_device_hour, rental_usd_per_s
from topologies.ready import read_cluster
from topologies.tiers import Tier

CLUSTER = dataclasses.replace(read_cluster("dgx-h100:4"), price_usd_per_device_hour=4.5)


def without_price(cluster):
    figures = cluster.accelerator.figures.model_copy(update={"price": None})
    accelerator = cluster.accelerator.model_copy(update={"figures": figures})
    return dataclasses.replace(cluster, price_usd_per_device_hour=None, accelerator=accelerator)


def test_every_device_of_a_host_in_use_is_paid():
    """5 devices on each of 3 hosts: 24 devices at 4.5 USD an hour."""
    assert rental_usd_per_s(make_rows("pp", tp=5, pp=3), CLUSTER) == pytest.approx([24 * 4.5 / 3600])


def test_tiers_are_rented_with_their_hosts():
    """Two modules of a dollar on each of 3 hosts; a pool of 40 is a quarter of four hosts' each."""
    module = Tier("cxl", "cxl", 1e12, 1e9, 1e9, 1e9, 0.0, usd_per_hour=2.0)
    pool = dataclasses.replace(module, name="pool", pools=1, usd_per_hour=40.0)
    tiered = dataclasses.replace(CLUSTER, tiers=(module, pool))

    assert rental_usd_per_s(make_rows("pp", tp=5, pp=3), tiered) == pytest.approx([(24 * 4.5 + 3 * 12) / 3600])
    assert rental_usd_per_s(make_rows(), without_price(tiered)) is None


def test_the_clusters_price_comes_before_its_accelerators():
    listed = dataclasses.replace(CLUSTER, price_usd_per_device_hour=None)

    assert price_per_device_hour(CLUSTER) == 4.5
    assert price_per_device_hour(listed) == CLUSTER.accelerator.figures.price.value != 4.5


def test_no_price_no_rent():
    assert price_per_device_hour(without_price(CLUSTER)) is None
    assert rental_usd_per_s(make_rows(), without_price(CLUSTER)) is None


def test_a_free_machine_costs_nothing():
    free = dataclasses.replace(CLUSTER, price_usd_per_device_hour=0.0)

    assert rental_usd_per_s(make_rows(), free) == pytest.approx([0])


def test_electricity_by_the_kilowatt_hour():
    """10 kWh."""
    tariff = CLUSTER.facility.figures.electricity_price.value

    assert electricity_usd(3.6e7, CLUSTER) == pytest.approx(10 * tariff)
    assert 0.01 < tariff < 1
