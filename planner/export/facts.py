"""What a launch target calls its settings: each key with its type, its range and where that was read.

One TOML file a target in ``targets/``, with the version it is for. An exporter passes what it writes through
:func:`checked`, so a key that the target does not know never reaches a file: several targets would ignore it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from planner.errors import PlannerBug

FOLDER = Path(__file__).parent / "targets"
TYPES: dict[str, tuple[type, ...]] = {
    "whole": (int,), "real": (int, float), "yes": (bool,), "word": (str,), "words": (list, tuple),
    "lists": (list,),
}  # fmt: skip


class Record(BaseModel):
    """Frozen, and closed to fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Key(Record):
    """One setting: its type, the least and the most it may be, or the words it takes; ``null`` where it may be none."""

    kind: Literal["whole", "real", "yes", "word", "words", "lists"]
    source: str
    least: float | None = None
    most: float | None = None
    of: tuple[str, ...] = ()
    null: bool = False
    pattern: str = ""
    note: str = ""


class Target(Record):
    """A launch target: its name in print, the version written for, its sources, its keys, and its names of devices."""

    title: str
    version: str
    sources: dict[str, str]
    keys: dict[str, Key] = Field(default_factory=dict)
    names: dict[str, str] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """Title and version, as messages have it."""
        return f"{self.title} {self.version}"

    def key(self, name: str) -> Key | None:
        """What is known of a key; ``before.*`` knows every name directly under ``before``."""
        under = [key for known, key in self.keys.items() if known.endswith("*") and name.startswith(known[:-1])]
        return self.keys.get(name) or (under[0] if under else None)


@lru_cache(maxsize=32)
def target(name: str) -> Target:
    """The facts of the target ``name``."""
    return Target.model_validate(tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8")))


def checked(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as they are, once every key is known to the target and every value is one that it takes.

    Raises ``PlannerBug`` otherwise: what an exporter writes is its own doing.
    """
    known = target(name)
    for key, value in values.items():
        what = known.key(key)
        if what is None:
            raise PlannerBug(f"{known.name} has no setting {key!r}, which its exporter wrote as {value!r}")
        if complaint := _misfit(what, value):
            raise PlannerBug(f"{known.name} takes no {key}={value!r}: {complaint}")
    return dict(values)


def _misfit(key: Key, value: Any) -> str | None:
    """What is wrong with ``value``; ``None`` when nothing is."""
    if value is None and key.null:
        return None
    if not isinstance(value, TYPES[key.kind]) or (isinstance(value, bool) and key.kind != "yes"):
        return f"it is no {key.kind}"
    if key.kind in ("whole", "real") and not _between(key, value):
        return f"it must lie between {key.least} and {key.most}"
    if key.pattern and not re.fullmatch(key.pattern, value):
        return f"it must be {key.pattern}"
    words = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    strange = [word for word in words if key.of and word not in key.of]
    return f"{strange[0]!r} is none of {', '.join(key.of)}" if strange else None


def _between(key: Key, value: float) -> bool:
    return (key.least is None or value >= key.least) and (key.most is None or value <= key.most)


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; the members of a list of mappings share the key ``name[]``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{before}{name}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{key}.")
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            for one in value:
                found |= flat(one, f"{key}[].")
        else:
            found[key] = value
    return found
