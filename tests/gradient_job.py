"""One gloo job per world size that applies many plans, run once for all processes of a test run."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jobs import free_port, wait_for_all

TESTS = Path(__file__).parent


def shared_findings(folder: Path, world: int, cases: str, limit_s: float) -> dict[str, dict[str, Any]]:
    """What the job of ``world`` ranks found, by case; run by whoever comes first, the others wait and read.

    ``folder`` is shared by the test run's processes; ``cases`` is ``"ci"`` or ``"matrix"``.
    """
    output = folder / f"findings-{cases}-{world}.json"
    with output.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            _run(output, world, cases, limit_s)
    found = json.loads(output.read_text())
    if "failed" in found:
        pytest.fail(found["failed"])
    return found


def _run(output: Path, world: int, cases: str, limit_s: float) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    log = output.with_suffix(".log")
    command = [sys.executable, str(TESTS / "gradient_worker.py"), str(output), cases]
    with log.open("w") as text:
        ranks = [
            subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stdout=text, stderr=text)
            for rank in range(world)
        ]
        codes = wait_for_all(ranks, limit_s)
    if any(codes):
        output.write_text(json.dumps({"failed": f"ranks ended with {codes}:\n{log.read_text()[-6000:]}"}))
