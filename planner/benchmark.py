"""``python -m planner.benchmark``: how long plans take, as a table; each case in a process of its own.

Below it small cases are checked: the search's objective beside what ``meshwright verify`` finds when it enumerates the
whole space by other code, and beside one CP-SAT model of everything (``--solver pure-cpsat``).
"""

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
    (str(Path(__file__).with_name("layers_256.json")), "dgx-h100:128"),
    ("llama-3.1-70b", "dgx-a100:16+dgx-h100:16"),
    ("llama-3.1-405b", "dgx-a100:64+dgx-h100:64"),
    ("llama-3.1-405b", "dgx-a100:256+dgx-h100:256"),
    ("llama-3.1-70b", "dgx-a100:4+dgx-h100:4+dgx-h200:4+dgx-b200:4"),
    ("llama-3.1-405b", "dgx-a100:16+dgx-h100:16+dgx-h200:16+dgx-b200:16"),
    ("llama-3.1-70b", str(Path(__file__).with_name("irregular_1024.toml"))),
    ("llama-3.1-405b", "dgx-h100:64", "capped"),
)
CAPPED = {
    "seq_len": 8192, "global_batch": 512, "pins": "pp=16", "power_cap": "760 kW", "clocks": True, "tiers": "cxl-pool:2",
    "time_limit_s": 30.0,
}  # fmt: skip
MIXED_LIMIT_S = 30.0
CHECKS = (
    ("tiny-llama", "cpu-local:1"),
    ("llama-3.1-8b", "dgx-h100:1"),
    ("phi-3-mini", "dgx-a100:1"),
    ("gpt2", "rtx-4090-host:1"),
)
CHECK_LIMIT_S = 120.0
CHECK_HEAD = "| model | cluster | search | s | enumerated again | rows | s | pure CP-SAT | s | agree |"
HEAD = "| model | cluster | devices | status | step s | search s | CPU s | rows priced | to CP-SAT | peak MB |"


def measured(model: str, cluster: str, capped: str = "") -> dict[str, object]:
    """One plan in this process: status, step, wall and CPU seconds of the search, rows, peak memory in MB.

    With ``capped`` it is asked as :data:`CAPPED` says. The solver, which a search imports when it comes to it, is
    imported before its clock starts.
    """
    import planner.search.solver  # noqa: F401
    from planner.api import plan

    began = time.process_time()
    asked = CAPPED if capped else {"time_limit_s": MIXED_LIMIT_S if "+" in cluster else 120.0}
    found = plan(model, cluster, **asked)
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


def checked(model: str, cluster: str) -> dict[str, object]:
    """One small case three ways in this process: objectives, seconds of each, rows enumerated, whether they agree."""
    from planner.api import plan
    from planner.checks.verify import verify
    from planner.read_model import read_model
    from topologies.ready import read_cluster

    found = plan(model, cluster, alternatives=0, time_limit_s=CHECK_LIMIT_S)
    again = verify(found, read_model(model), read_cluster(cluster), time_limit_s=CHECK_LIMIT_S)
    alone = plan(model, cluster, alternatives=0, time_limit_s=CHECK_LIMIT_S, solver="pure-cpsat")
    agree = again.verdict == "verified" and alone.status == "optimal" and alone.objective == found.objective
    return {
        "search": f"{found.objective:.6g}", "search_s": f"{found.search_s:.2f}",
        "again": f"{again.bound:.6g}" if again.verdict == "verified" else again.verdict,
        "rows": f"{again.counts.get('rows', 0):,}", "again_s": f"{again.seconds:.1f}",
        "alone": f"{alone.objective:.6g}{'' if alone.status == 'optimal' else ' so far'}",
        "alone_s": f"{alone.search_s:.1f}", "agree": "yes" if agree else "no",
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    """Print the tables, or with the words of a case its JSON, with ``--check`` that of its check."""
    if len(arguments) >= 2:
        of = checked if "--check" in arguments else measured
        print(json.dumps(of(*[word for word in arguments if word != "--check"])))
        return
    for head, cases, more in ((HEAD, CASES, ()), (CHECK_HEAD, CHECKS, ("--check",))):
        print(head)
        print("|" + " --- |" * head.count(" | ") + " --- |")
        for case in cases:
            print(_row(*case, *more), flush=True)
        print()


def _row(model: str, cluster: str, *more: str) -> str:
    """One case in a process of its own, as a line of the table; what else it is asked stands behind its cluster."""
    command = [sys.executable, "-m", "planner.benchmark", model, cluster, *more]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        return f"| {model} | {cluster} | failed: {run.stderr.strip().splitlines()[-1]} |"
    cells = (
        Path(model).stem if model.endswith(".json") else model,
        " ".join((Path(cluster).stem, *(word for word in more if word != "--check"))),
        *json.loads(run.stdout).values(),
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main(sys.argv[1:])
