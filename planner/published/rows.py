"""Published runs from a CSV file, as cases that can be predicted: the door of this reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from planner.published.csv_rows import Row, Schema, read_table
from planner.published.power import power_case
from planner.published.records import Case
from planner.published.sweep import sweep_case
from planner.published.training import training_case

CASES: dict[Schema, Callable[[Row], Case]] = {"training": training_case, "sweep": sweep_case, "power": power_case}


def read_rows(path: str | Path) -> list[Case]:
    """One case for every row of a file in one of the three schemas, in the file's order.

    A row that lacks something has no job and says what is missing. Raises ``BadInput`` for a file that is
    missing, too big or of another schema, and for a cell that is not what its column holds.
    """
    table = read_table(path)
    return [CASES[table.schema](row) for row in table.rows]
