"""The file of a sweep: one line a case, CSV or JSON lines, that any kill leaves readable.

A line is written by one append, so only the last can be torn. Opening the file again drops a torn line, and rows
whose case ended in an error of the machinery, which are to be tried again; all others count as finished.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import BadInput
from planner.whole_files import replace_whole

COLUMNS = (
    "case", "model", "cluster", "seq_len", "global_batch", "precision", "optimizer", "objective_name", "options",
    "status", "objective", "bound", "gap", "step_s", "tokens_per_s_per_device", "model_flop_utilisation",
    "devices", "devices_used", "tp", "cp", "pp", "dp_replicate", "dp_shard", "ep", "etp", "zero", "micro_batch",
    "micro_batches", "schedule", "virtual_stages", "layers_per_stage", "recomputed_layers",
    "memory_bytes", "memory_limit_bytes", "memory_headroom_fraction", "watts", "joules_per_step", "joules_per_token",
    "usd_per_step", "usd_per_billion_tokens", "search_s", "reason", "error", "meshwright_version",
)  # fmt: skip
AGAIN = "error"
"""The status of a case that says nothing about the case: it is tried again when the sweep goes on."""
LONGEST_TEXT = 2000
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """An open file of results; ``finished`` are the cases that it held when it was opened."""

    path: Path
    descriptor: int
    finished: frozenset[str]

    def append(self, row: Row) -> None:
        """Write one row by one system call, and wait until it is on the disk."""
        line = _encoder(self.path)(row)
        try:
            written = os.write(self.descriptor, line)
            os.fsync(self.descriptor)
        except OSError as error:
            raise BadInput(f"{self.path} cannot be written: {error.strerror}") from error
        if written < len(line):
            raise BadInput(f"{self.path} cannot be written: {written} of {len(line)} bytes of a row fit on the disk")


@contextmanager
def opened(path: Path, *, resume: bool) -> Iterator[Table]:
    """The table at ``path``, made or repaired, locked against a second sweep until it is left.

    Raises ``BadInput`` for a file that no sweep wrote, that cannot be written, or that another sweep writes now.
    """
    _encoder(path)
    try:
        rows = _repaired(path, resume)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    except OSError as error:
        raise BadInput(f"{path} cannot be opened for a sweep's results: {error.strerror}") from error
    try:
        _lock(path, descriptor)
        if not resume:
            os.ftruncate(descriptor, 0)
        if os.fstat(descriptor).st_size == 0:
            os.write(descriptor, _header(path))
        yield Table(path, descriptor, frozenset(row["case"] for row in rows))
    finally:
        os.close(descriptor)


def _lock(path: Path, descriptor: int) -> None:
    with suppress(ImportError):  # no such locks on Windows
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BadInput(f"{path} is being written by another sweep; wait for it or give another file") from error


def _repaired(path: Path, resume: bool) -> list[Row]:
    """The finished rows of an existing file, of which nothing else is left; not to ``resume``, none, untouched."""
    if not path.exists():
        return []
    if not path.is_file():
        raise BadInput(f"{path} is a directory or a device; give the name of a file")
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if not whole and not _begins_a_table(path, content):
        raise BadInput(f"{path} was not written by a sweep; give another file")
    rows = _decoded(path, whole)
    if not resume:
        return []
    finished = list({row["case"]: row for row in rows if row["status"] != AGAIN}.values())
    if whole != content or len(finished) < len(rows):
        _replace(path, finished)
    return finished


def _replace(path: Path, rows: list[Row]) -> None:
    """Write the file anew and put it in its place."""
    replace_whole(path.parent, {path.name: _header(path) + b"".join(map(_encoder(path), rows))})


def _begins_a_table(path: Path, torn: bytes) -> bool:
    """Whether a file without one whole line can be the torn beginning of a table."""
    if not _is_json(path):
        return _header(path).startswith(torn)
    start = b'{"case": "'
    return torn.startswith(start) or start.startswith(torn)


def _decoded(path: Path, whole: bytes) -> list[Row]:
    """Rows of whole lines. Raises ``BadInput`` naming the first line that is none."""
    try:
        text = whole.decode("utf-8")
        found = _json_rows(text) if _is_json(path) else _csv_rows(text)
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise BadInput(f"{path} was not written by a sweep ({str(error)[:120]}); give another file") from error
    return found


def _json_rows(text: str) -> list[Row]:
    rows = [json.loads(line) for line in text.splitlines()]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or tuple(row) != COLUMNS:
            raise ValueError(f"line {number} does not hold the fields of this version's rows")
    return rows


def _csv_rows(text: str) -> list[Row]:
    lines = list(csv.reader(io.StringIO(text, newline="")))
    for number, line in enumerate(lines, 1):
        if len(line) != len(COLUMNS) or (number == 1 and tuple(line) != COLUMNS):
            raise ValueError(f"line {number} does not hold the columns of this version's rows")
    return [dict(zip(COLUMNS, line, strict=True)) for line in lines[1:]]


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".ndjson")


def _encoder(path: Path):
    """What makes a row a line. Raises ``BadInput`` for a file name that tells neither format."""
    if _is_json(path):
        return _json_line
    if path.suffix.lower() == ".csv":
        return _csv_line
    raise BadInput(f"--out {str(path)[:200]!r} must end in .csv, or .jsonl for JSON lines")


def _header(path: Path) -> bytes:
    return b"" if _is_json(path) else _csv_line(dict(zip(COLUMNS, COLUMNS, strict=True)))


def _json_line(row: Row) -> bytes:
    ordered = {name: _one_line(row.get(name)) for name in COLUMNS}
    return (json.dumps(ordered, allow_nan=False) + "\n").encode()


def _csv_line(row: Row) -> bytes:
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\n").writerow(_one_line(row.get(name)) for name in COLUMNS)
    return line.getvalue().encode("utf-8")


def _one_line(value: Any) -> Any:
    """Text without line breaks or other characters that do not print, of bounded length; other values as they are."""
    if not isinstance(value, str):
        return value
    printed = "".join(c if c.isprintable() else " " for c in value)
    return printed if len(printed) <= LONGEST_TEXT else printed[: LONGEST_TEXT - 3] + "..."
