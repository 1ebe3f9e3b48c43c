"""What the user asks of a plan beside model, cluster and workload: objective, limits, pins."""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from cost_models.schedules import FURTHER, virtual_stages_of
from planner.errors import BadInput
from planner.limits import limits_of
from planner.objectives import objectives_of
from topologies.units import parse_quantity

_WHOLE = re.compile(r"-?[0-9]{1,11}")

PINNABLE = (
    "tp", "cp", "pp", "dp", "dp_shard", "dp_replicate", "ep", "etp", "vocab_tp", "zero",
    "micro_batch", "virtual_stages", "schedule", "recompute", "devices",
)  # fmt: skip
HEADROOM = 0.05
WORDS = {"recompute": ("none", "selective", "full"), "schedule": ("1f1b", *FURTHER)}
"""Pins that are words, with what they may say."""


class Options(BaseModel):
    """``headroom`` is the part of device memory to leave free; ``pins`` hold what the user fixes (``{"tp": 4}``).

    ``objective`` names one quantity, or several in order; each may take ``slack`` more than its best for the next.
    ``limits`` are in SI units by the names of :mod:`planner.limits`, but for those of the site and of memory, which are
    ``power_cap_w`` and ``headroom``. ``calibration`` is the path of measured constants in place of the cluster's own.
    ``checkpoint_bytes`` follow from model and work, and are never saved.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    objective: str = "time"
    checkpoint_bytes: float = Field(default=0.0, ge=0.0, exclude=True)
    slack: float | None = Field(default=None, ge=0.0, le=10.0)
    tokens: float | None = Field(default=None, gt=0.0, le=1e18)
    limits: dict[str, float] = Field(default_factory=dict)
    headroom: float = Field(default=HEADROOM, ge=0.0, lt=1.0)
    power_cap_w: float | None = Field(default=None, gt=0.0)
    clocks: bool = False
    tiers: tuple[StrictStr, ...] = ()
    calibration: str | None = Field(default=None, max_length=4096)
    pins: dict[str, StrictInt | StrictStr] = Field(default_factory=dict)
    time_limit_s: float = Field(default=60.0, gt=0.0)
    deterministic_limit: float | None = Field(default=None, gt=0.0)
    alternatives: int = Field(default=5, ge=0, le=50)
    solver: Literal["default", "pure-cpsat"] = "default"
    workers: int = Field(default=1, ge=1, le=256)

    @field_validator("objective")
    @classmethod
    def _objectives_are_known(cls, objective: str) -> str:
        return ",".join(objectives_of(objective))

    @field_validator("limits")
    @classmethod
    def _limits_are_known(cls, limits: dict[str, float]) -> dict[str, float]:
        return limits_of(limits)

    @model_validator(mode="before")
    @classmethod
    def _limits_with_names_of_their_own(cls, fields: Any) -> Any:
        if not isinstance(fields.get("limits"), dict):
            return fields
        limits, fields = dict(fields["limits"]), dict(fields)
        for name, option, usual in (("site-power", "power_cap_w", None), ("memory-headroom", "headroom", HEADROOM)):
            if name in limits:
                value = limits.pop(name)
                if fields.get(option, usual) not in (usual, value):
                    raise ValueError(f"{option}={fields[option]} and limit {name}={value} are one limit; give one")
                fields[option] = value
        return {**fields, "limits": limits}

    @model_validator(mode="after")
    def _slack_has_a_use(self) -> Options:
        if self.slack is not None and "," not in self.objective:
            second = "time" if self.objective != "time" else "energy"
            raise ValueError(
                f"slack={self.slack:g} is what a further objective may cost, and there is only {self.objective!r}; "
                f"name a second one, such as objective='{self.objective},{second}'"
            )
        return self

    @field_validator("pins")
    @classmethod
    def _pins_are_known(cls, pins: dict[str, int | str]) -> dict[str, int | str]:
        for name, value in pins.items():
            if name not in PINNABLE:
                raise ValueError(f"cannot pin {name[:80]!r}; {_nearest(name)}pins are {', '.join(PINNABLE)}")
            if name in WORDS:
                if value not in WORDS[name]:
                    more = "; interleaved is 1f1b with virtual_stages above 1" if name == "schedule" else ""
                    raise ValueError(f"{name}={str(value)[:80]!r}; one of {', '.join(WORDS[name])}{more}")
            elif (
                not isinstance(value, int)
                or isinstance(value, bool)
                or not (0 if name == "zero" else 1) <= value <= 2**21
            ):
                raise ValueError(
                    f"{name}={value!r} must be a whole number from {0 if name == 'zero' else 1} to 2097152"
                )
        return _by_schedule(pins)


def _by_schedule(pins: dict[str, int | str]) -> dict[str, int | str]:
    """The pins without what a schedule says already; 1F1B is one virtual stage and no more."""
    if "schedule" not in pins:
        return pins
    kind, virtual = str(pins["schedule"]), virtual_stages_of(str(pins["schedule"]))
    if pins.get("virtual_stages", virtual) != virtual:
        raise ValueError(
            f"schedule={kind} has {virtual} virtual stages a device, and virtual_stages={pins['virtual_stages']} is "
            "pinned too; leave one of the pins out"
        )
    said = {"schedule", "virtual_stages"}
    others = {name: value for name, value in pins.items() if name not in said}
    return {**others, "virtual_stages": 1} if kind == "1f1b" else {**others, "schedule": kind}


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name.lower()[:80], PINNABLE, n=2, cutoff=0.5)
    return f"nearest: {', '.join(near)}; " if near else ""


def read_options(**fields: object) -> Options:
    """Options from keyword arguments. Raises ``BadInput`` naming each that is wrong."""
    try:
        return Options(**fields)
    except ValidationError as error:
        raise BadInput(complaints(error)) from error


def complaints(error: ValidationError) -> str:
    """Every complaint of a pydantic error with the value it is about: ``headroom=2: input should be less than 1``."""
    return "; ".join(_complaint(one) for one in error.errors())


def _complaint(one: Any) -> str:
    if one["type"] == "value_error":
        return str(one["ctx"]["error"])
    name, shown = ".".join(map(str, one["loc"])), repr(one["input"])
    return f"{name}={shown[:80]}: {one['msg'][0].lower()}{one['msg'][1:]}"


def watts(text: float | str | None) -> float | None:
    """``"700 kW"`` as watts; numbers and ``None`` as they are. Raises ``BadInput`` for any other text."""
    if not isinstance(text, str):
        return text
    try:
        return parse_quantity(text, "W")
    except ValueError as error:
        raise BadInput(f"power cap: {error}; for example '700 kW'") from error


def tiers_of(tiers: Any) -> tuple[str, ...]:
    """Memory tiers as words, from one text (``"dram,cxl-pool:2"``) or several.

    Raises ``BadInput`` for anything else.
    """
    words = tiers.split(",") if isinstance(tiers, str) else tiers
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise BadInput(f"tiers={str(tiers)[:80]!r} are names of memory tiers, like 'dram' or 'dram,cxl-pool:2'")
    return tuple(word.strip() for word in words if word.strip())


def pins_of(pins: Any) -> dict[str, Any]:
    """Pins as a dictionary, from one or from text. Raises ``BadInput`` for anything else."""
    if isinstance(pins, str):
        return parse_assignments(pins)
    if pins is not None and not isinstance(pins, dict):
        raise BadInput(f"pins={str(pins)[:80]!r} is neither a dictionary nor text like 'tp=4,zero=1'")
    return dict(pins or {})


def parse_assignments(text: str) -> dict[str, int | str]:
    """``"tp=4,pp=2,recompute=full"`` as ``{"tp": 4, "pp": 2, "recompute": "full"}``.

    Raises ``BadInput`` for a part that is not ``name=value``, or a name given twice.
    """
    found: dict[str, int | str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not name or not value:
            raise BadInput(f"{part[:80]!r} is not NAME=VALUE; for example tp=4")
        if name in found:
            raise BadInput(f"{name[:80]!r} is given twice: {found[name]} and {value[:80]}; give it once")
        found[name] = int(value) if _WHOLE.fullmatch(value) else value
    return found
