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


def degrees_of(**cells):
    case = training_case(training_row(**{"id": "xyz-1", "tp": "", "pp": "", "cp": "", "micro_batch": "1"} | cells))
    split = case.job.strategy.degrees if case.job else None
    return (split.tp, split.pp, split.cp) if split else case.missing


@pytest.mark.parametrize(
    ("cells", "degrees"),
    [
        ({"n_gpus": "1"}, (1, 1, 1)), ({"n_gpus": "32", "tp": "8", "dp": "4"}, (8, 1, 1)), ({"dp": "8"}, (1, 1, 1)),
        ({"zero_or_fsdp_stage": "FSDP", "source": "HF Trainer"}, (1, 1, 1)),
        ({"zero_or_fsdp_stage": "ZeRO-3", "source": "litgpt", "tp": "2"}, (2, 1, 1)),
        ({"zero_or_fsdp_stage": "ZeRO-1", "source": "HF Trainer"}, (1, 1, 1)),
        ({"zero_or_fsdp_stage": "ZeRO-1", "accelerator": "A100 40GB"}, "tp, pp not stated"),
        ({"zero_or_fsdp_stage": "ZeRO-1", "model": "Mixtral 8x7B", "arch_json": ""}, "tp, pp not stated"),
        ({"zero_or_fsdp_stage": "ZeRO-1", "id": "mb-001"}, "tp, pp not stated"),
        ({"zero_or_fsdp_stage": "FSDP", "source": "Megatron-LM"}, "tp, pp not stated"),
    ],
)  # fmt: skip
def test_degrees_that_other_cells_force(cells, degrees):
    assert degrees_of(**cells) == degrees


@pytest.mark.parametrize(
    "words", ["gradient_accumulation_steps=8", "grad accum 8", "accumulate_grad_batches: 8", "--grad-acc-steps 8"]
)
def test_gradient_accumulation_as_other_stacks_spell_it(words):
    case = training_case(training_row(id="xyz-1", global_batch="", micro_batch="2", notes=words))

    assert case.job.workload.global_batch == 128


def test_devices_that_contradict_all_degrees():
    """320 for 256 is a slip; 64 for 4,096 are not the devices of the run."""
    assert training_case(training_row(n_gpus="321", tp="8", pp="4", dp="8")).job.strategy.degrees.world_size == 256
    assert degrees_of(n_gpus="64", tp="32", pp="8", dp="16") == "tp*pp*cp*dp = 4096 contradicts n_gpus = 64"


@pytest.mark.parametrize(
    ("cells", "degrees"),
    [
        ({"n_gpus": "32", "global_batch": "16"}, (1, 1, 2)),
        ({"n_gpus": "200", "global_batch": "64"}, "fewer sequences than copies"),
        ({"n_gpus": "136", "global_batch": "1M tokens"}, (1, 1, 1)),
    ],
)
def test_a_sequence_is_only_split_where_it_can_be(cells, degrees):
    found = degrees_of(tp="1", pp="1", **cells)

    assert found == degrees or found[: len(degrees)] == degrees


def test_millions_of_a_batch_are_tokens():
    assert training_case(training_row(global_batch="4M")).job.workload.global_batch == 512


@pytest.mark.parametrize("words", ["no", "disabled", "off", "none", "not used"])
def test_a_degree_that_is_off_splits_nothing(words):
    assert degrees_of(tp=words, pp=words, cp=words) == (1, 1, 1)


@pytest.mark.parametrize(
    ("cells", "degrees"),
    [
        ({"tp": "8-way", "pp": "1"}, (8, 1, 1)), ({"tp": "1", "pp": "2 stages"}, (1, 2, 1)),
        ({"tp": "1", "pp": "1", "ep": "dense"}, (1, 1, 1)), ({"n_gpus": "8 TPU v5e", "dp": "8"}, (1, 1, 1)),
        ({"n_gpus": "8 GCDs", "dp": "8"}, (1, 1, 1)), ({"n_gpus": "8 NeuronCores", "dp": "8"}, (1, 1, 1)),
        ({"dp": "8", "seq_len": "up to 4096"}, (1, 1, 1)),
    ],
)  # fmt: skip
def test_degrees_and_devices_in_words(cells, degrees):
    assert degrees_of(**cells) == degrees


@pytest.mark.parametrize(("text", "batch"), [("64 per GPU", 256), ("16K tokens per GPU", 8)])
def test_a_batch_per_device_is_times_the_copies(text, batch):
    assert training_case(training_row(tp="2", global_batch=text)).job.workload.global_batch == batch


@pytest.mark.parametrize(("text", "noted"), [("2 per GPU", False), ("1-2", True), ("8192 tokens", True)])
def test_a_micro_batch_that_is_no_number_is_told_and_taken_as_not_stated(text, noted):
    case = training_case(training_row(micro_batch=text))

    assert case.job is not None and ("not stated" in case.missing) == noted
