"""``trainjob.yaml``: a ConfigMap with the launch files, and a TrainJob of Kubeflow Trainer that runs them.

The runtime numbers its pods and says where they meet (``PET_NODE_RANK``, ``PET_MASTER_ADDR``); a pod is a host. Source
of every field: ``targets/trainjob.toml``.
"""

from __future__ import annotations

import re
from typing import Any

from planner.errors import Unsupported
from planner.export.carried import asks_for_a_program, cannot_carry, carried
from planner.export.clocks import vendor_of
from planner.export.documents import as_yaml
from planner.export.facts import checked, flat, target
from planner.export.refusals import Refusal, check_degrees, refuse, refused
from planner.export.render import DOCUMENT, Files, comment, job_name
from planner.ranks import processes_per_host
from planner.result import Plan
from planner.runtime.limits import runs_on_cpu

FOLDER = "/meshwright"
VOLUME = "launch-files"
LARGEST_CONFIG_MAP_BYTES = 2**20
LONGEST_NAME = 40
START = (
    'export NODE_RANK="$PET_NODE_RANK" MASTER_ADDR="$PET_MASTER_ADDR" MASTER_PORT="$PET_MASTER_PORT"; '
    'exec bash "$0" "$@"'
)


def trainjob(plan: Plan, beside: Files | None = None) -> Files:
    """``trainjob.yaml``, which holds the files ``beside`` it as well, and ``launch.sh``.

    Raises ``Unsupported`` for what a TrainJob cannot express.
    """
    check_degrees(plan)
    refuse("trainjob", cannot_carry(plan))
    files, script = carried(plan, {} if beside is None else beside)
    documents = [_config_map(plan, files), _job(plan, script)]
    for document in documents:
        checked("trainjob", flat(document))
    head = f"# {comment(plan.model.name)} on {comment(plan.cluster.name)}, for {target('trainjob').name}.\n"
    if asks_for_a_program(plan, script):
        head += f"# {script} asks for a program: give the container MESHWRIGHT_PROGRAM, in trainer.env or its image.\n"
    return files | {"trainjob.yaml": (head + as_yaml(*documents), DOCUMENT)}


def name_of(plan: Plan) -> str:
    """The job's name: small letters, digits and dashes."""
    name = re.sub(r"[^a-z0-9]+", "-", job_name(plan.model.name).lower()).strip("-")[:LONGEST_NAME].strip("-")
    return name if name[:1].isalpha() else f"plan-{name}".strip("-")


def _config_map(plan: Plan, files: Files) -> dict[str, Any]:
    """The launch files; plan.json where the caller has none beside."""
    data = {"plan.json": plan.to_json() + "\n"} | {name: text for name, (text, _) in files.items()}
    size = sum(len(name) + len(text.encode()) for name, text in data.items())
    if size > LARGEST_CONFIG_MAP_BYTES:
        raise refused("trainjob", [Refusal(
            "launch files", f"{size:,} bytes, and a ConfigMap holds {LARGEST_CONFIG_MAP_BYTES:,}",
            otherwise="put them on a volume of your own, and start launch.sh there",
        )])  # fmt: skip
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name_of(plan)}, "data": data}


def _job(plan: Plan, script: str) -> dict[str, Any]:
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name_of(plan)},
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": "torch-distributed",
            },
            "trainer": _trainer(plan, script),
            "runtimePatches": [_mounted(name_of(plan))],
        },
    }  # fmt: skip


def _trainer(plan: Plan, script: str) -> dict[str, Any]:
    processes = processes_per_host(plan.strategy, plan.cluster)
    found: dict[str, Any] = {
        "numNodes": plan.cluster.hosts_used,
        "numProcPerNode": processes,
        "command": ["bash", "-c", START, f"{FOLDER}/{script}"],
    }
    if runs_on_cpu(plan.cluster):
        return found
    return found | {"resourcesPerNode": {"limits": {_resource(plan): processes}}}


def _resource(plan: Plan) -> str:
    names, vendor = target("trainjob").names, vendor_of(plan)
    if vendor not in names:
        raise Unsupported(
            f"{target('trainjob').name} cannot express this plan: no device plugin is known for {vendor or 'unknown'} "
            f"devices ({plan.cluster.accelerator}); there are: {', '.join(names)}"
        )
    return names[vendor]


def _mounted(name: str) -> dict[str, Any]:
    """The patch of the runtime that mounts the ConfigMap in the pods of the job ``node``."""
    pod = {
        "volumes": [{"name": VOLUME, "configMap": {"name": name}}],
        "containers": [
            {"name": "node", "volumeMounts": [{"name": VOLUME, "mountPath": FOLDER, "readOnly": True}]},
        ],
    }
    jobs = [{"name": "node", "template": {"spec": {"template": {"spec": pod}}}}]
    return {
        "manager": "meshwright/plan", "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}},
    }  # fmt: skip
