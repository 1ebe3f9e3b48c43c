"""Published runs from a CSV file, as cases that can be predicted: the door of this reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from planner.published.csv_rows import Row, Schema, read_table
from planner.published.power import power_case
from planner.published.records import Case
from planner.published.sources import source_prefix
from planner.published.sweep import sweep_case
from planner.published.training import training_case
from topologies.errors import BadInput

DATA = Path(__file__).parent / "data"
CARRIED = tuple(DATA / name for name in ("training_runs.csv", "sweep_gpt_a100.csv", "power_runs.csv"))
"""The published runs that meshwright carries, a file for each schema."""
CASES: dict[Schema, Callable[[Row], Case]] = {"training": training_case, "sweep": sweep_case, "power": power_case}


def read_rows(path: str | Path) -> list[Case]:
    """One case for every row of a file in one of the three schemas, in the file's order.

    A row that lacks something, or has a cell that is not what its column holds, has no job and says why. Raises
    ``BadInput`` for a file that is missing, too big or of another schema.
    """
    table = read_table(path)
    return [_read(row, CASES[table.schema]) for row in table.rows]


def _read(row: Row, case: Callable[[Row], Case]) -> Case:
    try:
        return case(row)
    except BadInput as error:
        names = source_prefix(row["id"]), row.get("model") or row.get("workload", ""), row.get("accelerator", "")
        return Case(row["id"], *names, kind="dense", layout="", measured=(), job=None, missing=str(error))
