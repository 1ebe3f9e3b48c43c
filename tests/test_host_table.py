"""Exceptions in cluster files: what they say, and what is refused."""

from __future__ import annotations

import pytest

from topologies.enlarged import with_one_more_host
from topologies.errors import BadInput
from topologies.ready import read_any_cluster, read_cluster
from topologies.resized import resized

BASE = 'name = "x"\nhost = "dgx-h100"\nfabric = "ndr-infiniband"\nfacility = "air"\nhosts = 8\n'


@pytest.fixture
def cluster_of(tmp_path):
    def read(text: str):
        path = tmp_path / "cluster.toml"
        path.write_text(BASE + text + "\n")
        return read_cluster(path)

    return read


def test_every_kind_of_exception(cluster_of):
    """A dead host leaves; the others keep their numbers and names; figures of one host come from several lines."""
    cluster = cluster_of("""
        hosts_per_leaf = [3, 3, 2]
        spare_hosts = 1
        host_names = "gpu[07-14].row1"
        exceptions = [
          { hosts = 2, dead = true },
          { hosts = "0,5", devices = 7 },
          { hosts = [6], devices = 6, nics = 4 },
          { hosts = [6, 7], nic_bandwidth = "200 Gb/s", note = "negotiated down" },
          { hosts = 7, nic_bandwidth = "25 GB/s" },
          { leaves = "0-1", oversubscription = 4 },
        ]""")
    it = cluster.irregular

    assert it.numbers == (0, 1, 3, 4, 5, 6, 7)
    assert it.dead == (2,)
    assert it.devices == (7, 8, 8, 8, 7, 6, 8)
    assert it.nic == (1.0, 1.0, 1.0, 1.0, 1.0, 0.25, 0.5)
    assert [(s.hosts, s.uplink) for s in it.switches] == [((0, 1), 0.25), ((2, 3, 4), 0.25)]
    assert it.name(2) == "gpu10.row1"
    assert (cluster.hosts, cluster.devices, cluster.levels[1].fanout) == (7, 52, 6)


def test_a_switch_may_be_named_by_its_hosts_and_hold_another(cluster_of):
    it = cluster_of('exceptions = [{ hosts = "0-3", oversubscription = 2 }, { hosts = "2-3", oversubscription = 5 }]')

    assert [(s.hosts, s.uplink) for s in it.irregular.switches] == [((0, 1, 2, 3), 0.5), ((2, 3), 0.2)]


def test_a_switch_said_twice_is_one(cluster_of):
    leaf, named = "{ leaves = 0, oversubscription = 2 }", "{ hosts = '0-3', oversubscription = 2 }"
    it = cluster_of(f"hosts_per_leaf = 4\nexceptions = [{leaf}, {named}]").irregular

    assert [s.hosts for s in it.switches] == [(0, 1, 2, 3)]


def test_more_hosts_are_regular_ones(cluster_of):
    """One host more beside those that differ; fewer of them is no cluster."""
    cluster = cluster_of('spare_hosts = 1\nhost_names = "n[1-8]"\nexceptions = [{ hosts = 7, dead = true }]')
    larger = with_one_more_host(cluster)

    assert (larger.hosts, larger.devices, larger.levels[1].fanout) == (8, 64, 7)
    assert larger.irregular.numbers == (*range(7), 8)
    assert larger.irregular.name(7) == "added-1"
    with pytest.raises(BadInput, match="nobody says which 6 of them to keep"):
        resized(cluster, 6)


def test_another_number_of_hosts_is_another_file():
    with pytest.raises(BadInput, match=r"'irregular-64' says which of its 64 hosts differ.*leave ':8' out"):
        read_cluster("irregular-64:8")


def test_no_part_of_a_mixed_cluster(tmp_path):
    path = tmp_path / "cluster.toml"
    path.write_text(BASE + "exceptions = [{ hosts = 1, dead = true }]\n")

    with pytest.raises(BadInput, match="plan on it alone"):
        read_any_cluster(f"{path}+dgx-a100:1")


