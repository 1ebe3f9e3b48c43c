"""One rank of a measured job: steps that are only timed, one that is observed, one whose memory is counted.

    torchrun ... -m planner.runtime.measure_job --plan plan.json --record record.json

Rank 0 writes what all ranks saw, whole or not at all. Peak memory is what torch's allocator held at most: its own
counter on GPUs; on CPUs the profiler's allocations and releases of one step, added to what the rank holds between
steps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn

from planner.errors import PlannerError
from planner.machine.die_with_parent import die_with_parent
from planner.machine.measure import Runnable, job_to_run, load_measurable
from planner.mixed.uneven import UnevenJob
from planner.runtime.allocations import changes_of, highest_bytes
from planner.runtime.mesh import join, leave, planned_device_type
from planner.runtime.observed import Observer, axes_of, now_ns, observing
from planner.runtime.schedule import Schedule
from planner.runtime.train import build, optimiser, synthetic_batch
from planner.runtime.uneven_stages import HopStage
from planner.whole_files import replace_whole

WARM_UP_STEPS = 2
"""The first step allocates and connects, the second is the first with the optimiser's states."""


class Job:
    """A plan's model on this rank, its optimiser and the steps of it."""

    def __init__(self, plan: Runnable, device: torch.device, seed: int):
        self.plan, self.device, self.seed, self.number = plan, device, seed, 0
        self.model, self.schedule = build(plan, device.type, seed)
        self.update = optimiser(plan, self.model, 1e-3)

    def synchronise(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def batch(self) -> list[torch.Tensor]:
        """This rank's sequences of the next step."""
        whole = synthetic_batch(self.plan, self.number, self.seed)
        self.number += 1
        return [self.schedule.local(tensor).to(self.device) for tensor in whole]

    def timed(self) -> float:
        """Seconds of one step on this rank, all ranks having begun together."""
        batch = self.batch()
        dist.barrier()
        began = time.perf_counter()
        self.schedule.step(*batch)
        self.update.step()
        self.update.zero_grad()
        self.synchronise()
        return time.perf_counter() - began

    def observed(self, observer: Observer) -> None:
        """One step with its spans."""
        batch = self.batch()
        dist.barrier()
        with observer.span("step", "step"):
            with observing(observer), _forwards(self.schedule, observer):
                self.schedule.step(*batch)
            with observer.span("optimizer", "optimizer"):
                self.update.step()
                self.update.zero_grad()

    def peak_bytes(self) -> tuple[int, int]:
        """Most bytes that one step's tensors take on this rank, and those that it holds between steps."""
        held, batch = persistent_bytes(self.model, self.update) + message_bytes(self.schedule), self.batch()
        held += sum(tensor.untyped_storage().nbytes() for tensor in batch)
        dist.barrier()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._step(batch)
            return torch.cuda.max_memory_allocated(), held
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            self._step(batch)
        return held + highest_bytes(changes_of(profile)), held

    def _step(self, batch: list[torch.Tensor]) -> None:
        self.schedule.step(*batch)
        self.update.step()
        self.update.zero_grad()


def persistent_bytes(model: nn.Module, update: torch.optim.Optimizer) -> int:
    """Bytes of this rank's weights, buffers and optimiser states, shared storage counted once."""
    states = [value for state in update.state.values() for value in state.values()]
    every = [*model.parameters(), *model.buffers(), *states]
    local = [getattr(tensor, "_local_tensor", tensor) for tensor in every if isinstance(tensor, torch.Tensor)]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in local}
    return sum(storages.values())


def message_bytes(schedule: Schedule) -> int:
    """Bytes of the buffers that messages of a pipeline's other ranks arrive in, which stay from step to step."""
    pipeline = getattr(schedule, "schedule", None)
    stages = getattr(pipeline, "_stages", None) or [it for it in (getattr(pipeline, "_stage", None),) if it]
    infos = [
        (stage, info)
        for stage in stages
        for some in (*stage.args_recv_info.values(), *stage.grad_recv_info.values())
        for info in some
    ]
    away = (
        info for stage, info in infos
        if not info.is_root_arg and (isinstance(stage, HopStage) or not stage._is_same_rank(info.source))
    )  # fmt: skip
    return sum(info.buffer.untyped_storage().nbytes() for info in away if info.buffer is not None)


class _forwards:
    """While it lasts, forward passes of a schedule without a pipeline are spans; a pipeline's stages are anyway."""

    def __init__(self, schedule: Schedule, observer: Observer):
        self.part, self.observer, self.hooks = getattr(schedule, "part", None), observer, []

    def __enter__(self) -> None:
        if self.part is None:
            return
        opened: list[Any] = []

        def before(module: nn.Module, inputs: Any) -> None:
            opened.append(self.observer.span("forward", "forward"))
            opened[-1].__enter__()

        def after(module: nn.Module, inputs: Any, outputs: Any) -> None:
            opened.pop().__exit__(None, None, None)

        self.hooks = [
            self.part.register_forward_pre_hook(before, prepend=True), self.part.register_forward_hook(after)
        ]  # fmt: skip

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()


def measured(plan: Runnable, device: torch.device, steps: int, seed: int) -> dict[str, Any]:
    """What this rank sees of its steps."""
    job = Job(plan, device, seed)
    for _ in range(WARM_UP_STEPS):
        job.timed()
    seconds = [job.timed() for _ in range(steps)]
    observer = Observer(axes_of(job.schedule.mesh), job.synchronise)
    job.observed(observer)
    peak, held = job.peak_bytes()
    return {
        "rank": dist.get_rank(), "pipeline_rank": _pipeline_rank(job), "step_s": seconds,
        "spans": observer.records(), "peak_bytes": peak, "persistent_bytes": held,
        "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "ended_ns": now_ns(),
    }  # fmt: skip


def _pipeline_rank(job: Job) -> int:
    if isinstance(job.plan, UnevenJob):
        return job.plan.stage_of(dist.get_rank())
    return job.schedule.mesh["pp"].get_local_rank()


def write_record(record: Path, mine: dict[str, Any]) -> None:
    """All ranks' observations in one file, by rank 0, whole or not at all."""
    everyone: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, everyone)
    if everyone is not None:
        replace_whole(record.parent, {record.name: json.dumps({"ranks": everyone})})


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m planner.runtime.measure_job", description=__doc__.split("\n")[0])
    parser.add_argument("--plan", type=Path, required=True, help="plan.json")
    parser.add_argument("--record", type=Path, required=True, help="JSON file for what all ranks saw")
    parser.add_argument("--steps", type=int, default=5, help="timed steps (5)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (0)")
    parser.add_argument("--timeout-s", type=float, default=120.0, help="give up on a silent peer after this long (120)")
    return parser.parse_args(words)


def main() -> NoReturn:
    """Measure as told; exit 2 for a plan that cannot run here, 1 when a rank fails."""
    die_with_parent()
    warnings.filterwarnings("ignore")
    options = arguments()
    try:
        plan = job_to_run(load_measurable(options.plan))
        device = join(plan, planned_device_type(plan), options.timeout_s)
        write_record(options.record, measured(plan, device, max(1, options.steps), options.seed))
        dist.barrier()
    except PlannerError as error:
        print(f"rank {os.environ.get('RANK', '?')}: {error}", file=sys.stderr)
        leave(2)
    except Exception as error:
        print(f"rank {os.environ.get('RANK', '?')} failed: {error!r}\n{traceback.format_exc()}", file=sys.stderr)
        leave(1)
    leave(0)


if __name__ == "__main__":
    main()
