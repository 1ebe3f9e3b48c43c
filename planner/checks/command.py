"""``meshwright verify``: a saved plan of either kind, checked by other code than the search's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.errors import BadInput

if TYPE_CHECKING:
    from planner.checks.verify import Report
    from planner.mixed.result import MixedPlan
    from planner.result import Plan


def verify(
    file: Annotated[Path, typer.Argument(help="A plan.json.")],
    cluster: Annotated[
        str | None, typer.Option("--cluster", "-c", help="Where the cluster's file is now, if it moved.")
    ] = None,
    time_limit: Annotated[
        float, typer.Option("--time-limit", min=0.01, help="Seconds for the bound's derivation.")
    ] = 120.0,
) -> None:
    """Check a saved plan with other code than the search's: its legality, prices, schedule and bound."""
    from planner.mixed.inputs import load_any_plan

    saved = load_any_plan(file)
    report = _verified(saved, cluster, time_limit)
    counted = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in report.counts.items())
    typer.echo(f"{report.verdict}: {saved.objective_name} {saved.objective:.6g}, bound claimed {saved.bound:.6g}, "
               f"re-derived {report.bound:.6g}, in {report.seconds:.1f} s ({counted})")  # fmt: skip
    for what in report.not_rederived:
        typer.echo(f"not re-derived: {what}")
    if not report.ok:
        raise BadInput(f"{str(file)!r} does not verify: " + "; ".join(report.reasons))


def _verified(saved: Plan | MixedPlan, cluster: str | None, time_limit_s: float) -> Report:
    from planner.checks.verify import verify as verify_plan
    from planner.checks.verify_mixed import verify_mixed
    from planner.explanations.mine import inputs_of
    from planner.mixed.inputs import mixed_inputs_of
    from planner.mixed.result import MixedPlan

    if isinstance(saved, MixedPlan):
        return verify_mixed(saved, *mixed_inputs_of(saved, cluster), time_limit_s=time_limit_s)
    return verify_plan(saved, *inputs_of(saved, cluster), time_limit_s=time_limit_s)
