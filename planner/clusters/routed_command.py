"""``meshwright routes``: the groups of a saved plan on the paths they use, beside the closed form that priced it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.result import Plan


def routes(
    file: Annotated[Path, typer.Argument(help="A plan.json.")],
    cluster: Annotated[str | None, typer.Option("--cluster", "-c", help="Where the cluster's file is now.")] = None,
) -> None:
    """Show what 1 GB takes each kind of group in closed form, routed alone, and with all groups of its kind at once."""
    from planner.clusters.routed import routed, table_lines
    from planner.explanations.mine import inputs_of

    saved = Plan.load(file)
    _, machine = inputs_of(saved, cluster)
    typer.echo("\n".join(table_lines(routed(machine, saved.strategy.strategy()))))
