"""What a stack does in a release where a published row does not say: one table, each cell with its source.

A cell's value follows from stack and release alone, never from the model or the row.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from topologies.catalogue import read_toml
from topologies.errors import BadInput
from topologies.units import parse_quantity

RECIPES = Path(__file__).with_name("recipes.toml")
_KEYS = {"stack", "releases"}


@dataclass(frozen=True)
class Cell:
    """One default and where it was read."""

    value: Any
    source: str


@dataclass(frozen=True)
class Recipe:
    """The defaults of one release of a stack."""

    stack: str
    release: str
    cells: dict[str, Cell] = field(default_factory=dict)

    def value(self, name: str, otherwise: Any = None) -> Any:
        """The cell's value, or ``otherwise`` where the table has none."""
        return self.cells[name].value if name in self.cells else otherwise

    def by_memory(self, name: str, memory_bytes: float, otherwise: Any = None) -> Any:
        """The cell's value on a device with that memory; a table's keys are the least, ``{"0 GB": 4, "100 GB": 2}``."""
        value = self.value(name, otherwise)
        if not isinstance(value, dict):
            return value
        least = {parse_quantity(text, "B"): one for text, one in value.items()}
        return least[max(size for size in least if size <= memory_bytes)]


@lru_cache(maxsize=1024)
def recipe(stack: str, release: str) -> Recipe:
    """The defaults for ``stack`` in ``release``.

    Entries for all releases are overridden by those for a pattern (``"25.*"``), these by those that name the
    release; among equals the later entry wins.
    """
    fitting = [(_rank(one["releases"], release), one) for one in _table() if one["stack"] == stack]
    cells: dict[str, Cell] = {}
    for _, one in sorted(((rank, one) for rank, one in fitting if rank), key=lambda pair: pair[0]):
        cells |= {name: Cell(**cell) for name, cell in one.items() if name not in _KEYS}
    return Recipe(stack, release, cells)


def _rank(releases: str | list[str], release: str) -> int:
    """0 where the entry does not fit, 1 for all releases, 2 for a pattern, 3 for the release by name."""
    listed = [releases] if isinstance(releases, str) else releases
    if release in listed:
        return 3
    patterns = [one for one in listed if "*" in one and fnmatch.fnmatchcase(release, one)]
    return 0 if not patterns else 1 if patterns == ["*"] else 2


@lru_cache(maxsize=1)
def _table() -> tuple[dict, ...]:
    entries = tuple(read_toml(RECIPES).get("recipe", ()))
    for entry in entries:
        if not entry.keys() >= _KEYS:
            raise BadInput(f"{RECIPES.name}: an entry names its stack and releases; found {sorted(entry)}")
        for name, cell in entry.items():
            if name not in _KEYS and not (isinstance(cell, dict) and cell.keys() == {"value", "source"}):
                raise BadInput(f"{RECIPES.name}: {entry['stack']}.{name} is a table of value and source; got {cell!r}")
    return entries
