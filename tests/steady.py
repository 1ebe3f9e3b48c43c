"""Prices that no fit of published steps moves: what plans of small models are premised on.

Tests that say which of two plans wins, or by how much, say so of prices. Under the fitted constants a small model is
whatever the last fit made of it: nothing but launches where an operator takes 77 us of its host's time, a small large
model where it takes 5. A module whose tests do so is marked ``pytest.mark.usefixtures("steady")``.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cost_models import calibration
from cost_models.fitting.rewrite import rewrite

STEPS = ("compute", "stacks")
"""Files whose constants are fitted to whole steps."""
HOST_US = 5.0
"""Host time of an operator, forward and backward: a launch without Python around it."""


@contextmanager
def steady_prices(folder: Path) -> Iterator[None]:
    """Each constant that steps were fitted to is the middle of its prior, which is assumed; ``folder`` keeps them."""
    with _constants(folder, lambda name, row: HOST_US if name == "host_us" else row["prior"][0]):
        yield


@contextmanager
def moved_fit(folder: Path) -> Iterator[None]:
    """Each constant that steps were fitted to is the upper end of its range, as if they had been fitted to others."""
    with _constants(folder, lambda name, row: row["range"][1]):
        yield


@contextmanager
def _constants(folder: Path, value: Callable[[str, dict[str, Any]], float]) -> Iterator[None]:
    shutil.copytree(calibration.FOLDER, folder, ignore=shutil.ignore_patterns("data"))
    for path in (folder / f"{name}.toml" for name in STEPS):
        for table, rows in tomllib.loads(path.read_text(encoding="utf-8")).items():
            fitted = {name: row for name, row in rows.items() if isinstance(row, dict) and row.get("fit")}
            for name, row in fitted.items():
                rewrite(path, table, name, {"value": value(name, row)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "FOLDER", folder)
        calibration.forget()
        yield
    calibration.forget()
