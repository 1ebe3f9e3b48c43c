"""Measurements override what files claim: the bandwidth at which the models predict what was measured."""

import dataclasses
import re

import numpy as np
import pytest

from cost_models.calibration import calibrate
from cost_models.communication import collective_s
from planner.clusters.measured_levels import cluster_of_files, needed_bytes_per_s, text_of_files, with_measured
from tests import dumps, dumps_found, dumps_more
from topologies.errors import BadInput
from topologies.readers import read_seen
from topologies.readers.drawn import Asked
from topologies.readers.seen import Measured
from topologies.ready import read_cluster


@pytest.fixture
def host(tmp_path):
    path = tmp_path / "host.xml"
    path.write_text(dumps.nccl_h100())
    return path


def measured(tmp_path, host, name, text, **asked):
    (tmp_path / name).write_text(text)
    return cluster_of_files([host, tmp_path / name], Asked(**{"hosts": 2, **asked}))


def seconds(cluster, buffer_bytes, inside, hosts):
    factors = np.array([inside, hosts][: len(cluster.levels)])
    return float(collective_s("all_reduce", buffer_bytes, factors, cluster.levels, calibrate(cluster)))


def test_log_of_nccl_tests_sets_the_nics(tmp_path, host):
    """1 GB on two hosts in 4.52 ms: what is predicted for the cluster that was read, and the claim for the rest."""
    drawn, cluster = measured(tmp_path, host, "log.txt", dumps_more.nebius_log())

    assert seconds(cluster, 1e9, 8, 2) == pytest.approx(4520e-6, rel=1e-3)
    assert cluster.levels[0].bandwidth_bytes_per_s == 450e9
    assert drawn.shape.nic_bytes_per_s.kind == "measured"
    assert "gives the 4.52 ms of all_reduce, 1.00 GB, on 16 devices of 2 hosts" in drawn.shape.nic_bytes_per_s.note
    assert cluster.fabric.name == "ndr-infiniband"


def test_table_of_galvatron_sets_both_levels(tmp_path, host):
    """Eight neighbours at 155.658 GB/s and sixteen at 44.682, where 450 and 50 a device were claimed."""
    name = "allreduce_bandwidth_2nodes_8gpus_per_node.json"
    drawn, cluster = measured(tmp_path, host, name, dumps_more.GALVATRON_TWO_HOSTS)

    assert seconds(cluster, 256e6, 4, 1) == pytest.approx(2 * 3 / 4 * 256e6 / 157.984e9, rel=0.02)
    assert cluster.levels[1].bandwidth_bytes_per_s < 10e9
    assert cluster.fabric.name == "ndr-infiniband", "what is measured slower is not another fabric"
    assert sum("the measurement counts" in odd for odd in drawn.oddities) == 2


def test_one_host_leaves_the_network_alone(tmp_path, host):
    name = "allreduce_bandwidth_1nodes_8gpus_per_node.json"
    _, cluster = measured(tmp_path, host, name, dumps_more.GALVATRON_ONE_HOST)

    assert cluster.levels[0].bandwidth_bytes_per_s < 300e9
    assert cluster.levels[1].bandwidth_bytes_per_s == 50e9


def test_small_sizes_tell_nothing(tmp_path, host):
    log = dumps_more.nccl_tests(
        "all_reduce_perf", ["a", "b"], 8, "NVIDIA H100 80GB HBM3", [(4096, 60.0), (65536, 80.0)]
    )
    drawn, cluster = measured(tmp_path, host, "log.txt", log)

    assert cluster.levels[1].bandwidth_bytes_per_s == 50e9
    assert any("no size from 8 MB that tells a bandwidth" in odd for odd in drawn.oddities)


