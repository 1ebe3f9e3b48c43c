"""Gloo jobs that apply many plans, one job a world size, run once for all processes of a test run."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent


def shared_findings(folder: Path, world: int, cases: str, limit_s: float) -> dict[str, dict[str, Any]]:
    """What the job of ``world`` ranks found, by case; all jobs are run by whoever comes first, the others wait.

    ``folder`` is shared by the test run's processes; ``cases`` is ``"ci"`` or ``"matrix"``.
    """
    failed = folder / f"findings-{cases}.failed"
    output = folder / f"findings-{cases}-{world}.json"
    with output.with_name(f"findings-{cases}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists() and not failed.exists():
            _run(folder, cases, limit_s, failed)
    if not output.exists():
        pytest.fail(failed.read_text())
    return json.loads(output.read_text())


def _run(folder: Path, cases: str, limit_s: float, failed: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    log = folder / f"findings-{cases}.log"
    command = [sys.executable, str(TESTS / "gradient_worker.py"), str(folder), cases]
    with log.open("w") as text:
        job = subprocess.Popen(command, env=environment, stdout=text, stderr=text, start_new_session=True)
        try:
            code = job.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            code = job.wait()
    if code:
        failed.write_text(f"the jobs ended with {code}:\n{log.read_text()[-6000:]}")
