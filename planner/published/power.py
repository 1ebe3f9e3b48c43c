"""A row of ``power_runs.csv`` as a case: mean watts of a host during a benchmark's whole run.

The rows carry no layout; the benchmark's reference configuration for that many hosts stands in
(``power.toml``). ``switches["meter"]`` is the side of the power supplies that was metered, ``AC`` or ``DC``,
``switches["measured_s"]`` the seconds metered, of which the first ``switches["start_up_s"]`` draw what idling does.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from cost_models.workload import Training
from planner.published import layouts, machines
from planner.published.csv_rows import Row, number, whole
from planner.published.recipes import recipe
from planner.published.records import Case, Job, Kind, Measured
from planner.published.sizes import Sizes
from planner.published.sources import Source, source_of, source_prefix
from topologies.catalogue import load, read_toml
from topologies.cluster import Cluster
from topologies.errors import BadInput, PlannerError
from topologies.units import parse_quantity

POWER = Path(__file__).with_name("power.toml")


def power_case(row: Row) -> Case:
    """The case of a metered run. Raises ``BadInput`` for a cell that is no number."""
    watts = _watts(row)
    measured = (Measured("node_w", watts),) if watts else ()
    kind: Kind = "fine-tuning" if "lora" in row["workload"].lower() else "dense"
    job, missing = None, "" if watts else "mean_node_w not stated"
    try:
        job = power_job(row) if watts else None
    except PlannerError as error:
        missing = str(error)
    return Case(
        id=row["id"], source=source_prefix(row["id"]), title=row["workload"], accelerator=row["accelerator"],
        kind=kind, layout="", measured=measured, job=job, missing=missing, assumed=("layout",),
    )  # fmt: skip


def power_job(row: Row) -> Job:
    """The benchmark's job on the row's hosts. Raises ``BadInput`` for a workload without a configuration."""
    from planner.published.models import model_of

    source = source_of(row)
    cluster = _cluster(row)
    entry = _entry(row)
    size = _sizes(entry, (whole(row, "n_nodes") or 1) * cluster.host.devices)
    defaults = recipe(source.stack, source.release)
    choice, words, _ = layouts.recompute_choice("", defaults)
    group, _ = layouts.sharding("", defaults, cluster.host.devices)
    model = model_of(entry["model"], {}, size.seq_len)
    cluster = layouts.machine(cluster, layouts.degrees(size, group), row.get("inter_node_link", ""))
    plan, _ = layouts.strategy(size, model.layers, group, choice, "", cluster)
    switches = {
        "meter": _meter(row), "recompute": words, "measured_s": number(row, "measured_s"), "start_up_s": _start_up_s(),
    }  # fmt: skip
    return Job(model, cluster, _workload(entry, size, source), plan, source.stack, source.release, switches)


def _sizes(entry: dict, devices: int) -> Sizes:
    given = dict(entry["sizes"])
    inner, accumulation = given["tp"] * given["pp"] * given["cp"], given.pop("accumulation")
    if devices % inner:
        raise BadInput(f"tp*pp*cp = {inner} of the benchmark's configuration does not divide {devices} devices")
    batch = devices // inner * accumulation * given["micro_batch"]
    return Sizes(n_gpus=devices, seq_len=entry["seq_len"], global_batch=batch, ep=1, etp=1, **given)


def _workload(entry: dict, size: Sizes, source: Source) -> Training:
    tuning = entry.get("tuning", "all")
    precision = source.precision or "fp8"
    return Training(seq_len=size.seq_len, global_batch=size.global_batch, precision=precision, tuning=tuning)


def _cluster(row: Row) -> Cluster:
    """The row's kind of host, in tanks where the row says that it is immersed."""
    found = machines.ready_cluster(row["accelerator"], source_prefix(row["id"]))
    immersed = re.search(r"immersion", f"{row['accelerator']} {row.get('notes', '')}", re.IGNORECASE)
    return replace(found, facility=load("facilities", "immersion")) if immersed else found


def _meter(row: Row) -> str:
    return "DC" if row.get("meter", "").upper().startswith("DC") else "AC"


def _watts(row: Row) -> float | None:
    """Mean watts of a host; ``"6.9 kW"`` are 6,900."""
    value = number(row, "mean_node_w", r"k?W?")
    return value * 1e3 if value and re.search(r"kW", row["mean_node_w"], re.IGNORECASE) else value


def _entry(row: Row) -> dict:
    """The benchmark's configuration for so many nodes, or for the nearest number of them that there is one for."""
    nodes = whole(row, "n_nodes")
    if nodes is None:
        raise BadInput("n_nodes not stated")
    known = [entry for entry in _entries() if re.search(entry["workload"], row["workload"], re.IGNORECASE)]
    if not known:
        raise BadInput(f"no configuration is known for workload {row['workload'][:60]!r}")
    return min(known, key=lambda entry: min(abs(math.log(nodes / count)) for count in entry["nodes"]))


@lru_cache(maxsize=1)
def _start_up_s() -> float:
    return parse_quantity(read_toml(POWER)["start_up"]["value"], "s")


@lru_cache(maxsize=1)
def _entries() -> tuple[dict, ...]:
    return tuple(read_toml(POWER)["job"])
