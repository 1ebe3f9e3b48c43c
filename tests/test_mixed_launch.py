"""Plans over several kinds of hosts as jobs: which are launched, on which host each rank runs, and that they train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mixed_cases
import pytest
from jobs import free_port, wait_for_all
from plans import make_mixed_plan, make_part, make_stage

from planner import plan
from planner.errors import BadInput, Unsupported
from planner.mixed.launch import job_of, load_job
from planner.mixed.result import MixedPlan
from planner.runtime.limits import runs_on_cpu
from topologies.catalogue import CATALOGUE

pytestmark = pytest.mark.usefixtures("steady")

CLUSTER = 'name = "{name}"\nfabric = "loopback"\nfacility = "air-average"\nhosts = 1\n'


def cluster_file(folder: Path, name: str, peak: str, devices: int) -> Path:
    """A cluster of one host with so many processors of its own speed."""
    tables = {}
    for kind, folder_name, source in (("host", "hosts", "cpu-host"), ("accelerator", "accelerators", "cpu")):
        text = (CATALOGUE / folder_name / f"{source}.toml").read_text()
        tables[kind] = text.replace("[sources", f"[{kind}.sources").replace("[figures]", f"[{kind}.figures]")
    host = tables["host"].replace("devices = 4", f"devices = {devices}")
    processor = tables["accelerator"].replace('name = "cpu"', f'name = "cpu-{name}"').replace("50 GFLOPS", peak)
    file = folder / f"{name}.toml"
    file.write_text(f"{CLUSTER.format(name=name)}[host]\n{host}\n[accelerator]\n{processor}")
    return file


def planned(folder: Path, devices: int = 4) -> MixedPlan:
    """The tiny Llama over a slow and a quick host: the quick one takes three of four layers."""
    files = [cluster_file(folder, *it, devices) for it in (("slow", "50 GFLOPS"), ("quick", "150 GFLOPS"))]
    return plan("tiny-llama", "+".join(map(str, files)), global_batch=64, seq_len=64, pins="tp=1,cp=1,zero=0")


def test_stages_of_unequal_layers_are_written_out_and_read_back(tmp_path):
    found = planned(tmp_path)
    paths = found.write(tmp_path / "run")
    job = load_job(tmp_path / "run" / "plan.json")

    assert not found.advisory and "a pipeline over several parts" in found.summary()
    assert {path.name for path in paths} == {"plan.json", "launch.sh", "hosts.txt", "rank_map.csv"}
    assert job.strategy.layers_per_stage == [stage.layers for stage in found.stages]
    assert sorted(job.strategy.layers_per_stage) == [1, 3]
    script, hosts = (tmp_path / "run" / "launch.sh").read_text(), (tmp_path / "run" / "hosts.txt").read_text()
    assert "hosts=2\nprocesses=4\n" in script and "-m planner.runtime.train" in script
    parts = [stage.part for stage in found.stages]
    assert hosts.split() == [f"part{part}-cpu-host-0" for part in parts]
    assert f"names over these, and each finds its number\n#{' ' * 24}itself" in script
    assert f"  0: part{parts[0]}-cpu-host-0\n" in script and f"  1: part{parts[1]}-cpu-host-0\n" in script
    lines = (tmp_path / "run" / "rank_map.csv").read_text().splitlines()
    assert lines[1:] == [f"{r},part{parts[r // 4]}-cpu-host-0,{r % 4},{r // 4},{r % 4},0,0,0" for r in range(8)]


def test_hosts_of_one_part_lie_side_by_side():
    """Three stages of two devices: two on the part of one host of four, one on a host that has two to spare."""
    stages = [make_stage(0, 1, dp=2), make_stage(0, 1, dp=2), make_stage(1, 2, dp=2, zero=0)]
    job = job_of(make_mixed_plan(stages, [make_part("a", hosts=2, devices=4), make_part("b", devices=4)]))

    assert (job.cluster.devices_per_host, job.cluster.host_names) == (
        2, ["part0-a-host-0", "part0-a-host-1", "part1-b-host-0"],
    )  # fmt: skip
    assert job.strategy.placement["pp"] == [1, 3]


@pytest.mark.parametrize(("kinds", "cpu"), [(("cpu", "cpu-fast"), True), (("h100-sxm", "my-own"), False)])
def test_a_job_runs_on_cpus_where_all_its_hosts_do(kinds, cpu):
    parts = [make_part(kind, accelerator=kind) for kind in kinds]
    job = job_of(make_mixed_plan([make_stage(0, 2), make_stage(1, 2)], parts))

    assert job.cluster.accelerator == "+".join(kinds)
    assert runs_on_cpu(job.cluster) == cpu


A, B = make_part("a", devices=2), make_part("b", devices=2)
HOSTS_OF_3 = make_part("c", hosts=2, devices=3)


def test_stages_with_meshes_of_their_own_start_unequal_numbers_of_processes(tmp_path):
    """Two stages fill a host of five up to a tp group that has no room; one device of the other part does the rest."""
    stages = [make_stage(0, 1, tp=2, dp=2, zero=1), make_stage(0, 1, tp=2, micro_batch=2)]
    stages += [make_stage(1, 2, micro_batch=2)]
    found = make_mixed_plan(stages, [make_part("a", hosts=2, devices=5), make_part("b")])
    found.write(tmp_path / "run")
    job = load_job(tmp_path / "run" / "plan.json")

    assert (job.processes, job.world_size) == ((4, 2, 1), 7)
    assert [list(job.ranks_of(stage)) for stage in range(3)] == [[0, 1, 2, 3], [4, 5], [6]]
    assert [it.micro_batch for it in job.stages] == [1, 2, 2] and job.stage_of(5) == 1
    script = (tmp_path / "run" / "launch.sh").read_text()
    assert "processes_of_host=(4 2 1)\n" in script and 'processes="${processes_of_host[10#$node_rank]}"\n' in script
    names = ["part0-a-host-0", "part0-a-host-1", "part1-b-host-0"]
    assert (tmp_path / "run" / "hosts.txt").read_text().split() == names
    assert (tmp_path / "run" / "rank_map.csv").read_text().splitlines() == [
        "rank,host,local_rank,pp,dp_replicate,dp_shard,cp,tp",
        *(f"{r},{names[0]},{r},0,0,{r // 2},0,{r % 2}" for r in range(4)),
        f"4,{names[1]},0,1,0,0,0,0", f"5,{names[1]},1,1,0,0,0,1", f"6,{names[2]},0,2,0,0,0,0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stages", "parts", "said"),
    [
        ([make_stage(0, 1, cp=2, micro_batch=2), make_stage(1, 3, dp=2)], [A, B], "stage 0 has cp = 2; pin cp=1"),
        (
            [make_stage(0, 1, tp=4, micro_batch=2), make_stage(1, 3, dp=2)],
            [make_part("a", hosts=2, devices=2), B],
            "stage 0 has tp = 4, more than the 2 devices of a host of a",
        ),
        (
            [make_stage(0, 1, tp=2, dp=3), make_stage(1, 3, dp=3, zero=1)],
            [HOSTS_OF_3, make_part("b", devices=3)],
            "tp groups whole on hosts of 3 devices take 3 hosts of c, which has 2; pin a tp that divides them",
        ),
        ([make_stage(0, 2), make_stage(1, 2)], [A, make_part("g", accelerator="h100-sxm")], "no library of collec"),
        ([make_stage(0, 2), make_stage(1, 2)], [A, make_part("g", accelerator="my-own")], "cpu and my-own have no lib"),
        (
            [make_stage(0, 2), make_stage(1, 2)],
            [make_part("a", accelerator="mi300x"), make_part("g", accelerator="h100-sxm")],
            "mi300x and h100-sxm have",
        ),
    ],
)
def test_what_is_no_job_is_refused_by_name(stages, parts, said, tmp_path):
    with pytest.raises(Unsupported, match=said):
        make_mixed_plan(stages, parts).write(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("record", "fields", "said"),
    [
        ("model", {"config": {"model_type": "gpt2"}}, "qwen3, and 'tiny-llama' has model_type 'gpt2'; pin tp and zero"),
        ("model", {"config": None}, "planned without a config that names its model_type"),
        ("workload", {"seq_len": 15}, "tp = 2 of stage 0 does not divide seq_len = 15"),
    ],
)
def test_models_and_sequences_that_meshes_of_their_own_cannot_run_are_refused(record, fields, said):
    found = make_mixed_plan([make_stage(0, 1, tp=2, micro_batch=2), make_stage(1, 3, dp=2)], [A, B])
    changed = getattr(found, record).model_copy(update=fields)

    assert job_of(found)
    with pytest.raises(Unsupported, match=said):
        job_of(found.model_copy(update={record: changed}))


def test_stages_of_one_mesh_take_any_model():
    found = make_mixed_plan([make_stage(0, 1, dp=2), make_stage(1, 3, dp=2)], [A, B])

    assert job_of(found.model_copy(update={"model": found.model.model_copy(update={"config": None})}))


def test_a_plan_on_one_part_alone_is_written_beside_the_proof_over_all(tmp_path):
    found = mixed_cases.planned(**mixed_cases.ALONE)
    names = {path.name for path in found.write(tmp_path)}

    assert {"plan.json", "mixed_plan.json", "launch.sh"} <= names
    assert load_job(tmp_path / "plan.json") == load_job(tmp_path / "mixed_plan.json") == found.alone
    assert MixedPlan.load(tmp_path / "mixed_plan.json") == found


def test_other_targets_are_refused(tmp_path):
    with pytest.raises(Unsupported, match="megatron cannot express stages on several kinds of hosts; take torchrun"):
        make_mixed_plan([make_stage(0, 1), make_stage(1, 3)], [A, B]).write(tmp_path, ["torchrun", "megatron"])


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("stages",), [], "0 stages and no plan on one part alone"),
        (("stages", 1, "part"), 9, "stage 1 is on part 9, and there are 2 parts"),
        (("stages", 0, "part"), -1, "stages.0.part"), (("parts", 0, "hosts"), 0, "parts.0.hosts"),
        (("stages", 0, "zero"), 7, "stages.0.zero"), (("schema_version",), 99, "schema_version is 99"),
        (("stages", 0, "recompute"), [[2, "none"]], "recompute names 2 layers, and it holds 1"),
        (("model", "layers"), 5, "stages hold 4 layers, the model has 5"),
        (("micro_batches",), 3, "3 micro-batches = 6, and the global batch is 4"),
        (("stages", 0, "dp"), 1, "tp 1 x cp 1 x dp 1 = 1, and it has 2 devices"),
        (("stages", 0, "ep"), 3, "ep 3 does not divide 2"), (("parts", 1, "devices"), 1, "2 devices are used of 1"),
        (("parts", 1, "hosts"), 3, "2 devices on 3 hosts"),
        (("parts", 1, "devices_used"), 1, "its stages use 2 devices"),
    ],
)  # fmt: skip
def test_a_record_that_does_not_add_up_is_no_plan(path, value, said, tmp_path):
    data = json.loads(make_mixed_plan([make_stage(0, 1, dp=2), make_stage(1, 3, dp=2)], [A, B]).to_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))
    for load in (load_job, MixedPlan.load):
        with pytest.raises(BadInput, match=said) as refused:
            load(file)
        assert "plan.json' is not a plan" in str(refused.value) and len(str(refused.value)) < 600


@pytest.mark.parametrize("load", [load_job, MixedPlan.load])
def test_what_is_no_file_of_a_plan_is_not_read(load, tmp_path):
    """A pipe would wait for ever, and brackets without end would overflow the stack."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "deep.json").write_text("[" * 200_000)
    for name, said in (("pipe", "is not a file"), ("deep.json", "not JSON"), ("none.json", "is not a file")):
        with pytest.raises(BadInput, match=said):
            load(tmp_path / name)


@pytest.mark.slow
def test_two_kinds_of_hosts_train_together(tmp_path):
    """Both hosts on this machine, of two processes and one: each starts ``launch.sh`` with its number."""
    pytest.importorskip("torch")
    stages = [make_stage(0, 1, dp=2), make_stage(1, 3, micro_batch=2)]
    make_mixed_plan(stages, [A, make_part("b")], micro_batches=8).write(tmp_path / "run")
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "PYTHON": sys.executable}
    words = ["--steps", "6", "--learning-rate", "0.01"]
    logs = [tmp_path / f"{number}.log" for number in range(2)]
    hosts = []
    for number, log in enumerate(logs):
        command = ["bash", str(tmp_path / "run" / "launch.sh"), str(number), *words]
        with log.open("w") as text:
            hosts.append(subprocess.Popen(command, env=os.environ | where, stdout=text, stderr=text))
    codes = wait_for_all(hosts, limit_s=120.0)
    losses = [float(line.split()[3]) for line in logs[0].read_text().splitlines() if line.startswith("step ")]

    assert codes == [0, 0], [log.read_text() for log in logs]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.5
