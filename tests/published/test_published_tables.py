"""Tables that others published and that are no part of the fit, as rows of strangers: seconds a step.

A tolerance is the error, rounded up to a whole per cent; it may only shrink. Constants of 2026-11-27 and 28 let some
grow by one or two points and others shrink by as many: the mean over all of these rows fell from 6.9 to 6.8 % with the
latter. A second fit of that day let some grow by a point or two, others shrink, and left the mean at 6.8 %.
A third, in which launches, FSDP's interference and the containers of dgxc-benchmarking are told apart, let
some grow by up to four points and others shrink by as many: the mean over these and the public runs 6.35 to 6.29 %.
A fourth, in which experts' grouped products are a family's own, let four grow by one or two points (Mixtral on H100
most) and twelve shrink by one: the mean over these rows 6.77 to 6.75 %.

Source: FlagOpen/FlagPerf training/nvidia/*/README.md@1b5a0303 (tokens/s a device; what is recomputed by the scripts in
training/benchmarks); KempnerInstitute/KempnerForge benchmarks/mfu_scaling/mfu_scaling.md@5666d0d1 (hosts of four H200);
NVIDIA/NeMo docs/source/performance/performance_summary.md@070a0bb1 (24.07) and performance_long_sequence.md (25.04);
AI-Hypercomputer/maxtext src/maxtext/configs/tpu/*/README.md@e591f30c, sizes and batches from the scripts beside them.
"""

from dataclasses import dataclass

import pytest

from cost_models.calibration import calibrate
from planner.published.predict import prepared, priced
from planner.published.training import training_case
from tests.published_rows import training_row


@dataclass(frozen=True)
class Table:
    """Cells that all rows have, the names of the others, and the rows, of which the last column is the tolerance."""

    shared: dict[str, str]
    names: str
    rows: str

    def cases(self):
        """Cells and tolerance of each row."""
        for line in self.rows.strip().splitlines():
            *cells, tolerance = line.split()
            yield self.shared | dict(zip(self.names.split(), cells, strict=True)), float(tolerance)


