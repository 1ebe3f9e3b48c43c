"""``skypilot.yaml``: a task of SkyPilot that copies the launch files to every node and runs them.

Source of every key: ``targets/skypilot.toml``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from planner.export.carried import asks_for_a_program, cannot_carry, carried
from planner.export.documents import as_yaml
from planner.export.facts import checked, flat, target
from planner.export.refusals import Refusal, check_degrees, refuse
from planner.export.render import DOCUMENT, Files, comment
from planner.export.trainjob import name_of
from planner.ranks import processes_per_host
from planner.result import Plan
from planner.runtime.limits import runs_on_cpu


def skypilot(plan: Plan, beside: Files | None = None) -> Files:
    """``skypilot.yaml`` and ``launch.sh``; the task starts the framework whose files are ``beside``, if one is.

    Raises ``Unsupported`` for what a task cannot express.
    """
    check_degrees(plan)
    refuse("skypilot", _cannot(plan))
    files, script = carried(plan, {} if beside is None else beside)
    task = _task(plan, script)
    checked("skypilot", flat(task))
    head = (
        f"# {comment(plan.model.name)} on {comment(plan.cluster.name)}, for {target('skypilot').name}.\n"
        "# From the folder that holds this file: sky launch skypilot.yaml\n"
    )
    return files | {"skypilot.yaml": (head + as_yaml(task), DOCUMENT)}


def _task(plan: Plan, script: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": name_of(plan),
        "workdir": ".",
        "num_nodes": plan.cluster.hosts_used,
        "resources": _resources(plan),
    }
    if asks_for_a_program(plan, script):
        found["envs"] = {"MESHWRIGHT_PROGRAM": None}
    return found | {"run": _run(script)}


def _run(script: str) -> str:
    return (
        'export NODE_RANK="$SKYPILOT_NODE_RANK"\n'
        'export MASTER_ADDR="$(head -n1 <<< "$SKYPILOT_NODE_IPS")"\n'
        f"exec bash {shlex.quote(script)}\n"
    )


def _resources(plan: Plan) -> dict[str, Any]:
    processes = processes_per_host(plan.strategy, plan.cluster)
    if runs_on_cpu(plan.cluster):
        return {"cpus": f"{processes}+"}
    devices: dict[str, Any] = {"accelerators": {target("skypilot").names[plan.cluster.accelerator]: processes}}
    return devices | ({"network_tier": "best"} if plan.cluster.hosts_used > 1 else {})


def _cannot(plan: Plan) -> Iterator[Refusal]:
    yield from cannot_carry(plan)
    accelerator, names = plan.cluster.accelerator, target("skypilot").names
    if accelerator not in names and not runs_on_cpu(plan.cluster):
        yield Refusal(
            f"devices {accelerator}", "it has no name for them that is known here",
            otherwise=f"known: {', '.join(names)}",
        )  # fmt: skip