@pytest.mark.parametrize("operation", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
@pytest.mark.parametrize("hosts", [1, 2])
def test_needed_bandwidth_inverts_the_prediction(operation, hosts):
    """What the models say for a level of half the speed needs half the speed."""
    from planner.clusters.measured_levels import _seconds

    cluster, level = read_cluster("dgx-h100:2"), hosts - 1
    half = cluster.levels[level].bandwidth_bytes_per_s / 2
    row = Measured(operation, 8 * hosts, hosts, 1e9, 1.0, "file")
    took = _seconds(row, cluster.levels[:hosts], level, half, calibrate(cluster))

    found = needed_bytes_per_s(dataclasses.replace(row, seconds=took), cluster, level)
    assert found == pytest.approx(half, rel=2e-3)


def test_what_the_rest_takes_alone_tells_nothing():
    """A millisecond for 1 GB on two hosts is less than the links inside take."""
    assert needed_bytes_per_s(Measured("all_reduce", 16, 2, 1e9, 1e-3, "file"), read_cluster("dgx-h100:2"), 1) is None


def test_a_file_says_that_a_figure_is_measured(tmp_path, host):
    (tmp_path / "log.txt").write_text(dumps_more.nebius_log())
    _, text = text_of_files([host, tmp_path / "log.txt"], Asked(hosts=2))

    (line,) = [line for line in text.splitlines() if line.startswith("nic_bandwidth")]
    assert 'source = "file-2", kind = "measured", note = "gives the 4.52 ms' in line


def test_without_measurements_nothing_changes(host):
    drawn, cluster = cluster_of_files([host], Asked(hosts=2))

    assert with_measured(drawn, cluster) == drawn


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (dumps_more.nebius_log().replace("all_reduce_perf", "sendrecv_perf"), "names 0 tests of all_reduce_perf"),
        (dumps_more.nebius_log().replace("# Using", "# all_gather_perf Using"), "names 2 tests"),
        (dumps_more.nebius_log().replace("Rank  3", "Rank 33"), "not 0 to N - 1"),
        (dumps_more.nebius_log().replace("on   worker-1 device  7", "on   worker-0 device  7"), ""),
        (dumps_more.hdr_log().split("   127926280")[0], "no row of sizes and times"),
    ],
    ids=["other", "two", "ranks", "moved", "cut"],
)
def test_logs_that_cannot_be_used(text, words):
    if words:
        with pytest.raises(BadInput, match=words):
            read_seen(text, "log")
    else:
        assert read_seen(text, "log").measured[0].hosts == 2


def test_galvatron_needs_the_name_of_its_file():
    with pytest.raises(BadInput, match="call it allreduce_bandwidth_"):
        read_seen(dumps_more.GALVATRON_ONE_HOST, "mine.json")


def test_hosts_of_one_domain_tell_its_links_and_not_the_nics(tmp_path):
    """A log alone names hosts and devices: a rack of 72, whose all-reduce is predicted as measured."""
    log = tmp_path / "nvl72.log"
    log.write_text(dumps_found.nvl72_log())
    drawn, cluster = cluster_of_files([log], Asked())

    assert (cluster.accelerator.name, cluster.hosts, cluster.group_capacity) == ("gb200", 18, (72,))
    assert seconds(cluster, 8589934592, 72, 1) == pytest.approx(20299e-6, rel=1e-3)
    assert "on 72 devices in one scale-up domain" in drawn.shape.scale_up_bytes_per_s.note
    _, racks = cluster_of_files([log], Asked(like="gb200-nvl72", hosts=36))
    assert [level.bandwidth_bytes_per_s for level in racks.levels] == [cluster.levels[0].bandwidth_bytes_per_s, 50e9]


def test_hosts_that_fill_no_whole_domains_are_not_used(tmp_path):
    log = tmp_path / "nvl72.log"
    log.write_text(dumps_found.nvl72_log(20))
    drawn, cluster = cluster_of_files([log], Asked(like="gb200-nvl72", hosts=36))

    assert cluster.levels[0].bandwidth_bytes_per_s == 900e9
    assert any("20 hosts are no whole scale-up domains of 18; what was measured" in odd for odd in drawn.oddities)


def test_every_rank_has_a_device_whatever_its_number(tmp_path):
    """Ranks that see one device each, as of ``srun --gpus-per-task=1``, all call it 0."""
    log = tmp_path / "log.txt"
    text = dumps_more.nccl_tests("all_reduce_perf", ["a", "b"], 4, "NVIDIA H100 80GB HBM3", [(10**9, 9000.0)])
    log.write_text(re.sub(r"device +[0-9]+", "device  0", text))
    _, cluster = cluster_of_files([log], Asked())

    assert (cluster.hosts, cluster.host.devices) == (2, 4)


def test_devices_of_a_job_count_only_where_no_file_tells_more(tmp_path, host):
    """Four ranks a host beside a dump of the whole host."""
    log = tmp_path / "log.txt"
    log.write_text(dumps_more.nccl_tests("all_reduce_perf", ["a", "b"], 4, "NVIDIA H100 80GB HBM3", [(10**9, 9000.0)]))

    alone, beside = (cluster_of_files(paths, Asked())[1] for paths in ([log], [host, log]))
    assert (alone.hosts, alone.host.devices, alone.accelerator.name) == (2, 4, "h100-sxm")
    assert (beside.hosts, beside.host.devices) == (1, 8)
    assert cluster_of_files([log], Asked(like="dgx-h100", hosts=2))[1].host.devices == 8
