"""Published power rows become cases: metered runs, MLPerf's without a mean, workloads that are not known."""

import pytest

from cost_models.calibration import calibrate
from planner.published.power import power_job
from planner.published.predict import prepared, priced
from planner.published.rows import read_rows
from tests.published_rows import (
    csv_file,
    measured,
    power_row,
)


def test_a_metered_run(tmp_path):
    (case,) = read_rows(csv_file(tmp_path, power_row(meter="DC (node)")))
    job = case.job

    assert measured(case, "node_w") == 6942.1
    assert job.switches["meter"] == "DC"
    assert job.switches["measured_s"] == 1806.0
    assert job.cluster.facility.name == "immersion"
    assert (job.workload.tuning, job.workload.global_batch, job.strategy.degrees.tp) == ("lora", 8, 4)


def test_a_metered_run_idles_until_its_first_step():
    """Of 106 s a host works half of the time: its mean is halfway between idling and working."""

    def watts(**cells: str) -> float:
        job = prepared(power_job(power_row(**cells)))
        return priced(job, calibrate(job.cluster, job.workload.stack)).node_w

    idle, half, always = watts(measured_s="30"), watts(measured_s="106"), watts(measured_s="")

    assert half == pytest.approx((idle + always) / 2, rel=1e-9)
    assert idle == pytest.approx(3000.0, rel=0.01)


def test_a_metered_run_of_gpt3():
    """64 hosts, tp 4, pp 8: 16 copies of 64 micro-batches of 2."""
    job = power_job(power_row(workload="GPT-3 175B pretraining (FP8, NeMo)", n_nodes="64"))

    assert job.workload.global_batch == 2048
    assert job.strategy.schedule.kind == "interleaved"


def test_power_without_a_mean(tmp_path):
    (case,) = read_rows(csv_file(tmp_path, power_row(mean_node_w="")))

    assert (case.measured, case.job, case.missing) == ((), None, "mean_node_w not stated")


@pytest.mark.parametrize(
    ("cells", "batch"),
    [({"workload": "GPT-3", "n_nodes": "32 nodes"}, 1024), ({"workload": "llama2_70b_lora", "n_nodes": "2"}, 2)],
)
def test_power_of_a_workload_on_other_hosts_than_the_benchmarks(tmp_path, cells, batch):
    (case,) = read_rows(csv_file(tmp_path, power_row(**cells, mean_node_w="6.85 kW")))

    assert measured(case, "node_w") == pytest.approx(6850.0)
    assert case.job.workload.global_batch == batch


def test_power_of_an_unknown_workload(tmp_path):
    (case,) = read_rows(csv_file(tmp_path, power_row(workload="ResNet")))

    assert "ResNet" in case.missing
