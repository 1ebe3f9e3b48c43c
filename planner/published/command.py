"""``meshwright validate``: rows read, predicted, written line by line, and reported on."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from planner.errors import BadInput
from planner.published.records import UNITS, Case, Prediction, Quantity
from planner.published.report import Report, report
from planner.published.scores import set_of
from planner.whole_files import write_whole

COLUMNS = ("id", "quantity", "measured", "predicted", "low", "high", "unit", "reason")
Progress = Callable[[int, int], None]
"""Called with the rows done and the rows in all."""


def validate(
    files: Sequence[Path] = (),
    *,
    out: str | None = None,
    sources: str | None = None,
    worst: int = 0,
    progress: Progress = lambda done, total: None,
) -> Report:
    """One report on the rows of ``files``, by default those that meshwright carries; every line goes to ``out``.

    ``sources`` names prefixes, comma between, to predict and report on; the baseline still learns from all
    rows. Raises ``BadInput`` for a file that cannot be read or written, before anything is predicted.
    """
    from planner.published import predict as models
    from planner.published.rows import CARRIED

    files = files or CARRIED
    target = _target(out, files)
    cases = _cases(files)
    chosen = _chosen(cases, sources)
    predicted = models.predict(chosen, progress=progress)
    lines, apart = complete(chosen, predicted), models.left_out(chosen, predicted)
    if target is not None:
        write_csv(target, lines)
    return report(cases, lines, None if apart is None else complete(chosen, apart), worst)


def _cases(files: Sequence[Path]) -> list[Case]:
    """The rows of all files, one file after the other, no id twice."""
    from planner.published.rows import read_rows

    cases: dict[str, Case] = {}
    for path in files:
        read = {case.id: case for case in read_rows(_readable(path))}
        if not read:
            raise BadInput(f"{str(path)!r} has no rows below its header; name a file with at least one")
        if twice := cases.keys() & read.keys():
            raise BadInput(f"{str(path)!r}: every row has an id of its own; {min(twice)[:60]!r} is in another file too")
        cases |= read
    return list(cases.values())


def complete(cases: Iterable[Case], predictions: Iterable[Prediction]) -> list[Prediction]:
    """A line per row and quantity that was measured or predicted, in the order of ``cases``; no row without a line."""
    known = {(line.case.id, line.quantity): line for line in predictions}
    lines = []
    for case in cases:
        measured = {one.quantity: one.value for one in reversed(case.measured)}
        own = [quantity for quantity in UNITS if quantity in measured or (case.id, quantity) in known]
        lines += [_line(case, q, measured.get(q), known.get((case.id, q))) for q in own or ["step_s"]]
    return lines


def _line(case: Case, quantity: Quantity, measured: float | None, known: Prediction | None) -> Prediction:
    if known is not None and (known.predicted is not None or known.reason):
        return known
    return Prediction(
        case, quantity, measured, None, None, None, case.missing or f"the models give no {quantity} of it"
    )


def write_csv(path: Path, lines: Iterable[Prediction]) -> None:
    """Write ``lines``, so that a reader never sees half a file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_cells(line) for line in lines)
    write_whole(path.parent, {path.name: text.getvalue()})


def _cells(line: Prediction) -> tuple[str, ...]:
    figures = (line.measured, line.predicted, line.low, line.high)
    return line.case.id, line.quantity, *map(_number, figures), UNITS[line.quantity], line.reason


def _number(value: float | None) -> str:
    """Six significant digits, or nothing."""
    return "" if value is None else f"{value:.6g}"


def _readable(path: Path) -> Path:
    if not path.is_file():
        raise BadInput(f"{str(path)!r} is no file; name a CSV file of training, sweep or power runs")
    return path


def _target(out: str | None, files: Sequence[Path]) -> Path | None:
    """The file of ``--out``. Raises ``BadInput`` where it cannot be written."""
    if out is None:
        return None
    if not out or "\0" in out:
        raise BadInput(f"--out {out!r} is no file name; name a CSV file to write")
    path = Path(os.path.realpath(out))
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise BadInput(f"--out {out!r} is no regular file; name a CSV file to write")
    if path.exists() and any(read.exists() and path.samefile(read) for read in files):
        raise BadInput(f"--out {out!r} is the file that is read; name another one")
    _try_to_write(path)
    return path


def _try_to_write(path: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists():
            with path.open("ab"):
                pass
    except OSError as error:
        raise BadInput(
            f"cannot write the predictions to {str(path)!r}: {error.strerror}; name a file in a folder you may write to"
        ) from error


def _chosen(cases: Sequence[Case], sources: str | None) -> list[Case]:
    """The rows of the sources named, by prefix or set; all where none is."""
    if sources is None:
        return list(cases)
    names = {name.strip() for name in sources.split(",") if name.strip()}
    there = {case.source for case in cases} | {set_of(case) for case in cases}
    if not names or names - there:
        wrong = ", ".join(sorted(names - there)) or sources
        raise BadInput(f"--source {wrong[:80]!r} is no source in this file; there are: {', '.join(sorted(there))}")
    return [case for case in cases if {case.source, set_of(case)} & names]
