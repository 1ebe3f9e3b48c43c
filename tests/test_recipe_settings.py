"""Settings that recipes have for some jobs only: graphs, overlap and grouped products of models with experts, LoRA."""

from __future__ import annotations

import pytest
from published_rows import MIXTRAL, job

from planner.published.settings import with_settings

EXPERTS = {"model": "Mixtral 8x7B", "arch_json": MIXTRAL, "n_gpus": "32", "ep": "8", "tp": "1"}
HOPPER, RACK = {"accelerator": "H100"}, {"accelerator": "GB200", "intra_node_link": "NVLink5, NVL72 domain"}


def settings(release, **cells):
    """The stack of a Megatron-Core row, as its release's recipes have it."""
    return with_settings(job(**{"notes": f"NeMo container {release}"} | cells)).workload.stack


@pytest.mark.parametrize(
    ("release", "cells", "graphs"),
    [
        ("26.02", {"pp": "2", **HOPPER}, False), ("26.02", {"pp": "1", **HOPPER}, True),
        ("26.02", {"pp": "2", **RACK}, True), ("26.02", {"pp": "2", "n_gpus": "8", "ep": "4", **HOPPER}, True),
        ("26.07", {"pp": "2", **HOPPER}, True),
    ],
)  # fmt: skip
def test_pipelines_of_experts_between_hosts_run_without_graphs(release, cells, graphs):
    """Until the whole step is one graph (26.06); in a rack, on one host and without a pipeline there are graphs."""
    assert settings(release, **(EXPERTS | cells)).cuda_graphs is graphs


def test_dense_pipelines_between_hosts_keep_their_graphs():
    assert settings("26.02", pp="2", n_gpus="32", **HOPPER).cuda_graphs


@pytest.mark.parametrize(("release", "early"), [("v25.02.02", True), ("v25.04.02", False)])
def test_experts_of_nemo_1_run_one_by_one_and_overlap_no_tp(release, early):
    row = {"id": "dgxc-001", "source": f"NVIDIA/dgxc-benchmarking/grok1@{release}", "notes": ""}
    experts, dense = settings(release, **(row | EXPERTS)), settings(release, **row)

    assert (experts.grouped_experts, experts.tp_overlap) == (not early, not early)
    assert dense.tp_overlap


@pytest.mark.parametrize(("tuning", "graphs"), [("LoRA fine-tune", True), ("", False)])
def test_lora_of_v5_runs_from_graphs_and_pretraining_does_not(tuning, graphs):
    source = "mlcommons/training_results_v5.0/Dell/results/one/run"
    row = {"id": "mlpf-001", "source": source, "notes": "", "other_flags": tuning, "precision": "FP8"}
    assert settings("", **row).cuda_graphs is graphs


PAX = {"id": "jax-001", "source": "NVIDIA/JAX-Toolbox/rosetta/rosetta/projects/pax/README.md", "notes": "", "tp": "1"}


@pytest.mark.parametrize(
    ("flags", "recompute"), [("Paxml/XLA", "full"), ("Paxml SFT", "none"), ("Paxml LoRA", "none")]
)
def test_paxml_recomputes_layers_in_pre_training_only(flags, recompute):
    assert job(**PAX, other_flags=flags).strategy.stages[0].runs[0].choice.recompute == recompute


@pytest.mark.parametrize(
    ("precision", "flags", "fused"),
    [("TE BF16", "Paxml SFT", True), ("BF16", "Paxml SFT", False), ("bf16", "MaxText; flash attention", True)],
)
def test_attention_of_xla_is_fused_by_transformer_engine_or_where_a_row_says_so(precision, flags, fused):
    assert settings("", **PAX, precision=precision, other_flags=flags).fused_attention is fused
    assert settings("26.02", precision="BF16").fused_attention


@pytest.mark.parametrize(("mixed", "early"), [("PURE", False), ("DEFAULT", True)])
def test_llm_foundry_s_tables_of_pytorch_2_1_stop_recompute_early(mixed, early):
    row = {"id": "llmf-001", "source": "mosaicml/llm-foundry/scripts/train/benchmarking/README.md", "notes": ""}
    flags = f"FSDP mixed precision={mixed}; GradAccum=2"
    assert settings("", **row, other_flags=flags).early_stop is early
    assert not settings("26.02").early_stop


