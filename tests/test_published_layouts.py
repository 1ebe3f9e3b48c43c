"""Degrees, sharding, schedule and place of published runs, and the machines they name."""

import numpy as np
import pytest

from cost_models.estimate import estimate
from cost_models.strategy import DENSE_ORDER, EXPERT_ORDER, ParallelDegrees, level_ranks
from planner.published import recipes as recipes_module
from planner.published.layouts import Sharding, place, recompute_choice, sharding
from planner.published.machines import GBPS, host_bytes_per_s, ready_cluster
from planner.published.recipes import Cell, Recipe, recipe
from planner.published.training import training_case
from tests.published_rows import MIXTRAL, bigscience_row, job, training_row
from topologies.errors import BadInput

EMPTY = Recipe("any", "any")
MOE = {"model": "Mixtral 8x7B", "arch_json": MIXTRAL}


# Machines


@pytest.mark.parametrize(
    ("text", "devices", "gbps"),
    [
        ("4x Omni-Path per node", 8, 400),
        ("1600 Gbps RoCE per node", 8, 1600),
        ("8x HDR IB 200 Gb/s per node (paper)", 8, 1600),
        ("RDMA 400 Gb/s per GPU", 8, 3200),
        ("25 GB/s per GPU", 8, 1600),
        ("4x100 Gb RoCE", 8, 400),
        ("4x ConnectX-8 IB XDR 800 Gb/s", 4, 3200),
        ("8x HDR", 8, 1600),
        ("Storage: 2x ConnectX-7 IB NDR 400Gb/s, Compute: 8x ConnectX-7 IB NDR 400Gb/s, Management: 100Gb/s", 8, 3200),
        ("8x ConnectX-7 IB NDR 400Gb/s + 200Gb/s Ethernet NIC", 8, 3200),
        ("BF3 200Gbps for NS and 2xBF3 400Gbps for EW", 8, 800),
    ],
)
def test_network_of_a_host(text, devices, gbps):
    assert host_bytes_per_s(text, devices) == pytest.approx(gbps * GBPS)


@pytest.mark.parametrize(
    "text",
    ["", "InfiniBand", "Ethernet, Infiniband", "10G Ethernet", "N/A", "PCIe-NIC: 500 GB/s", "ConnectX-6 25Gb/s NIC"],
)
def test_text_that_names_no_training_network(text):
    assert host_bytes_per_s(text, 8) is None


@pytest.mark.parametrize(
    ("accelerator", "source", "cluster"),
    [
        ("H100 80GB SXM", "jax", "dgx-h100"),
        ("H100 96GB HBM2e (500W cap)", "tt", "hgx-h100-96gb"),
        ("NVIDIA Blackwell GPU (GB200)", "mlpf", "gb200-nvl72"),
        ("NVIDIA Blackwell GPU (B200-SXM-180GB)", "mlpf", "dgx-b200"),
        ("NVIDIA Blackwell Ultra GPU (GB300)", "mlpf", "gb300-nvl72"),
        ("V100 32GB", "bs", "jean-zay-v100"),
        ("V100 32GB (DGX-2)", "mlm", "dgx-2"),
        ("A100-SXM4-40GB", "lit", "dgx-a100-40gb"),
        ("AMD Instinct MI325X", "mlpf", "mi325x-platform"),
    ],
)
def test_ready_clusters(accelerator, source, cluster):
    assert ready_cluster(accelerator, source).name == cluster


def test_the_rows_network_is_the_jobs():
    """Four links of 100 Gb/s for eight devices: 6.25 GB/s each."""
    levels = training_case(bigscience_row()).job.cluster.levels

    assert [level.fanout for level in levels] == [8, 48]
    assert levels[1].bandwidth_bytes_per_s == pytest.approx(6.25e9)


@pytest.mark.parametrize(
    ("devices", "fanouts"),
    [("4", (4,)), ("64", (64,)), ("72", (72,)), ("128", (64, 2)), ("256", (64, 4)), ("144", (72, 2)), ("512", (64, 8))],
)
def test_domains_of_a_rack_are_as_large_as_divides_the_devices(devices, fanouts):
    found = job(accelerator="GB200", n_gpus=devices, global_batch=str(int(devices) * 4))

    assert found.cluster.group_capacity == fanouts
    assert found.cluster.devices == int(devices)


