"""trainjob.yaml and skypilot.yaml: fields against the plan and the targets' own schemas, and what their shells do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from golden_plans import NAMES, golden, rewritten
from plans import make_plan

from planner.errors import Unsupported
from planner.export import CARRIERS, export
from planner.export.facts import checked, flat
from planner.export.trainjob import FOLDER, name_of
from planner.result import Plan

NUMBERS = [0, 1, 8, 14, 17, 25]
HOSTILE = "9 Llama'; touch pwned; $(touch pwned) \"\n- x: {y: 1}\n#" + "x" * 80


def trainjob(plan: Plan, *others: str) -> tuple[dict, dict]:
    """The ConfigMap and the TrainJob."""
    config_map, job = yaml.safe_load_all(export(plan, (*others, "trainjob"))["trainjob.yaml"][0])
    return config_map, job


def task(plan: Plan, *others: str) -> dict:
    return yaml.safe_load(export(plan, ("skypilot", *others))["skypilot.yaml"][0])


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: NAMES[n])
def test_a_train_job_is_the_plans(number):
    plan = golden(number)
    plan = plan.model_copy(update={"cluster": plan.cluster.model_copy(update={"hosts": plan.cluster.hosts + 3})})
    config_map, job = trainjob(plan)
    trainer, hosts = job["spec"]["trainer"], plan.cluster.hosts_used

    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (hosts, plan.cluster.devices_used // hosts)
    limits = {"limits": {"nvidia.com/gpu": plan.cluster.devices_used // hosts}}
    assert trainer.get("resourcesPerNode") == (None if plan.cluster.accelerator == "cpu" else limits)
    assert trainer["command"][:2] == ["bash", "-c"]
    assert trainer["command"][3:] == [f"{FOLDER}/launch.sh"]
    assert set(trainer) <= {"numNodes", "numProcPerNode", "resourcesPerNode", "command"}
    assert Plan.from_json(config_map["data"]["plan.json"]) == plan
    assert config_map["data"]["launch.sh"] == export(plan, ("torchrun",))["launch.sh"][0]
    (job_patch,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job_patch["template"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["configMap"]["name"] == config_map["metadata"]["name"]
    assert pod["volumes"][0]["name"] == pod["containers"][0]["volumeMounts"][0]["name"]
    assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == FOLDER
    for document in (config_map, job):
        checked("trainjob", flat(document))


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: NAMES[n])
def test_the_api_takes_the_train_job(number):
    """Read by the API's own classes and written again, nothing is lost: no field is unknown to them."""
    api = pytest.importorskip("kubeflow_trainer_api.models.trainer_v1alpha1_train_job")
    _, job = trainjob(golden(number))

    assert api.TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: NAMES[n])
def test_a_task_is_the_plans(number):
    plan = golden(number)
    plan = plan.model_copy(update={"cluster": plan.cluster.model_copy(update={"hosts": plan.cluster.hosts + 3})})
    found, hosts = task(plan), plan.cluster.hosts_used
    each = plan.cluster.devices_used // hosts

    assert found.pop("num_nodes") == hosts
    fast = {"network_tier": "best"} if hosts > 1 else {}
    wanted = {"cpus": f"{each}+"} if plan.cluster.accelerator == "cpu" else None
    names = {"h100-sxm": "H100"}
    assert found.pop("resources") == (wanted or {"accelerators": {names[plan.cluster.accelerator]: each}, **fast})
    asks = plan.strategy.cp * plan.strategy.ep * plan.strategy.etp > 1
    assert found.pop("envs", None) == ({"MESHWRIGHT_PROGRAM": None} if asks else None)
    assert found.pop("workdir") == "."
    assert found.pop("name") == name_of(plan)
    assert list(found) == ["run"]
    checked("skypilot", flat(task(plan)))


@pytest.mark.parametrize("target", CARRIERS)
@pytest.mark.parametrize(
    ("others", "script"),
    [((), "launch.sh"), (("megatron",), "megatron.sh"), (("torchtitan", "slurm"), "torchtitan.sh"),
     (("megatron", "torchtitan"), "launch.sh"), (("accelerate",), "accelerate.sh")],
)  # fmt: skip
def test_the_framework_beside_it_is_what_starts(target, others, script):
    plan = golden(22)
    started = trainjob(plan, *others)[1]["spec"]["trainer"]["command"][-1].removeprefix(f"{FOLDER}/")
    if target == "skypilot":
        started = task(plan, *others)["run"].splitlines()[-1].removeprefix("exec bash ")

    assert started == script
    assert script in trainjob(plan, *others)[0]["data"]


