"""A strategy as JSON: read and written without loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from cost_models.clocks import FULL
from cost_models.schedules import Schedule, schedule_of
from cost_models.strategy import (
    LayerChoice,
    LayerRun,
    Offload,
    ParallelDegrees,
    PipelineSchedule,
    Recompute,
    Stage,
    Strategy,
    TrainingSchedule,
)


class Record(BaseModel):
    """Frozen; a plan read from disk may not carry fields this version does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Degree = Annotated[int, Field(ge=1, le=2**24)]
Clock = Annotated[float, Field(gt=0.0, le=1.0)]


class OffloadRecord(Record):
    """The share of a tensor class that lives in a memory tier, of every layer that it leaves."""

    tensors: Literal["optimizer", "gradients", "weights", "activations", "checkpoints"]
    tier: str
    share: float = Field(gt=0.0, le=1.0)

    def text(self) -> str:
        """``50% of activations to nvme``."""
        return f"{'all' if self.share == 1 else f'{self.share:.0%}'} of {self.tensors} to {self.tier}"

    def offload(self) -> Offload:
        """What this record is of."""
        return Offload(self.tensors, self.tier, self.share)

    @classmethod
    def of(cls, it: Offload) -> OffloadRecord:
        """The record of what is offloaded."""
        return cls(tensors=it.tensors, tier=it.tier, share=it.share)


class StrategyRecord(Record):
    """A :class:`Strategy` as JSON. ``recompute`` holds, for each virtual stage, its runs ``[layers, kind]``.

    ``offloaded`` holds, for each stage, how many first layers the last class of states leaves; none means all.
    ``activations_offloaded`` holds how many first layers activations leave, likewise.
    ``clocks`` holds the clock of each pipeline rank's devices as a fraction of the full one; none means all full.
    ``vocab_tp`` ranks of tp and cp divide embedding and head; 0 where they are as many as tp.
    ``hosts`` are the hosts of the node ranks, as positions in the cluster's ``host_names``; empty where any will do.
    """

    dp_replicate: Degree
    dp_shard: Degree
    zero: int = Field(ge=0, le=3)
    tp: Degree
    pp: Degree
    cp: Degree
    ep: Degree
    etp: Degree
    edp: Degree
    vocab_tp: int = Field(default=0, ge=0, le=2**24)
    schedule: PipelineSchedule
    virtual_stages: Degree
    micro_batch: Degree
    micro_batches: Degree
    in_flight: int = Field(default=0, ge=0, le=2**24)
    layers_per_stage: list[Degree]
    recompute: list[list[tuple[Degree, Recompute]]]
    placement: dict[str, list[Degree]]
    clocks: list[Clock] = Field(default_factory=list)
    offloads: list[OffloadRecord] = Field(default_factory=list)
    offloaded: list[Annotated[int, Field(ge=0, le=2**24)]] = Field(default_factory=list)
    activations_offloaded: list[Annotated[int, Field(ge=0, le=2**24)]] = Field(default_factory=list)
    hosts: list[Annotated[int, Field(ge=0, le=2**24)]] = Field(default_factory=list)

    @classmethod
    def of(cls, strategy: Strategy) -> StrategyRecord:
        """The record of a strategy."""
        degrees, schedule = strategy.degrees, strategy.schedule
        return cls(
            **{
                axis: getattr(degrees, axis)
                for axis in ("dp_replicate", "dp_shard", "tp", "pp", "cp", "ep", "etp", "edp")
            },
            vocab_tp=degrees.vocab_tp,
            zero=strategy.zero,
            schedule=schedule.kind,
            virtual_stages=schedule.virtual_stages,
            micro_batch=schedule.micro_batch,
            micro_batches=schedule.micro_batches,
            in_flight=schedule.in_flight,
            layers_per_stage=list(strategy.layers_per_stage),
            recompute=[[(run.count, run.choice.recompute) for run in stage.runs] for stage in strategy.stages],
            placement={axis: list(factors) for axis, factors in strategy.placement.items()},
            clocks=recorded_clocks(strategy),
            offloads=[OffloadRecord.of(it) for it in strategy.offloads],
            offloaded=recorded_offloaded(strategy),
            activations_offloaded=recorded_activations(strategy),
            hosts=list(strategy.hosts),
        )

    def stages_of(self, rank: int) -> list[int]:
        """Virtual stages of one pipeline rank, in model order."""
        return self._schedule.stages_of(rank).tolist()

    @property
    def _schedule(self) -> Schedule:
        return schedule_of(self.schedule, self.pp, self.virtual_stages, self.micro_batches)

    def strategy(self) -> Strategy:
        """The strategy of this record."""
        names = ("dp_replicate", "dp_shard", "cp", "tp", "pp", "ep", "etp", "vocab_tp")
        degrees = ParallelDegrees(**{name: getattr(self, name) for name in names})
        every = [None] * len(self.recompute)
        clocks, leaving = self.clocks or [FULL], (self.offloaded or every, self.activations_offloaded or every)
        stages = tuple(
            Stage(tuple(LayerRun(count, LayerChoice(kind)) for count, kind in runs), clocks[rank % len(clocks)], *out)
            for rank, runs, *out in zip(self._schedule.devices, self.recompute, *leaving, strict=False)
        )
        batches = (self.micro_batch, self.micro_batches, self.in_flight)
        schedule = TrainingSchedule(self.schedule, self.virtual_stages, *batches)
        placement = {axis: tuple(factors) for axis, factors in self.placement.items()}
        offloads = tuple(it.offload() for it in self.offloads)
        return Strategy(degrees, self.zero, schedule, stages, placement, offloads, tuple(self.hosts))


def recorded_clocks(strategy: Strategy) -> list[float]:
    """The clocks as a record holds them: none where all are full."""
    return [] if set(strategy.clocks) == {FULL} else list(strategy.clocks)


def recorded_offloaded(strategy: Strategy) -> list[int]:
    """The layers of each stage that offload all states, as a record holds them: none where all of them do."""
    return _recorded(strategy, [stage.offloaded for stage in strategy.stages])


def recorded_activations(strategy: Strategy) -> list[int]:
    """The layers of each stage that activations leave, as a record holds them: none where all of them do."""
    return _recorded(strategy, [stage.activations_offloaded for stage in strategy.stages])


def _recorded(strategy: Strategy, first: list[int | None]) -> list[int]:
    layers = list(strategy.layers_per_stage)
    out = [n if some is None else some for n, some in zip(layers, first, strict=True)]
    return [] if out == layers else out
