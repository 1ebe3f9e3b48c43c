"""Collectives by hand on one and two levels: primes for sizes, so that a dropped factor shows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from costs import OPERATIONS, byte_levels, plain_fits, two_hosts
from hypothesis import given
from hypothesis import strategies as st

from cost_models.calibration import Collective
from cost_models.communication import all_to_all_s, collective_s, p2p_s
from topologies.cluster import Level

BYTES = plain_fits(two_hosts())
LEVELS = (Level("inner", 64, 7e9, 0.0, "wire"), Level("outer", 64, 11e8, 0.0, "wire"))
SLOW = (dataclasses.replace(LEVELS[0], latency_s=3e-3), dataclasses.replace(LEVELS[1], latency_s=5e-3))
INNER, OUTER = Collective(13e-6, 2e-6, 17e-6, 0.5, 0.0), Collective(19e-6, 23e-6, 29e-6, 0.8, 0.0)
FITTED = dataclasses.replace(
    BYTES, scale_up=dict.fromkeys(OPERATIONS, INNER), scale_out=dict.fromkeys(OPERATIONS, OUTER),
    p2p_fraction=0.5, p2p_launch_s=31e-6,
)  # fmt: skip
SHARED = ("all_gather", "reduce_scatter")


def seconds(operation, volume, inner, outer=1, levels=None, fits=BYTES):
    levels, factors = levels or byte_levels(), np.array([[inner, outer]])
    if operation == "all_to_all":
        return float(all_to_all_s(volume, factors, levels, fits)[0])
    return float(collective_s(operation, volume, factors, levels, fits)[0])


@pytest.mark.parametrize("operation", SHARED)
def test_gather_and_scatter_move_all_but_ones_own_share(operation):
    assert seconds(operation, 35.0, inner=7) == 30.0
    assert seconds(operation, 35.0, inner=1, outer=5) == 28.0


def test_all_reduce_moves_twice_that():
    assert seconds("all_reduce", 35.0, inner=7) == 60.0


def test_all_to_all_sends_all_but_ones_own_part():
    assert seconds("all_to_all", 35.0, inner=7) == 30.0


@pytest.mark.parametrize(("operation", "passes"), [("all_gather", 1), ("reduce_scatter", 1), ("all_reduce", 2)])
def test_inner_members_divide_what_crosses_the_outer_level(operation, passes):
    """5 inside, 3 outside, 105 B: 105 * 4/5 inside, and 105 / 5 * 2/3 outside."""
    assert seconds(operation, 105.0, 5, 3) == pytest.approx(passes * (84 + 14))


def test_most_of_an_all_to_all_crosses_the_outer_level():
    """15 members: 4 of the 14 others are inside, 10 outside; the parts are 7 B."""
    inner_only = dataclasses.replace(byte_levels()[1], bandwidth_bytes_per_s=np.inf)
    outer_only = dataclasses.replace(byte_levels()[0], bandwidth_bytes_per_s=np.inf)

    assert seconds("all_to_all", 105.0, 5, 3, (byte_levels()[0], inner_only)) == pytest.approx(28)
    assert seconds("all_to_all", 105.0, 5, 3, (outer_only, byte_levels()[1])) == pytest.approx(70)


def test_fitted_all_gather_by_hand():
    """W = 2 MB * 4/5 inside, 2 MB / 5 * 2/3 outside; steps 4 and 2."""
    inside = 13e-6 + 2e-6 * 4 + 17e-6 * 1.6**0.5 + 1.6e6 / 3.5e9
    outside = 19e-6 + 23e-6 * 2 + 29e-6 * (0.8 / 3) ** 0.5 + 0.8e6 / 3 / 8.8e8

    assert seconds("all_gather", 2e6, 5, 3, LEVELS, FITTED) == pytest.approx(inside + outside, rel=1e-12)


def test_an_all_reduce_takes_log_steps():
    expected = 13e-6 + 2e-6 * 3 + 17e-6 * 14**0.5 + 14e6 / 3.5e9

    assert seconds("all_reduce", 8e6, 8, 1, LEVELS, FITTED) == pytest.approx(expected, rel=1e-12)


def test_an_all_to_all_takes_a_step_for_every_peer():
    inside = 13e-6 + 2e-6 * 4 + 17e-6 * 4**0.5 + 4e6 / 3.5e9
    outside = 19e-6 + 23e-6 * 10 + 29e-6 * 10**0.5 + 10e6 / 8.8e8

    assert seconds("all_to_all", 15e6, 5, 3, LEVELS, FITTED) == pytest.approx(inside + outside, rel=1e-12)


@pytest.mark.parametrize(("operation", "steps"), [("all_gather", 6), ("reduce_scatter", 6), ("all_to_all", 6)])
def test_a_fabric_slower_than_the_measured_one_keeps_its_own_latency(operation, steps):
    inner = seconds(operation, 7e6, 7, 1, SLOW, FITTED) - seconds(operation, 7e6, 7, 1, LEVELS, FITTED)
    outer = seconds(operation, 7e6, 1, 7, SLOW, FITTED) - seconds(operation, 7e6, 1, 7, LEVELS, FITTED)

    assert inner == pytest.approx(steps * (3e-3 - 2e-6))
    assert outer == pytest.approx(steps * (5e-3 - 23e-6))


def test_a_faster_fabric_does_not_undercut_the_measured_step():
    quick = tuple(dataclasses.replace(level, latency_s=1e-9) for level in LEVELS)

    assert seconds("all_gather", 7e6, 7, 5, quick, FITTED) == seconds("all_gather", 7e6, 7, 5, LEVELS, FITTED)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_group_of_one_and_an_empty_message_cost_nothing(operation):
    assert seconds(operation, 1e9, 1, 1, SLOW, FITTED) == 0.0
    assert seconds(operation, 0.0, 5, 3, SLOW, FITTED) == 0.0


@pytest.mark.parametrize("operation", OPERATIONS)
def test_latency_alone_where_a_message_is_a_byte(operation):
    assert seconds(operation, 1.0, 5, 3, SLOW, FITTED) > 13e-6 + 19e-6 + 2 * 3e-3


def test_hop_takes_the_slowest_level_the_axis_crosses():
    inside, outside = 31e-6 + 3e-3 + 7e6 / 3.5e9, 31e-6 + 5e-3 + 7e6 / 5.5e8
    factors = np.array([[1, 1], [4, 1], [1, 4], [2, 2]])

    assert p2p_s(7e6, factors, SLOW, FITTED) == pytest.approx([0.0, inside, outside, outside], rel=1e-12)


def test_volumes_and_groups_broadcast():
    volumes, factors = np.array([[1e6], [2e6]]), np.array([[2, 1], [4, 2], [1, 8]])

    together = collective_s("all_reduce", volumes, factors, LEVELS, FITTED)

    assert together.shape == (2, 3)
    assert together[1, 2] == seconds("all_reduce", 2e6, 1, 8, LEVELS, FITTED)
    assert all_to_all_s(volumes, factors, LEVELS, FITTED)[1, 1] == seconds("all_to_all", 2e6, 4, 2, LEVELS, FITTED)


@given(
    st.sampled_from(OPERATIONS), st.floats(0, 1e12), st.floats(1, 10), st.integers(1, 64), st.integers(1, 64)
)  # fmt: skip
def test_more_bytes_are_never_faster(operation, volume, factor, inner, outer):
    few, many = (seconds(operation, size, inner, outer, SLOW, FITTED) for size in (volume, volume * factor))

    assert 0 <= few <= many


@given(st.sampled_from(OPERATIONS), st.floats(1, 1e12), st.integers(1, 64), st.integers(1, 64))
def test_a_group_inside_is_never_slower_than_the_same_outside(operation, volume, members, outer):
    """Crossing the outer level with the same number of members costs at least as much: its links are slower."""
    inside = seconds(operation, volume, members, 1, SLOW, FITTED)

    assert inside <= seconds(operation, volume, 1, members, SLOW, FITTED) * (1 + 1e-12)
