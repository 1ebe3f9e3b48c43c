"""Text of plan files: read within bounds, decoded with its schema version checked, complaints in a few words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from planner.errors import BadInput
from topologies.records import validation_text

SCHEMA_VERSION = 1
LARGEST_FILE_BYTES = 32_000_000
Loaded = TypeVar("Loaded")


def loaded(path: str | Path, read: Callable[[str], Loaded]) -> Loaded:
    """What ``read`` makes of a file's text. Raises ``BadInput`` naming the file, where it or ``read`` refuses it."""
    text = _text(Path(path))
    try:
        return read(text)
    except BadInput as error:
        raise BadInput(f"{str(path)!r} is {error}") from error


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise BadInput(f"{str(path)!r} is not a file; give a plan.json")
        if (size := path.stat().st_size) > LARGEST_FILE_BYTES:
            raise BadInput(f"{str(path)!r} is {size:,} bytes; a plan is at most {LARGEST_FILE_BYTES:,}")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{str(path)!r} cannot be read as a plan: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{str(path)!r} is no plan: not UTF-8 text at byte {error.start}") from error


def plan_fields(text: str) -> dict[str, Any]:
    """The fields of a plan of any kind. Raises ``BadInput`` for text that is no JSON object of this schema version."""
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not a plan: the text is not JSON ({str(error)[:200]})") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION or isinstance(version, bool):
        shown = repr(version)[:80]
        raise BadInput(f"not a plan of schema version {SCHEMA_VERSION}: schema_version is {shown}; plan again")
    return data


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def first_complaints(error: ValidationError, most: int = 4) -> str:
    """The first few of what is wrong with a record, and how many there are more."""
    text, more = validation_text(error).split("; "), error.error_count() - most
    return "; ".join(text[:most]) + (f"; and {more} more" if more > 0 else "")