@pytest.mark.parametrize("devices", ["1", "2", "6", "12", "336"])
def test_part_of_a_host_and_odd_numbers(devices):
    found = job(n_gpus=devices, global_batch=str(int(devices) * 8))

    assert int(np.prod(found.cluster.group_capacity)) == int(devices)
    assert found.cluster.group_capacity[0] <= 8


# Place


def test_axes_lie_as_megatron_numbers_them():
    """tp 4 and half of cp in a host of 8; experts of 8 fill the host."""
    placed = place(ParallelDegrees(dp_shard=4, cp=4, tp=4, pp=2, ep=8), (8, 16))

    assert {axis: placed[axis] for axis in DENSE_ORDER} == {
        "tp": (4, 1), "cp": (2, 2), "dp_shard": (1, 4), "dp_replicate": (1, 1), "pp": (1, 2),
    }  # fmt: skip
    assert (placed["etp"], placed["ep"], placed["edp"]) == ((1, 1), (8, 1), (1, 8))


def test_degrees_that_do_not_fill_a_level():
    assert place(ParallelDegrees(tp=3, dp_shard=3), (8,)) is None


@pytest.mark.parametrize(
    "cells",
    [
        {},
        {"tp": "2", "pp": "2", "n_gpus": "32"},
        {"tp": "8", "pp": "4", "cp": "2", "n_gpus": "128"},
        {**MOE, "ep": "8", "n_gpus": "64", "tp": "2"},
        {**MOE, "ep": "4", "n_gpus": "64", "tp": "2", "other_flags": "ETP=2"},
        {"n_gpus": "48", "tp": "4", "global_batch": "144", "accelerator": "GB200"},
    ],
)
def test_every_level_is_filled_by_both_meshes(cells):
    found = job(**cells)
    for k, level in enumerate(found.cluster.levels):
        assert level_ranks(found.strategy.placement, DENSE_ORDER, k) == level.fanout
        assert level_ranks(found.strategy.placement, EXPERT_ORDER, k) == level.fanout
    assert estimate(found.model, found.cluster, found.workload, found.strategy).step_s > 0


# Sizes


def test_swapped_batches_are_put_right():
    found = job(global_batch="1", micro_batch="64", notes="source prints GBS=1 MBS=64, evidently swapped")

    assert (found.workload.global_batch, found.strategy.schedule.micro_batch) == (64, 1)


def test_devices_follow_the_degrees_where_the_count_contradicts_them():
    """tp 8, pp 6, dp 8 are 384 devices; 40 hosts have 320."""
    case = training_case(bigscience_row(n_gpus="320", pp="6", dp="8"))

    assert case.job.strategy.degrees.world_size == 384
    assert "n_gpus" in case.assumed


def test_contradictions_without_a_way_out():
    assert "does not divide" in training_case(training_row(tp="3")).missing


@pytest.mark.parametrize(("batch", "whole", "assumed"), [("2040", 2040, False), ("2046", 2048, True)])
def test_batches_are_whole(batch, whole, assumed):
    """dp 4 and micro-batch 2: 2040 is 255 micro-batches, 2046 is none."""
    case = training_case(bigscience_row(global_batch=batch, micro_batch="2"))

    assert case.job.workload.global_batch == whole
    assert ("global_batch" in case.assumed) == assumed


def test_batches_far_from_whole_are_contradictions():
    assert "no multiple" in training_case(training_row(global_batch="12")).missing


def test_devices_without_a_sequence_share_one():
    """72 devices and 9 sequences: cp 8, where the row leaves it open."""
    shared = job(n_gpus="72", global_batch="9", cp="", accelerator="GB200").strategy.degrees

    assert (shared.dp, shared.cp) == (9, 8)
    assert "no multiple" in training_case(training_row(n_gpus="72", global_batch="9", cp="1")).missing


def test_experts_that_do_not_fit_a_stage():
    case = training_case(training_row(**MOE, ep="64", n_gpus="16", pp="2"))

    assert case.job.strategy.degrees.ep == 8
    assert "ep" in case.assumed


