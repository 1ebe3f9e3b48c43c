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


@pytest.mark.parametrize(("mixed", "early"), [("PURE", False), ("DEFAULT", True)])
def test_llm_foundry_s_tables_of_pytorch_2_1_stop_recompute_early(mixed, early):
    row = {"id": "llmf-001", "source": "mosaicml/llm-foundry/scripts/train/benchmarking/README.md", "notes": ""}
    flags = f"FSDP mixed precision={mixed}; GradAccum=2"
    assert settings("", **row, other_flags=flags).early_stop is early
    assert not settings("26.02").early_stop


GPT = '{"hidden":12288,"layers":96,"heads":96}'


@pytest.mark.parametrize(
    ("release", "cells", "kernel"),
    [
        ("v24.11.1", {"pp": "8"}, "flash2"), ("v25.02.02", {"pp": "8"}, "fused"), ("v24.11.1", {"pp": "1"}, "fused"),
        ("v24.11.1", {"pp": "8", "model": "Nemotron4 340B", "arch_json": "{}"}, "flash2"),
        ("v24.11.1", {"pp": "8", "model": "Llama3 70B", "arch_json": "{}"}, "fused"),
        ("v25.02.02", EXPERTS, "flash2"), ("v25.05.01", EXPERTS, "fused"),
    ],
)  # fmt: skip
def test_pipelines_without_gates_and_experts_ran_flash_attention_2(release, cells, kernel):
    """NVTE_FUSED_ATTN=0 for GPT3, Nemotron4 340B and Grok-1 on dgxc's containers of NeMo 1; Llama has gates."""
    row = {"id": "dgxc-001", "source": f"NVIDIA/dgxc-benchmarking/README.md@{release}", "notes": "", "tp": "4"}
    gpt = {"model": "GPT3 175B", "arch_json": GPT, "n_gpus": "32", "global_batch": "64"}
    assert settings(release, **(row | gpt | cells)).attention_kernel == kernel
