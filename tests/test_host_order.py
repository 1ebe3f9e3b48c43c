"""From a cluster file to a job: the plan's hosts in its files, its summary and its checks."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest
from plans import make_cluster, make_plan

from cost_models.estimate import estimate as price_strategy
from planner import plan
from planner.checks.check import broken_rules
from planner.checks.verify import verify
from planner.errors import BadInput, InfeasiblePlan, Unsupported
from planner.export import export
from planner.host_order import host_order, hosts_by_stage, idle_hosts, shortened
from planner.read_model import read_model
from planner.result import Plan
from topologies.ready import CLUSTERS, read_cluster

CLUSTER = (CLUSTERS / "irregular-64.toml").read_text()
PINS = "tp=2,cp=2,pp=8,micro_batch=1,virtual_stages=1"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The ready-made cluster planned from the command line: all 64 hosts in 8 stages of 8."""
    out, words = tmp_path_factory.mktemp("launch"), ["-m", "planner.cli", "plan", "llama-3.1-70b", "-c", "irregular-64"]
    words += ["--pin", f"{PINS},dp=16", "--alternatives", "0", "--out", str(out), "--target", "torchrun,slurm"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, *words], check=True, capture_output=True, env=environment)
    return out


@pytest.fixture(scope="module")
def filled(written) -> Plan:
    """Some stage has the slow card, and one fits the narrow leaf."""
    return Plan.load(written / "plan.json")


def test_the_files_show_which_stage_has_the_slow_host(written):
    """The rank map by itself: one stage holds just the narrow leaf's hosts, another the slow host; hosts.txt agrees."""
    rows = [line.split(",") for line in (written / "rank_map.csv").read_text().splitlines()]
    head, *ranks = rows
    stages: dict[str, set[str]] = {}
    for it in (dict(zip(head, row, strict=True)) for row in ranks):
        stages.setdefault(it["pp"], set()).add(it["host"])
    order = (written / "hosts.txt").read_text().split()

    assert [int(row[0]) for row in ranks] == list(range(512))
    assert [row[1] for row in ranks[::8]] == order
    assert {f"node{n}" for n in range(41, 49)} in stages.values()
    assert sum("node18" in hosts for hosts in stages.values()) == 1
    assert order != sorted(order)


def test_one_stage_takes_the_slow_card_and_one_the_narrow_leaf(filled):
    """Each oddity is kept to one stage: the leaf's hosts are one stage, so nothing but hops leaves it."""
    stages = dict(hosts_by_stage(filled))
    slow = [stage for stage, names in stages.items() if "node18" in names]
    leaf = [stage for stage, names in stages.items() if set(names) == {f"node{n}" for n in range(41, 49)}]

    assert filled.status == "optimal"
    assert (len(stages), len(slow), len(leaf)) == (8, 1, 1)
    assert slow != leaf
    assert "hosts" in filled.summary()
    assert "node41 to node48" in filled.summary()


def test_the_slow_host_stays_idle_when_it_may():
    """Six stages of eight hosts leave 16 idle, the slow one and the leaf among them: as quick as without either."""
    pins = f"{PINS.replace('pp=8', 'pp=6')},dp=16"
    found = plan("llama-3.1-70b", "irregular-64", pins=pins, alternatives=0)

    assert {"node18", *(f"node{n}" for n in range(41, 49))} <= set(idle_hosts(found))
    assert len(idle_hosts(found)) == 16
    assert found.objective == plan("llama-3.1-70b", "dgx-h100:64", pins=pins, alternatives=0).objective


def test_placed_beats_the_order_of_numbers(filled):
    """The same strategy on hosts in the order of their numbers takes longer; the estimate repeats the plan's step."""
    model, cluster = read_model("llama-3.1-70b"), read_cluster("irregular-64")
    strategy = filled.strategy.strategy()
    plain = dataclasses.replace(strategy, hosts=())

    assert price_strategy(model, cluster, filled.workload, strategy).step_s == filled.step_s
    assert price_strategy(model, cluster, filled.workload, plain).step_s > filled.step_s


