"""Plans of well-known models on well-known machines, as the planner gave them, some of them under pins.

``golden/plans.json`` holds what launch files are made from: model with config, cluster, workload, strategy.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import lru_cache
from pathlib import Path

import numpy as np
from plans import make_plan

from cost_models.strategy import DENSE_ORDER
from cost_models.workload import Training
from planner.export import export
from planner.ranks import rank_grid
from planner.result import ClusterRecord, ModelRecord, Plan, StrategyRecord

RECORDS = json.loads((Path(__file__).parent / "golden" / "plans.json").read_text())
NAMES = [f"{one['model']['name']} {one['cluster']['source']} {one['pins']}".strip() for one in RECORDS]


@lru_cache(maxsize=64)
def golden(number: int) -> Plan:
    """The plan of that number, with neutral figures for what it costs."""
    record = RECORDS[number]
    return make_plan(config=None).model_copy(
        update={
            "strategy": StrategyRecord(**record["strategy"]),
            "model": ModelRecord(**record["model"]),
            "cluster": ClusterRecord(**record["cluster"]),
            "workload": Training(**record["workload"]),
        }
    )


def rewritten(plan: Plan, stack: dict | None = None, workload: dict | None = None, **strategy) -> Plan:
    """The plan with other values in places."""
    work = plan.workload.model_copy(
        update={"stack": plan.workload.stack.model_copy(update=stack or {}), **(workload or {})}
    )
    return plan.model_copy(update={"strategy": plan.strategy.model_copy(update=strategy), "workload": work})


def alike(plan: Plan, kind: str) -> Plan:
    """The plan with every layer recomputing in one way."""
    return rewritten(plan, recompute=[[(count, kind)] for count in plan.strategy.layers_per_stage])


def host_words(plan: Plan, target: str, folder: Path, *words: str, **environment: str) -> list[str]:
    """What torchrun is told on a host by ``<target>.sh``: run by bash with an interpreter that prints its words."""
    folder.mkdir(exist_ok=True)
    for name, (text, mode) in export(plan, (target,)).items():
        (folder / name).write_text(text)
        (folder / name).chmod(mode)
    echo = folder / "print-words"
    echo.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    echo.chmod(0o755)
    clean = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR") if key in os.environ}
    done = subprocess.run(
        ["bash", str(folder / f"{target}.sh"), *words],
        env=clean | {"PYTHON": str(echo), "MASTER_ADDR": "h0"} | environment, cwd=folder, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[:-1]


def layers_of(plan: Plan) -> list[str]:
    """What every layer recomputes, in model order."""
    return [kind for runs in plan.strategy.recompute for count, kind in runs for _ in range(count)]


def hosts_agree(plan: Plan, script: str, order: tuple[str, ...]) -> bool:
    """Whether every rank of a framework that nests its axes in ``order`` runs on the host that the plan puts it on.

    ``script`` renumbers hosts by its line ``numbers=(...)``, where it has one.
    """
    strategy, each = plan.strategy, plan.cluster.devices_used // plan.cluster.hosts_used
    line = [text for text in script.splitlines() if text.startswith("numbers=(")]
    numbers = [int(word) for word in line[0][9:-1].split()] if line else list(range(plan.cluster.hosts_used))
    sizes = [getattr(strategy, axis) for axis in reversed(DENSE_ORDER)]
    coordinates = dict(zip(reversed(DENSE_ORDER), np.indices(sizes), strict=True))
    rank, weight = 0, 1
    for axis in order:
        rank, weight = rank + weight * coordinates[axis], weight * getattr(strategy, axis)
    return bool((np.array(numbers)[rank_grid(strategy) // each] == rank // each).all())