MEGATRON_LM = Table(
    {
        "source": "FlagPerf, Megatron-LM core_v0.6.0", "date": "2024-06", "seq_len": "8192",
        "zero_or_fsdp_stage": "distributed optimizer", "recompute": "selective",
    },
    "model accelerator n_gpus global_batch pp tp metric_value",
    """
    Llama3-8B A800-SXM4-80GB 8 512 2 1 3698.7 0.09
    Llama3-8B A800-SXM4-80GB 8 512 4 1 3306.5 0.07
    Llama3-8B A800-SXM4-80GB 8 512 2 2 3409.2 0.10
    Llama3-8B A800-SXM4-80GB 8 512 2 4 3006.1 0.11
    Llama3-8B A800-SXM4-80GB 8 512 8 1 2690.3 0.04
    Llama3-8B A800-SXM4-80GB 8 512 1 8 2451.2 0.10
    Llama3-8B A800-SXM4-80GB 8 512 4 2 3042.7 0.08
    Llama3-8B H100-SXM5-80GB 8 512 1 2 8103 0.09
    Llama3-8B H100-SXM5-80GB 16 512 1 2 7914 0.11
    Llama3-8B H100-SXM5-80GB 440 1760 1 2 7047 0.17
    Llama3-70B H100-SXM5-80GB 64 512 4 8 851 0.07
    """,
)  # fmt: skip
MIXTRAL = Table(
    MEGATRON_LM.shared | {"model": "Mixtral 8x7B", "seq_len": "4096", "micro_batch": "3", "ep": "1"},
    "accelerator n_gpus global_batch pp tp metric_value",
    "H100 32 1200 2 8 2844 0.18",
)
FLAGSCALE = Table(
    {
        "source": "FlagPerf, FlagScale", "date": "2023-11", "model": "Llama2 70B", "seq_len": "4096",
        "zero_or_fsdp_stage": "distributed optimizer", "recompute": "none",
        "inter_node_link": "InfiniBand, 200Gb/s", "precision": "amp",
    },
    "accelerator n_gpus global_batch pp tp metric_value",
    """
    H800-80GB 32 44 4 8 641.93 0.16
    H800-80GB 32 44 8 4 791.37 0.03
    H800-80GB 32 1024 8 4 908.29 0.11
    """,
)  # fmt: skip
DEEPSPEED = Table(
    {"date": "2023-11", "model": "LLaMA-2-7B", "precision": "amp", "n_gpus": "8", "other_flags": "flash attention 2"},
    "source zero_or_fsdp_stage accelerator seq_len global_batch micro_batch metric_value",
    """
    DeepSpeed ZeRO-3 A800 4096 8 1 3564 0.11
    DeepSpeed ZeRO-3 A800 2048 24 3 3917 0.09
    DeepSpeed ZeRO-3 A800 2048 1536 3 4062 0.07
    DeepSpeed ZeRO-3 H800 4096 8 1 7151 0.15
    Megatron-DeepSpeed ZeRO-1 A800 4096 256 1 4047 0.08
    Megatron-DeepSpeed ZeRO-1 A800 4096 1024 1 3974 0.11
    """,
)
FSDP2 = Table(
    {
        "source": "KempnerForge", "date": "2026-04", "seq_len": "4096", "accelerator": "H200 141GB",
        "gpus_per_node": "4", "zero_or_fsdp_stage": "FSDP2", "recompute": "full", "metric_kind": "iter_time_s",
        "other_flags": "torch.compile", "inter_node_link": "InfiniBand",
    },
    "arch_json model n_gpus tp global_batch micro_batch metric_value",
    """
    7B Llama-3-7B 2 2 8 4 2.49 0.09
    7B Llama-3-7B 4 1 32 4 3.36 0.22
    7B Llama-3-7B 4 4 8 4 1.30 0.02
    7B Llama-3-7B 4 2 16 4 2.52 0.09
    7B Llama-3-7B 8 4 16 4 1.48 0.03
    13B Llama-3-13B 8 4 32 4 4.79 0.05
    7B Llama-3-7B 16 4 32 4 1.58 0.05
    13B Llama-3-13B 16 4 64 4 4.87 0.08
    7B Llama-3-7B 32 4 64 4 1.68 0.06
    13B Llama-3-13B 32 4 128 4 5.03 0.11
    70B Llama-3-70B 32 4 64 2 14.85 0.24
    """,
)  # fmt: skip
SHAPES = {
    "7B": '{"hidden":4096,"layers":32,"heads":32,"kv_heads":8,"ffn":14336,"vocab":128256}',
    "13B": '{"hidden":5120,"layers":40,"heads":40,"kv_heads":8,"ffn":17920,"vocab":128256}',
    "70B": '{"hidden":8192,"layers":80,"heads":64,"kv_heads":8,"ffn":28672,"vocab":128256}',
    "16B": '{"hidden":4096,"layers":32,"heads":64,"head_dim":128,"ffn":28672,"vocab":32000,"gated":true}',
    "32B": '{"hidden":8192,"layers":32,"heads":64,"head_dim":128,"ffn":28672,"vocab":32000,"gated":true}',
    "64B": '{"hidden":8192,"layers":64,"heads":64,"head_dim":128,"ffn":28672,"vocab":32000,"gated":true}',
    "128B": '{"hidden":8192,"layers":64,"heads":128,"head_dim":128,"ffn":57344,"vocab":32000,"gated":true}',
    "256B": '{"hidden":16384,"layers":64,"heads":128,"head_dim":128,"ffn":57344,"vocab":32000,"gated":true}',
    "22B": '{"hidden":6144,"layers":48,"heads":24,"head_dim":256,"ffn":24576,"vocab":32000}',
}
NEMO = Table(
    {"source": "NeMo (24.07)", "date": "2024-08", "accelerator": "DGX-H100", "precision": "FP8"},
    "model n_gpus global_batch micro_batch seq_len tp pp cp vpp metric_value",
    """
    GPT3-5B 64 2048 4 2048 1 1 1 1 22521 0.01
    GPT3-20B 64 256 2 2048 2 1 1 1 5851 0.01
    GPT3-175B 128 256 1 2048 4 8 1 6 726 0.03
    GPT3-175B 512 2048 2 2048 4 8 1 6 782 0.02
    LLAMA2-7B 8 128 1 4096 1 1 1 1 16847 0.02
    LLAMA2-13B 16 128 1 4096 1 4 1 10 8646 0.01
    LLAMA2-70B 64 128 1 4096 4 4 1 20 1707 0.03
    Nemotron-8B 64 256 4 4096 2 1 1 1 12701 0.03
    Nemotron-22B 64 256 2 4096 2 4 1 10 4256 0.03
    Nemotron-340B 128 32 1 4096 8 8 1 12 322 0.04
    LLAMA3-8B 8 128 1 8192 1 1 2 1 12036 0.05
    LLAMA3-70B 64 128 1 8192 4 4 2 5 1533 0.02
    """,
)
LONG = Table(
    {
        "source": "NeMo (25.04)", "date": "2025-04", "accelerator": "DGX-B200", "precision": "FP8",
        "model": "LLAMA3-8B", "micro_batch": "", "metric_kind": "TFLOPS / GPU",
    },
    "seq_len n_gpus global_batch tp cp metric_value",
    """
    8K 2 512 1 1 1,671 0.05
    16K 4 256 1 1 1,717 0.07
    32K 8 128 1 2 1,624 0.01
    64K 16 64 1 4 1,600 0.02
    128K 32 32 2 4 1,588 0.03
    256K 64 16 4 4 1,590 0.03
    512K 128 8 4 8 1,619 0.02
    1024K 256 4 4 16 1,608 0.01
    """,
)  # fmt: skip
TPU = Table(
    {
        "source": "MaxText", "date": "2024-04", "seq_len": "2048", "zero_or_fsdp_stage": "FSDP", "precision": "bf16",
        "micro_batch": "", "metric_kind": "TFLOP/sec/chip",
    },
    "model arch_json accelerator n_gpus global_batch tp recompute metric_value",
    """
    16B 16B v5e-256 256 1536 1 full 120 0.21
    32B 32B v5e-256 512 2048 1 full 128 0.23
    64B 64B v5e-256 2048 4096 1 full 108 0.06
    32B 32B v5p-128 64 384 4 minimal 328 0.07
    64B 64B v5p-128 128 384 4 minimal 309 0.01
    128B 128B v5p-256 128 128 8 minimal 315 0.04
    256B 256B v5p-1024 512 512 8 minimal 308 0.03
    GPT-22B 22B TPUv4-128 512 6656 1 full 146 0.02
    """,
)  # fmt: skip
TABLES = (MEGATRON_LM, MIXTRAL, FLAGSCALE, DEEPSPEED, FSDP2, NEMO, LONG, TPU)


@pytest.mark.parametrize(
    ("cells", "tolerance"),
    [
        pytest.param(*case, id=f"{case[0]['source']} {case[0]['model']} {case[0]['accelerator']} x{case[0]['n_gpus']}")
        for table in TABLES
        for case in table.cases()
    ],
)
def test_a_published_table_s_row_takes_the_time_it_took(cells, tolerance):
    usual = {"id": "public-1", "arch_json": "", "notes": "", "metric_kind": "tokens_per_s_per_gpu"}
    shape = SHAPES.get(cells.get("arch_json", ""), "")
    case = training_case(training_row(**(usual | cells | {"arch_json": shape})))
    job = prepared(case.job)
    (measured,) = (one.value for one in case.measured if one.quantity == "step_s")

    assert priced(job, calibrate(job.cluster, job.workload.stack)).step_s == pytest.approx(measured, rel=tolerance)
