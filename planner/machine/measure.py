"""A plan's job run for a few steps and set beside what was predicted: :func:`measure`."""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import BadInput, PlannerBug
from planner.machine.local_job import Launch, check_port, free_port, need_torch, run_job
from planner.machine.measured_terms import measured_terms, spread, step_times, trace
from planner.machine.predicted_mixed import mixed_timeline, predicted_mixed
from planner.machine.predicted_terms import Predicted, predicted_terms
from planner.mixed.inputs import load_any_plan
from planner.mixed.launch import job_of
from planner.mixed.one_mesh import MixedJob
from planner.mixed.result import MixedPlan
from planner.mixed.uneven import UnevenJob
from planner.ranks import world_size
from planner.result import Plan
from planner.runtime.limits import check_trainer, runs_on_cpu

Runnable = Plan | MixedJob | UnevenJob
"""What ranks are started for: a plan of one kind of hosts, or the job of one over several."""

MODULE = "planner.runtime.measure_job"
SCHEMA_VERSION = 1
START_S = 120.0
"""Seconds that processes may take to start, import torch and meet."""
SLOWER = 20.0
"""How much longer than predicted a step may take before the job is taken to hang."""


@dataclass(frozen=True)
class Rank:
    """One rank: seconds by term of its observed step, and the most bytes that torch's allocator held in one."""

    rank: int
    pipeline_rank: int
    measured: dict[str, float]
    peak_bytes: int
    persistent_bytes: int


@dataclass(frozen=True)
class Comparison:
    """A plan's job as it ran beside what was predicted of it."""

    plan: Plan | MixedPlan
    predicted: Predicted
    step_s: tuple[float, ...]
    ranks: tuple[Rank, ...]
    events: dict[str, Any]

    @property
    def measured_step_s(self) -> float:
        """The median step's seconds, of the slowest rank."""
        return statistics.median(self.step_s)

    @property
    def time_error(self) -> float:
        """Predicted over measured step, less 1."""
        return self.predicted.step_s / self.measured_step_s - 1

    @property
    def memory_errors(self) -> list[float]:
        """Predicted over measured peak bytes of every rank, less 1."""
        return [self.predicted.peak_bytes[it.pipeline_rank] / it.peak_bytes - 1 for it in self.ranks]

    def as_json(self) -> dict[str, Any]:
        """Everything but the trace, as one JSON object."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.plan.model.name, "model_digest": self.plan.model.digest,
            **_cluster_fields(self.plan),
            "step": {
                "predicted_s": self.predicted.step_s, "interval_s": list(self.plan.step_interval_s),
                "measured_s": self.measured_step_s, "each_s": list(self.step_s), "spread": spread(self.step_s),
                "error": self.time_error,
            },
            "ranks": [
                dataclasses.asdict(it) | {"predicted": self.predicted.terms[it.pipeline_rank],
                                          "predicted_peak_bytes": self.predicted.peak_bytes[it.pipeline_rank],
                                          "memory_error": error}
                for it, error in zip(self.ranks, self.memory_errors, strict=True)
            ],
        }  # fmt: skip


def plan_of(path: str | Path) -> Path:
    """The plan's file: itself, or ``plan.json`` in the folder. Raises ``BadInput`` where there is none."""
    path = Path(path)
    file = path / "plan.json" if path.is_dir() else path
    if not file.is_file():
        raise BadInput(f"{str(path)[:200]!r} is neither a plan.json nor a folder with one; plan with --out FOLDER")
    return file


def load_measurable(file: Path) -> Plan | MixedPlan:
    """The plan in ``file``; of a mixed cluster's one part that of the part. Raises as :meth:`Plan.load`."""
    plan = load_any_plan(file)
    return (plan.alone or plan) if isinstance(plan, MixedPlan) else plan


def job_to_run(plan: Plan | MixedPlan) -> Runnable:
    """What the runtime asks of a plan. Raises ``Unsupported`` for what no launcher can start or no trainer run."""
    job = plan if isinstance(plan, Plan) else job_of(plan)
    check_trainer(job)
    return job


