"""Collectives by hand on one and two levels: primes for sizes, so that a dropped factor shows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from costs import OPERATIONS, byte_levels, plain_fits, two_hosts
from hypothesis import given
from hypothesis import strategies as st

from cost_models.calibration import Collective, calibrate
from cost_models.communication import all_to_all_s, collective_s, p2p_s, token_exchange_s
from topologies.cluster import Level
from topologies.ready import read_cluster

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
    """One ring of 15: 28/15 MB pass every device, a fifth of that every NIC; 12 hops inside the hosts, 2 between."""
    moved = 2e6 * 14 / 15
    latency = 19e-6 + 2e-6 * 12 + 23e-6 * 2

    expected = latency + 17e-6 * (moved / 1e6) ** 0.5 + moved / 3.5e9
    assert 17e-6 > 29e-6 / 5**0.5 and moved / 3.5e9 > moved / 5 / 8.8e8
    assert seconds("all_gather", 2e6, 5, 3, LEVELS, FITTED) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("operation", "passes"), [("all_gather", 1), ("reduce_scatter", 1), ("all_reduce", 2)])
def test_hosts_with_one_member_each_pass_the_whole_volume_over_one_nic(operation, passes):
    """tp fills the host, so a group of data parallelism has one member a host and its own share of the NICs."""
    start, steps = 19e-6, np.log2(3) if passes == 2 else 2
    moved = passes * 6e6 * 2 / 3
    ramps = steps if passes == 2 else 1
    expected = start + 23e-6 * steps + 29e-6 * ramps * (moved / 1e6) ** 0.5 + moved / 8.8e8

    assert seconds(operation, 6e6, 1, 3, LEVELS, FITTED) == pytest.approx(expected, rel=1e-12)


def test_levels_work_at_the_same_time():
    """With eight inside, NICs slower than a quarter of the inner link decide alone; faster ones cost nothing more."""
    slow, fast = (dataclasses.replace(byte_levels()[1], bandwidth_bytes_per_s=b) for b in (1 / 16, 1.0))

    assert seconds("all_gather", 160.0, 8, 2, (byte_levels()[0], slow)) == pytest.approx(150 / 8 * 16)
    assert seconds("all_gather", 160.0, 8, 2, (byte_levels()[0], fast)) == pytest.approx(150)


SWITCH = dataclasses.replace(
    BYTES, scale_up=BYTES.scale_up | {"all_reduce": Collective(0.0, 0.0, 0.0, 1.0, 0.0, multicast=0.8)}
)


@pytest.mark.parametrize(("inner", "expected"), [(16, 17 / 16 / 0.8), (8, 9 / 8 / 0.8), (4, 6 / 4), (2, 2 / 2)])
def test_a_switch_that_adds_moves_the_buffer_once(inner, expected):
    """(n + 1) / n buffers at 0.8 of the rate, against 2 (n - 1) / n in a ring, which is quicker for four."""
    assert seconds("all_reduce", 1.0, inner, fits=SWITCH) == pytest.approx(expected)


@pytest.mark.parametrize(("hosts", "buffers"), [(2, 1.0), (3, 1.5), (4, 2 * 31 / 32), (8, 2 * 63 / 64)])
def test_a_tree_between_two_hosts_halves_the_traffic(hosts, buffers):
    """NICs so slow that they decide: from four hosts on the ring moves less."""
    levels = (byte_levels()[0], dataclasses.replace(byte_levels()[1], bandwidth_bytes_per_s=1e-3))

    assert seconds("all_reduce", 8.0, 8, hosts, levels, SWITCH) == pytest.approx(buffers * 1e3)


OWN = dataclasses.replace(
    BYTES, scale_up={name: dataclasses.replace(it, own=0.5) for name, it in BYTES.scale_up.items()}
)


@pytest.mark.parametrize(("operation", "moved"), [("all_gather", 6.5), ("all_reduce", 12.5), ("all_to_all", 6.5)])
def test_half_of_ones_own_share_counts_as_moved(operation, moved):
    """Of 7 B in a group of 7; nothing where a host has one member, and a seventh of it where there are 49."""
    assert seconds(operation, 7.0, 7, fits=OWN) == pytest.approx(moved)
    assert seconds(operation, 7.0, 1, 7, fits=OWN) == seconds(operation, 7.0, 1, 7)
    wide = (byte_levels()[0], dataclasses.replace(byte_levels()[1], bandwidth_bytes_per_s=np.inf))
    more = seconds(operation, 7.0, 7, 7, wide, OWN) - seconds(operation, 7.0, 7, 7, wide)
    assert more == pytest.approx(0.5 / 7)


def in_domain(operation, volume, *factors):
    """Seconds where two levels lie inside the domain and one outside, with a half of ones own share."""
    half = dict.fromkeys(OPERATIONS, dataclasses.replace(INNER, own=0.5))
    fits = dataclasses.replace(FITTED, scale_up=half, domain_levels=2)
    levels = (LEVELS[0], dataclasses.replace(LEVELS[0], bandwidth_bytes_per_s=14e9), LEVELS[1])
    return float(collective_s(operation, volume, np.array([factors]), levels, fits)[0])


@pytest.mark.parametrize("operation", ["all_gather", "all_reduce"])
def test_a_domain_s_second_level_is_no_network_between_hosts(operation):
    """A group of 16 on the second level: its steps' ramps count as their root, and its own share there."""
    one, passes = 35e9 / 16, 2 if operation == "all_reduce" else 1
    moved, steps = passes * 15 * one + 0.5 * one, 4 if operation == "all_reduce" else 15
    ramp = 17e-6 * np.sqrt(moved / 1e6) * (2 if operation == "all_reduce" else 1)

    assert in_domain(operation, 35e9, 1, 16, 1) == pytest.approx(13e-6 + steps * 2e-6 + ramp + moved / 7e9)


