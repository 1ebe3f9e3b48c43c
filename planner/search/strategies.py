"""Rows of the search as strategies."""

from __future__ import annotations

from cost_models.clocks import FULL
from cost_models.rows import Rows, offloads_of
from cost_models.schedules import schedule_of
from cost_models.strategy import (
    LayerChoice,
    LayerRun,
    Offload,
    ParallelDegrees,
    Stage,
    Strategy,
    TrainingSchedule,
)
from planner.search.incumbent import Found


def strategy_of(rows: Rows, r: int, virtual: int, found: Found) -> Strategy:
    """A row with evaluated runs of layers as a :class:`Strategy`."""
    one = {a: int(getattr(rows, a)[r]) for a in ("dp_replicate", "dp_shard", "cp", "tp", "pp", "ep", "etp")}
    order = schedule_of(rows.schedule, one["pp"], virtual, int(rows.micro_batches[r]), rows.in_flight)
    schedule = TrainingSchedule(order.kind, virtual, int(rows.micro_batch[r]), order.micro_batches, order.in_flight)
    clocks = found.clocks or (FULL,) * order.pp
    leaving = found.leaving or ((None, None),) * len(found.runs)
    stages = tuple(
        Stage(tuple(LayerRun(j - i, LayerChoice(choice)) for choice, i, j in runs), clocks[device], *out)
        for device, runs, out in zip(order.devices, found.runs, leaving, strict=True)
    )
    placement = {axis: tuple(int(f) for f in values[r]) for axis, values in rows.factors.items()}
    degrees = ParallelDegrees(**one, vocab_tp=rows.vocab_tp)
    return Strategy(degrees, int(rows.zero[r]), schedule, stages, placement, _offloads(rows, r))


def _offloads(rows: Rows, r: int) -> tuple[Offload, ...]:
    return () if rows.offload is None else offloads_of(rows.offload[r], rows.tiers)
