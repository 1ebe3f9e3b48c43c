"""Rows of published runs, written for tests in the columns of the data files."""

from __future__ import annotations

import csv
from pathlib import Path

from planner.published.records import Case, Job
from planner.published.training import training_case

LLAMA_8B = '{"hidden":4096,"layers":32,"heads":32,"kv_heads":8,"ffn":14336,"vocab":128256}'
GPT_200B = '{"hidden":14336,"layers":72,"heads":64,"vocab":250000}'
MIXTRAL = (
    '{"hidden":4096,"layers":32,"heads":32,"kv_heads":8,"ffn":14336,"moe_ffn":14336,"vocab":32000,"experts":8,"topk":2}'
)
COLUMNS = (
    "id", "source", "date", "model", "arch_json", "seq_len", "accelerator", "n_gpus", "gpus_per_node",
    "intra_node_link", "inter_node_link", "global_batch", "micro_batch", "tp", "pp", "vpp", "cp", "dp", "ep",
    "zero_or_fsdp_stage", "sequence_parallel", "recompute", "precision", "other_flags", "metric_kind",
    "metric_value", "peak_mem_gib", "notes",
)  # fmt: skip


def training_row(**cells: str) -> dict[str, str]:
    """A Llama 3 8B run on eight H100 of Megatron-Bridge, with ``cells`` in place of its own."""
    usual = {
        "id": "mb-001", "model": "Llama3 8B", "arch_json": LLAMA_8B, "seq_len": "8192", "accelerator": "H100",
        "n_gpus": "8", "global_batch": "128", "micro_batch": "1", "tp": "1", "pp": "1", "cp": "1",
        "precision": "BF16", "metric_kind": "iter_time_s", "metric_value": "2.0",
        "notes": "NeMo container 26.08",
    }  # fmt: skip
    return dict.fromkeys(COLUMNS, "") | usual | cells


def bigscience_row(**cells: str) -> dict[str, str]:
    """The 181B of BigScience's chronicle on 48 hosts of A100, with ``cells`` in place of its own."""
    usual = {
        "id": "bs-001", "source": "bigscience/train/tr11-176B-ml/chronicles-prequel.md", "model": "GPT 181B",
        "arch_json": GPT_200B, "seq_len": "2048", "accelerator": "A100 80GB SXM (Jean Zay)", "n_gpus": "384",
        "inter_node_link": "4x Omni-Path per node", "global_batch": "2048", "micro_batch": "4", "tp": "8", "pp": "12",
        "dp": "4", "zero_or_fsdp_stage": "ZeRO-1", "recompute": "full", "precision": "bf16", "notes": "",
    }  # fmt: skip
    return training_row(**(usual | cells))


def sweep_row(**cells: str) -> dict[str, str]:
    """A point of the sweep on 64 devices."""
    usual = {
        "id": "vt-m0001", "set": "multi-node", "n_gpus": "64", "global_batch": "512", "micro_batch": "8",
        "hidden": "3072", "heads": "32", "layers": "30", "seq_len": "2048", "tp": "1", "dp": "64", "pp": "1",
        "iter_time_ms": "3566.5",
    }  # fmt: skip
    return usual | cells


def power_row(**cells: str) -> dict[str, str]:
    """A metered LoRA run on one host."""
    usual = {
        "id": "pow-001", "source": "mlcommons/training_results_v4.0/smc", "workload": "Llama2-70B LoRA (NeMo)",
        "accelerator": "H100-SXM-80GB (immersion system)", "n_nodes": "1", "meter": "AC", "mean_node_w": "6942.1",
        "measured_s": "1806.0", "notes": "",
    }  # fmt: skip
    return usual | cells


def csv_file(folder: Path, *rows: dict[str, str]) -> Path:
    """The rows as a CSV file."""
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def job(**cells: str) -> Job:
    """What a row with those cells ran; fails where it is no job."""
    case = training_case(training_row(**cells))
    assert case.job is not None, case.missing
    return case.job


def measured(case: Case, quantity: str) -> float | None:
    """What a row measured of a quantity."""
    return next((one.value for one in case.measured if one.quantity == quantity), None)


def step_s(**cells: str) -> float | None:
    """Seconds of a step that a row with those cells measured."""
    return measured(training_case(training_row(**cells)), "step_s")