def test_plan_is_checked_and_read_back(filled):
    report = verify(filled, read_model("llama-3.1-70b"), read_cluster("irregular-64"))

    assert Plan.from_json(filled.to_json()) == filled
    assert (report.verdict, report.reasons) == ("verified", [])
    assert report.bound == filled.bound
    hosts = list(filled.strategy.hosts)
    slow, leaf = hosts.index(17), hosts.index(40)
    hosts[slow], hosts[leaf] = 40, 17
    moved = filled.model_copy(update={"strategy": filled.strategy.model_copy(update={"hosts": hosts})})
    assert verify(moved, read_model("llama-3.1-70b"), read_cluster("irregular-64")).verdict == "refused"


def test_files_follow_the_plan(filled):
    """hosts.txt is the order of node ranks; Slurm asks for these hosts and starts tasks in that order."""
    files = export(filled, ("torchrun", "slurm"))
    job = files["job.sbatch"][0]

    assert files["hosts.txt"][0].split() == host_order(filled)
    assert f"#SBATCH --nodelist={','.join(host_order(filled))}" in job
    assert "--distribution=arbitrary" in job
    assert 'NODE_RANK="$SLURM_PROCID"' in job
    assert "--segment" not in job


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_slurm_tasks_lie_as_planned(written, tmp_path):
    """A stand-in for srun that starts task i on line i of SLURM_HOSTFILE: each host gets its own number."""
    tools = {
        "srun": 'while [[ "$1" == --* ]]; do shift; done; i=0; while read -r name; do\n'
        'SLURM_PROCID=$i SLURM_NODEID=0 FAKE_HOST=$name "$@" || exit 1; i=$((i + 1)); done < "$SLURM_HOSTFILE"',
        "python3": 'echo "$FAKE_HOST $*"',
        "hostname": 'echo "$FAKE_HOST"',
    }
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MESHWRIGHT_PROGRAM": "train.py"}
    env["SLURM_SUBMIT_DIR"] = str(written)
    run = subprocess.run(["bash", str(written / "job.sbatch")], capture_output=True, text=True, env=env)
    started = [line.split() for line in run.stdout.splitlines()]

    assert run.returncode == 0, run.stderr
    assert [line[0] for line in started] == (written / "hosts.txt").read_text().split()
    assert [line[line.index("--node-rank") + 1] for line in started] == [str(k) for k in range(64)]
    assert {line[line.index("--master-addr") + 1] for line in started} == {started[0][0]}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_a_host_finds_its_rank_in_the_file(tmp_path, filled):
    """launch.sh without a number on the host of rank 5; on a host that the plan leaves out it asks."""
    names = host_order(filled)
    for name, (text, mode) in export(filled, ("torchrun",)).items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    for name, body in {"python3": 'echo "$@"', "hostname": 'echo "${FAKE_HOST}"'}.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def run(host: str, *words: str) -> subprocess.CompletedProcess:
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FAKE_HOST": host, "MASTER_ADDR": names[0]}
        env["MESHWRIGHT_PROGRAM"] = "train.py"
        return subprocess.run(["bash", str(tmp_path / "launch.sh"), *words], capture_output=True, text=True, env=env)

    assert "--node-rank 5 " in run(names[5]).stdout
    assert run("elsewhere").returncode == 2
    assert "--node-rank 7 " in run("elsewhere", "7").stdout
    assert "stands in hosts.txt as number 5" in run(names[5], "7").stderr