def test_ones_own_share_counts_once_and_never_between_hosts():
    """4 x 4 inside: with its own share the inner level is busy for 15.5 parts; 16 outside add none."""
    assert in_domain("all_gather", 16e12, 4, 4, 1) == pytest.approx(15.5e12 / 3.5e9, rel=1e-3)
    assert in_domain("all_gather", 16e12, 1, 1, 16) == pytest.approx(15e12 / 0.88e9, rel=1e-3)


def test_an_all_reduce_takes_log_steps():
    expected = 13e-6 + 2e-6 * 3 + 17e-6 * (3 * 14) ** 0.5 + 14e6 / 3.5e9

    assert seconds("all_reduce", 8e6, 8, 1, LEVELS, FITTED) == pytest.approx(expected, rel=1e-12)


def test_an_all_to_all_takes_a_step_for_every_peer():
    expected = 19e-6 + 2e-6 * 4 + 23e-6 * 10 + 29e-6 * 10**0.5 + 10e6 / 8.8e8

    assert seconds("all_to_all", 15e6, 5, 3, LEVELS, FITTED) == pytest.approx(expected, rel=1e-12)


def test_a_step_below_a_switch_is_shorter_by_what_its_way_is():
    """1 us less than across all hosts, measured at 23 us a step; slow fabrics keep the level's own latency."""
    far = dataclasses.replace(LEVELS[1], latency_s=5e-6)
    for near_s, farthest_s, step_s in ((4e-6, 5e-6, 22e-6), (5e-6, 5e-6, 23e-6), (2e-3, 5e-3, 2e-3)):
        near, farthest = (dataclasses.replace(far, latency_s=s) for s in (near_s, farthest_s))
        levels, alike = (LEVELS[0], near, farthest), (LEVELS[0], farthest, farthest)
        inside = np.array([[1, 7, 1]])
        found = float(collective_s("all_gather", 7e6, inside, levels, FITTED)[0])
        slower = float(collective_s("all_gather", 7e6, inside, alike, FITTED)[0])
        assert slower - found == pytest.approx(6 * (max(23e-6, farthest_s) - step_s), abs=1e-12)
        assert collective_s("all_gather", 7e6, np.array([[1, 1, 7]]), levels, FITTED) == pytest.approx(slower)
        assert p2p_s(1.0, np.array([[1, 2, 1]]), levels, FITTED) < p2p_s(1.0, np.array([[1, 1, 2]]), levels, FITTED) + (
            near_s == farthest_s
        )


def test_a_token_crosses_a_host_s_border_once():
    """8 of top-k into 4 hosts of 8: a token needs 4 (1 - 0.75 ** 8) hosts, of which a quarter is its own."""
    levels = (dataclasses.replace(byte_levels()[0], bandwidth_bytes_per_s=1e9), byte_levels()[1])
    found = token_exchange_s(1.0, 8, np.array([[8, 4]]), levels, BYTES)

    assert found == pytest.approx(3 * (1 - 0.75**8))


