"""``meshwright explain`` and ``meshwright why-not``: of a plan that is found first, or of a saved one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli_options import (
    AsJson,
    Batch,
    CalibrationFile,
    Clocks,
    Limit,
    ObjectiveOption,
    Optimizer,
    OptimizerOption,
    Pins,
    PowerCap,
    PrecisionOption,
    SeqLen,
    Slack,
    Tiers,
    TimeLimit,
    Tokens,
    work_asked,
)
from planner.errors import BadInput, InfeasiblePlan
from planner.terminal import print_json, show

if TYPE_CHECKING:
    from planner.mixed.result import MixedPlan
    from planner.result import Plan

ModelOrPlan = Annotated[str, typer.Argument(help="A saved plan.json, or a model as for `meshwright plan`.")]
ClusterOrMoved = Annotated[
    str | None,
    typer.Option("--cluster", "-c", help="As for `meshwright plan`; for a saved plan, where its file is."),
]
HeadroomOption = Annotated[
    float | None, typer.Option("--headroom", min=0.0, max=0.99, help="Part of device memory to leave free. [0.05]")
]
PLAN_MARK = '"meshwright_version"'
"""What a saved plan's text holds and no model's config does."""


def explain(
    model: ModelOrPlan, cluster: ClusterOrMoved = None,
    more: Annotated[str, typer.Option("--more", help="How much more memory, bandwidth and power to try.")] = "10%",
    seq_len: SeqLen = None, global_batch: Batch = None, precision: PrecisionOption = None,
    optimizer: OptimizerOption = None, objective: ObjectiveOption = None, slack: Slack = None, tokens: Tokens = None,
    limit: Limit = None, power_cap: PowerCap = None, clocks: Clocks = False, tiers: Tiers = None,
    headroom: HeadroomOption = None, pin: Pins = None, calibration: CalibrationFile = None,
    time_limit: TimeLimit = 20.0, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Say where a plan's time goes, which limit binds, and what one more unit of anything would buy.

    Each unit's row is planned again, for --time-limit seconds at most.
    """
    from planner.live import live_line

    fraction = _fraction(more)
    asked = _asked(
        seq_len, global_batch, precision, optimizer, objective=objective, slack=slack, tokens=tokens, limits=limit,
        power_cap=power_cap, clocks=clocks or None, tiers=tiers, headroom=headroom, pin=pin, calibration=calibration,
    )  # fmt: skip
    with live_line() as report:
        plan, moved = plan_of(model, cluster, time_limit, as_json, report, asked)
        found = plan.explain(cluster=moved, more=fraction, time_limit_s=time_limit, progress=report)
    print_json(found.as_json()) if as_json else show(found.view())


def why_not(
    model: ModelOrPlan,
    what: Annotated[str, typer.Argument(metavar="PINS", help="What it should have had: tp=8,pp=4; unused=dgx-a100.")],
    cluster: ClusterOrMoved = None, seq_len: SeqLen = None, global_batch: Batch = None,
    precision: PrecisionOption = None, optimizer: OptimizerOption = None, objective: ObjectiveOption = None,
    slack: Slack = None, tokens: Tokens = None, limit: Limit = None, power_cap: PowerCap = None,
    clocks: Clocks = False, tiers: Tiers = None, headroom: HeadroomOption = None, pin: Pins = None,
    calibration: CalibrationFile = None, time_limit: TimeLimit = 60.0, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Set the best plan that has PINS beside the best plan, term by term, or say what rules it out."""
    from planner.explanations.mixed_why_not import PARTS
    from planner.live import live_line
    from planner.options import parse_assignments, read_options

    read_options(pins={name: value for name, value in parse_assignments(what).items() if name not in PARTS})
    asked = _asked(
        seq_len, global_batch, precision, optimizer, objective=objective, slack=slack, tokens=tokens, limits=limit,
        power_cap=power_cap, clocks=clocks or None, tiers=tiers, headroom=headroom, pin=pin, calibration=calibration,
    )  # fmt: skip
    with live_line() as report:
        plan, moved = plan_of(model, cluster, time_limit, as_json, report, asked)
        found = plan.why_not(what, cluster=moved, time_limit_s=time_limit, progress=report)
    print_json(found.as_json()) if as_json else show(found.view())


def _asked(seq_len, global_batch, precision, optimizer, *, pin, **options) -> dict[str, Any]:
    """What was asked on the command line of the plan to be found, as arguments of ``plan()``."""
    given = {
        **work_asked(seq_len, global_batch, precision, optimizer or Optimizer.adam),
        "optimizer": None if optimizer is None else optimizer.value,
        **options, "pins": ",".join(pin or ()) or None,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def plan_of(
    model: str, cluster: str | None, time_limit: float, as_json: bool, progress: Any, asked: dict[str, Any]
) -> tuple[Plan | MixedPlan, str | None]:
    """The plan, found or read, and where the cluster of one that was read is now."""
    from planner.api import plan
    from planner.mixed.inputs import load_any_plan

    if _is_plan(model):
        if asked:
            repeated = {"pins": "pin", "limits": "limit"}
            names = ", ".join(f"--{repeated.get(name, name).replace('_', '-')}" for name in asked)
            raise BadInput(f"{model!r} is a saved plan, made for its own work and options; leave out {names}")
        return load_any_plan(model), cluster
    if cluster is None:
        raise BadInput(f"{model!r} is no saved plan, so it needs a cluster: --cluster dgx-h100:4")
    try:
        return plan(model, cluster, alternatives=0, time_limit_s=time_limit, progress=progress, **asked), None
    except InfeasiblePlan as error:
        if as_json:
            print_json(error.as_json())
        raise


def _is_plan(text: str) -> bool:
    path = Path(text)
    try:
        return path.suffix == ".json" and path.is_file() and PLAN_MARK in path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def _fraction(text: str) -> float:
    """``"10%"`` as 0.1. Raises ``BadInput`` for anything that is no percentage."""
    number, sign, rest = text.strip().partition("%")
    try:
        if not sign or rest:
            raise ValueError
        return float(number) / 100
    except ValueError as error:
        raise BadInput(f"--more {text[:80]!r} is a percentage above 0, such as 10%") from error
