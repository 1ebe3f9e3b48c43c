"""Hosts from NCCL's topologies and matrices of nvidia-smi: the host a person would draw, and what is odd about it."""

import pytest

from tests import dumps
from topologies.readers import read_seen
from topologies.readers.drawn import Asked, Drawn, draw
from topologies.readers.tables import cluster_of, cluster_of_text, cluster_text


def drawn(*texts: str, **asked) -> Drawn:
    return draw([read_seen(text, f"file{k}") for k, text in enumerate(texts)], Asked(**{"hosts": 4, **asked}))


def drawn_cluster(*texts: str, **asked):
    return cluster_of(drawn(*texts, **asked), Asked(**{"hosts": 4, **asked}))


# Dump, options, accelerator, devices, NICs, GB/s inside and out a device, fabric, catalogue's host for the rest
HOSTS = [
    (dumps.h200_metal, {}, "h200-sxm", 8, 8, 450, 50, "roce-400", "dgx-h200"),
    (dumps.h200_vm, {}, "h200-sxm", 8, 8, 450, 50, "roce-400", "dgx-h200"),
    (dumps.mi350x, {}, "mi350x", 8, 8, 535, 50, "roce-400", "mi350x-platform"),
    (dumps.ncv4, {"like": "l40s-host"}, "a100-80-pcie", 4, 1, 32, 3.125, "ethernet-100", "l40s-host"),
    (dumps.ndv5_template, {"accelerator": "h100-sxm"}, "h100-sxm", 8, 8, 450, 50, "ndr-infiniband", "dgx-h100"),
    (dumps.h200_topo, {}, "h200-sxm", 8, 8, 450, 50, "ndr-infiniband", "dgx-h200"),
    (dumps.a800_topo, {"accelerator": "a800-80-sxm"}, "a800-80-sxm", 8, 8, 200, 25, "hdr-infiniband", "hgx-a800"),
    (dumps.dgx2_topo, {}, "v100-sxm2-32gb", 16, 8, 150, 6.25, "ethernet-100", "dgx-2"),
    (dumps.no_links_topo, {}, "h100-sxm", 8, 8, 64, 50, "ndr-infiniband", "dgx-h100"),
]  # fmt: skip


@pytest.mark.parametrize("row", HOSTS, ids=lambda row: row[0].__name__)
def test_host_as_a_person_would_draw_it(row):
    dump, asked, accelerator, devices, nics, inside, outside, fabric, like = row
    cluster = drawn_cluster(dump(), **asked)

    assert (cluster.accelerator.name, cluster.host.devices, cluster.host.nics) == (accelerator, devices, nics)
    up, out = cluster.levels
    assert (up.fanout, up.bandwidth_bytes_per_s) == (devices, inside * 1e9)
    assert (out.fanout, out.bandwidth_bytes_per_s) == (4, outside * 1e9)
    assert (cluster.fabric.name, cluster.host.name) == (fabric, f"like-{like}")


def test_the_written_file_says_where_each_figure_is_from():
    found, asked = drawn(dumps.h200_metal()), Asked(hosts=4)
    text = cluster_text(found, asked)

    assert "nics = 8  # file0 (NCCL topology)" in text
    assert 'nic_bandwidth = { value = "400 Gb/s", source = "file-1", kind = "published" }' in text
    assert '[host.sources.file-1]\ntitle = "file0 (NCCL topology)"' in text
    assert 'scale_up_latency = { value = "1.9 us", source = "nccl-tuning"' in text
    assert cluster_of_text(text, "text").digest == cluster_of(found, asked).digest
