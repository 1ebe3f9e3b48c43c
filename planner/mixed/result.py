"""The plan of a mixed cluster: a stage a record, its part and degrees, the proof over types and placement together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from cost_models.mixed import MixedStage, MixedStrategy
from cost_models.strategy import LayerChoice, LayerRun, Recompute
from cost_models.workload import Training
from planner.errors import BadInput
from planner.result import SCHEMA_VERSION, ModelRecord, Plan, Proof
from planner.strategy_record import Degree, Record
from topologies.catalogue import validation_text

if TYPE_CHECKING:
    import torch


class StageRecord(Record):
    """One stage: where it runs, how its devices share the work, what it holds and needs."""

    part: int
    accelerator: str
    devices: Degree
    tp: Degree
    cp: Degree
    dp: Degree
    ep: Degree
    zero: int
    micro_batch: Degree
    layers: Degree
    recompute: list[tuple[Degree, Recompute]]
    forward_s: float
    backward_s: float
    tail_s: float
    hop_s: float
    need_bytes: float
    limit_bytes: float
    classes: dict[str, float]

    def stage(self) -> MixedStage:
        """The stage of this record."""
        runs = tuple(LayerRun(count, LayerChoice(kind)) for count, kind in self.recompute)
        return MixedStage(self.part, self.tp, self.cp, self.dp, self.ep, self.zero, self.micro_batch, runs)


class PartRecord(Record):
    """One part of the cluster, how much of it the plan uses, and the best step on it alone, where one was found.

    ``alone_bound_s`` is what no plan on the part alone that beats this one can go below.
    """

    name: str
    accelerator: str
    host: str
    hosts: int
    devices: int
    devices_used: int
    alone_bound_s: float


class MixedPlan(Record):
    """A pipeline over several kinds of devices with its proof; or the plan on one part alone, where that is quicker.

    ``advisory`` says that no launch target can express the plan. ``alone`` is the plan of one part; then ``stages``
    is empty.
    """

    schema_version: int = SCHEMA_VERSION
    kind: Literal["mixed"] = "mixed"
    meshwright_version: str
    status: Literal["optimal", "feasible"]
    advisory: bool
    objective_name: Literal["time"] = "time"
    objective: float
    bound: float
    gap: float
    search_s: float
    step_s: float
    step_interval_s: tuple[float, float]
    tokens_per_s: float
    micro_batches: int
    stages: list[StageRecord]
    alone: Plan | None
    parts: list[PartRecord]
    model: ModelRecord
    cluster_name: str
    cluster_digest: str
    workload: Training
    options: dict[str, Any]
    notes: list[str]
    proof: Proof

    @property
    def space(self) -> dict[str, Any]:
        """The space that the proof is about."""
        return self.proof.space

    def strategy(self) -> MixedStrategy:
        """The pipeline of this plan. Raises ``BadInput`` where the plan runs on one part alone."""
        if self.alone is not None:
            raise BadInput("this plan runs on one part alone; its strategy is alone.strategy")
        return MixedStrategy(tuple(stage.stage() for stage in self.stages), self.micro_batches)

    def to_json(self) -> str:
        """The plan as one JSON object."""
        return json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> MixedPlan:
        """Read :meth:`to_json` back. Raises ``BadInput`` for text that is no such plan."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise BadInput("not a plan of a mixed cluster: " + validation_text(error)[:1000]) from error

    @classmethod
    def load(cls, path: str | Path) -> MixedPlan:
        """Read a plan from a file. Raises ``BadInput`` when it cannot be read or is no plan of a mixed cluster."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{str(path)!r} cannot be read as a plan: {error}") from error

    def summary(self) -> str:
        """The plan as text for a terminal."""
        from planner.report import as_text, plan_view

        return as_text(plan_view(self))

    def write(self, directory: str | Path, targets: str | tuple[str, ...] | list[str] = ("torchrun",)) -> list[Path]:
        """Launch files of a plan on one part alone, as :meth:`Plan.write`, or of a pipeline over several for torchrun.

        Raises ``Unsupported`` for an advisory plan, which no target can express.
        """
        if self.alone is not None:
            return self.alone.write(directory, targets)
        from planner.mixed.launch import write_job

        return write_job(self, Path(directory), (targets,) if isinstance(targets, str) else tuple(targets))

    def apply(self, module: torch.nn.Module, **options: Any) -> tuple[Any, Any]:
        """Make ``module`` parallel as planned, as :meth:`Plan.apply`. Raises ``Unsupported`` for an advisory plan."""
        from planner.mixed.launch import job_of
        from planner.runtime import apply

        return apply(self.alone or job_of(self), module, **options)
