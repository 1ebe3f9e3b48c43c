"""Measured rows and their predictions, made up so that every figure can be reckoned by hand."""

from __future__ import annotations

from functools import cache

from costs import DEGREES, make_placement, make_stages

from cost_models.model_graph import ModelGraph
from cost_models.strategy import ParallelDegrees, Strategy, TrainingSchedule
from cost_models.workload import Training
from planner.published.records import Case, Job, Measured, Prediction
from planner.read_model import read_model
from topologies.cluster import Cluster
from topologies.ready import read_cluster


@cache
def model() -> ModelGraph:
    """A small decoder, the same object for all rows."""
    return read_model("tiny-llama")


@cache
def machine(name: str = "dgx-h100") -> Cluster:
    """One host of the catalogue."""
    return read_cluster(f"{name}:1")


def make_job(
    *, cluster: str = "dgx-h100", precision: str = "bf16", release: str = "1", switches: dict | None = None,
    micro_batch: int = 1, schedule: str = "1f1b", **degrees: int,
) -> Job:  # fmt: skip
    """A run of :func:`model`; unnamed degrees are 1."""
    placement = make_placement({axis: degrees.get(axis, 1) for axis in DEGREES})
    one_host = {axis: factors[:1] for axis, factors in placement.items()}
    schedule_of = TrainingSchedule(schedule, 1, micro_batch, 1)
    strategy = Strategy(ParallelDegrees(**degrees), 1, schedule_of, make_stages((model().layers,)), one_host)
    workload = Training(seq_len=128, global_batch=8, precision=precision)
    return Job(model(), machine(cluster), workload, strategy, "megatron-core", release, switches or {})


def make_case(
    id: str, *, step_s: float | None = None, mem: float | None = None, fits: int | None = None,
    node_w: float | None = None, title: str = "Llama", accelerator: str = "H100", kind: str = "dense",
    layout: str = "", job: Job | str | None = "make", stated: bool = True, missing: str = "", **fields,
) -> Case:  # fmt: skip
    """A row with these measured figures; ``fields`` go to :func:`make_job`."""
    values = {"step_s": step_s, "peak_mem_gib": mem, "fits": fits, "node_w": node_w}
    measured = tuple(Measured(name, float(value)) for name, value in values.items() if value is not None)
    made = make_job(**fields) if job == "make" else job
    return Case(id, id.split("-")[0], title, accelerator, kind, layout, measured, made, missing, (), stated)


def predicted(case: Case, value: float | None, quantity: str = "step_s", *, within: float = 0.1) -> Prediction:
    """A line of that quantity, its interval ``within`` of the value on both sides."""
    measured = next((one.value for one in case.measured if one.quantity == quantity), None)
    if value is None:
        return Prediction(case, quantity, measured, None, None, None, case.missing or "cannot")
    return Prediction(case, quantity, measured, value, value * (1 - within), value * (1 + within))
