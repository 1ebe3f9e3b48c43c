"""How well collectives are foreseen that their constants were not fitted to: every place fitted again without them.

What is left out, of one place and operation at a time, of messages of 64 KiB and more (smaller ones stay in the fits):

    interior sizes   every second power of two, then the others; each source keeps its smallest and largest
    largest sizes    the two largest powers of two of every source that has four
    group sizes      all times of groups of one size, each size in turn
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.fitting.collectives import Floats, Place, Tables, Times, fit, places, refit

LEAST_BYTES = 65536
SWITCHED = ("ampere", "hopper", "blackwell")
"""Families whose hosts have NVSwitch; the others inside a host hang on PCIe."""
SPLITS = {"interior sizes": (0.10, 0.12), "largest sizes": (0.15, 0.15), "group sizes": (0.15, 0.15)}
"""What may be left out, and the mean error to stay below inside a host and between hosts."""
FEWEST_SIZES = 4


@dataclass(frozen=True)
class LeftOut:
    """Relative errors, one a time, in the fit of everything and in those without what each split leaves out."""

    place: Place
    in_sample: Floats
    outside: dict[str, Floats]


def left_out_table(tables: Tables | None = None) -> list[LeftOut]:
    """Of every place with NVSwitch and between hosts; ``tables`` is the fit of everything, made where not given."""
    known = tables or refit()
    judged = [place for place in places() if not place.inside or place.name in SWITCHED]
    return [left_out(place, known) for place in judged]


def left_out(place: Place, tables: Tables) -> LeftOut:
    """The errors of one place."""
    times = place.times()
    kept = times.bytes >= LEAST_BYTES
    outside = {
        split: np.concatenate([np.zeros(0), *(_unseen(place, tables, times, out) for out in folds(times, split))])
        for split in SPLITS
    }
    return LeftOut(place, _errors(place, tables, times.where(kept)), outside)


def folds(times: Times, split: str) -> Iterator[NDArray[np.bool_]]:
    """Which times to leave out together; none where nothing would be left to fit to, or nothing to judge."""
    for out in _FOLDS[split](times):
        if (out & (times.bytes >= LEAST_BYTES)).any() and not out.all():
            yield out


def _interior(times: Times) -> Iterator[NDArray[np.bool_]]:
    power = _powers(times)
    inner = np.ones(len(power), dtype=bool)
    for own in _sources(times):
        inner &= ~(own & ((power == power[own].min()) | (power == power[own].max())))
    yield from (inner & (power % 2 == odd) for odd in (0, 1))


def _largest(times: Times) -> Iterator[NDArray[np.bool_]]:
    power, out = _powers(times), np.zeros(len(times.us), dtype=bool)
    for own in _sources(times):
        if len(np.unique(power[own])) >= FEWEST_SIZES:
            out |= own & (power >= power[own].max() - 1)
    yield out


def _groups(times: Times) -> Iterator[NDArray[np.bool_]]:
    members = times.inner * times.outer
    yield from (members == size for size in np.unique(members))


_FOLDS = {"interior sizes": _interior, "largest sizes": _largest, "group sizes": _groups}


def _unseen(place: Place, tables: Tables, times: Times, out: NDArray[np.bool_]) -> Floats:
    """Errors on what is left out of the fit."""
    row = fit(times.where(~out), tables, place, "")
    return _errors(place, place.with_row(tables, row), times.where(out & (times.bytes >= LEAST_BYTES)))


def _errors(place: Place, tables: Tables, times: Times) -> Floats:
    return np.abs(place.predicted_us(times, tables) / times.us - 1)


def _powers(times: Times) -> NDArray[np.int64]:
    return np.round(np.log2(times.bytes)).astype(np.int64)


def _sources(times: Times) -> Iterator[NDArray[np.bool_]]:
    yield from (times.source == name for name in np.unique(times.source))


def table_lines(found: list[LeftOut]) -> list[str]:
    """The table in Markdown: a line a place and operation, mean errors in per cent, then the means over all times."""
    lines = [
        "| where | operation | times | in sample | " + " | ".join(SPLITS) + " |",
        "| --- " * (4 + len(SPLITS)) + "|",
    ]
    for inside, title in ((True, "all NVSwitch hosts"), (False, "all between hosts")):
        mine = [one for one in found if one.place.inside == inside]
        if not mine:
            continue
        lines += [_line(one.place.name, ", ".join(one.place.operations), [one]) for one in mine]
        lines.append(_line(f"**{title}**", "all", mine))
        lines.append(_targets(inside))
    return lines


def mean_errors(found: list[LeftOut]) -> dict[str, float]:
    """The mean over all times of some places, by split; not a number where a split leaves nothing out."""
    return {split: _mean([one.outside[split] for one in found]) for split in SPLITS}


def _line(where: str, operation: str, found: list[LeftOut]) -> str:
    times = sum(len(one.in_sample) for one in found)
    values = [_mean([one.in_sample for one in found]), *mean_errors(found).values()]
    shown = ("-" if np.isnan(value) else f"{100 * value:.1f}" for value in values)
    return f"| {where} | {operation.replace('_', '-')} | {times:,} | " + " | ".join(shown) + " |"


def _targets(inside: bool) -> str:
    most = (f"{100 * limits[0 if inside else 1]:.0f}" for limits in SPLITS.values())
    return "| target | | | | " + " | ".join(f"<= {limit}" for limit in most) + " |"


def _mean(errors: list[Floats]) -> float:
    every = np.concatenate([np.zeros(0), *errors])
    return float(every.mean()) if len(every) else float("nan")
