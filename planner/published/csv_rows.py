"""A CSV file of published runs as rows of text, and which of the three schemas it follows."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from topologies.errors import BadInput

Schema = Literal["training", "sweep", "power"]
Row = dict[str, str]

LARGEST_FILE_BYTES = 64_000_000
MOST_ROWS = 200_000
MOST_CELL_CHARACTERS = 20_000
LARGEST_NUMBER = 1e15
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_KILO = re.compile(r"(\d{1,6})\s?[kK]")
_ADORNED = re.compile(r"[~≈]?\s*(.*?)\s*%?", re.DOTALL)
_OFF = r"(?:none|no|off|false|disabled?|0)"
_SAYS_OFF = re.compile(rf"(?:{_OFF}|without|not)(?![a-z0-9]).*|.*[\s:=(]{_OFF}\)?", re.IGNORECASE | re.DOTALL)
THE_REST = "-1"
"""A degree that launchers fill themselves."""
NOT_STATED = {"-", "--", "–", "—", "?", "n/a", "na", "nan", "null", "not stated", "unknown", "tbd"}
"""Words for an empty cell, in lower case; in a cell of numbers also :data:`NO_NUMBER`."""
NO_NUMBER = {"none", "auto"}

NEEDED: dict[Schema, tuple[str, ...]] = {
    "training": ("id", "model", "accelerator", "n_gpus", "metric_kind", "metric_value"),
    "sweep": ("id", "n_gpus", "global_batch", "micro_batch", "hidden", "heads", "layers", "seq_len",
              "tp", "dp", "pp", "iter_time_ms"),
    "power": ("id", "workload", "accelerator", "n_nodes", "mean_node_w"),
}  # fmt: skip
"""Columns that make a schema; the others may be missing and then count as empty."""


@dataclass(frozen=True)
class Table:
    """The rows of one file, every cell stripped, and the file's schema."""

    schema: Schema
    rows: tuple[Row, ...]


def read_table(path: str | Path) -> Table:
    """The rows of a CSV file in one of the three schemas.

    Raises ``BadInput`` for a file that is missing, too big, not text, of another schema or with ragged rows.
    """
    lines = list(_records(_text(Path(path)), path))
    if not lines:
        raise BadInput(f"{path} is empty; a file of runs starts with a header: {_schemas()}")
    header, *body = lines
    names = [name.strip() for name in header]
    schema = _schema(names, path)
    rows = tuple(_row(names, cells, line, path) for line, cells in enumerate(body, start=2) if any(cells))
    _check_ids(rows, path)
    return Table(schema, rows)


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise BadInput(f"{path} is not a file; give the path of a CSV file of runs")
        size = path.stat().st_size
        if size > LARGEST_FILE_BYTES:
            raise BadInput(f"{path} is {size:,} bytes; a file of runs is at most {LARGEST_FILE_BYTES:,}")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{str(path)[:200]!r} is no path: {error}") from error


def _records(text: str, path: str | Path):
    try:
        for count, cells in enumerate(csv.reader(io.StringIO(text, newline=""), strict=True)):
            if count > MOST_ROWS:
                raise BadInput(f"{path} has more than {MOST_ROWS:,} rows, the limit; split it")
            yield cells
    except csv.Error as error:
        raise BadInput(f"{path} is not CSV: {error}") from error


def _schema(names: list[str], path: str | Path) -> Schema:
    for schema, needed in NEEDED.items():
        if set(needed) <= set(names):
            if len(set(names)) != len(names):
                raise BadInput(f"{path}: columns must have different names; the header is {', '.join(names)[:300]}")
            return schema
    raise BadInput(f"{path} has columns {', '.join(names)[:300]!r}, which are no known schema: {_schemas()}")


def _schemas() -> str:
    return "; ".join(f"{schema} needs {', '.join(needed)}" for schema, needed in NEEDED.items())


def _row(names: list[str], cells: list[str], line: int, path: str | Path) -> Row:
    if len(cells) != len(names):
        raise BadInput(f"{path}, row {line}: a row has the header's {len(names)} cells; this one has {len(cells)}")
    if max(map(len, cells)) > MOST_CELL_CHARACTERS:
        raise BadInput(f"{path}, row {line}: a cell has at most {MOST_CELL_CHARACTERS:,} characters")
    stripped = (cell.strip() for cell in cells)
    return {name: "" if cell.lower() in NOT_STATED else cell for name, cell in zip(names, stripped, strict=True)}


def _check_ids(rows: tuple[Row, ...], path: str | Path) -> None:
    seen: set[str] = set()
    for row in rows:
        if not row["id"] or row["id"] in seen:
            raise BadInput(f"{path}: every row has an id of its own; {row['id'][:60]!r} is empty or stands twice")
        seen.add(row["id"])


def number(row: Row, column: str) -> float | None:
    """The cell as a number, ``None`` when it is empty. Raises ``BadInput`` for anything else.

    ``"1,024"``, ``"~10"`` and ``"45 %"`` are read without what adorns them.
    """
    text = row.get(column, "")
    if not text or text.lower() in NO_NUMBER:
        return None
    bare = _THOUSANDS.sub("", _ADORNED.fullmatch(text)[1])
    value = float(bare) if _NUMBER.fullmatch(bare) else math.nan
    if not 0 <= value <= LARGEST_NUMBER:
        raise BadInput(
            f"row {row['id'][:60]!r}: {column} is a number from 0 to {LARGEST_NUMBER:g}; got {text[:40]!r}; "
            "leave the cell empty if it is not known"
        )
    return value


def whole(row: Row, column: str) -> int | None:
    """The cell as a whole number from 1, ``None`` when it is empty, 0 or -1; ``"4K"`` is 4,096. Else ``BadInput``."""
    text = row.get(column, "")
    if text == THE_REST:
        return None
    kilo = _KILO.fullmatch(text)
    value = float(kilo[1]) * 1024 if kilo else number(row, column)
    if value is not None and value != int(value):
        raise BadInput(f"row {row['id'][:60]!r}: {column} is a whole number; got {row[column][:40]!r}")
    return int(value) or None if value is not None else None


def says_off(words: str) -> bool:
    """Whether the words of a cell say that its column's subject is off: ``"no AC"``, ``"AC: none"``, ``"AC=False"``."""
    return bool(_SAYS_OFF.fullmatch(words))


def noted(row: Row, *names: str) -> float | None:
    """The number after ``name=`` in the notes or flags, of the first name found there; else ``None``."""
    text = " ; ".join((row.get("notes", ""), row.get("other_flags", "")))
    for name in names:
        found = re.search(rf"(?<![\w.]){re.escape(name)}\s*=\s*(\d+(?:\.\d+)?)", text)
        if found:
            return float(found[1])
    return None
