"""From a plan to a finished job: the written launch file trains, and a job that breaks ends."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import free_port, wait_for_all
from plans import make_plan

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="launch files are bash scripts")

ROOT = Path(__file__).parent.parent


def surroundings() -> dict[str, str]:
    """The environment of a launch: this interpreter, this tree, a free port."""
    return os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "MASTER_PORT": str(free_port())}


def launch(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``launch.sh`` of a one-host plan to its end."""
    return subprocess.run(
        ["bash", str(folder / "launch.sh"), *words],
        env=surroundings() | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param({"dp_shard": 2, "zero": 3, "recompute": "selective"}, marks=pytest.mark.slow),
        pytest.param({"pp": 2, "precision": "bf16"}, marks=pytest.mark.slow),
    ],
    ids=["dp2 zero 3", "pp2 bf16"],
)
def test_a_written_plan_trains(strategy, tmp_path):
    plan = make_plan(micro_batch=4, micro_batches=2, seq_len=32, **strategy)
    plan.write(tmp_path)
    result = launch(tmp_path, "--steps", "8", "--learning-rate", "0.01", "--json-log", "log.json")
    assert result.returncode == 0, result.stderr[-4000:]

    lines = result.stdout.splitlines()
    log = json.loads((tmp_path / "log.json").read_text())
    assert [line.split()[1] for line in lines if line.startswith("step ")] == [str(number) for number in range(8)]
    assert "measured" in lines[-1] and "predicted 50.0 ms (40.0 to 60.0)" in lines[-1]
    assert log["losses"][-1] < log["losses"][0] - 0.5
    assert log["predicted_step_s"] == plan.step_s
    assert 0 < log["measured_step_s"] < 10


def test_two_hosts_meet_in_the_planned_order(tmp_path):
    """Two launches on this machine as hosts 0 and 1, the second started first: host 0 still holds rank 0."""
    placement = {"tp": [1, 1], "cp": [1, 1], "dp_shard": [1, 1], "dp_replicate": [1, 2], "pp": [1, 1]}
    make_plan(dp_replicate=2, placement=placement).write(tmp_path)
    environment = surroundings() | {"MASTER_ADDR": "127.0.0.1"}
    outputs = [tmp_path / "host0", tmp_path / "host1"]
    hosts = []
    for number in (1, 0):
        with outputs[number].open("w") as output:
            command = ["bash", str(tmp_path / "launch.sh"), str(number), "--steps", "2"]
            hosts.append(subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=output, stderr=output))

    assert wait_for_all(hosts, limit_s=90) == [0, 0], [output.read_text()[-2000:] for output in outputs]
    assert "step 1  loss" in outputs[0].read_text()
    assert "step" not in outputs[1].read_text()


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job(tmp_path):
    """Rank 1 fails in its third step while rank 0 waits for it; the error is named and nothing hangs."""
    make_plan(dp_replicate=2, micro_batch=2).write(tmp_path)
    program = tmp_path / "dies.py"
    program.write_text(
        "import os, sys\n"
        "from planner.runtime import train\n"
        "batch = train.synthetic_batch\n"
        "def dies(plan, number, seed):\n"
        "    if number == 2 and os.environ['RANK'] == '1':\n"
        "        raise RuntimeError('the loader is empty')\n"
        "    return batch(plan, number, seed)\n"
        "train.synthetic_batch = dies\n"
        "sys.argv += ['--plan', os.environ['MESHWRIGHT_PLAN']]\n"
        "train.main()\n"
    )
    started = time.monotonic()
    result = launch(tmp_path, "--timeout-s", "60", MESHWRIGHT_PROGRAM=str(program))

    assert result.returncode != 0
    assert "rank 1 failed" in result.stderr and "the loader is empty" in result.stderr
    assert time.monotonic() - started < 60


def test_a_killed_rank_ends_the_job_and_leaves_no_process(tmp_path):
    """Rank 1 is killed, as the kernel does out of memory; rank 0, which would wait for it, is ended too."""
    make_plan(dp_replicate=2, micro_batch=2).write(tmp_path)
    program = tmp_path / "killed.py"
    program.write_text(
        "import os, signal, time\n"
        "from pathlib import Path\n"
        "Path(f'pid{os.environ[\"RANK\"]}').write_text(str(os.getpid()))\n"
        "while not all(Path(f'pid{rank}').exists() for rank in '01'):\n"
        "    time.sleep(0.05)\n"
        "if os.environ['RANK'] == '1':\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(60)\n"
    )
    started = time.monotonic()
    result = launch(tmp_path, MESHWRIGHT_PROGRAM=str(program))

    assert result.returncode != 0 and time.monotonic() - started < 60
    assert "Signal 9 (SIGKILL)" in result.stderr and "rank      : 1" in result.stderr
    assert not [rank for rank in "01" if Path(f"/proc/{(tmp_path / f'pid{rank}').read_text()}").exists()]


def test_a_port_in_use_is_told(tmp_path):
    make_plan(dp_replicate=2).write(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = launch(tmp_path, MASTER_PORT=str(taken.getsockname()[1]))

    assert result.returncode == 2
    assert "is in use on this host" in result.stderr and "set MASTER_PORT" in result.stderr


@pytest.mark.slow
def test_a_job_with_too_few_processes_is_told(tmp_path):
    """The plan in the directory was replaced by one for more devices: the message has the arithmetic."""
    make_plan().write(tmp_path)
    (tmp_path / "plan.json").write_text(make_plan(dp_replicate=2, pp=2).to_json())
    result = launch(tmp_path)

    assert result.returncode != 0
    assert "2*1*1*1*2 = 4, but the job has 1 processes" in result.stderr
