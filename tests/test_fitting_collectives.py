"""The fits of collectives: they reproduce what is checked in, and what they are worth on times left out."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest

from cost_models.calibration import FOLDER, calibrate
from cost_models.communication import p2p_s, token_exchange_s
from cost_models.fitting.collectives import (
    OPERATIONS,
    measured,
    predicted_us,
    relative_error,
    toml,
)
from topologies.ready import read_cluster

CHECKED_IN = (FOLDER / "collectives.toml").read_text(encoding="utf-8")
TABLES = tomllib.loads(CHECKED_IN)


def entries(table):
    """Every number of a file with its path."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{path}", number) for path, number in entries(value))
        else:
            yield key, value


def test_the_file_is_what_the_data_give():
    """Within a hundredth: the last digit may differ between versions of the optimiser."""
    fresh, stored = (dict(entries(tomllib.loads(text))) for text in (toml(), CHECKED_IN))

    assert fresh.keys() == stored.keys()
    for path, value in fresh.items():
        assert stored[path] == (pytest.approx(value, rel=0.01) if isinstance(value, float) else value), path


def test_every_source_is_named_in_the_data_file():
    text = (FOLDER / "data" / "collectives.csv").read_text(encoding="utf-8")
    head = text[: text.index("source,operation")]

    assert {name for name in np.unique(measured().source) if name not in head} == set()


SEEN = {"p5": 0.07, "p6": 0.07, "ndv4": 0.09, "nebius": 0.09, "hdr-pairs": 0.04, "hdr4": 0.20, "h100-ring": 0.09}
"""Ramps that add up over the steps between hosts took 120 times of p5 and p6 from 9 to 7 and 8 to 7 %, the two of hdr4,
one message on three hosts, from 14 to 20 %."""


@pytest.mark.parametrize("source", SEEN)
def test_each_published_run_between_hosts_is_met(source):
    times = measured()
    times = times.where((times.source == source) & (times.outer > 1) & np.isin(times.operation, OPERATIONS))
    kind = "efa" if source in ("p5", "p6") else "default"

    assert relative_error(predicted_us(times, TABLES, None, kind), times) <= SEEN[source]


def test_the_switch_makes_all_reduce_quicker_from_five_devices_on():
    """H200: 1.14 times a ring of 5 devices, 1.29 times one of 8, as measured with NVLink SHARP on and off.

    Of four, a ring, 5 % more is measured than foreseen; of the others 1 %.
    """
    times = measured()
    both = [times.where((times.source == "switch-h200") & (times.operation == name)) for name in
            ("all_reduce", "all_reduce_ring")]  # fmt: skip
    gain = both[1].us / both[0].us

    assert predicted_us(both[0], TABLES) == pytest.approx(both[0].us, rel=0.05)
    assert (gain[0], gain[-1]) == pytest.approx((1.0, 1.294), abs=0.01)


def test_sends_between_two_hosts():
    """Within 10 % from 2 KB to 64 MB, H100."""
    cluster, times = read_cluster("dgx-h100:2"), measured()
    sends = times.where((times.source == "vidur-h100") & (times.operation == "p2p"))
    factors = np.stack([sends.inner, sends.outer], axis=1)
    time = p2p_s(sends.bytes, factors, cluster.levels, calibrate(cluster))

    assert relative_error(1e6 * time, sends) < 0.10


@pytest.mark.parametrize(("hosts", "most"), [(1, 0.18), (2, 0.16), (4, 0.21)])
def test_tokens_of_experts_travel_as_in_deepep(hosts, most):
    """Dispatch in fp8 and combine in bf16 of top 8, H100; eight hosts, out of line with four, are not held to it."""
    cluster, times = read_cluster("dgx-h100:8"), measured()
    large = times.where((times.source == "deepep") & (times.outer == hosts) & (times.bytes >= 2e7))
    factors = np.stack([large.inner, large.outer], axis=1)
    time = token_exchange_s(large.bytes, 8, factors, cluster.levels, calibrate(cluster))

    assert relative_error(1e6 * time, large) < most
