"""Errors that end ranks of a job, told by rank; waits that end."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("torch")

from jobs import free_port

CLOSED = "[pair.cc:553] Connection closed by peer [127.0.0.1]:1971. GLHF!"
ENDS = """
from planner.errors import BadInput
from planner.runtime.last_words import name_this_rank
name_this_rank()
{}
"""
STAGE = """
try:
    raise RuntimeError({!r})
except RuntimeError as error:
    raise RuntimeError("\\nFailed to run stage backward:") from error
"""
SILENT = """
import time
import torch
from plans import make_plan
from planner.runtime.mesh import build_mesh, join
from planner.runtime.schedule import AccumulationSchedule
plan = make_plan(dp_replicate=2)
join(plan, "cpu", timeout_s=6)
mesh, group = build_mesh(plan.strategy, "cpu"), torch.distributed.new_group([0, 1])
AccumulationSchedule(plan.strategy, mesh, None, None, None)
if mesh.get_rank() == 1:
    time.sleep(600)
torch.distributed.all_reduce(torch.zeros(1), group=group)
"""


def started(script: str, rank: int, world: int = 4, port: int = 0) -> subprocess.Popen:
    place = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {
        **os.environ,
        **{name: str(it) for name, it in place.items()},
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("error", "said", "traced"),
    [
        ("raise BadInput('world 4, but 2')", "rank 2: world 4, but 2", 0),
        ("raise ValueError('bad sample 17')", "rank 2 failed: ValueError: bad sample 17", 1),
        (f"raise RuntimeError({CLOSED!r})", "rank 2: another rank ended, which says why or was killed (Connection", 0),
        (STAGE.format(CLOSED), "rank 2: another rank ended, which says why or was killed (Connection", 0),
    ],
)
def test_an_error_is_told_by_rank(error, said, traced):
    """In one line, after the traceback where the error is the script's own."""
    job = started(ENDS.format(error), rank=2)
    text = job.communicate(timeout=60)[1].strip()

    assert job.returncode == 1
    assert text.splitlines()[-1].startswith(said)
    assert text.count("Traceback") == traced and (traced or len(text.splitlines()) == 1)


LINGERS = """
import atexit, sys, time
import torch.distributed as dist
from planner.runtime import last_words
last_words.name_this_rank()
last_words.GATHER_S = 0.0
atexit.register(time.sleep, 600)
{}
"""
STORELESS = """
def gone(*_):
    raise dist.DistNetworkError("Broken pipe")
store = dist.HashStore()
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
last_words.name_this_rank()
type(dist.distributed_c10d._get_default_store()).set = gone
raise RuntimeError("Timed out waiting 6000ms for recv operation to complete")
"""
SELF_CAUSED = "error = ValueError('bad sample 17'); raise error from error"
OWN_WORDS = f"""
try:
    raise RuntimeError({CLOSED!r})
except RuntimeError:
    raise ValueError("bad sample 17") from None
"""


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (STORELESS, "rank 2: another rank has not come (Timed out waiting 6000ms)"),
        ("sys.stdout.close(); raise ValueError('bad sample 17')", "rank 2 failed: ValueError: bad sample 17"),
        pytest.param(SELF_CAUSED, "rank 2 failed: ValueError: bad sample 17", marks=pytest.mark.slow),
        pytest.param(OWN_WORDS, "rank 2 failed: ValueError: bad sample 17", marks=pytest.mark.slow),
    ],
    ids=["the rank of the store is gone", "nobody reads", "a cause of itself", "from None"],
)
def test_a_rank_ends_whatever_it_finds_on_its_way(ends, said):
    """Without the teardown, which here would take ten minutes."""
    with started(LINGERS.format(ends), rank=2) as job:
        try:
            text = job.communicate(timeout=90)[1].strip()
        finally:
            job.kill()

    assert job.returncode == 1
    assert text.splitlines()[-1] == said
    assert "Error in sys.excepthook" not in text


def test_a_rank_that_does_not_come_is_named_in_time():
    """Also where ranks wait in a group of their own, whose limit torch sets to half an hour."""
    port, began = free_port(), time.monotonic()
    silent, waiting = (started(SILENT, rank, world=2, port=port) for rank in (1, 0))
    try:
        text = waiting.communicate(timeout=120)[1]
    finally:
        silent.kill()
        waiting.kill()
        silent.communicate()

    assert waiting.returncode == 1 and time.monotonic() - began < 110
    assert "rank 0: rank 1 has not come: it hangs in its own code" in text
    assert "Traceback" not in text
