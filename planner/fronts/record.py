"""What fronts on one kind of device and on several have in common."""

from __future__ import annotations

import json
from typing import Any, Self

from pydantic import ValidationError

from cost_models.workload import Training
from planner.errors import BadInput
from planner.result import Record
from planner.summarised import Summarised
from topologies.records import validation_text

SCHEMA_VERSION = 1


class FrontRecord(Summarised, Record):
    """Which model was planned on which cluster, and to within what its trade-offs are proved; as JSON and back.

    ``proved`` says that the whole space was looked at to the tolerance asked for; where the time limit came first,
    ``tolerance`` is the larger one that holds, ``None`` where none does.
    """

    schema_version: int = SCHEMA_VERSION
    meshwright_version: str
    model: str
    model_digest: str
    cluster: str
    cluster_digest: str
    workload: Training
    options: dict[str, Any]
    tolerance_asked: float
    tolerance: float | None
    proved: bool
    search_s: float

    def to_json(self) -> str:
        """The front as one JSON object."""
        return json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read :meth:`to_json` back. Raises ``BadInput`` for text that is no front of this schema version."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"not a front: the text is not JSON ({str(error)[:200]})") from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise BadInput(f"not a front of schema version {SCHEMA_VERSION}: schema_version is {str(version)[:80]!r}")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise BadInput("not a front: " + validation_text(error)[:400]) from error
