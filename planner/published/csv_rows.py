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
MOST_CELL_CHARACTERS = 4_000
LARGEST_NUMBER = 1e15
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_ADORNED = re.compile(
    r"[~≈]?\s*(?P<number>[+-]?[\d.,]*\d\.?(?:[eE][+-]?\d{1,3})?)(?P<many>\s?[kKM](?![A-Za-z]))?\s*(?P<unit>[^(±]*?)\s*"
    r"(?:±.*|\+/-.*|\(.*)?", re.DOTALL,
)  # fmt: skip
_HOSTS = re.compile(r"(\d{1,6})\s*(?:node|host|server)s?", re.IGNORECASE)
_TOKENS = re.compile(r"(.*?\d[ kKM]*)\s*tok(?:en)?s?|([~≈]?\s*[\d.,]+\s?M)", re.IGNORECASE)
_PRODUCT = re.compile(r"(\d{1,6})\s*(?:nodes?|hosts?)?\s*[xX*×]\s*(\d{1,6})\s*[a-z]*", re.IGNORECASE)
_OFF = r"(?:none|no|off|false|disabled?|0)"
_SAYS_OFF = re.compile(rf"(?:{_OFF}|without|not)(?![a-z0-9]).*|.*[\s:=(]{_OFF}\)?", re.IGNORECASE | re.DOTALL)
_NOT_STATED = re.compile(
    r"(?:not (?:stated|given|known|reported|specified|available)|unknown|unspecified|unclear)\b.*",
    re.IGNORECASE | re.DOTALL,
)
_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2212", "-") | {"\u00a0": " ", "\u202f": " "})
KILO = {"k": 1024, "m": 1024**2}
THOUSAND = {"k": 1e3, "m": 1e6}
_DEVICES = (
    r"(?:x|NVIDIA|AMD|AWS|Google)?\s*(?:TPU\s*)?(?:[A-Z]+\d\w*\s*)?"
    r"(?:GPU|GCD|device|accelerator|card|chip|XPU|NPU|TPU|(?:Neuron\s?)?core|rank)?s?"
)
UNITS_OF = {
    "n_gpus": _DEVICES,
    "gpus_per_node": rf"{_DEVICES}(?:\s*(?:per|/|a)[ -]?(?:node|host|server))?",
    "n_nodes": r"(?:node|host|server)s?",
    "seq_len": r"-?(?:token|tok)s?",
    "global_batch": r"(?:sequence|seq|sample|example)s?",
    "micro_batch": r"(?:sequence|seq|sample|example)s?",
    "tp": "-?way", "pp": "-?way|(?:pipeline )?stages?", "cp": "-?way", "ep": "-?way",
}  # fmt: skip
"""Words that may stand behind the number of a column, which count what the column counts."""
DEGREES = ("tp", "pp", "cp", "ep")
_UNSPLIT = re.compile(rf"{_OFF}|not used|unused|without|dense", re.IGNORECASE)
"""Words of a degree that split nothing."""
_AT_MOST = re.compile(r"(?:up to|at most|max(?:imum)?\.?(?: of)?|<=|≤)\s*", re.IGNORECASE)
_PER_DEVICE = re.compile(r"(.*?\S)\s*(?:per|/|a)[ -]?(?:GPU|device|accelerator|chip|TPU|NPU|GCD|rank)s?", re.IGNORECASE)
THE_REST = "-1"
"""A degree that launchers fill themselves."""
NOT_STATED = {"-", "--", "–", "—", "?", "n/a", "na", "nan", "null", "tbd"}
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
    names = [re.sub(r"[\s-]+", "_", name.strip().lower()) for name in header]
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
        for count, cells in enumerate(
            csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_separator(text))
        ):
            if count > MOST_ROWS:
                raise BadInput(f"{path} has more than {MOST_ROWS:,} rows, the limit; split it")
            yield cells
    except csv.Error as error:
        raise BadInput(f"{path} is not CSV: {error}") from error


def _separator(text: str) -> str:
    """What stands between the header's names: a comma, or a tab or semicolon where it has no comma."""
    header = text.partition("\n")[0]
    return next((mark for mark in (",", "\t", ";") if mark in header), ",")


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
    stripped = (cell.translate(_DASHES).strip() for cell in cells)
    return {name: "" if _says_nothing(cell) else cell for name, cell in zip(names, stripped, strict=True)}


def _says_nothing(cell: str) -> bool:
    return cell.lower() in NOT_STATED or bool(_NOT_STATED.fullmatch(cell))


def _check_ids(rows: tuple[Row, ...], path: str | Path) -> None:
    seen: set[str] = set()
    for row in rows:
        if not row["id"] or row["id"] in seen:
            raise BadInput(f"{path}: every row has an id of its own; {row['id'][:60]!r} is empty or stands twice")
        seen.add(row["id"])


