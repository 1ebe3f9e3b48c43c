"""What the user asks of a plan beside model, cluster and workload: objective, limits, pins."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from planner.errors import BadInput
from topologies.catalogue import validation_text

PINNABLE = (
    "tp", "cp", "pp", "dp", "dp_shard", "dp_replicate", "ep", "etp", "zero",
    "micro_batch", "virtual_stages", "recompute", "devices",
)  # fmt: skip
RECOMPUTE_PINS = ("none", "selective", "full")


class Options(BaseModel):
    """``headroom`` is the part of device memory to leave free; ``pins`` hold what the user fixes (``{"tp": 4}``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: Literal["time", "energy", "money"] = "time"
    headroom: float = Field(default=0.05, ge=0.0, lt=1.0)
    power_cap_w: float | None = Field(default=None, gt=0.0)
    pins: dict[str, int | str] = Field(default_factory=dict)
    time_limit_s: float = Field(default=60.0, gt=0.0)
    alternatives: int = Field(default=5, ge=0, le=50)

    @field_validator("pins")
    @classmethod
    def _pins_are_known(cls, pins: dict[str, int | str]) -> dict[str, int | str]:
        for name, value in pins.items():
            if name not in PINNABLE:
                raise ValueError(f"cannot pin {name!r}; pins are {', '.join(PINNABLE)}")
            if name == "recompute":
                if value not in RECOMPUTE_PINS:
                    raise ValueError(f"recompute={value!r}; one of {', '.join(RECOMPUTE_PINS)}")
            elif not isinstance(value, int) or isinstance(value, bool) or not (0 if name == "zero" else 1) <= value <= 2**21:
                raise ValueError(f"{name}={value!r} must be a whole number from {0 if name == 'zero' else 1} to 2097152")
        return pins


def read_options(**fields: object) -> Options:
    """Options from keyword arguments. Raises ``BadInput`` naming each that is wrong."""
    try:
        return Options(**fields)
    except ValidationError as error:
        raise BadInput("options: " + validation_text(error)) from error


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
            raise BadInput(f"{name!r} is given twice: {found[name]!r} and {value!r}; give it once")
        found[name] = int(value) if value.lstrip("-").isdecimal() and len(value) < 12 else value
    return found
