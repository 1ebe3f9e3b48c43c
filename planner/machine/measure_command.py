"""``meshwright measure``: a plan's job run for a few steps, its time and memory beside what was predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli_options import AsJson
from planner.terminal import print_json, show, status_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from planner.machine.measure import Comparison

OTHERS = ("waits", "other collectives", "loss and the rest")
"""Terms that are measured and not predicted."""


def measure(
    plan: Annotated[Path, typer.Argument(help="A plan.json, or the folder that plan --out wrote.")],
    steps: Annotated[int, typer.Option("--steps", min=1, max=1000, help="Timed steps, after two that warm up.")] = 5,
    out: Annotated[
        str | None, typer.Option("--out", help="Directory for measured.json and trace.json. Default: the plan's.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="TCP port to meet on; 0 for a free one.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights and data.")] = 0,
    here: Annotated[
        bool, typer.Option("--here", help="Start the processes of several hosts of processors on this one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a plan's job for a few steps, and set time and memory of every rank beside what was predicted."""
    from planner.machine.measure import measure as run
    from planner.machine.measure import plan_of
    from planner.whole_files import check_writable, write_whole

    folder = Path(out) if out is not None else plan_of(plan).parent
    check_writable(folder)
    with status_line("running the plan's job"):
        found = run(plan, steps=steps, port=port, seed=seed, here=here)
    texts = {
        "measured.json": json.dumps(found.as_json(), indent=2) + "\n",
        "trace.json": json.dumps(found.events) + "\n",
    }
    if as_json:
        print_json(found.as_json())
    else:
        show(measured_view(found))
    for path in write_whole(folder, texts):
        typer.echo(f"wrote {path}", err=as_json)


def measured_view(found: Comparison) -> RenderableType:
    """Step, terms by pipeline rank and peak memory by rank, predicted and measured."""
    from rich.console import Group
    from rich.text import Text

    low, high = found.plan.step_interval_s
    step = found.as_json()["step"]
    head = (
        f"step predicted {1e3 * step['predicted_s']:.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f}), measured "
        f"{1e3 * step['measured_s']:.1f} ms (median of {len(found.step_s)}, spread {step['spread']:.0%}): "
        f"error {step['error']:+.1%}"
    )
    return Group(Text(head), Text(""), _terms_table(found), Text(""), _memory_table(found))


def _terms_table(found: Comparison) -> RenderableType:
    """Milliseconds by term, a pair of columns a pipeline rank: predicted, and the mean of its ranks' observed step."""
    from rich.table import Table

    from planner.machine.predicted_terms import TERMS

    table = Table(
        title="ms of the observed step, predicted and measured, by pipeline rank", title_justify="left", box=None
    )
    table.add_column("term")
    stages = range(len(found.predicted.terms))
    for stage in stages:
        table.add_column(f"{stage}: pred.", justify="right")
        table.add_column("meas.", justify="right")
    for term in (*TERMS, *OTHERS):
        cells = [cell for stage in stages for cell in _cells(found, stage, term)]
        if any(cell not in ("", "0.0") for cell in cells):
            table.add_row(term, *cells)
    return table


def _cells(found: Comparison, stage: int, term: str) -> tuple[str, str]:
    mine = [it.measured.get(term, 0.0) for it in found.ranks if it.pipeline_rank == stage]
    predicted = found.predicted.terms[stage].get(term)
    return "" if predicted is None else f"{1e3 * predicted:.1f}", f"{1e3 * sum(mine) / len(mine):.1f}"


def _memory_table(found: Comparison) -> RenderableType:
    from rich.table import Table

    table = Table(title="peak MB that torch's allocator held, by rank", title_justify="left", box=None)
    for name in ("rank", "pipeline rank", "predicted", "measured", "error"):
        table.add_column(name, justify="right")
    for rank, error in zip(found.ranks, found.memory_errors, strict=True):
        predicted = found.predicted.peak_bytes[rank.pipeline_rank]
        table.add_row(str(rank.rank), str(rank.pipeline_rank), f"{predicted / 1e6:.1f}", f"{rank.peak_bytes / 1e6:.1f}",
                      f"{error:+.1%}")  # fmt: skip
    return table
