"""``meshwright emulate``: plans measured on clusters of network namespaces; needs root."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.errors import BadInput
from planner.terminal import show

if TYPE_CHECKING:
    from rich.console import RenderableType

    from planner.emulated.ranking import Row, Score

NETWORKS = "2x1-100mbit,2x1-1gbit,4x1-100mbit,4x1-1gbit"


def emulate(
    out: Annotated[str, typer.Option("--out", help="Directory of the study; said again, it goes on there.")] = "study",
    networks: Annotated[str, typer.Option("--networks", help="HOSTSxRANKS-RATE, several joined by commas.")] = NETWORKS,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=99, help="Times that everything is run.")] = 3,
    steps: Annotated[int, typer.Option("--steps", min=1, max=999, help="Timed steps of a run.")] = 4,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0, help="Start no run after so many; 0: only report.")
    ] = 3600,
) -> None:
    """Build small clusters of network namespaces (as root), calibrate and plan on them, run ten strategies of three
    models, and report how predictions rank what was measured."""
    import math
    import time

    from planner.emulated.network import Network, check_allowed
    from planner.emulated.study import Study
    from planner.machine.local_job import need_torch
    from planner.whole_files import check_writable

    if math.isnan(seconds):
        raise BadInput(f"--seconds {seconds} is no time; say 0 or more")
    check_writable(Path(out))
    wanted = [Network.of(text.strip()) for text in networks.split(",")]
    study = Study(Path(out), rounds, steps)
    end = time.monotonic() + seconds
    if seconds > 0:
        need_torch("emulate")
        check_allowed()
    for network in wanted if seconds > 0 else ():
        if (left := end - time.monotonic()) > 0:
            missing = study.go_on(network, left, lambda line: typer.echo(line, err=True))
            typer.echo(f"{network.name}: {missing} runs missing", err=True)
    _report(study, wanted)


def _report(study, wanted: list) -> None:
    from planner.emulated.ranking import rows_of, score
    from planner.emulated.study import strategies
    from planner.whole_files import write_whole

    plans = {
        (it.name, case.name, pins): study.folder / it.name / "plans" / f"{case.name}-{k}.json"
        for it in wanted
        for case, k, pins in strategies(it)
    }
    runs = [run for it in wanted for run in study.planned_runs(it)]
    rows = rows_of(runs, plans, study.rounds)
    scores = [score(name, rows) for name in dict.fromkeys(row.network for row in rows)]
    if rows:
        found = {"scores": [asdict(it) for it in scores], "rows": [asdict(it) for it in rows]}
        write_whole(study.folder, {"scores.json": json.dumps(found, indent=2) + "\n"})
    show(scores_view(scores))
    show(rows_view(rows))


def scores_view(scores: list[Score]) -> RenderableType:
    """A line a network."""
    from rich.table import Table

    table = Table(box=None)
    for name in ("network", "strategies", "pairs told apart", "in order", "worst regret", "time error", "memory error"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for it in scores:
        regret = max(it.regrets.values(), default=0.0)
        table.add_row(it.network, str(it.rows), str(it.pairs), f"{it.in_order:.1%}", f"{regret:.1%}",
                      f"{it.median_time_error:.1%}", f"{it.median_memory_error:.1%}")  # fmt: skip
    return table


def rows_view(rows: list[Row]) -> RenderableType:
    """A line a strategy, quickest first in its case."""
    from rich.table import Table

    table = Table(box=None)
    for name in ("network", "case", "strategy", "predicted ms", "measured ms", "spread", "memory"):
        table.add_column(name, justify="left" if name in ("network", "case", "strategy") else "right")
    for row in sorted(rows, key=lambda row: (row.network, row.case, row.measured_s)):
        worst = max(row.memory_errors, key=abs, default=0.0)
        times = f"{1e3 * row.predicted_s:.0f}", f"{1e3 * row.measured_s:.0f}", f"{row.spread:.0%}"
        table.add_row(row.network, row.case, row.strategy, *times, f"{worst:+.1%}")
    return table
