"""``meshwright goodput``: what failures leave of a plan that is found first, or of a saved one."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli_options import (
    AsJson,
    Batch,
    Optimizer,
    OptimizerOption,
    Pins,
    PrecisionOption,
    SeqLen,
    TimeLimit,
    work_asked,
)
from planner.explanations.commands import ClusterOrMoved, ModelOrPlan, plan_of
from planner.limits import tokens_of
from planner.terminal import print_json, show


def goodput(
    model: ModelOrPlan, cluster: ClusterOrMoved = None,
    tokens: Annotated[str, typer.Option("--tokens", help="Tokens of the whole run: 15T, 300B, 1.5e12.")] = "1T",
    store: Annotated[
        str | None, typer.Option("--store", help="Where checkpoints go: see `meshwright catalogue stores`.")
    ] = None,
    fleet: Annotated[
        str | None, typer.Option("--fleet", help="Machines that fail as these: `meshwright catalogue fleets`.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="The steps wait for checkpoints.")] = False,
    every: Annotated[int | None, typer.Option("--every", min=1, help="Steps between checkpoints. [the best]")] = None,
    spares: Annotated[int | None, typer.Option("--spares", min=0, help="Spare hosts. [as many as it takes]")] = None,
    seq_len: SeqLen = None, global_batch: Batch = None, precision: PrecisionOption = None,
    optimizer: OptimizerOption = None, pin: Pins = None, time_limit: TimeLimit = 60.0, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Say what failures leave of a plan, what they lose it to, and what a run of N tokens takes with them."""
    from planner.failures.under_failures import under_failures
    from planner.live import live_line

    count = tokens_of(tokens)
    given = {
        **work_asked(seq_len, global_batch, precision, optimizer or Optimizer.adam),
        "optimizer": None if optimizer is None else optimizer.value, "pins": ",".join(pin or ()) or None,
    }  # fmt: skip
    asked = {name: value for name, value in given.items() if value is not None}
    with live_line() as report:
        plan, moved = plan_of(model, cluster, time_limit, as_json, report, asked)
    found = under_failures(
        plan, store=store, fleet=fleet, asynchronous=not wait, interval_steps=every, spares=spares, tokens=count,
        cluster=moved,
    )  # fmt: skip
    print_json(found.as_json()) if as_json else show(found.view())
