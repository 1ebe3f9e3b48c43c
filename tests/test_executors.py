"""Where cases run: a real Dask cluster, and processes that end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import meshwright, refused
from test_sweep import TINY, rows_of

from planner.errors import BadInput
from planner.sweeps.cases import every_case
from planner.sweeps.executors import dask_executor, process_pool, read_workers
from planner.sweeps.sweep import sweep

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def scheduler():
    """The address of a Dask scheduler with one worker."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def test_dask_carries_a_sweep(scheduler, tmp_path):
    """The rows of a Dask cluster are those of this process, one that is no question and one too large among them."""
    cases = [
        *every_case({**TINY, "global_batch": [2, 4, -1]}),
        {**TINY, "headroom": 0.9999},
    ]
    with dask_executor(scheduler) as executor:
        found = sweep(cases, executor, tmp_path / "dask.csv", plans=tmp_path / "plans")
    here = [sweep([case], in_this_thread(), tmp_path / f"{k}.csv") for k, case in enumerate(cases)]
    expected = {row["case"]: row for one in here for row in rows_of(one.path)}

    assert found.statuses == {"optimal": 2, "bad-input": 1, "infeasible": 1}
    assert len(list((tmp_path / "plans").glob("*.json"))) == 2
    for row in rows_of(found.path):
        assert {**row, "search_s": ""} == {**expected[row["case"]], "search_s": ""}


def in_this_thread():
    from test_sweep import AtOnce

    return AtOnce()


def test_the_command_takes_a_scheduler(scheduler, tmp_path):
    out = tmp_path / "s.csv"
    words = ("--model", "llama-3.2-1b", "--cluster", "dgx-h100:1", "--pin", "tp=1,pp=1,cp=1", "--global-batch", "16")
    answer = meshwright("sweep", *words, "--dask", scheduler, "--out", str(out))

    assert answer.code == 0, answer
    assert answer.out == f"1 cases: 1 optimal; {out}\n"
    assert [row["status"] for row in rows_of(out)] == ["optimal"]


def test_a_scheduler_that_is_not_there(monkeypatch, tmp_path):
    pytest.importorskip("distributed")
    monkeypatch.setattr("planner.sweeps.executors.DASK_CONNECT_S", 0.1)
    words = ("sweep", "--model", "llama-3.2-1b", "--cluster", "dgx-h100:1", "--out", str(tmp_path / "s.csv"))

    assert "no Dask scheduler answers at 'tcp://127.0.0.1:9'" in refused(*words, "--dask", "tcp://127.0.0.1:9")
    assert "no Dask scheduler answers at 'nonsense://x'" in refused(*words, "--dask", "nonsense://x")


def test_without_distributed_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)

    with pytest.raises(BadInput, match=r"meshwright\[dask\]"), dask_executor("tcp://127.0.0.1:8786"):
        pass


@pytest.mark.parametrize("workers", [0, -1, 2.5, True, 10**6])
def test_a_number_of_workers_is_a_whole_one(workers):
    with pytest.raises(BadInput, match="workers="):
        read_workers(workers)


def test_left_by_an_exception_the_pool_does_not_wait(tmp_path):
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), process_pool(1) as pool:
        future = pool.submit(time.sleep, 60)
        while not future.running():
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 30


KILLED = """
import time
from planner.sweeps.executors import process_pool
if __name__ == "__main__":
    with process_pool(1) as pool:
        import os
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 60).result()
"""


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and alive(worker):
        time.sleep(0.05)
    assert not alive(worker)


def alive(process: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
