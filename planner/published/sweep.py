"""A row of ``sweep_gpt_a100.csv`` as a case: GPT on A100 hosts, all layouts of a few problems.

All rows: A100 80 GB, 8 a host, 800 Gb/s a host, fp16, feed-forward of 4 h, learned positions, full recompute,
1F1B, no optimiser sharding. Source: vTrain (KAIST VIA Research, MIT), Megatron-DeepSpeed.
"""

from __future__ import annotations

from planner.published.csv_rows import Row
from planner.published.records import Case
from planner.published.training import training_case

SOURCE = "vTrain"
ACCELERATOR = "A100 80GB SXM"
LINK = "800 Gb/s per node"
VOCAB = 50_257
"""Not stated; vTrain's own models have GPT-2's, unpadded (VIA-Research/vTrain src/model/gpt_model.py@f8dda84)."""


def sweep_case(row: Row) -> Case:
    """The case of one point. Raises ``BadInput`` for a cell that is no number."""
    return training_case(training_row(row))


def training_row(row: Row) -> Row:
    """The point in the words of a training row."""
    sizes = {name: row[name] for name in ("hidden", "layers", "heads")}
    arch = ", ".join(f'"{name}": {value or "null"}' for name, value in sizes.items())
    same = ("id", "n_gpus", "global_batch", "micro_batch", "seq_len", "tp", "dp", "pp")
    return {
        **{name: row[name] for name in same},
        "model": f"GPT h{row['hidden']} l{row['layers']}",
        "arch_json": f'{{{arch}, "vocab": {VOCAB}}}',
        "accelerator": ACCELERATOR,
        "inter_node_link": LINK,
        "cp": "1",
        "zero_or_fsdp_stage": "none",
        "recompute": "full",
        "precision": "fp16",
        "other_flags": row.get("set", ""),
        "source": SOURCE,
        "metric_kind": "iter_time_s",
        "metric_value": _seconds(row["iter_time_ms"]),
    }


def _seconds(milliseconds: str) -> str:
    """The cell in seconds; left as it is where it is no number, for the reader to refuse."""
    try:
        return repr(float(milliseconds.replace(",", "")) / 1e3)
    except ValueError:
        return milliseconds