def test_uplinks_of_a_leaf_carry_a_copy_for_every_host_beyond_it():
    """Four hosts in leaves of two, uplinks at a quarter: of 4 (1 - 0.75 ** 8) hosts half lie beyond a leaf."""
    inner, outer = byte_levels()
    inner = dataclasses.replace(inner, bandwidth_bytes_per_s=1e9)
    levels, factors = (inner, outer, dataclasses.replace(outer, bandwidth_bytes_per_s=0.25)), np.array([[8, 2, 2]])

    assert token_exchange_s(1.0, 8, factors, levels, BYTES) == pytest.approx(4 * (1 - 0.75**8) / 2 / 0.25)
    even = (inner, outer, outer)
    assert token_exchange_s(1.0, 8, factors, even, BYTES) == pytest.approx(4 * (1 - 0.75**8) * 3 / 4)
    assert all_to_all_s(32.0, factors, even, BYTES) == pytest.approx(24.0)


def test_experts_in_their_order_lie_side_by_side():
    """Of 128 experts on 8 ranks 8 in a row are on one; of 24, 3 a rank, 4 in a row on 2, 6 a host, on 4 / 3."""
    one = token_exchange_s(1.0, 8, np.array([[8, 1]]), byte_levels(), BYTES, 128)
    assert one == pytest.approx([7 / 8])
    assert token_exchange_s(1.0, 4, np.array([[8, 1]]), byte_levels(), BYTES, 24) == pytest.approx([2 * 7 / 8])
    levels = (dataclasses.replace(byte_levels()[0], bandwidth_bytes_per_s=1e9), byte_levels()[1])
    assert token_exchange_s(1.0, 4, np.array([[2, 4]]), levels, BYTES, 24) == pytest.approx([(1 + 2 / 6) * 3 / 4])


IN_GROUPS = 4 * (1 - 0.75**9)


@pytest.mark.parametrize(
    ("ranks", "needed"),
    [(16, 8 * (1 - (7 / 8) ** 9)), (8, IN_GROUPS), (4, 4 * (1 - (1 - IN_GROUPS / 8) * (1 - IN_GROUPS / 7)))],
)
def test_experts_of_a_token_lie_in_few_groups(ranks, needed):
    """9 experts of 4 of 8 groups: of 16 ranks those of 8 groups at most, of 4 ranks those that have one of the 4."""
    found = token_exchange_s(1.0, 9, np.array([[ranks, 1]]), byte_levels(), BYTES, 0, (8, 4))

    assert found == pytest.approx([needed * (ranks - 1) / ranks], rel=1e-12)
    assert token_exchange_s(1.0, 9, np.array([[ranks, 1]]), byte_levels(), BYTES, 0, (8, 8)) > found


def test_groups_of_experts_drawn_at_random():
    """Against draws: 3 of 6 groups of 4 experts, 8 experts of these, on 2, 3, 6 and 12 ranks; within 3 %.

    Experts are drawn one by one here too, so that one may come twice.
    """
    rng, ranks, draws = np.random.default_rng(5), np.array([2, 3, 6, 12]), 4000
    chosen = np.argsort(rng.random((draws, 6)), axis=1)[:, :3]
    of, each = rng.integers(3, size=(draws, 8)), rng.integers(4, size=(draws, 8))
    experts = 4 * np.take_along_axis(chosen, of, axis=1) + each
    drawn = [np.mean([len(set(row)) for row in experts * n // 24]) for n in ranks]

    found = [token_exchange_s(1.0, 8, np.array([[n, 1]]), byte_levels(), BYTES, 0, (6, 3))[0] for n in ranks]

    assert found == pytest.approx(np.array(drawn) * (ranks - 1) / ranks, rel=0.03)


def test_a_token_reaches_a_rank_once():
    found = token_exchange_s(1.0, np.array([1, 8]), np.array([[8, 1]]), byte_levels(), BYTES)

    assert found == pytest.approx([7 / 8, 7 * (1 - (7 / 8) ** 8)])


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


CENTRAL = [(read_cluster(name), calibrate(read_cluster(name))) for name in ("dgx-a100:8", "dgx-h100:8", "p5:8")]


@pytest.mark.parametrize("operation", ["all_gather", "reduce_scatter", "all_reduce"])
@pytest.mark.parametrize(("cluster", "fits"), CENTRAL, ids=lambda part: getattr(part, "name", ""))
def test_deeper_inside_is_never_dearer_on_real_machines(cluster, fits, operation):
    """The same eight members, from one a host to all in one, for messages of a byte to 100 GB."""
    spread = np.array([[1, 8], [2, 4], [4, 2], [8, 1]])
    time = collective_s(operation, np.geomspace(1, 1e11, 34)[:, None], spread, cluster.levels, fits)

    assert (np.diff(time, axis=1) <= 1e-12 * time[:, 1:]).all()
