"""One rank of a study: many plans of one number of ranks, one after the other in the same processes.

    torchrun ... -m planner.runtime.study_job --list plans.json --record runs.jsonl

Rank 0 adds a line for every plan that was run; a plan that fails ends the job, and what was written stays.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist

from planner.machine.die_with_parent import die_with_parent
from planner.result import Plan
from planner.runtime.measure_job import WARM_UP_STEPS, Job
from planner.runtime.mesh import join, leave, planned_device_type


def run_one(plan: Plan, steps: int, memory: bool, seed: int) -> dict[str, Any]:
    """Seconds of every timed step on this rank, and its peak bytes where they are asked for."""
    device = join(plan, planned_device_type(plan), 120.0)
    job = Job(plan, device, seed)
    for _ in range(WARM_UP_STEPS):
        job.timed()
    seconds = [job.timed() for _ in range(steps)]
    peak = job.peak_bytes()[0] if memory else None
    stage = job.schedule.mesh["pp"].get_local_rank()
    return {"rank": dist.get_rank(), "pipeline_rank": stage, "step_s": seconds, "peak_bytes": peak}


def add_line(record: Path, line: dict[str, Any]) -> None:
    """One more line of the file, written at once."""
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def study(listed: list[dict[str, Any]], record: Path, steps: int, until: float) -> None:
    """Runs what is listed until it is done or time is up; all ranks agree on which."""
    for item in listed:
        over = [time.monotonic() > until]
        if dist.is_initialized():
            dist.broadcast_object_list(over, src=0)
        if over[0]:
            return
        plan = Plan.load(item["plan"])
        mine = run_one(plan, steps, item["memory"], seed=0)
        everyone: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(mine, everyone)
        if everyone is not None:
            seen = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "load": os.getloadavg()[0]}
            add_line(record, {**item["key"], "ranks": everyone, **seen})
            print(f"measuring {' '.join(str(value) for value in item['key'].values())}", flush=True)
        gc.collect()


def main() -> NoReturn:
    """Run as told; exit 1 when a rank fails."""
    die_with_parent()
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(prog="python -m planner.runtime.study_job", description=__doc__.split("\n")[0])
    parser.add_argument("--list", type=Path, required=True, help="JSON list of plan, key and memory")
    parser.add_argument("--record", type=Path, required=True, help="lines of JSON to add to")
    parser.add_argument("--steps", type=int, default=4, help="timed steps a plan (4)")
    parser.add_argument("--seconds", type=float, default=600.0, help="start no plan after so many (600)")
    options = parser.parse_args()
    try:
        listed = json.loads(options.list.read_text(encoding="utf-8"))
        study(listed, options.record, options.steps, time.monotonic() + options.seconds)
        dist.barrier()
    except Exception as error:
        print(f"rank {os.environ.get('RANK', '?')} failed: {error!r}\n{traceback.format_exc()}", file=sys.stderr)
        leave(1)
    leave(0)


if __name__ == "__main__":
    main()
