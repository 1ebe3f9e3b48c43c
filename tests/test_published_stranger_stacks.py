"""Rows of sources in no table: the stack, schedule, hosts and recompute that they are read to have run."""

import pytest

from cost_models.calibration import calibrate
from planner.published.predict import prepared
from planner.published.switches import recompute_modules
from planner.published.training import training_case
from tests.published_rows import MIXTRAL, training_row
from topologies.ready import read_cluster


def stranger(**cells):
    """A row of a source in no table."""
    return training_case(training_row(**({"id": "xyz-1", "notes": ""} | cells)))


@pytest.mark.parametrize(
    ("source", "date", "stack", "release"),
    [
        ("arXiv:2412.19437, NeMo", "2024-12", "megatron-core", "2024-12"),
        ("HAI-LLM", "2024-12", "megatron-core", "hai-llm"),
        ("Megatron-LM with DualPipe", "2025-03", "megatron-core", "megatron-lm 2025"),
        ("NeMo 25.04", "2025-06", "megatron-core", "25.04"),
        ("Megatron-LM, SC21", "2021-04", "megatron-lm-2021", "2021"),
        ("Megatron-LM", "2022-10", "megatron-core", "megatron-lm 2023"),
        ("Megatron-LM", "2024-06", "megatron-core", "megatron-lm 2024"),
        ("FlagScale", "2023-10", "megatron-core", "megatron-lm 2023"),
        ("Megatron-DeepSpeed", "2022-01", "megatron-deepspeed", "2022-01"),
        ("DeepSpeed and Megatron, MT-NLG", "2022-01", "megatron-deepspeed", "2022-01"),
        ("ZeRO stage 3", "2024-01", "torchtitan", "other trainers"), ("torchtitan", "2024-01", "torchtitan", "2024-01"),
        ("HSDP", "2024-01", "torchtitan", "other trainers"), ("HSDP", "2022-01", "torchtitan", "2022-01"),
        ("HYBRID_SHARD", "2024-01", "torchtitan", "other trainers"), ("TPUv4", "2024-01", "maxtext", "2024-01"),
        ("v6e-256", "2024-01", "maxtext", "2024-01"), ("trn1.32xlarge", "2024-01", "neuron", "2024-01"),
    ],
)  # fmt: skip
def test_stack_and_release_follow_names_and_dates(source, date, stack, release):
    """An article's number is no release; Megatron before mid-2022 recomputes all and shards nothing."""
    job = stranger(source=source, date=date).job

    assert (job.stack, job.release) == (stack, release)


def test_megatron_of_2023_hides_nothing():
    """MegaScale overlaps what the Megatron-LM beside it in its table does not."""
    stacks = [prepared(stranger(source=s, date="2024-02").job).workload.stack for s in ("Megatron-LM", "MegaScale")]

    assert [(it.tp_overlap, it.dp_overlap) for it in stacks] == [(False, False), (True, True)]


@pytest.mark.parametrize(("date", "fused", "reduced"), [("2022-05", False, 2.0), ("2023-07", True, 4.0)])
def test_sharded_runs_before_pytorch_2_write_their_scores_to_memory(date, fused, reduced):
    it = prepared(stranger(zero_or_fsdp_stage="ZeRO-3", source="DeepSpeed", date=date, recompute="full").job)

    assert (it.workload.stack.fused_attention, it.workload.stack.reduce_bytes) == (fused, reduced)


@pytest.mark.parametrize(
    ("date", "words", "choices", "fused"),
    [
        ("2022-01", "", {"full"}, False), ("2023-12", "flash attention 2", {"none"}, True),
        ("2023-12", "no FlashAttention", {"selective"}, False),
    ],
)  # fmt: skip
def test_megatron_deepspeed_of_2023_recomputes_only_what_does_not_fit(date, words, choices, fused):
    """7B of 4,096 tokens, whose scores fit in no 80 GB where they are written to memory."""
    cells = {"model": "Llama2 7B", "arch_json": "", "seq_len": "4096", "accelerator": "A100 80GB"}
    job = prepared(stranger(source="Megatron-DeepSpeed", date=date, other_flags=words, **cells).job)

    assert {run.choice.recompute for stage in job.strategy.stages for run in stage.runs} == choices
    assert job.workload.stack.fused_attention == fused


