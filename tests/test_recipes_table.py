"""The table of recipes: every cell known, of its type, and with a source that can be looked up."""

import re

import pytest

from planner.published.recipes import RECIPES, recipe
from planner.published.settings import with_settings
from planner.published.switches import recompute_modules, whole_layers
from planner.published.training import training_case
from tests.published_rows import training_row
from topologies.catalogue import read_toml

CHOICES = {
    "recompute": {"none", "selective", "full", "least", "least modules"},
    "latent_selective": {"up_projection"},
    "selective": {"behind_qkv", "pointwise", "activation", "attention", "network", "alternate"},
    "reduce_dtype": {"fp32", "fp16", "bf16"},
    "master_dtype": {"fp32", "bf16"},
    "logits_dtype": {"fp32", "bf16"},
    "moe_dispatcher": {"alltoall", "deepep", "hybridep"},
    "precision": {"fp16", "bf16", "fp8", "fp4"},
    "schedule": {"1f1b", "interleaved", "dualpipe"},
    "precision_fp8": {"block-wise", "row-wise"},
    "attention_kernel": {"flash1", "flash1_triton", "flash2", "fused"},
    "moe_attention_kernel": {"flash2", "fused"},
    "zero": {0, 1, 2, 3},
    "fp8_activation": {True, "least"},
    "lora_context_exchange": {"ring", "all_to_all"},
}
FLAGS = {
    *("sequence_parallel", "flash_attention", "lora_fp8_attention", "dropout", "compiled", "fused_pointwise"),
    *("tp_overlap", "dp_overlap", "p2p_overlap", "cuda_graphs", "loss_fusion"),
    *("gather_once", "broadcast_weights", "selective_blocks", "reduce_whole", "fused_accumulation"),
    *("balanced_routing", "padded_vocab", "gpt_dropout", "compiled_loss"),
    *("quantised_inputs", "weights_on_activation", "gathers_again", "whole_qkv", "plain_adapters", "bitsandbytes"),
    *("expert_graphs", "lora_fused_network", "fused_experts", "moe_mx_attention", "fp8_parameters", "longer_last"),
    *("moe_host_graphs", "moe_grouped_gemm", "moe_tp_overlap", "lora_cuda_graphs", "latent_full_stages"),
    *("consecutive_experts", "fills_per_local_batch", "stages_by_cost", "joined_kv", "fused_norms"),
    *("adapter_masks", "chunked_loss", "early_stop", "moe_graphs_between_hosts", "fused_biases", "moe_mx_head"),
    *("filled_stages", "repeats_kv", "copies_gathered"),
}
COUNTS = {
    *("micro_batch", "micro_batches", "global_batch", "seq_len", "packed_len", "vpp", "tp", "pp", "ep"),
    *("lora_rank", "dp_shard", "most_cp", "widest_blackwell_head"),
}
BYTES = {
    *("gradient_bytes", "held_gradient_bytes", "weight_bytes", "frozen_bytes"),
    *("optimizer_bytes", "latent_optimizer_bytes"),
}
OTHER = {"etp", "lora_targets", "lora_recompute", "tuned_recompute"}
TARGETS = {"q", "k", "v", "qkv", "attention_out", "mlp_up", "mlp_down"}
SOURCE = re.compile(r"[\w.-]+/[\w.-]+ \S+@\w|arXiv:\d{4}\.\d{5} |https?://")
ENTRIES = read_toml(RECIPES)["recipe"]
CELLS = [
    pytest.param(name, cell, id=f"{entry['stack']}-{entry['releases']}-{name}")
    for entry in ENTRIES
    for name, cell in entry.items()
    if name not in ("stack", "releases")
]


def _allowed(name, value):
    if name in ("recompute", "lora_recompute", "tuned_recompute"):
        words = value.values() if isinstance(value, dict) else [value]
        return all(one in CHOICES["recompute"] or recompute_modules(one) or whole_layers(one) for one in words)
    if name in CHOICES:
        return all(one in CHOICES[name] for one in (value.values() if isinstance(value, dict) else [value]))
    if name in FLAGS:
        return all(isinstance(one, bool) for one in (value.values() if isinstance(value, dict) else [value]))
    if (name, value) in (("micro_batches", "pp"), ("micro_batch", "quickest"), ("vpp", "quickest")):
        return True
    if name in COUNTS:
        values = value.values() if isinstance(value, dict) else [value]
        return all(type(one) is int and one >= 1 for one in values)
    if name in BYTES:
        return type(value) in (int, float) and 0 <= value <= 20
    return value == "tp" or value == 1 if name == "etp" else set(value) <= TARGETS


