"""The picture of a cluster with a plan on it: what its blocks and texts say, against the rank map."""

from collections import Counter

import matplotlib
import numpy as np
import pytest
from command import meshwright
from plans import make_plan

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.patches import Rectangle

from planner import plan
from planner.clusters.picture import blocks, counted, idle
from planner.ranks import rank_grid
from planner.result import TierMemory


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def small():
    """Four hosts of eight: tp 2 on neighbours, two stages, eight copies of the batch; a fifth host idle."""
    pins = {"tp": 2, "pp": 2, "cp": 1, "devices": 32}
    found = plan("llama-3.2-1b", "dgx-h100:5", global_batch=16, seq_len=1024, pins=pins, alternatives=0)
    cluster = found.cluster.model_copy(update={"hosts_per_rack": 2})
    tier = TierMemory(tier="dram", need_bytes=[3e9, 0.0], room_bytes=4e9)
    return found.model_copy(update={"cluster": cluster, "tiers": [tier]})


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_every_rank_has_its_cell(small):
    """Each device of each host once, with the coordinates that the rank map gives it."""
    grid, each = rank_grid(small.strategy), 8
    flat = grid.reshape(2, 8, 1, 2)
    seen = np.zeros(grid.size, dtype=int)
    for block in blocks(small):
        for k, cell in enumerate(block.cells):
            here = {host * each + k for host in block.hosts}
            assert here == {int(flat[cell.stage, copy, cell.cp, cell.tp]) for copy in cell.dp}
            seen[list(here)] += 1

    assert (seen == 1).all()


def test_what_is_drawn(small):
    ax = small.plot.cluster()
    said, found = texts(ax), blocks(small)
    cells = Counter(patch.get_label() for patch in ax.patches if isinstance(patch, Rectangle))

    assert sum(len(block.hosts) for block in found) == 4
    assert [block.names for block in found] == ["hosts 0-1", "hosts 2-3"]
    assert "hosts 0-1" in said and "host 4" in said and "1 host idle" in said
    assert "2 hosts alike, rack 0" in said and "2 hosts alike, rack 1" in said
    assert cells == {"stage 0": 8, "stage 1": 8, "idle": 1}
    assert "stage 0\ntp 1\ndp 0, 4" in said and "stage 1\ntp 0\ndp 3, 7" in said
    assert said.count("dram 75% full") == 1
    assert ax.get_title(loc="left").startswith("llama-3.2-1b on dgx-h100:5: 32 of 40 x h100-sxm\n")
    assert idle(small) == (1, "host 4")


def test_a_large_cluster_is_folded():
    """16,384 devices of a pipeline of 40 hosts' kinds: the last block is the last stage, and the rest is told."""
    strategy = {"pp": 40, "dp_replicate": 1, "dp_shard": 4, "tp": 8, "cp": 1}
    placement = {"tp": (8, 1), "cp": (1, 1), "dp_shard": (1, 4), "dp_replicate": (1, 1), "pp": (1, 40)}
    it = large(strategy, placement)
    ax, found = it.plot.cluster(), blocks(it)

    assert len(found) == 40 and {len(block.hosts) for block in found} == {4}
    assert sum(text.endswith("hosts alike") for text in texts(ax)) == 24
    assert "16 more kinds of hosts, between the last two, are not drawn" in ax.get_title(loc="left")
    assert "stage 39\ntp 7\ndp 0-3" in texts(ax) and "stage 22\ntp 0\ndp 0-3" in texts(ax)
    assert not any(text.startswith("stage 23\n") for text in texts(ax))


def large(degrees, placement):
    base = make_plan()
    experts = {"etp": (1, 1), "ep": (1, 1), "edp": placement["dp_shard"]}
    strategy = base.strategy.model_copy(update={**degrees, "placement": {**placement, **experts}, "hosts": []})
    numbers = {"hosts": 160, "hosts_used": 160, "devices": 1280, "devices_used": 1280, "devices_per_host": 8}
    cluster = base.cluster.model_copy(update=numbers | {"host_names": []})
    return base.model_copy(update={"strategy": strategy, "cluster": cluster, "tiers": []})


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([3], "host 3"), ([0, 1, 2], "hosts 0-2"), ([0, 4], "hosts 0, 4"), ([0, 2, 4, 6], "hosts 0, 2 .. 6"),
     ([0, 1, 5], "hosts 0, 1 ... 5")],
)  # fmt: skip
def test_numbers_are_shortened(numbers, text):
    assert counted("host", numbers) == text


def test_the_command_writes_it(tmp_path):
    picture = tmp_path / "cluster.png"
    ask = ["plan", "llama-3.2-1b", "--cluster", "dgx-h100:1", "--global-batch", "8", "--seq-len", "512"]
    done = meshwright(*ask, "--pin", "pp=1", "--alternatives", "0", "--plot", str(picture))

    assert done.code == 0 and f"wrote {picture}" in done.out
    assert picture.read_bytes()[:4] == b"\x89PNG"
    refused = meshwright(*ask, "--plot", str(tmp_path / "cluster.txt"))
    assert refused.code != 0 and "is no .png" in refused.err.replace("\n", " ") and not refused.out