def number(row: Row, column: str, units: str = "%?", times: dict[str, float] | None = None) -> float | None:
    """The cell as a number, ``None`` when it is empty. Raises ``BadInput`` for anything else.

    ``"1,024"``, ``"~10"``, ``"45 %"``, ``"1.2 ± 0.1"`` and ``"8 (2 x 4)"`` are read without what adorns them. ``units``
    is a pattern of what may stand behind the number and ``times`` what letters there multiply it with.
    """
    text = row.get(column, "")
    if not text or text.lower() in NO_NUMBER:
        return None
    found = _ADORNED.fullmatch(text)
    if found is None or not re.fullmatch(units, found["unit"], re.IGNORECASE):
        raise _no_number(row, column)
    bare = _THOUSANDS.sub("", found["number"])
    value = float(bare) if _NUMBER.fullmatch(bare) else math.nan
    if found["many"]:
        value *= (times or {}).get(found["many"].strip().lower(), math.nan)
    if not 0 <= value <= LARGEST_NUMBER:
        raise _no_number(row, column)
    return value


def _no_number(row: Row, column: str) -> BadInput:
    return BadInput(
        f"row {row['id'][:60]!r}: {column} is a number from 0 to {LARGEST_NUMBER:g}; got {row[column][:40]!r}; "
        "leave the cell empty if it is not known"
    )


def whole(row: Row, column: str) -> int | None:
    """The cell as a whole number from 1, ``None`` when it is empty, 0 or -1. Raises ``BadInput`` for anything else.

    ``"4K"`` and ``"up to 4096"`` are 4,096, of devices ``"64 GPUs"``, ``"8 x 8"`` and ``"8 nodes x 8"`` are 64, and a
    degree that is ``"off"`` is 1.
    """
    text = row.get(column, "")
    if text == THE_REST:
        return None
    if column in DEGREES and text != "0" and _UNSPLIT.fullmatch(text):
        return 1
    named = _AT_MOST.match(text) or re.compile(rf"{column}\s*[=:]?\s*", re.IGNORECASE).match(text)
    row = {**row, column: text[named.end() :]} if named else row
    units = rf"(?:{UNITS_OF.get(column, '')})?"
    counted = _devices(row) if column == "n_gpus" else None
    value = number(row, column, units, KILO) if counted is None else counted
    if value is not None and value != int(value):
        raise BadInput(f"row {row['id'][:60]!r}: {column} is a whole number; got {row[column][:40]!r}")
    return int(value) or None if value is not None else None


def _devices(row: Row) -> float | None:
    """Devices of ``"8 x 8"`` and of ``"8 nodes"`` in a row that says how many a host has; else ``None``."""
    text = row.get("n_gpus", "")
    product, hosts = _PRODUCT.fullmatch(text), _HOSTS.fullmatch(text)
    if product:
        return float(int(product[1]) * int(product[2]))
    each = whole(row, "gpus_per_node") if hosts else None
    return float(int(hosts[1]) * each) if hosts and each else None


def batch(row: Row, seq_len: int | None) -> int | None:
    """The global batch in sequences; one in tokens (``"4M tokens"``, ``"4M"``) is the nearest whole number of them."""
    tokens = _TOKENS.fullmatch(row.get("global_batch", ""))
    if tokens is None:
        return whole(row, "global_batch")
    count = number({**row, "global_batch": tokens[1] or tokens[2]}, "global_batch", "", KILO)
    return max(1, round(count / seq_len)) if seq_len and count else None


def per_device(row: Row, column: str) -> Row | None:
    """The row with that cell's ``"64 per GPU"`` as ``"64"``; ``None`` where it is told of no single device."""
    found = _PER_DEVICE.fullmatch(row.get(column, ""))
    return {**row, column: found[1]} if found else None


def in_tokens(row: Row) -> bool:
    """Whether the global batch is told in tokens; millions can be nothing else."""
    text = row.get("global_batch", "")
    return bool(_TOKENS.fullmatch(text) or re.search("tok", text, re.IGNORECASE))


def says_off(words: str) -> bool:
    """Whether the words of a cell say that its column's subject is off: ``"no AC"``, ``"AC: none"``, ``"AC=False"``."""
    return bool(_SAYS_OFF.fullmatch(words))


def noted(row: Row, *names: str) -> float | None:
    """The number after ``name=`` in the notes or flags, of the first name found there; else ``None``."""
    text = " ; ".join((row.get("notes", ""), row.get("other_flags", "")))
    for name in names:
        found = re.search(rf"(?<![\w.]){re.escape(name)}\s*=\s*(\d+(?:\.\d+)?)", text, re.IGNORECASE)
        if found:
            return float(found[1])
    return None