def test_launch_says_whose_names_to_write_where_nobody_gave_any(filled):
    """Sixty-four hosts in the order of the file are one line, every other one the first eight and a word."""
    names = [f"host-{k}" for k in range(64)]
    cluster = filled.cluster.model_copy(update={"hosts_are_named": False, "host_names": names})

    def head(hosts: list[int]) -> str:
        strategy = filled.strategy.model_copy(update={"hosts": hosts})
        plan = filled.model_copy(update={"cluster": cluster, "strategy": strategy})
        return export(plan, ("torchrun",))["launch.sh"][0].split("set -euo")[0]

    together, apart = head(list(range(64))), head([*range(0, 64, 2), *range(1, 64, 2)])
    assert "#                          0 to 63: host-0 to host-63\n#   MASTER_ADDR" in together
    assert "  7: host-14\n#                          and so on, as in hosts.txt\n#   MASTER_ADDR" in apart
    assert "finds its number itself" not in together
    assert "not told" not in export(filled, ("torchrun",))["launch.sh"][0]


def test_slurm_needs_names(filled):
    nameless = filled.cluster.model_copy(update={"hosts_are_named": False})

    with pytest.raises(Unsupported, match="host_names"):
        export(filled.model_copy(update={"cluster": nameless}), ("slurm",))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"cluster": {"host_names": ["a\nrm -rf"] * 64}}, "host_names"),
        ({"strategy": {"hosts": [64, *range(1, 64)]}}, "the highest at position 64"),
        ({"strategy": {"hosts": [0]}}, "names 1 hosts"),
    ],
)
def test_a_file_with_other_hosts_is_no_plan(filled, change, complaint):
    """Names from a file reach a shell: only what a host can be called passes."""
    data = json.loads(filled.to_json())
    for part, fields in change.items():
        data[part] |= fields
    with pytest.raises(BadInput, match=complaint):
        Plan.from_json(json.dumps(data))


def test_regular_plans_have_no_host_file():
    it = make_plan(tp=2, dp_shard=2, devices_per_host=2)
    it = it.model_copy(update={"cluster": make_cluster(it.strategy, 2)})

    assert "hosts.txt" not in export(it, ("torchrun", "slurm"))
    assert (host_order(it), idle_hosts(it)) == ([], [])


@pytest.mark.parametrize(
    ("hosts", "complaint"),
    [
        ((0, 0, *range(2, 64)), "distinct"),
        (tuple(range(1, 65)), "distinct"),
        (tuple(range(63)), "63 are named"),
    ],
)
def test_check_refuses_hosts(filled, hosts, complaint):
    strategy = dataclasses.replace(filled.strategy.strategy(), hosts=hosts)
    complaints = broken_rules(read_model("llama-3.1-70b"), read_cluster("irregular-64"), filled.workload, strategy)

    assert any(complaint in text for text in complaints)


def test_check_refuses_a_host_without_the_devices(tmp_path, filled):
    path = tmp_path / "seven.toml"
    path.write_text(CLUSTER.replace('hosts = 17, nic_bandwidth = "6 GB/s"', "hosts = 17, devices = 7"))
    complaints = broken_rules(
        read_model("llama-3.1-70b"), read_cluster(path), filled.workload, filled.strategy.strategy()
    )

    assert any("node18 has 7 working devices" in text for text in complaints)


def test_nothing_fits_the_hosts(tmp_path):
    """Ten devices are five on each of two hosts, and one of these has three."""
    path = tmp_path / "two.toml"
    text = 'name = "two"\nhost = "dgx-h100"\nfabric = "ndr-infiniband"\nfacility = "air"\nhosts = 2\n'
    path.write_text(text + "exceptions = [{ hosts = 1, devices = 3 }]\n")

    with pytest.raises(
        InfeasiblePlan, match=r"finds its hosts: of the 2 usable hosts of 'two' 1 have all 8 devices.* 3 hosts"
    ):
        plan("llama-3.2-1b", path, pins="pp=5,dp=2")


def test_names_are_shortened():
    assert shortened(["node03", "node04", "node05", "node07", "a", "node08"]) == "node03 to node05, node07, a, node08"