def _cluster_fields(plan: Plan | MixedPlan) -> dict[str, str]:
    if isinstance(plan, MixedPlan):
        return {"cluster": plan.cluster_name, "cluster_digest": plan.cluster_digest}
    return {"cluster": plan.cluster.source, "cluster_digest": plan.cluster.digest}


def measure(
    path: str | Path,
    *,
    steps: int = 5,
    port: int = 0,
    seed: int = 0,
    here: bool = False,
    launches: Sequence[Launch] | None = None,
    heard: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Runs the plan of ``path`` for ``steps`` timed steps, one observed and one whose memory is counted.

    ``here`` starts the processes of several hosts of processors on this one. ``launches`` are what is started on each
    host where it is not this one alone. Raises ``BadInput`` for a plan that is not of this model, cluster or number of
    ranks, or needs more hosts; ``Unsupported`` for what the trainer cannot run or without torch; ``JobFailed`` naming
    the rank that failed, after which no process is left.
    """
    file = plan_of(path)
    plan = load_measurable(file)
    need_torch("measure")
    job = job_to_run(plan)
    predicted = predicted_terms(plan) if isinstance(plan, Plan) else predicted_mixed(plan)
    starts = list(launches) if launches is not None else _here(job, port, here)
    limit_s = START_S + SLOWER * (steps + 4) * max(1.0, plan.step_s)
    with tempfile.TemporaryDirectory(prefix="meshwright-measure-") as folder:
        record = Path(folder) / "record.json"
        words = ("--plan", str(file.resolve()), "--record", str(record), "--steps", str(steps), "--seed", str(seed))
        run_job([dataclasses.replace(it, module=MODULE, arguments=words) for it in starts], limit_s, heard)
        return _compared(plan, predicted, _read(record))


def _here(job: Runnable, port: int, here: bool) -> list[Launch]:
    """All of the job's ranks on this host, host by host.

    Raises ``BadInput`` for a busy port, and for several hosts without ``here`` or of other devices than processors.
    """
    each = _processes(job)
    if len(each) > 1 and not (here and runs_on_cpu(job.cluster)):
        counts = " or ".join(map(str, dict.fromkeys(each)))
        way = "or start the processes of all here: --here" if runs_on_cpu(job.cluster) else "or plan for one of them"
        raise BadInput(
            f"the plan is for {len(each)} hosts (processes on each: {counts}), and this is one; start launch.sh on all "
            f"of them, plan for one host: --cluster NAME:1, {way}"
        )
    if port:
        check_port(port)
    port = port or free_port()
    return [Launch(MODULE, (), count, len(each), rank, port=port) for rank, count in enumerate(each)]


def _processes(job: Runnable) -> tuple[int, ...]:
    """Ranks of every host."""
    if isinstance(job, UnevenJob):
        return job.processes
    hosts = job.cluster.hosts_used
    return (world_size(job.strategy) // hosts,) * hosts


def _read(record: Path) -> list[dict[str, Any]]:
    try:
        return sorted(json.loads(record.read_text(encoding="utf-8"))["ranks"], key=lambda rank: rank["rank"])
    except (OSError, ValueError, KeyError) as error:
        raise PlannerBug(f"the job ended well, but its record is no use: {error!r}") from error


def _compared(plan: Plan | MixedPlan, predicted: Predicted, ranks: list[dict[str, Any]]) -> Comparison:
    from planner.plots import Plots

    terms = measured_terms(ranks)
    each = tuple(
        Rank(it["rank"], it["pipeline_rank"], mine, it["peak_bytes"], it["persistent_bytes"])
        for it, mine in zip(ranks, terms, strict=True)
    )
    if isinstance(plan, MixedPlan):
        pieces = mixed_timeline(plan)
    else:
        pieces = Plots(plan).timeline_data(plan.strategy.micro_batches)
    return Comparison(plan, predicted, tuple(step_times(ranks)), each, trace(ranks, pieces))
