"""Batches of published rows: what accumulation, local batches and a stack's recipe say of those that are not stated."""

import pytest

from planner.published.training import training_case
from tests.published_rows import training_row


def test_accumulation_gives_the_batch():
    case = training_case(training_row(global_batch="", micro_batch="2", other_flags="GA=8"))

    assert case.stated
    assert case.job.workload.global_batch == 2 * 8 * 8


@pytest.mark.parametrize(("identity", "stated"), [("tt-1", True), ("mb-1", False)])
def test_a_local_batch_is_the_whole_one_only_where_the_source_means_it(identity, stated):
    case = training_case(training_row(id=identity, global_batch="", micro_batch="2"))

    assert case.stated == stated
    assert case.job is None or case.job.workload.global_batch == 16


@pytest.mark.parametrize(
    ("date", "pp", "micro_batch"), [("2024-12", "4", 8), ("2024-12", "1", 32), ("2025-06", "4", 1)]
)
def test_torchtitan_once_cut_a_batch_by_its_pipeline(date, pp, micro_batch):
    """32 sequences a rank in as many micro-batches as pipeline ranks."""
    cells = {"id": "tt-1", "date": date, "pp": pp, "n_gpus": "8", "global_batch": str(32 * 8 // int(pp))}
    case = training_case(training_row(**cells, micro_batch="", notes="local batch size 32 (per dp rank)"))

    assert case.job.strategy.schedule.micro_batch == micro_batch
    assert case.job.strategy.schedule.micro_batches == 32 // micro_batch


@pytest.mark.parametrize("devices", ["1", "8"])
def test_no_batch_is_a_reason_where_one_rank_takes_it_all(devices):
    """Neither batch nor micro-batch is stated, and the recipe's one micro-batch divides nothing."""
    cells = {"id": "tt-1", "date": "2024-10", "tp": devices, "n_gpus": devices, "global_batch": "", "micro_batch": ""}
    case = training_case(training_row(**cells))

    assert case.job is not None or "global_batch" in case.missing