def test_layers_follow_from_what_a_row_computes():
    """235.7 TFLOP/s at 10057 tokens/s are 23.4 GFLOP a token: half of Llama 2 7B at 4096 tokens, 16 layers."""
    cells = {
        "id": "prm-1", "model": "Llama2 7B", "arch_json": "", "accelerator": "MI300X", "pp": "8", "seq_len": "4096",
        "metric_kind": "tokens_per_s_per_gpu", "metric_value": "10057", "notes": "tflops_per_gpu=235.7",
    }  # fmt: skip

    assert job(**cells).model.layers == 16
    assert job(**cells | {"id": "mb-1"}).model.layers == 32
    assert job(**cells | {"notes": "tflops_per_gpu=440"}).model.layers == 32


def test_layers_follow_from_a_title():
    """194 billion parameters of width 14400 are 78 layers."""
    arch = '{"hidden":14400,"heads":96,"vocab":250000}'
    row = bigscience_row(model="GPT 194B", arch_json=arch, pp="6", dp="8", micro_batch="1")

    assert training_case(row).job.model.layers == 78


# Recompute


@pytest.mark.parametrize(
    ("words", "choice"),
    [
        ("full (paper)", "full"),
        ("selective (per-op SAC)", "selective"),
        ("selective(core_attn)", "selective"),
        ("minimal_flash", "selective"),
        ("none", "none"),
        ("selective block", "selective"),
        ("uniform block", "full"),
        ("gradient checkpointing", "full"),
        *(
            (words, "none")
            for words in (
                "activation checkpointing off",
                "checkpointing: none",
                "gradient_checkpointing=False",
                "AC off",
                "AC: none",
                "no_recompute",
                "without AC",
                "selective (off)",
            )
        ),
    ],
)
def test_recompute_words(words, choice):
    assert recompute_choice(words, EMPTY) == (choice, words, ())


def test_least_recompute_keeps_everything_for_now():
    least = Recipe("s", "r", {"recompute": Cell("least", "somewhere")})

    assert recompute_choice("", least) == ("none", "least", ("recompute",))


@pytest.mark.parametrize(
    ("words", "zero", "shard"),
    [
        ("FSDP2 (ZeRO-3)", 3, None),
        ("FSDP FULL_SHARD", 3, None),
        ("FSDP SHARD_GRAD_OP", 2, None),
        ("FSDP=128 x DP=4", 3, 128),
        ("FSDP2 shard=64", 3, 64),
        ("HSDP", 3, 8),
        ("ZeRO-1", 1, None),
        ("ZeRO-1 (zero1=-1: optimizer sharded over all dp ranks)", 1, None),
        ("ZeRO-1 (zero1=8: optimizer sharded over 8 GPUs)", 1, 8),
        ("FSDP + ZeRO-1(-1)", 3, None),
        ("none (ZS=0)", 0, None),
        ("single device", 0, None),
        ("zero stage 2", 2, None),
        ("NO_SHARD", 0, None),
        ("HYBRID_SHARD", 3, 8),
        ("dist-opt", 1, None),
        *(
            (words, 0, None)
            for words in (
                "no FSDP",
                "FSDP=False",
                "FSDP: off",
                "ZeRO-3 off",
                "ZeRO-3 (off)",
                "no dist opt",
                "distributed optimizer: false",
                "--use-distributed-optimizer=False",
                "without ZeRO",
            )
        ),
        ("no FSDP; ZeRO-1", 1, None),
        ("FSDP, no ZeRO++", 3, None),
        ("DDP, distributed optimizer: no", 0, None),
    ],
)
def test_sharding_words(words, zero, shard):
    found, _ = sharding(words, EMPTY, 8)

    assert (found.zero, found.shard) == (zero, shard)


def test_plain_data_parallelism_follows_the_recipe():
    """Where that does not shard weights."""
    distributed = Recipe("s", "r", {"zero": Cell(1, "somewhere")})
    whole = Recipe("s", "r", {"zero": Cell(3, "somewhere")})

    assert sharding("no FSDP", distributed, 8)[0].zero == 1
    assert sharding("no FSDP", whole, 8) == sharding("DDP", whole, 8) == (Sharding(0), ())
    assert sharding("", whole, 8)[0].zero == 3

    assert sharding("DDP (FSDP=0)", distributed, 8)[0].zero == 1
    assert sharding("", distributed, 8)[1] == ("zero",)
    with pytest.raises(BadInput, match="magic"):
        sharding("magic", distributed, 8)


