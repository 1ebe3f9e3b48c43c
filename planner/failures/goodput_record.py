"""Goodput as a plan holds it: the numbers of :class:`cost_models.goodput.Goodput` in JSON."""

from __future__ import annotations

import dataclasses
import math

from pydantic import BaseModel, ConfigDict, Field

from cost_models.goodput import Goodput


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CheckpointRecord(_Record):
    """One checkpoint: bytes, seconds to write and read it, seconds the step waits, and seconds until it is of use."""

    size_bytes: float
    write_s: float
    read_s: float
    blocked_s: float
    behind_s: float


class BlastRecord(_Record):
    """What one failing unit takes; ``failures_per_day`` of nothing where nobody has counted them."""

    unit: str
    failures_per_day: float | None
    devices: int
    replicas: int
    of_replicas: int
    survives: bool


class GoodputRecord(_Record):
    """What failures leave of the plan's rate, ``fraction`` of the time; ``lost`` is the rest by cause."""

    fraction: float = Field(ge=0, le=1)
    range: tuple[float, float]
    effective_step_s: float
    effective_tokens_per_s: float
    mtbf_s: float
    failures_per_day: dict[str, float]
    lost: dict[str, float]
    fleet: str
    store: str
    checkpoint: CheckpointRecord
    asynchronous: bool
    interval_steps: int = Field(ge=1)
    interval_s: float
    restart_s: float
    spares: int = Field(ge=0)
    spares_needed: int = Field(ge=0)
    blasts: list[BlastRecord]

    @classmethod
    def of(cls, found: Goodput) -> GoodputRecord:
        """The record of a goodput."""
        return cls.model_validate(dataclasses.asdict(found))

    def differs_from(self, right: GoodputRecord, tolerance: float) -> list[str]:
        """Names of fields that are not those of ``right``."""
        mine, theirs = self.model_dump(mode="json"), right.model_dump(mode="json")
        return [name for name in mine if not _same(mine[name], theirs[name], tolerance)]


def _same(one: object, other: object, tolerance: float) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key], tolerance) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=1e-12)
    return one == other
