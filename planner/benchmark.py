"""``python -m planner.benchmark``: how long plans take, as a table; each case in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

CASES = (
    ("llama-3.1-8b", "dgx-h100:1"),
    ("llama-3.1-70b", "dgx-h100:4"),
    ("llama-3.1-70b", "mi300x:8"),
    ("llama-3.1-405b", "dgx-h100:128"),
    ("llama-3.1-405b", "gb200-nvl72:2"),
    ("mixtral-8x22b", "dgx-h100:8"),
    ("gpt3-175b", "dgx-a100:128"),
    ("deepseek-v3", "dgx-h100:256"),
    ("deepseek-v3", "dgx-h100:2048"),
    ("llama-3.1-405b", "dgx-h100:2048"),
    ("llama-3.1-405b", "dgx-h100:16384"),
    ("llama-3.1-405b", "dgx-h100:131072"),
    ("llama-3.1-70b", "dgx-a100:16+dgx-h100:16"),
    ("llama-3.1-405b", "dgx-a100:64+dgx-h100:64"),
    ("llama-3.1-405b", "dgx-a100:256+dgx-h100:256"),
    ("llama-3.1-70b", "dgx-a100:4+dgx-h100:4+dgx-h200:4+dgx-b200:4"),
    ("llama-3.1-405b", "dgx-a100:16+dgx-h100:16+dgx-h200:16+dgx-b200:16"),
    ("llama-3.1-70b", str(Path(__file__).with_name("irregular_1024.toml"))),
)
MIXED_LIMIT_S = 30.0
HEAD = "| model | cluster | devices | status | step s | search s | CPU s | rows priced | to CP-SAT | peak MB |"


def measured(model: str, cluster: str) -> dict[str, object]:
    """One plan in this process: status, step, wall and CPU seconds of the search, rows, peak memory in MB."""
    from planner.api import plan

    began = time.process_time()
    found = plan(model, cluster, time_limit_s=MIXED_LIMIT_S if "+" in cluster else 120.0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows = found.proof.rows
    mixed = "+" in cluster
    return {
        "devices": sum(part.devices_used for part in found.parts) if mixed else found.cluster.devices_used,
        "status": found.status if found.status == "optimal" else f"gap {found.gap:.2%}", "step": f"{found.step_s:.3f}",
        "search": f"{found.search_s:.2f}", "cpu": f"{time.process_time() - began:.2f}", 
        "rows": f"{rows['ways' if mixed else 'rows']:,}",
        "solver": rows["jobs_to_solver" if mixed else "rows_to_solver"], "peak": f"{peak:.0f}",
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    """Print the table, or with a model and a cluster the JSON of that one case."""
    if len(arguments) == 2:
        print(json.dumps(measured(*arguments)))
        return
    print(HEAD)
    print("|" + " --- |" * 10)
    for model, cluster in CASES:
        run = subprocess.run(
            [sys.executable, "-m", "planner.benchmark", model, cluster], capture_output=True, text=True
        )
        if run.returncode:
            print(f"| {model} | {cluster} | failed: {run.stderr.strip().splitlines()[-1]} |")
            continue
        row = json.loads(run.stdout)
        cells = (model, Path(cluster).stem, *map(str, row.values()))
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
