"""The leanest plan: a little less memory than it needs and nothing fits, a little more and something does."""

from __future__ import annotations

import pytest

from planner import plan
from planner.errors import InfeasiblePlan
from topologies.enlarged import with_more_memory
from topologies.ready import read_cluster

CASES = [
    ("llama-2-13b", "rtx-4090-host:2", "zero=1,pp=2,recompute=none"),
    ("llama-2-13b", "rtx-4090-host:2", "tp=1,pp=2,zero=1"),
    ("llama-2-13b", "rtx-4090-host:2", "zero=0,dp=2"),
]


@pytest.mark.parametrize(
    ("model", "cluster", "pins"), [CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:])]
)
def test_nothing_is_leaner_and_the_leanest_is_a_plan(model: str, cluster: str, pins: str):
    work = {"global_batch": 128, "pins": pins, "alternatives": 0, "time_limit_s": 20.0}
    with pytest.raises(InfeasiblePlan) as error:
        plan(model, cluster, headroom=0.1, **work)
    lean, machine = error.value.leanest, read_cluster(cluster)
    assert sum(lean["classes"].values()) == pytest.approx(lean["need_bytes"])

    def limited(limit: float):
        return plan(model, with_more_memory(machine, limit / machine.memory_bytes), headroom=0.0, **work)

    with pytest.raises(InfeasiblePlan):
        limited(0.995 * lean["need_bytes"])
    assert max(stage.need_bytes for stage in limited(1.001 * lean["need_bytes"]).memory) <= 1.001 * lean["need_bytes"]