@pytest.mark.parametrize(("name", "cell"), CELLS)
def test_each_cell_is_known_and_says_where_it_was_read(name, cell):
    assert name in CHOICES.keys() | FLAGS | COUNTS | BYTES | OTHER
    assert cell.keys() == {"value", "source"}
    assert _allowed(name, cell["value"]), cell["value"]
    assert SOURCE.match(cell["source"]), cell["source"]


def test_each_stack_and_set_of_releases_has_one_entry():
    keys = [(entry["stack"], str(entry["releases"])) for entry in ENTRIES]
    assert len(keys) == len(set(keys))


def test_every_stack_of_a_source_has_a_recipe():
    listed = read_toml(RECIPES.with_name("sources.toml"))["source"]
    stacks = {one.get("stack", source["stack"]) for source in listed for one in (source, *source.get("when", ()))}
    assert stacks == {entry["stack"] for entry in ENTRIES}


def test_a_release_by_name_overrides_its_stack():
    assert recipe("megatron-core", "r0.8.0").value("reduce_dtype") == "fp32"
    assert recipe("megatron-core", "26.04").value("reduce_dtype") == "bf16"
    assert recipe("megatron-core", "v5.1").value("lora_targets") == ["qkv", "attention_out"]
    assert recipe("megatron-core", "26.04").value("cuda_graphs") is True
    assert recipe("megatron-core", "25.09").value("cuda_graphs") is False
    assert recipe("megatron-deepspeed", "vtrain").value("zero") == 0
    assert recipe("megatron-deepspeed", "chronicles-prequel").value("gradient_bytes") == 4


@pytest.mark.parametrize(
    ("release", "like"), [("26.10", "26.08"), ("27.02.01", "26.08"), ("2027-03", "26.08"), ("v6.0", "v5.1")]
)
def test_a_release_newer_than_the_table_runs_by_the_newest_recipe(release, like):
    newer, newest = recipe("megatron-core", release), recipe("megatron-core", like)

    assert {name: cell.value for name, cell in newer.cells.items()} == {
        name: cell.value for name, cell in newest.cells.items()
    }


@pytest.mark.parametrize(("prefix", "kernel"), [("llmf", "flash1_triton"), ("ie", "flash1"), ("fms", "flash2")])
def test_each_implementation_of_flash_attention_is_that_of_its_stack(prefix, kernel):
    job = training_case(training_row(id=f"{prefix}-001", notes="")).job

    assert with_settings(job).workload.stack.attention_kernel == kernel


@pytest.mark.parametrize(
    ("accelerator", "release", "fused"),
    [
        ("NVIDIA Blackwell GPU (B200-SXM-180GB)", "v5.1", True),
        ("NVIDIA Blackwell GPU (B200-SXM-180GB)", "v5.0", False),
        ("NVIDIA H200-SXM5-141GB", "v5.1", False),
        ("NVIDIA H100-SXM5-80GB", "v5.1", False),
    ],
)
def test_networks_of_mlperf_v5_1_are_fused_on_blackwell(accelerator, release, fused):
    """Submitters on Hopper ran the code of earlier rounds, which has no such switch."""
    row = training_row(
        id="mlpf-001", accelerator=accelerator, source=f"mlcommons/training_results_{release}/X", other_flags="LoRA",
        global_batch="8",
    )  # fmt: skip
    assert with_settings(training_case(row).job).workload.stack.fused_network is fused


@pytest.mark.parametrize("accelerator", ["TPU v5p", "Trillium (TPU v6e)"])
def test_a_maxtext_row_without_degrees_shards_and_splits_nothing(accelerator):
    row = training_row(id="mlpf-001", accelerator=accelerator, tp="", pp="", n_gpus="64")
    case = training_case(row)
    assert (case.job.strategy.degrees.tp, case.job.strategy.degrees.pp) == (1, 1)
    assert {"tp", "pp"} <= set(case.assumed)
