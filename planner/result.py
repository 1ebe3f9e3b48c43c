"""The Plan: what was chosen, what it costs, why it is the best of its space. The only thing saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from cost_models.model_graph import ModelGraph
from cost_models.workload import Training
from planner.errors import BadInput
from planner.failures.goodput_record import GoodputRecord
from planner.plan_text import SCHEMA_VERSION, first_complaints, loaded, plan_fields
from planner.strategy_record import Record, StrategyRecord
from planner.summarised import Summarised

if TYPE_CHECKING:
    import torch

    from planner.explanations.explain import Explanation
    from planner.explanations.why_not import WhyNot
    from planner.failures.under_failures import UnderFailures
    from planner.plots import Plots

Count = Annotated[int, Field(ge=1)]
HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,140}$")]


class ModelRecord(Record):
    """Which model was planned: its name, digest and, when it came from one, its Hugging Face config.

    ``is_decoder`` is ``ModelGraph.is_decoder``; plans saved before it was there are taken for decoders'.
    """

    name: str
    parameters: int
    active_parameters: int
    layers: int
    digest: str
    config: dict[str, Any] | None = None
    is_decoder: bool = True

    @classmethod
    def of(cls, model: ModelGraph) -> ModelRecord:
        """The record of a model."""
        names = ("name", "parameters", "active_parameters", "layers", "digest", "config", "is_decoder")
        return cls(**{name: getattr(model, name) for name in names})

    def differs_from(self, model: ModelGraph) -> list[str]:
        """What the record says of a model of the same digest that is not so, in words."""
        names = ("parameters", "active_parameters", "layers", "is_decoder")
        pairs = {name: (getattr(self, name), getattr(model, name)) for name in names}
        return [f"model.{n} is {mine}, but comes to {right}" for n, (mine, right) in pairs.items() if mine != right]


class ClusterRecord(Record):
    """Which cluster was planned for. ``source`` is what was asked for (``"dgx-h100:4"``).

    ``host_names`` lists usable hosts where they differ, by the user's names if ``hosts_are_named``.
    """

    name: str
    source: str
    digest: str
    accelerator: str
    hosts: Count
    devices_per_host: Count
    scale_up_devices: Count
    domain_levels: Count = 1
    level_names: list[str] = Field(default_factory=list)
    """Of the network's levels, the first ``domain_levels`` inside a scale-up domain; empty in older files."""
    hosts_per_rack: Count | None = None
    devices: Count
    hosts_used: Count
    devices_used: Count
    host_names: list[HostName] = Field(default_factory=list)
    hosts_are_named: bool = False


class TierMemory(Record):
    """Bytes that one device of every pipeline stage keeps in a memory tier, and the most that it may.

    Where hosts share pools, what the fullest of them holds, and how much it can.
    """

    tier: str
    need_bytes: list[float]
    room_bytes: float
    pool_bytes: float | None = None
    pool_room_bytes: float | None = None


class StageMemory(Record):
    """Bytes on each device of one pipeline stage, by tensor class, against what the device leaves."""

    stage: int
    need_bytes: float
    limit_bytes: float
    classes: dict[str, float]


class MovedRecord(Record):
    """Bytes that all devices send over a network level in a step, or that a memory tier reads and writes.

    ``joules`` is ``None`` where no figure is known.
    """

    level: str
    size_bytes: float
    joules: float | None


class Term(Record):
    """One named part of the step time, with what it consists of."""

    name: str
    seconds: float
    note: str = ""


class Alternative(Record):
    """A different plan: what it loses against the chosen one and where."""

    strategy: StrategyRecord
    step_s: float
    objective: float
    loses_fraction: float
    reason: str
    headroom_fraction: float


class Binding(Record):
    """One thing that keeps the plan from being better."""

    limit: str
    detail: str


class Excluded(Record):
    """How many rows a stage of the search excluded for one reason, and the least bound among them."""

    stage: str
    reason: str
    rows: int = Field(ge=0)
    least_bound: float | None = None


class ProvedStage(Record):
    """One objective of several, in the order in which they were solved, each over the whole space.

    ``value`` and ``bound`` are of the quantity that it minimises (``minimises``), for one step; ``at_most`` is what
    every later stage may take of it: ``(1 + slack) value``.
    """

    objective: str
    minimises: Literal["time", "energy", "money", "goodput"]
    value: float
    bound: float
    proved: bool
    at_most: float | None = None
    rows: dict[str, int]
    search_s: float


class Proof(Record):
    """What was proved, of which space, under which cost model.

    ``space`` gives every axis with its values and every restriction; ``rows`` counts what each step removed, in the
    last of the ``stages`` where there are several; ``excluded`` says why, with the least bound among them
    (:mod:`planner.search.ledger`).
    """

    space: dict[str, Any]
    rows: dict[str, int]
    model_digest: str
    cost_model_digest: str
    solver: str
    incumbent_before_solver: float | None = None
    tick_s: float
    bound_root: float
    excluded: list[Excluded] = Field(default_factory=list)
    stages: list[ProvedStage] = Field(default_factory=list)


class TrainingRun(Record):
    """What training on ``tokens`` takes, in ``steps`` like the planned one; restarts and evaluations left out."""

    tokens: float
    steps: int
    seconds: float
    joules: float
    usd: float | None


