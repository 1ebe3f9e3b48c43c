"""The plan of a mixed cluster: a stage a record, its part and degrees, the proof over types and placement together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from cost_models.clocks import FULL
from cost_models.mixed import MixedStage, MixedStrategy
from cost_models.pipeline import step_ticks
from cost_models.strategy import LayerChoice, LayerRun, Recompute
from cost_models.workload import Training
from planner.errors import BadInput
from planner.mixed.consistent import complaints
from planner.plan_text import SCHEMA_VERSION, first_complaints, loaded, plan_fields
from planner.result import ModelRecord, Plan, Proof
from planner.strategy_record import Clock, Degree, OffloadRecord, Record
from planner.summarised import Summarised

if TYPE_CHECKING:
    import torch

    from planner.explanations.mixed_explain import MixedExplanation
    from planner.explanations.mixed_why_not import MixedWhyNot


POWER_CAP = "power cap"
"""The name of the time that steps wait for their watts, as of plans on one kind of device."""


class StageRecord(Record):
    """One stage: where it runs, how its devices share the work, what it holds and needs.

    ``tier_bytes`` are, by memory tier, what a device keeps there of what it has room for; ``clock`` is what its devices
    run at, a fraction of their full one.
    """

    part: int = Field(ge=0)
    accelerator: str
    devices: Degree
    tp: Degree
    cp: Degree
    dp: Degree
    ep: Degree
    zero: int = Field(ge=0, le=3)
    micro_batch: Degree
    layers: Degree
    recompute: list[tuple[Degree, Recompute]]
    forward_s: float
    backward_s: float
    tail_s: float
    hop_s: float
    need_bytes: float
    limit_bytes: float = Field(gt=0.0)
    classes: dict[str, float]
    offloads: list[OffloadRecord] = Field(default_factory=list)
    tier_bytes: dict[str, float] = Field(default_factory=dict)
    tier_room_bytes: dict[str, float] = Field(default_factory=dict)
    clock: Clock = FULL

    def stage(self) -> MixedStage:
        """The stage of this record."""
        runs = tuple(LayerRun(count, LayerChoice(kind)) for count, kind in self.recompute)
        degrees = self.tp, self.cp, self.dp, self.ep, self.zero, self.micro_batch
        return MixedStage(self.part, *degrees, runs, tuple(it.offload() for it in self.offloads), self.clock)


class PartRecord(Record):
    """One part of the cluster, how much of it the plan uses, and what no plan on the part alone that beats this one
    can go below: ``alone_bound``, in the objective's unit. ``hosts_used`` are those that stages reserve devices on.
    """

    name: str
    accelerator: str
    host: str
    hosts: Degree
    devices: Degree
    devices_used: int = Field(ge=0)
    hosts_used: int = Field(ge=0)
    alone_bound: float


class MixedPlan(Summarised, Record):
    """A pipeline over several kinds of devices with its proof; or the plan on one part alone, where that is quicker.

    ``objective`` is in seconds, dollars or joules a step. ``usd_per_step`` is the rent of the hosts in use, ``None``
    where a part has no price. ``watts`` are means by consumer, ``level_watts`` those of the fullest device, host
    and rack in use and of all sites, and ``joules_per_step`` is at the meters of the parts' sites; plans saved before
    they were there have none. ``advisory`` says that no launch target can express the plan.
    ``alone`` is the plan of one part; then ``stages`` is empty.
    """

    schema_version: int = SCHEMA_VERSION
    kind: Literal["mixed"] = "mixed"
    meshwright_version: str
    status: Literal["optimal", "feasible"]
    advisory: bool
    objective_name: Literal["time", "money", "energy"] = "time"
    objective: float = Field(gt=0.0)
    bound: float
    gap: float
    search_s: float = Field(ge=0.0)
    step_s: float = Field(gt=0.0)
    step_interval_s: tuple[float, float]
    tokens_per_s: float = Field(gt=0.0)
    usd_per_step: float | None = Field(default=None, ge=0.0)
    watts: dict[str, float] = Field(default_factory=dict)
    level_watts: dict[str, float] = Field(default_factory=dict)
    joules_per_step: float | None = Field(default=None, ge=0.0)
    micro_batches: Degree
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

    @model_validator(mode="after")
    def _figures_agree(self) -> MixedPlan:
        if found := complaints(self):
            raise ValueError(", ".join(found[:4]))
        return self

    @property
    def space(self) -> dict[str, Any]:
        """The space that the proof is about."""
        return self.proof.space

    @property
    def waits_s(self) -> float:
        """Seconds of a step that all stages wait for their watts, beyond what the schedule takes."""
        if self.alone is not None:
            return sum(term.seconds for term in self.alone.time if term.name == POWER_CAP)
        tick, names = self.proof.tick_s, ("forward_s", "backward_s", "hop_s", "tail_s")
        each = [[[round(getattr(it, name) / tick) for it in self.stages]] for name in names]
        forward, backward, hop, tail = (np.array(it, dtype=np.int64) for it in each)
        last = hop[:, :-1] if len(self.stages) > 1 else hop
        step = step_ticks(len(self.stages), 1, self.micro_batches, forward, backward, last, tail)[0]
        return max(0.0, self.step_s - float(step) * tick)

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
        data = plan_fields(text)
        if data.get("kind") != "mixed":
            raise BadInput(f"not a plan of a mixed cluster: kind is {data.get('kind')!r:.80}; read it with Plan.load")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise BadInput(f"not a plan of a mixed cluster: {first_complaints(error)}; plan again") from error

    @classmethod
    def load(cls, path: str | Path) -> MixedPlan:
        """Read a plan from a file. Raises ``BadInput`` when it cannot be read or is no plan of a mixed cluster."""
        return loaded(path, cls.from_json)

    def summary(self) -> str:
        """The plan as text for a terminal."""
        from planner.report import as_text, plan_view

        return as_text(plan_view(self))

    def write(self, directory: str | Path, targets: str | tuple[str, ...] | list[str] = ("torchrun",)) -> list[Path]:
        """Launch files of a plan on one part alone, as :meth:`Plan.write`, or of a pipeline over several for torchrun.

        Beside a plan on one part alone, ``plan.json``, stands this one in ``mixed_plan.json``: its proof is over all
        parts. Raises ``Unsupported`` for an advisory plan, which no target can express.
        """
        from planner.mixed.launch import write_alone, write_job

        named = (targets,) if isinstance(targets, str) else tuple(targets)
        return (write_job if self.alone is None else write_alone)(self, Path(directory), named)

    def explain(self, **options: Any) -> MixedExplanation:
        """Where the time goes, stage by stage, what binds, what one more of anything buys
        (:mod:`planner.explanations.mixed_explain`)."""
        from planner.explanations.mixed_explain import explain_mixed

        return explain_mixed(self, **options)

    def why_not(self, pins: str | dict[str, int | str], **options: Any) -> MixedWhyNot:
        """The best plan with ``pins`` against this one, or what rules it out
        (:mod:`planner.explanations.mixed_why_not`)."""
        from planner.explanations.mixed_why_not import why_not_mixed

        return why_not_mixed(self, pins, **options)

    def apply(self, module: torch.nn.Module, **options: Any) -> tuple[Any, Any]:
        """Make ``module`` parallel as planned, as :meth:`Plan.apply`. Raises ``Unsupported`` for an advisory plan."""
        from planner.mixed.launch import job_of
        from planner.runtime import apply

        return apply(self.alone or job_of(self), module, **options)