def test_no_exceptions_no_difference(cluster_of):
    assert cluster_of("").irregular is None
    assert set(cluster_of("").classes().tolist()) == {0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exceptions = [{ hosts = 8, dead = true }]", "not within the 8 host numbers 0 to 7"),
        ('exceptions = [{ hosts = "5-2", dead = true }]', "not within"),
        ('exceptions = [{ hosts = "x", dead = true }]', "no number or range"),
        ("exceptions = [{ hosts = -1, dead = true }]", "no number or range"),
        ("exceptions = [{ hosts = [], dead = true }]", "is empty"),
        ('exceptions = [{ hosts = "0-7", dead = true }]', "none is left to plan on"),
        ("spare_hosts = 8", "none is left to plan on"),
        ("exceptions = [{ dead = true }]", "either hosts or leaves"),
        ("exceptions = [{ hosts = 1, leaves = 1, dead = true }]", "either hosts or leaves"),
        ("exceptions = [{ hosts = 1 }]", "says nothing about its hosts"),
        ('exceptions = [{ hosts = "2-3", memory_capacity = "512 GB" }]', "'hosts 2-3' give memory_capacity = '512 GB'"),
        ('exceptions = [{ leaves = 1, tiers = ["cxl-expander:2"] }]', '["these.toml", "rest.toml"] of a mixed cluster'),
        ("exceptions = [{ leaves = 0, oversubscription = 2 }]", "does not say hosts_per_leaf"),
        ("hosts_per_leaf = [3, 3]\nexceptions = [{ leaves = 0, oversubscription = 2 }]", "adds up to 6 hosts"),
        ("hosts_per_leaf = 4\nexceptions = [{ leaves = 2, dead = true }]", "2 leaf numbers 0 to 1"),
        (
            "exceptions = [{ hosts = 1, devices = 9 }]",
            "devices = 9, but host 'dgx-h100' has devices = 8; an exception only",
        ),
        ("exceptions = [{ hosts = 1, nics = 9 }]", "only takes away"),
        ('exceptions = [{ hosts = 1, nic_bandwidth = "900 GB/s" }]', "only takes away"),
        ("exceptions = [{ hosts = 1, nic_bandwidth = 25 }]", "has no unit"),
        ("exceptions = [{ hosts = 1, oversubscription = 0.5 }]", "greater than or equal to 1"),
        ("exceptions = [{ hosts = 1, oversubscription = inf }]", "finite"),
        ("exceptions = [{ hosts = 1, speed = 1 }]", "speed"),
        ("exceptions = 3", "exceptions"),
        ('host_names = "node[1-7]"', "does not name 8 hosts"),
        ('host_names = "$(reboot)[1-8]"', "does not name 8 hosts"),
        ('host_names = ["a", "b"]', "lists 2 names, but there are 8 hosts"),
        ('host_names = ["a", "b", "c", "d", "e", "f", "g", "a b"]', "'a b' is no host's name"),
        ('host_names = ["a", "b", "c", "d", "e", "f", "g", "-h"]', "'-h' is no host's name"),
        ('host_names = ["a", "b", "c", "d", "e", "f", "g", "a"]', "has 'a' twice"),
        ("exceptions = [{ hosts = 1, devices = 7 }, { hosts = '0-2', devices = 6 }]", "host 1 devices = 6, but except"),
        ("exceptions = [{ hosts = 1, devices = 7 }, { hosts = 1, dead = true }]", "1 no working devices, but exce"),
        ("exceptions = [{ hosts = 1, devices = 7, dead = true }]", "is dead and has devices = 7; leave one"),
        (
            'exceptions = [{ hosts = 1, nic_bandwidth = "5 GB/s" }, { hosts = 1, nic_bandwidth = "6 GB/s" }]',
            "gives it nic_bandwidth = 5 GB/s; say each figure of a host once",
        ),
        ('exceptions = [{ hosts = 1, nic_bandwidth = "-5 GB/s" }]', "'-5 GB/s' is not a quantity"),
        ('exceptions = [{ hosts = 1, nic_bandwidth = "0 GB/s" }]', "greater than 0"),
        ("exceptions = [{ hosts = 1, oversubscription = -4 }]", "greater than or equal to 1"),
        (
            'exceptions = [{ hosts = "0-3", oversubscription = 2 }, { hosts = "0-3", oversubscription = 4 }]',
            "the same 4 hosts, with uplinks of 0.5 and 0.25",
        ),
        (
            'exceptions = [{ hosts = "0-3", oversubscription = 2 }, { hosts = "2-5", oversubscription = 2 }]',
            "overlap",
        ),
    ],
)
def test_refused(cluster_of, text, message):
    """By rule, thing, value, limit and way out; the file is named."""
    with pytest.raises(BadInput, match=r"cluster\.toml") as error:
        cluster_of(text)

    assert message in str(error.value)


def test_a_domain_of_several_hosts_has_no_exceptions(tmp_path):
    path = tmp_path / "nvl.toml"
    text = 'name = "x"\nhost = "gb200-nvl72"\nfabric = "ndr-infiniband"\nfacility = "air"\nhosts = 36\n'
    path.write_text(text + "exceptions = [{ hosts = 1, dead = true }]\n")

    with pytest.raises(BadInput, match="describe the domain as one host"):
        read_cluster(path)
