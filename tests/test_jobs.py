"""Several jobs side by side: each a plan of its part, the whole what they do together."""

from __future__ import annotations

import re

import pytest

from planner import BadInput, Plan, plan
from planner.explanations.mine import inputs_of
from planner.jobs import legal_jobs, part_of
from planner.limits import share_of
from planner.options import Options
from topologies.ready import read_cluster

ASKED = {"global_batch": 8, "alternatives": 0}


def whole(it: Plan) -> float:
    return it.jobs * it.workload.tokens / it.step_s


def test_one_batch_that_does_not_stretch_is_told():
    it = plan("llama-3.2-1b", "dgx-h100:3", **ASKED)
    idle = it.cluster.devices - it.cluster.devices_used

    assert idle > 0
    assert any(f"{idle} of 24 devices stay idle" in note and "% worse" in note for note in it.notes)


@pytest.mark.parametrize(
    ("model", "hosts", "batch", "thin"),
    [("llama-3.2-1b", 16, 8, True), ("llama-3.2-1b", 16, 1024, False), ("llama-3.2-1b", 1, 8, False),
     ("llama-3.1-70b", 8, 48, False)],
)  # fmt: skip
def test_a_batch_that_uses_all_devices_badly_is_told(model, hosts, batch, thin):
    """8 sequences over 128 devices; not 1,024 of them, nor 8 over 8 devices, nor 48 of a large model over 64."""
    it = plan(model, f"dgx-h100:{hosts}", global_batch=batch, alternatives=0, pins={"devices": 8 * hosts})

    assert any("hardly stretches" in note and "--jobs auto" in note for note in it.notes) == thin


def test_a_job_is_the_plan_of_its_part():
    it = plan("llama-3.1-8b", "dgx-h100:8", jobs=4, **ASKED)
    alone = plan("llama-3.1-8b", "dgx-h100:2", **ASKED)

    assert it.jobs == 4
    assert it.strategy == alone.strategy
    assert it.step_s == alone.step_s
    assert f"{4 * alone.workload.tokens / alone.step_s:,.0f} tokens/s together" in it.notes[0]
    assert inputs_of(Plan.from_json(it.to_json()))[1].digest == it.cluster.digest


def test_auto_trains_most_together():
    it = plan("llama-3.1-8b", "dgx-h100:4", jobs="auto", **ASKED)
    each = {n: whole(plan("llama-3.1-8b", "dgx-h100:4", jobs=n, **ASKED)) for n in (1, 2, 4)}

    assert whole(it) == pytest.approx(max(each.values()), rel=1e-3)
    said = dict(re.findall(r"(\d+): ([\d,]+) tokens/s", it.notes[0]))
    assert {int(n) for n in said} == set(each) - {it.jobs}


def test_a_power_cap_is_shared():
    it = plan("llama-3.1-8b", "dgx-h100:4", jobs=2, power_cap="30 kW", time_limit_s=3.0, **ASKED)

    assert it.options["power_cap_w"] == 15e3
    assert it.watts["facility"] <= 15e3 * (1 + 1e-9)


def test_what_jobs_take_together_is_shared_and_what_each_has_is_not():
    limits = {"host-power": 8e3, "step-time": 3600.0, "step-energy": 1e9, "money": 1e9}
    it = plan("llama-3.1-8b", "dgx-h100:4", jobs=2, limits=limits, tokens="1B", time_limit_s=3.0, **ASKED)

    assert it.options["limits"] == {"host-power": 8e3, "step-time": 3600.0, "step-energy": 5e8, "money": 5e8}
    with pytest.raises(BadInput, match="jobs may share racks"):
        share_of(Options(limits={"rack-power": 4e4}), 2)


def test_parts_are_whole_domains():
    rack = read_cluster("gb200-nvl72:2")

    assert legal_jobs(rack) == [1, 2]
    assert part_of(rack, 2).devices * 2 == rack.devices
    with pytest.raises(BadInput, match=r"legal: 1, 2$"):
        part_of(rack, 4)


@pytest.mark.parametrize("jobs", [0, -1, "many", 1.5, True, "", 3])
def test_what_is_no_number_of_jobs_is_refused(jobs: object):
    with pytest.raises(BadInput, match="jobs="):
        plan("llama-3.1-8b", "dgx-h100:4", jobs=jobs, **ASKED)


def test_no_number_of_jobs_fits_what_all_devices_do_not_hold():
    with pytest.raises(Exception, match="no plan fits"):
        plan("llama-3.1-405b", "dgx-h100:4", jobs="auto")