LATENT = {"model": "DeepSeek V3", "n_gpus": "128", "tp": "2", "pp": "4", "ep": "32"}


@pytest.mark.parametrize(
    ("release", "cells", "fused"),
    [
        ("25.04", {**LATENT, **RACK}, False), ("25.09", {**LATENT, **RACK}, True),
        ("25.04", {**LATENT, **HOPPER}, True), ("25.04", {**EXPERTS, **RACK}, True),
    ],
)  # fmt: skip
def test_wide_heads_on_blackwell_were_unfused_until_25_09(release, cells, fused):
    """Queries of 192 beside values of 128; heads of 128 have always been fused, and Hopper's of any width."""
    assert settings(release, **cells).fused_attention is fused


@pytest.mark.parametrize(("release", "fused"), [("25.04", False), ("25.09", True)])
def test_so_were_wide_heads_with_values_as_wide(release, fused):
    """Nemotron-4 340B has heads of 192."""
    assert settings(release, model="Nemotron4 340B", arch_json="{}", n_gpus="128", **RACK).fused_attention is fused


@pytest.mark.parametrize(
    ("release", "cells", "whole"),
    [
        ("26.06", {"accelerator": "B300"}, False), ("26.06", RACK, True), ("26.08", {"accelerator": "B300"}, True),
        ("26.06", {"accelerator": "B300", "n_gpus": "8"}, True),
    ],
)  # fmt: skip
def test_whole_steps_are_one_graph_inside_a_domain_first(release, cells, whole):
    """What comes with them is as they are: fused experts, attention and logits in fp8."""
    found = settings(release, **{**EXPERTS, "precision": "MXFP8"} | cells)

    assert found.cuda_graphs
    assert {found.expert_graphs, found.fused_experts, found.fp8_attention, found.quantised_head} == {whole}


@pytest.mark.parametrize(("release", "fused"), [("26.06", True), ("26.06.01", False), ("26.08", True)])
def test_biases_of_fused_experts_were_slow_in_one_container(release, fused):
    row = {"n_gpus": "64", "ep": "64", "tp": "1", "precision": "MXFP8", **RACK}

    assert settings(release, **row, model="GPT-OSS 120B", arch_json="{}").fused_experts is fused
    assert settings(release, **row, model="Qwen3 235B A22B", arch_json="{}").fused_experts


@pytest.mark.parametrize(
    ("release", "precision", "low"),
    [
        ("26.06", "MXFP8", True), ("26.06", "FP8-CS", False), ("26.06", "NVFP4", False), ("26.06", "BF16", False),
        ("26.04", "MXFP8", False),
    ],
)  # fmt: skip
def test_logits_and_attention_are_in_16_bits_but_in_mxfp8(release, precision, low):
    found = settings(release, **EXPERTS, **RACK, precision=precision)

    assert (found.quantised_head, found.fp8_attention) == (low, low)


@pytest.mark.parametrize(
    ("release", "latent"), [("25.09", "pointwise"), ("26.02", "up_projection"), ("26.06", "up_projection")]
)
def test_latent_attention_repeats_what_comes_from_its_latents(release, latent):
    assert settings(release, **LATENT, **RACK).selective == latent
    assert settings(release, **EXPERTS, **RACK).selective == "pointwise"


@pytest.mark.parametrize(
    ("release", "cells", "kernel"),
    [("v25.02.02", EXPERTS, "flash2"), ("v25.05.01", EXPERTS, "fused"), ("v25.02.02", {}, "fused")],
)  # fmt: skip
def test_experts_ran_flash_attention_2_on_nemo_1(release, cells, kernel):
    """NVTE_FUSED_ATTN=0 for Grok-1 on dgxc's containers of NeMo 1."""
    row = {"id": "dgxc-001", "source": f"NVIDIA/dgxc-benchmarking/README.md@{release}", "notes": "", "tp": "4"}

    assert settings(release, **(row | cells)).attention_kernel == kernel