class Plan(Summarised, Record):
    """A strategy with its estimate and its proof; reads from and writes to JSON without loss."""

    schema_version: int = SCHEMA_VERSION
    meshwright_version: str
    status: Literal["optimal", "feasible", "estimate"]
    jobs: int = Field(default=1, ge=1)
    objective_name: Literal["time", "energy", "money", "goodput"]
    objective: float
    bound: float
    gap: float
    search_s: float
    step_s: float
    step_interval_s: tuple[float, float]
    tokens_per_s_per_device: float
    model_flop_utilisation: float
    strategy: StrategyRecord
    memory: list[StageMemory]
    memory_headroom_fraction: float
    tiers: list[TierMemory] = Field(default_factory=list)
    time: list[Term]
    watts: dict[str, float]
    level_watts: dict[str, float] = Field(default_factory=dict)
    joules_per_step: float
    joules_per_token: float
    tokens_per_joule: float | None = None
    usd_per_step: float | None
    usd_per_billion_tokens: float | None
    moved: list[MovedRecord] = Field(default_factory=list)
    goodput: GoodputRecord | None = None
    """What failures leave of the rate; ``None`` in plans of versions that did not ask."""
    training_run: TrainingRun | None = None
    binding: list[Binding]
    notes: list[str]
    alternatives: list[Alternative]
    model: ModelRecord
    cluster: ClusterRecord
    workload: Training
    options: dict[str, Any]
    proof: Proof

    @model_validator(mode="after")
    def _hosts_are_the_clusters(self) -> Plan:
        named, hosts = len(self.cluster.host_names), self.strategy.hosts
        if hosts and (max(hosts) >= named or len(hosts) != self.cluster.hosts_used):
            raise ValueError(
                f"the strategy names {len(hosts)} hosts, the highest at position {max(hosts)}, but the plan uses "
                f"{self.cluster.hosts_used} of {named} named ones; plan again"
            )
        return self

    @property
    def space(self) -> dict[str, Any]:
        """The space that the proof is about: axes with their values, restrictions."""
        return self.proof.space

    def to_json(self) -> str:
        """The plan as one JSON object; ``space`` stands at the top as well, for readers of ``--json``."""
        return json.dumps({**self.model_dump(mode="json"), "space": self.proof.space}, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read :meth:`to_json` back. Raises ``BadInput`` for text that is no plan of this schema version."""
        data = plan_fields(text)
        if data.get("kind") == "mixed":
            raise BadInput(
                "not a plan of a regular cluster but of a mixed one; read it with MixedPlan.load, or plan one of its "
                "parts alone"
            )
        absent = object()
        space = data.pop("space", absent)
        try:
            plan = cls.model_validate(data)
        except ValidationError as error:
            raise BadInput("not a plan: " + first_complaints(error)) from error
        if space is not absent and space != plan.proof.space:
            raise BadInput("not a plan: 'space' and 'proof.space' differ; plan again")
        return plan

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a file. Raises ``BadInput`` when it cannot be read or is no plan."""
        return loaded(path, cls.from_json)

    def summary(self) -> str:
        """The plan as text for a terminal: choice, time, memory, power, proof, alternatives."""
        from planner.report import summary

        return summary(self)

    def __repr__(self) -> str:
        from planner.report import degrees_text

        what = f"{self.model.name} on {self.cluster.name}: {degrees_text(self.strategy)}"
        return f"<Plan of {what}, step {self.step_s:.4g} s, {self.status}>"

    def write(self, directory: str | Path, targets: str | tuple[str, ...] | list[str] = ("torchrun",)) -> list[Path]:
        """Write ``plan.json`` and the launch files of every target (or of the one named); returns their paths.

        All files are made before the first is written. Raises ``Unsupported`` when a target cannot express
        the plan, ``UnknownName`` for a target that does not exist.
        """
        from planner.export import write

        return write(self, Path(directory), (targets,) if isinstance(targets, str) else tuple(targets))

    def explain(self, **options: Any) -> Explanation:
        """Where the time goes, which limit binds, what one more unit buys (:mod:`planner.explanations.explain`)."""
        from planner.explanations.explain import explain

        return explain(self, **options)

    def why_not(self, pins: str | dict[str, int | str], **options: Any) -> WhyNot:
        """The best plan with ``pins`` against this one, or what rules it out (:mod:`planner.explanations.why_not`)."""
        from planner.explanations.why_not import why_not

        return why_not(self, pins, **options)

    def under_failures(self, **options: Any) -> UnderFailures:
        """What failures leave of the plan, and a run of N tokens (:mod:`planner.failures.under_failures`)."""
        from planner.failures.under_failures import under_failures

        return under_failures(self, **options)

    def apply(self, module: torch.nn.Module, **options: Any) -> tuple[Any, Any]:
        """Make ``module`` parallel as planned, in a process that torchrun started; needs ``meshwright[torch]``."""
        from planner.runtime import apply

        return apply(self, module, **options)

    @property
    def plot(self) -> Plots:
        """``plan.plot.memory()`` and ``plan.plot.timeline()``; needs ``meshwright[plots]``."""
        from planner.plots import Plots

        return Plots(self)