def test_a_job_that_asks_for_a_program_says_so():
    text = export(golden(22), ("megatron", "trainjob"))["trainjob.yaml"][0]

    assert "# megatron.sh asks for a program: give the container MESHWRIGHT_PROGRAM" in text
    assert "asks for a program" not in export(golden(22), ("torchtitan", "trainjob"))["trainjob.yaml"][0]
    assert task(golden(22), "megatron")["envs"] == {"MESHWRIGHT_PROGRAM": None}


def shell(plan: Plan, folder: Path, command: list[str], **environment: str) -> list[str]:
    """What torchrun is told when ``command`` runs in a folder with the launch files."""
    plan.write(folder)
    echo = folder / "print-words"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    clean = {"PATH": os.environ["PATH"], "PYTHON": str(echo)} | environment
    done = subprocess.run(command, env=clean, cwd=folder, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.splitlines()


def told(words: list[str]) -> list[str]:
    return [words[words.index(flag) + 1] for flag in ("--nnodes", "--node-rank", "--master-addr", "--master-port")]


def test_a_pod_is_the_host_of_its_number(tmp_path):
    plan = golden(10)
    command = trainjob(plan)[1]["spec"]["trainer"]["command"]
    command = [word.replace(FOLDER, str(tmp_path)) for word in command]
    words = shell(plan, tmp_path, command, PET_NODE_RANK="1", PET_MASTER_ADDR="pod-0.x", PET_MASTER_PORT="29400",
                  MESHWRIGHT_PROGRAM="train.py")  # fmt: skip

    assert told(words) == ["2", "1", "pod-0.x", "29400"]


def test_a_node_is_the_host_of_its_number(tmp_path):
    plan = golden(10)
    command = ["bash", "-c", task(plan)["run"]]
    words = shell(plan, tmp_path, command, SKYPILOT_NODE_RANK="1", SKYPILOT_NODE_IPS="10.0.0.7\n10.0.0.3\n",
                  MESHWRIGHT_PROGRAM="train.py")  # fmt: skip

    assert told(words) == ["2", "1", "10.0.0.7", "29500"]


def test_a_hostile_name_stays_a_name():
    plan = make_plan(name=HOSTILE)
    config_map, job = trainjob(plan)

    assert config_map["metadata"]["name"] == job["metadata"]["name"] == task(plan)["name"] == name_of(plan)
    assert len(name_of(plan)) <= 45
    assert Plan.from_json(config_map["data"]["plan.json"]).model.name == HOSTILE
    for target in CARRIERS:
        first = export(plan, (target,))[f"{target}.yaml"][0].splitlines()[:3]
        assert all(line.startswith(("# ", "apiVersion: v1", "kind: ConfigMap", "name: ")) for line in first)


@pytest.mark.parametrize("target", CARRIERS)
def test_refusals(target):
    with pytest.raises(Unsupported, match="scale-up domains of several hosts: 18 hosts of the plan"):
        export(golden(4), (target,))
    with pytest.raises(Unsupported, match="per-stage clocks: it gives no one the rights"):
        export(rewritten(golden(0), clocks=[1.0, 0.9]), (target,))
    with pytest.raises(Unsupported, match=r"a100-99|unknown devices"):
        export(make_plan(accelerator="a100-99"), (target,))


def test_other_vendors_devices():
    assert trainjob(golden(2))[1]["spec"]["trainer"]["resourcesPerNode"] == {"limits": {"amd.com/gpu": 8}}
    assert task(golden(2))["resources"]["accelerators"] == {"MI300X": 8}
    with pytest.raises(Unsupported, match="devices tpu-v5p: it has no name for them that is known here"):
        task(make_plan(accelerator="tpu-v5p"))


def test_files_larger_than_a_config_map():
    big = {"x.txt": ("x" * 2**20, 0o644)}
    from planner.export.trainjob import trainjob as exporter

    with pytest.raises(Unsupported, match=r"launch files: 1,0.* bytes, and a ConfigMap holds 1,048,576"):
        exporter(golden(0), big)