@pytest.mark.parametrize(("source", "count"), [("MaxText", 1), ("torchtitan", 1), ("HF Trainer FSDP", 16)])
def test_stacks_that_do_not_accumulate_run_a_rank_s_batch_at_once(source, count):
    """128 sequences on eight devices; the others run one sequence after the other."""
    schedule = stranger(source=source, micro_batch="").job.strategy.schedule

    assert (schedule.micro_batch, schedule.micro_batches) == (16 // count, count)


@pytest.mark.parametrize(("date", "etp"), [("2024-06", 4), ("2025-06", 1)])
def test_experts_were_split_by_tensor_parallelism_before_they_had_a_degree_of_their_own(date, etp):
    cells = {"model": "Mixtral 8x7B", "arch_json": MIXTRAL, "n_gpus": "32", "tp": "4", "pp": "2", "ep": "2"}

    assert stranger(source="Megatron-LM", date=date, **cells).job.strategy.degrees.etp == etp


@pytest.mark.parametrize(("source", "hidden", "wide"), [("Megatron-LM", False, 4.0), ("NeMo 24.07", True, 2.0)])
def test_megatron_lm_has_its_defaults_where_nemo_has_its_recipes(source, hidden, wide):
    it = prepared(stranger(source=source, date="2024-08", tp="2").job).workload

    assert (it.stack.tp_overlap, it.stack.fused_loss) == (hidden, hidden)
    assert (it.stack.reduce_bytes, it.recipe.gradient_bytes) == (wide, wide)


@pytest.mark.parametrize(
    ("cells", "stack"),
    [
        ({"zero_or_fsdp_stage": "FSDP"}, "torchtitan"), ({"zero_or_fsdp_stage": "PyTorch DDP", "tp": ""}, "torchtitan"),
        *(({"zero_or_fsdp_stage": "FSDP2", "pp": pp}, "torchtitan") for pp in ("1.0", "1-way", "off", "none", "PP=1")),
        ({"zero_or_fsdp_stage": "FSDP", "pp": "4", "n_gpus": "64"}, "megatron-core"),
        ({"zero_or_fsdp_stage": "FSDP", "pp": "4", "n_gpus": "64", "source": "torchtitan"}, "torchtitan"),
    ],
)  # fmt: skip
def test_fsdp_under_a_pipeline_is_of_megatrons_kind_and_gathers_once(cells, stack):
    job = prepared(stranger(**cells).job)

    assert job.stack == stack
    assert job.workload.stack.gather_once
    assert job.strategy.zero == (0 if "DDP" in cells["zero_or_fsdp_stage"] else 3)


@pytest.mark.parametrize(("cells", "tp"), [({"pp": "4", "tp": ""}, 1), ({"tp": ""}, None), ({"ep": "8", "tp": ""}, 1)])
def test_who_states_one_way_to_split_leaves_out_none(cells, tp):
    case = stranger(model="Mixtral 8x7B", arch_json=MIXTRAL, n_gpus="64", **cells)

    assert (case.job is None) == (tp is None)
    assert tp is None or (case.job.strategy.degrees.tp == tp and "tp" in case.assumed)


def test_a_schedule_that_splits_the_backward_pass_keeps_its_stages():
    """Virtual stages that nobody stated are tuned only where the schedule has a number to choose."""
    row = {"model": "Mixtral 8x7B", "arch_json": MIXTRAL, "n_gpus": "32", "pp": "4", "ep": "8"}
    kinds = [prepared(stranger(other_flags=flags, **row).job).strategy.schedule.kind for flags in ("DualPipe", "")]

    assert kinds == ["dualpipe", "interleaved"]


@pytest.mark.parametrize(
    ("accelerator", "cells", "devices", "gbps"),
    [
        ("L40S", {"gpus_per_node": "4", "inter_node_link": "2x 400Gb/s"}, 4, 200),
        ("L40S", {"inter_node_link": "2x 400Gb/s"}, 8, 100),
        ("GH200", {"gpus_per_node": "4"}, 4, 400), ("H100", {"gpus_per_node": "8"}, 8, 400),
        ("GH200", {"gpus_per_node": "4 GPUs"}, 4, 400), ("GH200", {"gpus_per_node": "4 per node"}, 4, 400),
        ("GH200", {"gpus_per_node": "4/node"}, 4, 400), ("GH200", {"gpus_per_node": "4x"}, 4, 400),
    ],
)  # fmt: skip
def test_hosts_have_the_devices_that_the_row_says(accelerator, cells, devices, gbps):
    """The network of a host is then shared by fewer; NICs left to the ready cluster go with the devices."""
    cluster = stranger(accelerator=accelerator, n_gpus="32", precision="bf16", **cells).job.cluster
    inner, outer = cluster.levels

    assert (inner.fanout, cluster.hosts, cluster.host.devices) == (devices, 32 // devices, devices)
    assert outer.bandwidth_bytes_per_s * cluster.fabric.oversubscription == pytest.approx(gbps / 8 * 1e9)


def test_hosts_of_a_rack_stay_in_its_network():
    assert stranger(accelerator="GB200", n_gpus="64", gpus_per_node="2").job.cluster.levels[0].fanout == 64


@pytest.mark.parametrize(
    ("words", "kept"),
    [("selective (RMSNorm, MLA up-proj)", "small_modules"), ("selective (core_attn)", "attention"), ("selective", "")],
)
def test_modules_in_brackets_may_have_their_own_names(words, kept):
    assert recompute_modules(words) == kept


@pytest.mark.parametrize(
    ("cells", "choices"),
    [
        ({"source": "Megatron-LM", "zero_or_fsdp_stage": "ZeRO-1", "micro_batch": "1"}, ["full", "selective"]),
        ({"source": "HF Trainer", "zero_or_fsdp_stage": "FSDP", "micro_batch": "16"}, ["full"]),
    ],
)
def test_megatron_recomputes_as_few_layers_as_fit(cells, choices):
    """Sequences of 8,192 tokens; other stacks recompute every layer or none."""
    (stage,) = prepared(stranger(**cells).job).strategy.stages

    assert [run.choice.recompute for run in stage.runs] == choices
    assert stage.layers == 32


def test_pcie_has_wires_of_its_own_and_hides_no_tensor_parallelism():
    """Half the link, where NVLink gives nine tenths of it."""
    hosts = [read_cluster(name) for name in ("h100-pcie-host", "dgx-h100")]
    pcie, nvlink = (calibrate(host).collective("all_gather", 0) for host in hosts)
    jobs = [prepared(training_case(training_row(accelerator=name, tp="4")).job) for name in ("L40S", "H100")]

    assert pcie.bandwidth_fraction < 0.6 < 0.8 < nvlink.bandwidth_fraction
    assert [job.workload.stack.tp_overlap for job in jobs] == [False, True]


@pytest.mark.parametrize(("words", "fused"), [("", True), ("flash attention 2", True), ("w/o FlashAttention", False)])
def test_a_row_that_says_so_runs_without_flash_attention(words, fused):
    assert prepared(stranger(other_flags=words).job).workload.stack.fused_attention == fused


@pytest.mark.parametrize(
    ("cells", "degrees"),
    [
        ({"zero_or_fsdp_stage": "TP=4 + FSDP=16"}, (4, 1, 1)), ({"other_flags": "MP=8, PP=4"}, (8, 4, 1)),
        ({"other_flags": "8-way tensor parallel, 4-way pipeline"}, (8, 4, 1)),
        ({"other_flags": "Ulysses SP=8"}, (1, 1, 8)), ({"other_flags": "sequence_parallel_size=8"}, (1, 1, 8)),
    ],
)  # fmt: skip
def test_degrees_in_words_and_beside_the_sharding(cells, degrees):
    found = stranger(**({"n_gpus": "64", "tp": "", "pp": "", "cp": ""} | cells)).job.strategy.degrees

    assert (found.tp, found.pp, found.cp) == degrees


@pytest.mark.parametrize(("words", "exchange"), [("Ulysses=4", "all_to_all"), ("CP=4", "ring")])
def test_ulysses_exchanges_heads_for_tokens(words, exchange):
    job = prepared(stranger(other_flags=words, cp="").job)

    assert (job.workload.stack.context_exchange, job.strategy.degrees.cp) == (exchange, 4)


@pytest.mark.parametrize(
    ("cells", "kept"),
    [
        ({"other_flags": "--recompute-activations"}, "attention"),
        ({"recompute": "recompute-activations"}, "attention"),
        ({"recompute": "core attention"}, "attention"),
        ({"recompute": "save_qkv_proj", "source": "MaxText"}, "behind_qkv"),
    ],
)  # fmt: skip
def test_stacks_own_names_of_selective_recompute(cells, kept):
    job = prepared(stranger(**cells).job)

    assert {run.choice.recompute for stage in job.strategy.stages for run in stage.runs} == {"selective"}
    assert job.workload.stack.selective == kept
