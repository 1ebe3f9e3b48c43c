"""Lines of a plan's summary about what it was asked for: objectives in order, training runs, power by level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.limits import LIMITS, amount
from planner.result import Plan, ProvedStage
from topologies.units import quantity_text

if TYPE_CHECKING:
    from planner.mixed.result import MixedPlan


def figures_text(plan: Plan) -> str:
    """What was minimised and its bound; tokens per joule where these were asked for."""
    asked = str(plan.options.get("objective", plan.objective_name)).split(",")[-1]
    if asked == "tokens-per-joule" and plan.objective > 0 and plan.bound > 0:
        tokens = plan.workload.tokens
        return f"tokens per joule {tokens / plan.objective:.6g}, no plan has more than {tokens / plan.bound:.6g}"
    return f"{plan.objective_name} {plan.objective:.6g}, bound {plan.bound:.6g}"


def stage_rows(plan: Plan | MixedPlan) -> list[tuple[str, str]]:
    """One line for each objective in order; none where there was only one."""
    return [(f"  stage {k + 1}", _stage_text(stage)) for k, stage in enumerate(plan.proof.stages)]


def _stage_text(stage: ProvedStage) -> str:
    """``time 1.23, proved over the whole space; then at most 1.25``."""
    gap = 1 - stage.bound / stage.value if stage.value > 0 else 0.0
    said = "proved over the whole space" if stage.proved else f"gap {gap:.2%}"
    kept = "" if stage.at_most is None else f"; later stages at most {stage.at_most:.6g}"
    return f"{stage.objective}: {stage.minimises} {stage.value:.6g}, {said}{kept}"


def training_rows(plan: Plan) -> list[tuple[str, str]]:
    """What training takes where tokens were given; mean watts of the fullest part of each level that is limited."""
    rows, run = [], plan.training_run
    if run is not None:
        money = "" if run.usd is None else f", {amount(run.usd, LIMITS['money'])}"
        energy = f"{run.joules / 3.6e9:,.4g} MWh"
        time = amount(run.seconds, LIMITS["train-time"])
        rows.append(("training", f"{run.tokens:.4g} tokens in {run.steps:,} steps: {time}, {energy}{money}"))
    limited = [level for level in plan.level_watts if f"{level}-power" in plan.options.get("limits", {})]
    for level in limited:
        limit = quantity_text(float(plan.options["limits"][f"{level}-power"]), "W", 4)
        rows.append((f"  {level}", f"{quantity_text(plan.level_watts[level], 'W', 4)} at most, limit {limit}"))
    return rows
