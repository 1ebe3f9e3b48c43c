"""Levels of switches between hosts, from a file and after a change of size."""

from pathlib import Path

import pytest

from topologies.errors import BadInput
from topologies.ready import read_any_cluster, read_cluster
from topologies.resized import resized

SWITCHED = """
name = "switched"
host = "dgx-h100"
fabric = "ndr-infiniband"
facility = "air"
hosts = 32
[[switches]]
name = "leaf"
hosts = 4
oversubscription = 2.0
[[switches]]
name = "pod"
hosts = 16
oversubscription = 4.0
"""


def file(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_levels_of_switches(tmp_path):
    """50 GB/s a device below a leaf, half of it in the pod, an eighth across pods."""
    cluster = read_cluster(file(tmp_path, SWITCHED))

    assert [(level.name, level.fanout) for level in cluster.levels] == [
        ("scale-up", 8), ("leaf", 4), ("pod", 4), ("scale-out", 2),
    ]  # fmt: skip
    assert [level.bandwidth_bytes_per_s / 1e9 for level in cluster.levels] == [450, 50, 25, 6.25]


def test_latency_by_level(tmp_path):
    """0.3 us a switch: two fewer for each level inwards, none told for EFA; at least one switch is passed."""
    cluster = read_cluster(file(tmp_path, SWITCHED))
    assert [level.latency_s for level in cluster.levels[1:]] == pytest.approx([3.8e-6, 4.4e-6, 5e-6])
    assert [level.latency_s for level in resized(cluster, 64).levels[1:]] == pytest.approx([3.8e-6, 4.4e-6, 5e-6])
    assert [level.latency_s for level in resized(cluster, 33).levels[1:]] == pytest.approx([5e-6])
    efa = read_cluster(file(tmp_path, SWITCHED.replace("ndr-infiniband", "efa-v2")))
    assert [level.latency_s for level in efa.levels[1:]] == pytest.approx([15e-6] * 3)
    assert [level.latency_s for level in read_cluster("frontier:256").levels[1:]] == pytest.approx([3.3e-6, 4e-6])
    assert read_cluster("dgx-h100:4").levels[1].latency_s == pytest.approx(5e-6)


@pytest.mark.parametrize(
    ("hosts", "fanouts", "gb_s"),
    [
        (64, (8, 4, 4, 4), [450, 50, 25, 6.25]),
        (33, (8, 33), [450, 6.25]),
        (16, (8, 16), [450, 6.25]),
        (1, (8,), [450]),
    ],
)
def test_resized_switches_stay_whole(tmp_path, hosts, fanouts, gb_s):
    """Where whole pods are not filled, all hosts are taken to be as far apart as the farthest were."""
    cluster = resized(read_cluster(file(tmp_path, SWITCHED)), hosts)

    assert cluster.group_capacity == fanouts
    assert [level.bandwidth_bytes_per_s / 1e9 for level in cluster.levels] == gb_s


def test_a_scaled_twin_of_switches_is_resized_as_fast(tmp_path):
    cluster = read_cluster(file(tmp_path, SWITCHED)).scaled(2.0)

    assert [level.bandwidth_bytes_per_s / 1e9 for level in resized(cluster, 64).levels] == [900, 100, 50, 12.5]


def test_switches_that_hold_everything_or_one_domain_are_no_level(tmp_path):
    text = SWITCHED.replace("hosts = 4\n", "hosts = 1\n").replace("hosts = 16\n", "hosts = 32\n")

    assert read_cluster(file(tmp_path, text)).group_capacity == (8, 32)


@pytest.mark.parametrize(("old", "new"), [("hosts = 4\n", "hosts = 5\n"), ("hosts = 16\n", "hosts = 6\n")])
def test_switches_that_do_not_divide(tmp_path, old, new):
    with pytest.raises(BadInput, match=r"divides neither 32 scale-up domains nor groups of"):
        read_cluster(file(tmp_path, SWITCHED.replace(old, new)))


def test_switches_of_half_a_domain(tmp_path):
    text = SWITCHED.replace("dgx-h100", "gb200-nvl72").replace("hosts = 32", "hosts = 36")

    with pytest.raises(BadInput, match="a switch 'leaf' of 4 hosts divides neither 2 scale-up domains"):
        read_cluster(file(tmp_path, text))


def test_mixed_parts_meet_at_their_outermost_level(tmp_path):
    mixed = read_any_cluster(f"{file(tmp_path, SWITCHED)}:32+dgx-a100:2")

    assert mixed.join.bandwidth_bytes_per_s == 6.25e9
