"""``calibration/intervals.toml``: how far measured lies from predicted, by class of run, on rows left out of the fit.

A class of a stack holds errors of its own left-out groups, and what it has too few rows to know it takes from the next
wider class, ``w = n / (n + n0)`` its own and ``1 - w`` the wider one's; ``n`` counts at most three rows of a group,
which share most of their error. The widest, of a kind of work, holds the errors of stacks left out whole: it is what a
stack without rows of its own has to expect.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.published.fitting import Observation

Floats = NDArray[np.float64]
HELD = 0.9
"""Share of rows that an interval is to hold."""
OWN_ROWS = 15
"""Rows from which a class trusts its own errors more than the wider class's: of 5, 8 and 15 the most honest."""
KNOWN_ROWS_A_GROUP = 3
"""Rows of one (model, accelerator) group that count as known; of 3 and 6 the more honest about groups never seen."""


@dataclass(frozen=True)
class Error:
    """``log(measured / predicted)`` of one row, with its classes, narrowest first, its group and its accelerator."""

    classes: tuple[str, ...]
    group: str
    log: float
    accelerator: str = ""


def few_a_group(errors: Sequence[Error], most: int = KNOWN_ROWS_A_GROUP) -> list[Error]:
    """At most ``most`` of each group, evenly picked in their order."""
    groups: dict[str, list[Error]] = {}
    for one in errors:
        groups.setdefault(one.group, []).append(one)
    return [one for group in groups.values() for one in group[:: -(-len(group) // most)]]


def shortest(logs: Sequence[float]) -> tuple[float, float]:
    """The shortest range that holds 0, which is what is predicted itself, and a little over :data:`HELD` of these rows.

    Of ``n`` rows it holds ``HELD (n + 1)``, rounded up. That would cover the next row with probability :data:`HELD`
    were the range fixed before looking; being chosen as the shortest, it covers somewhat less.
    """
    ranked = np.sort(np.asarray(logs, dtype=float))
    held = min(len(ranked), math.ceil(HELD * (len(ranked) + 1)))
    widths = ranked[held - 1 :] - ranked[: len(ranked) - held + 1]
    first = int(np.argmin(widths))
    return min(float(ranked[first]), 0.0), max(float(ranked[first + held - 1]), 0.0)


def ranges(
    errors: Sequence[Error], wider: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[tuple[float, float], int]]:
    """The range of every class with its number of rows; ``wider`` has those of kinds, known otherwise."""
    own: dict[str, list[Error]] = {}
    parents: dict[str, str] = {}
    for one in errors:
        for name, parent in zip(one.classes, (*one.classes[1:], ""), strict=True):
            own.setdefault(name, []).append(one)
            parents[name] = parent
    found: dict[str, tuple[tuple[float, float], int]] = {}
    for name in sorted(own, key=lambda name: len(_line(name, parents))):
        found[name] = _blended(own[name], found.get(parents[name]), wider.get(name)), len(own[name])
    return dict(sorted(found.items()))


def _line(name: str, parents: Mapping[str, str]) -> list[str]:
    """A class and all those that are wider."""
    line = [name]
    while line[-1] in parents:
        line.append(parents[line[-1]])
    return line


def _blended(
    errors: Sequence[Error], parent: tuple[tuple[float, float], int] | None, known: tuple[float, float] | None
) -> tuple[float, float]:
    if known is not None:
        return known
    low, high = shortest([one.log for one in errors])
    if parent is None:
        return low, high
    groups = [one.group for one in errors]
    count = sum(min(KNOWN_ROWS_A_GROUP, groups.count(name)) for name in set(groups))
    share, (wide_low, wide_high) = count / (count + OWN_ROWS), parent[0]
    return share * low + (1 - share) * wide_low, share * high + (1 - share) * wide_high


def pair_spread(rows: Sequence[Observation], errors: Floats) -> float:
    """Standard deviation of the difference of two errors of one problem, in the middle one of all problems."""
    problems: dict[tuple[str, str], list[float]] = {}
    for row, error in zip(rows, errors, strict=True):
        problems.setdefault((row.case.source, row.case.layout), []).append(error)
    spread = [np.var(own, ddof=1) for own in problems.values() if len(own) >= 4]
    return float(np.sqrt(2 * np.median(spread))) if spread else 0.06


def text(
    tables: Mapping[str, Mapping[str, tuple[tuple[float, float], int]]], seen: Mapping[str, Iterable[str]], pairs: float
) -> str:
    """The file: ranges by quantity and class, accelerators with rows of each quantity, and how far pairs lie apart."""
    lines = ["# Where measured over predicted lies on rows left out of the fit: meshwright calibrate --published.", ""]
    lines += ["[seen]", *(f"{quantity} = {json.dumps(sorted(set(parts)))}" for quantity, parts in seen.items()), ""]
    for quantity, found in tables.items():
        for name, ((low, high), rows) in found.items():
            lines += [f'[{quantity}."{name}"]', f"log_ratio = [{low:.4f}, {high:.4f}]", f"rows = {rows}", ""]
    lines += ["[pairs]", f"log_difference = {pairs:.4f}", ""]
    return "\n".join(lines)
