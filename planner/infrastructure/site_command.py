"""``meshwright site``: what a site of so many megawatts runs and trains under each cooling."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli_options import (
    AsJson,
    Batch,
    Headroom,
    Model,
    ObjectiveOption,
    Optimizer,
    OptimizerOption,
    Pins,
    PrecisionOption,
    SeqLen,
    TimeLimit,
    work_asked,
)
from planner.errors import BadInput
from planner.terminal import print_json, show


def site(
    model: Model,
    hosts: Annotated[list[str], typer.Argument(help="Clusters whose hosts to count: dgx-h100 gb200-nvl72.")],
    power: Annotated[str, typer.Option("--power", help="At the site's meter, with its unit: '20 MW'.")],
    cooling: Annotated[str, typer.Option("--cooling", help="Facilities: see `meshwright catalogue facilities`.")] = (
        "air,liquid"
    ),
    sized_by: Annotated[
        str, typer.Option("--sized-by", help="peak: what hosts draw at most. mean: what the plan draws.")
    ] = "peak",
    seq_len: SeqLen = None, global_batch: Batch = None, precision: PrecisionOption = None,
    optimizer: OptimizerOption = Optimizer.adam, objective: ObjectiveOption = "time",
    headroom: Headroom = 0.05, pin: Pins = None, time_limit: TimeLimit = 60.0, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Say how many hosts a site runs under each cooling, how a model trains on them, and what that takes."""
    from planner.infrastructure.site import site as site_of
    from planner.live import live_line

    if sized_by not in ("peak", "mean"):
        raise BadInput(f"--sized-by {sized_by[:80]!r} is neither peak nor mean")
    with live_line() as report:
        found = site_of(
            model, hosts, power, cooling=cooling, sized_by="mean" if sized_by == "mean" else "peak",
            objective=objective, headroom=headroom, pins=",".join(pin or ()), time_limit_s=time_limit,
            progress=report, **work_asked(seq_len, global_batch, precision, optimizer),
        )  # fmt: skip
    print_json(found.as_json()) if as_json else show(found.view())
