"""``meshwright cluster``: what is shown and written, and what other commands do with it."""

import pytest

from tests import dumps, dumps_more
from tests.command import meshwright, refused
from topologies.cluster import Cluster
from topologies.readers.toml_text import Commented, toml_text
from topologies.ready import read_cluster


@pytest.fixture
def files(tmp_path):
    texts = {"host.xml": dumps.nccl_h100(), "topology.conf": dumps_more.SLURM_TREE,
             "topology.yaml": dumps_more.SLURM_YAML, "log.txt": dumps_more.nebius_log()}  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_read_writes_what_plan_and_verify_take(files):
    out, saved = str(files / "out.toml"), str(files / "launch")
    read = meshwright("cluster", "read", f"{files}/host.xml", f"{files}/topology.yaml", "--name", "mine", "--out", out)
    plan = meshwright("plan", "tiny-llama", "--cluster", out, "--global-batch", "32", "--out", saved, "--json")
    verified = meshwright("verify", f"{saved}/plan.json")

    assert (read.code, read.out) == (0, f"wrote {out}\n")
    assert "note: topology.yaml (Slurm topology.yaml): the topology 'topo2' counts, not topo1" in read.err
    cluster = read_cluster(out)
    assert (cluster.name, cluster.hosts, cluster.group_capacity) == ("mine", 4, (8, 2, 2))
    assert (plan.json["cluster"]["devices"], plan.json["cluster"]["digest"]) == (32, cluster.digest)
    assert (verified.code, verified.out.split(":")[0]) == (0, "verified"), verified


def test_read_prints_to_stdout(files):
    answer = meshwright("cluster", "read", f"{files}/host.xml", "--hosts", "2")

    assert answer.code == 0
    assert answer.out.startswith("# Written from host.xml (NCCL topology)\n")
    assert "hosts = 2  # --hosts" in answer.out


def test_plan_takes_a_dump(files):
    cluster = read_cluster(f"{files}/host.xml:4")

    assert isinstance(cluster, Cluster)
    assert (cluster.name, cluster.hosts, cluster.host.accelerator) == ("host:4", 4, "h100-sxm")
    assert "holds no <cpu>" in refused("plan", "tiny-llama", "--cluster", write(files / "bad.xml", "<system/>"))


def write(path, text):
    path.write_text(text)
    return str(path)


def test_show(files):
    answer = meshwright("cluster", "show", f"{files}/host.xml", f"{files}/topology.conf", f"{files}/log.txt")

    assert answer.code == 0
    for words in (
        "read-h100-sxm: 16 hosts of 8 devices", "switch of 4 hosts   4", "450 GB/s", "recognised by PCI 10de:2330",
        "gives the 4.52 ms of all_reduce", "odd: topology.conf (Slurm topology.conf): LinkSpeed",
    ):  # fmt: skip
        assert words in answer.out


def test_show_as_json(files):
    answer = meshwright("cluster", "show", f"{files}/host.xml", "--hosts", "2", "--json").json

    assert answer["levels"][1]["bandwidth_bytes_per_s"] == 50e9
    assert [level["source"] for level in answer["levels"]] == ["catalogue: h100-sxm", "host.xml (NCCL topology)"]
    assert answer["read"]["accelerator"]["value"] == "h100-sxm"
    assert answer["read"]["NIC"]["source"] == "host.xml (NCCL topology)"


def test_ports_slower_than_nics_are_said(files):
    answer = meshwright("cluster", "show", f"{files}/host.xml", "--hosts", "2", "--fabric", "hdr-infiniband")

    assert "NICs of 400 Gb/s on ports of 200 Gb/s of hdr-infiniband, which count" in answer.out


@pytest.mark.parametrize("name", ["dgx-h100", "dgx-h100:4"])
def test_show_of_a_ready_cluster(name):
    assert "of 8 devices (h100-sxm, ndr-infiniband, air)" in meshwright("cluster", "show", name).out


