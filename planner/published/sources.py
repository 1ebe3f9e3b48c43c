"""How a source of published runs is read: which software made it, in which release, and what it counts."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from planner.published.csv_rows import Row, whole
from planner.published.records import Meter, Rank
from topologies.catalogue import read_toml

SOURCES = Path(__file__).with_name("sources.toml")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_YEAR = re.compile(r"(?<!\d)20\d\d")
_MONTH = re.compile(
    rf"\b(?P<name>{'|'.join(MONTHS)})|{_YEAR.pattern}[-/.](?P<behind>\d\d?)(?!\d)|"
    r"(?<![\d/.-])(?P<ahead>\d\d?)[-/.]20\d\d",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Source:
    """The conventions of one source; see ``sources.toml`` for the fields."""

    prefix: str
    stack: str
    releases: tuple[str, ...]
    memory_unit_bytes: float
    meter: Meter
    tflops: str
    rank: Rank | None = None
    release: str = ""
    local_batch: bool = False
    lists_compile: bool = False
    lists_engine: bool = False
    cuts_models: bool = False
    precision: str = ""
    listed: bool = True


def source_prefix(identity: str) -> str:
    """The source's name: the letters of an id before its first dash."""
    return identity.split("-", 1)[0]


def source_of(row: Row) -> Source:
    """The conventions for this row; of a source that is not listed those of the stack that its row's words name."""
    entry = _entries().get(source_prefix(row["id"]))
    found, text = _source(entry or _unlisted(row)), row_text(row)
    if entry is None:
        counted = "hardware" if _before(row, _table()["model_flop_since"]) else found.tflops
        found = replace(found, prefix=source_prefix(row["id"]), listed=False, tflops=counted)
    for rule in (entry or {}).get("when", ()):
        if re.search(rule["text"], text, re.IGNORECASE):
            found = replace(found, stack=rule["stack"], tflops=rule.get("tflops", found.tflops))
    return replace(found, release=found.release or _release(found, row))


def _before(row: Row, month: str) -> bool:
    """Whether the row's date, a year or a year and month, is before ``month``; an unclear one is not."""
    date = _year_and_month(row.get("date", ""))
    return date < month[: len(date)]


def _year_and_month(text: str) -> str:
    """``"2021-06"`` of ``"June 2021"``, ``"2021/6"`` and ``"06/2021"``, ``"2021"`` of a year alone; else empty."""
    year, month = _YEAR.search(text), _MONTH.search(text)
    if not (year and month):
        return year[0] if year else ""
    number = MONTHS.index(month["name"].lower()) + 1 if month["name"] else int(month["behind"] or month["ahead"])
    return f"{year[0]}-{number:02}"


def row_text(row: Row) -> str:
    """Flags, source and model of a row, where its stack shows."""
    return " | ".join(row.get(name, "") for name in ("other_flags", "source", "model", "accelerator"))


def _release(source: Source, row: Row) -> str:
    cells = [row.get(name, "") for name in ("source", "other_flags", "notes", "model", "date")]
    for cell in cells:
        for pattern in source.releases:
            found = re.search(pattern, cell, re.IGNORECASE)
            if found:
                return found[1]
    return row.get("date", "")


def _source(entry: dict) -> Source:
    return Source(
        prefix=entry.get("prefix", ""),
        stack=entry["stack"],
        releases=tuple(entry["releases"]),
        memory_unit_bytes=float(entry["memory"]["bytes"]),
        meter=entry["memory"]["meter"],
        rank=entry["memory"].get("rank"),
        tflops=entry["tflops"],
        release=entry.get("release", ""),
        local_batch=entry.get("local_batch", False),
        cuts_models=entry.get("cuts_models", False),
        lists_compile=entry.get("lists_compile", False),
        lists_engine=entry.get("lists_engine", False),
        precision=entry.get("precision", ""),
    )


def _unlisted(row: Row) -> dict:
    text = " | ".join((row_text(row), row.get("zero_or_fsdp_stage", "")))
    fitting = (entry for entry in _table()["unlisted"] if re.search(entry["text"], text, re.IGNORECASE))
    return _table()["unlisted_as"] | next(entry for entry in fitting if _is_of(entry, row))


def _is_of(entry: dict, row: Row) -> bool:
    """Whether the row is old enough for the entry, and has no pipeline where the entry has none.

    Raises ``BadInput`` for a ``pp`` that is no number.
    """
    if not entry.get("pipelined", True) and (whole(row, "pp") or 1) > 1:
        return False
    return "before" not in entry or _before(row, entry["before"])


@lru_cache(maxsize=1)
def _entries() -> dict[str, dict]:
    return {entry["prefix"]: entry for entry in _table()["source"]}


@lru_cache(maxsize=1)
def _table() -> dict:
    return read_toml(SOURCES)
