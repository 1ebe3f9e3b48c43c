"""What passes between the reading of published rows, their prediction and the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from cost_models.model_graph import ModelGraph
from cost_models.strategy import Strategy
from cost_models.workload import Training
from topologies.cluster import Cluster

Quantity = Literal["step_s", "peak_mem_gib", "fits", "node_w"]
Kind = Literal["dense", "moe", "fine-tuning"]
Meter = Literal["allocated", "reserved", "device"]
Rank = Literal["first", "last"]
UNITS: dict[str, str] = {"step_s": "s", "peak_mem_gib": "GiB", "fits": "", "node_w": "W"}


@dataclass(frozen=True)
class Measured:
    """One published figure of a row, in the unit of :data:`UNITS`.

    ``meter`` says what a memory figure counts: tensors ``allocated``, the allocator's ``reserved`` pool, or
    the whole ``device`` as nvidia-smi shows it. ``rank`` says whose it is, ``None`` for the fullest device.
    """

    quantity: Quantity
    value: float
    meter: Meter | None = None
    rank: Rank | None = None


@dataclass(frozen=True)
class Job:
    """A row's run as the cost models take it.

    ``switches`` are settings of the stack that the row itself states, by field name of the stack.
    """

    model: ModelGraph
    cluster: Cluster
    workload: Training
    strategy: Strategy
    stack: str
    release: str
    switches: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One row: where it comes from, what was measured, and the job that it means or why there is none.

    ``source`` is the prefix of ``id``; ``title`` and ``accelerator`` are the row's own names, which together
    make its group. ``layout`` names the problem (model, machine, size, batch, precision) of which several
    layouts were measured; ``missing`` is the reason when ``job`` is ``None``, or why a metric was not read. ``assumed``
    lists the cells that a default filled.
    """

    id: str
    source: str
    title: str
    accelerator: str
    kind: Kind
    layout: str
    measured: tuple[Measured, ...]
    job: Job | None
    missing: str = ""
    assumed: tuple[str, ...] = ()
    stated: bool = False
    """Whether seq_len, n_gpus, global_batch, tp and pp are all given or derived."""


@dataclass(frozen=True)
class Prediction:
    """One line of ``predictions.csv``; ``predicted`` is ``None`` where there is a ``reason``.

    ``low`` and ``high`` bound 90 % of what is expected.
    """

    case: Case
    quantity: Quantity
    measured: float | None
    predicted: float | None
    low: float | None
    high: float | None
    reason: str = ""