def test_show_of_hosts_that_differ():
    """Of irregular-64 one host has cards of 6 of 50 GB/s, and eight hang below a switch with a fourth."""
    shown, told = meshwright("cluster", "show", "irregular-64"), meshwright("cluster", "show", "irregular-64", "--json")
    slow, leaf = told.json["exceptions"]

    assert "exception: node18: 0.12 of a regular host's bandwidth" in shown.out
    assert "node41, node42, node43, node44 and 4 more: below a switch whose uplinks leave each 0.25" in shown.out
    assert (slow["numbers"], slow["network_share"], slow["devices"]) == ([17], pytest.approx(0.12), None)
    assert (leaf["names"], leaf["uplink_share"]) == ([f"node{k}" for k in range(41, 49)], 0.25)
    assert (told.json["hosts"], told.json["accelerator"], told.json["spare_hosts"]) == (64, "h100-sxm", 0)


def test_show_of_dead_and_spare_hosts(tmp_path):
    lines = 'hosts = 8\nspare_hosts = 1\nexceptions = [{ hosts = "2,4", dead = true }, { hosts = 0, devices = 7 }]'
    parts = 'name = "mine"\nhost = "dgx-h100"\nfabric = "ndr-infiniband"\nfacility = "air"\n'
    shown = meshwright("cluster", "show", write(tmp_path / "mine.toml", parts + lines)).out

    assert "exception: host-0: 7 devices\nexception: host 2, host 4: dead" in shown
    assert "spare: 1 of 6 hosts" in shown


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("dgx-h100", "--hosts", "3"), "'dgx-h100' is described whole, and options of files that are read (--hosts)"),
        (("dgx-h100:4", "--scale-up-bandwidth", "450 GB/s", "--json"), "(--scale-up-bandwidth) do not apply"),
        (("{}/none.xml",), "cannot be read: No such file"),
        (("{}/host.xml", "--accelerator", "h1000"), "no accelerator 'h1000'"),
        (("{}/host.xml", "--scale-up-bandwidth", "450"), "--scale-up-bandwidth: '450' is not a quantity"),
        (("{}/host.xml", "--scale-up-bandwidth", "0 B/s"), "is above 0"),
        (("{}/host.xml", "--hosts", "3000000"), "--hosts 3000000 is outside 1 to 2097152"),
        (("{}/topology.conf",), "shows no accelerator; add a file that does"),
        (("a=b={}/host.xml",), "cannot be read"),
    ],
)
def test_refusals(files, words, complaint):
    assert complaint in refused("cluster", "show", *(word.format(files) for word in words))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--facility", "nope"), "no facility 'nope' in the catalogue"),
        (("--nics", "0", "--hosts", "2"), "has nics = 0, so 2 scale-up domains cannot be joined"),
        (("--nics", "99999999"), "nics of host 'like-dgx-h100' is from 0 to 2097152"),
    ],
)
def test_what_no_command_could_read_is_not_written(files, words, complaint):
    assert complaint in refused("cluster", "read", f"{files}/host.xml", *words, "--out", str(files / "out.toml"))
    assert not (files / "out.toml").exists()


@pytest.mark.parametrize("out", ["x.json", "no-such-folder/x.toml", "", "\0.toml"])
def test_nothing_is_written_where_it_cannot_be(files, out):
    assert "--out" in refused("cluster", "read", f"{files}/host.xml", "--out", out)
    assert sorted(path.name for path in files.iterdir()) == ["host.xml", "log.txt", "topology.conf", "topology.yaml"]


def test_tables_as_text():
    tables = {
        "a": Commented(1, "why\nnot"),
        "b": {"c": {"d": "x"}, "figures": {"e": {"value": "1 B"}}},
        "f": [{"g": 2.5}],
    }

    assert toml_text(tables, ["head"]) == (
        '# head\na = 1  # why?not\n\n[b.c]\nd = "x"\n\n[b.figures]\ne = { value = "1 B" }\n\n[[f]]\ng = 2.5\n'
    )