def test_shard_groups_split_the_copies():
    degrees = job(n_gpus="64", zero_or_fsdp_stage="FSDP=16 x DP=4").strategy.degrees

    assert (degrees.dp_shard, degrees.dp_replicate) == (16, 4)


def test_one_device_shards_nothing():
    assert job(n_gpus="1", zero_or_fsdp_stage="FSDP2 shard=1").strategy.zero == 0


# Recipes

TABLE = (
    {"stack": "s", "releases": "*", "zero": {"value": 1, "source": "a"}, "vpp": {"value": 2, "source": "a"}},
    {"stack": "s", "releases": ["25.09"], "zero": {"value": 3, "source": "c"}},
    {"stack": "s", "releases": ["25.*"], "zero": {"value": 2, "source": "b"}},
    {"stack": "other", "releases": "*", "zero": {"value": 0, "source": "d"}},
)


@pytest.mark.parametrize(("release", "zero"), [("25.09", 3), ("25.11", 2), ("26.01", 1)])
def test_the_nearest_recipe_wins(monkeypatch, release, zero):
    monkeypatch.setattr(recipes_module, "_table", lambda: TABLE)
    found = recipe.__wrapped__("s", release)

    assert found.value("zero") == zero
    assert found.value("vpp") == 2
    assert found.value("seq_len", "none") == "none"


def test_every_recipe_cell_cites():
    for entry in recipes_module._table():
        cells = [cell for name, cell in entry.items() if name not in ("stack", "releases")]
        assert all(cell["source"].strip() for cell in cells)


def test_recipes_fill_what_a_row_leaves_out(monkeypatch):
    table = ({"stack": "megatron-core", "releases": "*", "seq_len": {"value": 4096, "source": "a"}},)
    monkeypatch.setattr(recipes_module, "_table", lambda: table)
    recipe.cache_clear()
    case = training_case(training_row(seq_len=""))
    recipe.cache_clear()

    assert case.job.workload.seq_len == 4096
    assert "seq_len" in case.assumed
    assert not case.stated


def test_stages_of_models_with_latent_attention_leave_the_last_one_what_is_left():
    """61 layers and the one that predicts a token further, under Megatron-Bridge; NeMo's 25.04 has none such."""
    cells = {"model": "DeepSeek V3", "arch_json": "", "n_gpus": "256", "global_batch": "4096", "pp": "16", "ep": "8"}
    found = {
        release: [stage.layers for stage in job(**cells, notes=f"NeMo container {release}").strategy.stages]
        for release in ("26.04", "25.04")
    }
    assert found == {"26.04": [4] * 15 + [2], "25.04": [3, *[4] * 14, 3]}


@pytest.mark.parametrize(
    ("accelerator", "tuning", "words"),
    [
        ("MI300X", "LoRA fine-tune", "full, block, 21 layers"), ("MI325X", "LoRA fine-tune", "none"),
        ("MI300X", "", "least"),
    ],
)  # fmt: skip
def test_adapters_recompute_as_their_own_recipes_say(accelerator, tuning, words):
    """MLPerf's Llama2 70B by AMD: 21 of 80 layers whole on MI300X with adapters; nothing is known of other runs."""
    amd = {"id": "mlpf-1", "source": "training_results_v5.0/AMD", "model": "Llama2 70B", "arch_json": "", "n_gpus": "8"}
    cells = {"tp": "1", "recompute": "", "precision": "fp8", "global_batch": "8", "other_flags": tuning}
    assert job(**amd, **cells, accelerator=accelerator).switches["recompute"] == words


@pytest.mark.parametrize(
    ("cells", "fills"),
    [({}, 4), ({"pp": "1", "vpp": ""}, 1), ({"other_flags": ""}, 1), ({"id": "tt-1", "source": "torchtitan"}, 1)],
)
def test_a_pipeline_is_filled_once_for_each_local_batch(cells, fills):
    """Of Automodel's 16 micro-batches a rank; others sum gradients within one pass through the schedule."""
    usual = {"id": "am-1", "n_gpus": "64", "pp": "4", "vpp": "1", "global_batch": "256", "other_flags": "LBS=4"}
    switches = job(**(usual | cells), zero_or_fsdp_stage="FSDP2", notes="").switches
    assert switches.get("pipeline_fills", 1) == fills
