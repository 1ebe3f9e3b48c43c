"""The ``meshwright`` command. Answers on stdout, all else on stderr; exit 0, 1 (no plan) or 2 (bad input)."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner import __version__
from planner.checks.command import verify
from planner.cli_options import (
    AsJson,
    Batch,
    CalibrationFile,
    Clocks,
    ClusterName,
    Headroom,
    Limit,
    Model,
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
from planner.clusters.commands import app as cluster_app
from planner.clusters.commands import detect
from planner.clusters.routed_command import routes
from planner.emulated.command import emulate
from planner.errors import (
    BadInput,
    InfeasiblePlan,
    PlannerBug,
    PlannerError,
    SearchGaveUp,
    UnknownName,
    Unsupported,
)
from planner.explanations.commands import explain, why_not
from planner.failures.command import goodput
from planner.infrastructure.break_even_command import break_even
from planner.infrastructure.kv_cache_command import kv_cache
from planner.infrastructure.site_command import site
from planner.machine.calibrate_command import calibrate
from planner.machine.measure_command import measure
from planner.sweeps.command import sweep
from planner.terminal import print_json, show, status_line
from planner.whole_files import check_writable

if TYPE_CHECKING:
    from planner.result import Plan

app = typer.Typer(
    name="meshwright", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Plan how to train a model on a cluster: a proved strategy, its cost, and the files that launch it.",
)  # fmt: skip


def _version(show: bool) -> None:
    if show:
        typer.echo(f"meshwright {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Plan how to train a model on a cluster: a proved strategy, its cost, and the files that launch it."""


def plan(
    model: Model, cluster: ClusterName, seq_len: SeqLen = None, global_batch: Batch = None,
    precision: PrecisionOption = None, optimizer: OptimizerOption = Optimizer.adam,
    objective: ObjectiveOption = "time", slack: Slack = None, tokens: Tokens = None, limit: Limit = None,
    power_cap: PowerCap = None, clocks: Clocks = False, tiers: Tiers = None, headroom: Headroom = 0.05,
    pin: Pins = None, time_limit: TimeLimit = 60.0, calibration: CalibrationFile = None,
    deterministic_limit: Annotated[
        float | None, typer.Option(min=0.01, help="Units of work to spend at most, about seconds: the same everywhere.")
    ] = None,
    jobs: Annotated[str, typer.Option("--jobs", help="Equal jobs that share the cluster: a number, or auto.")] = "1",
    start: Annotated[Path | None, typer.Option("--start", help="A plan.json to start from.")] = None,
    alternatives: Annotated[int, typer.Option(min=0, max=50, help="Different plans to show beside the best.")] = 5,
    solver: Annotated[
        str, typer.Option("--solver", help="pure-cpsat: CP-SAT alone, for small spaces, as a check.")
    ] = "default",
    out: Annotated[str | None, typer.Option("--out", help="Directory for plan.json and the launch files.")] = None,
    target: Annotated[
        str, typer.Option("--target", help="Whose launch files, one or several: torchrun,slurm; the README lists all.")
    ] = "torchrun",
    expressible: Annotated[
        bool, typer.Option("--expressible", help="Search only what every --target can express.")
    ] = False,
    plot: Annotated[str | None, typer.Option("--plot", help="Picture of the cluster with the plan laid on it.")] = None,
    schedules: Annotated[
        str, typer.Option("--schedules", help="Pipeline schedules to choose among: 1f1b,zb-h1,zbv, or all.")
    ] = "",
    vocab_tp: Annotated[
        str, typer.Option("--vocab-tp", help="Ranks to divide embedding and head over, other than tp: 2,4 or all.")
    ] = "",
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Find the strategy that trains a model quickest (or cheapest) on a cluster, and prove that none is better."""
    from planner.live import live_line

    with live_line() as report:
        targets = _targets(target)
        directory, picture = _directory(out), _picture(plot)
        if directory is not None:
            _check_targets(targets, cluster, ",".join(pin or ()), schedules)
        try:
            best = _search(
                model, cluster, report, objective=objective, slack=slack, tokens=tokens, limits=limit,
                power_cap=power_cap, clocks=clocks, headroom=headroom, tiers=tiers or (), pins=",".join(pin or ()),
                time_limit_s=time_limit, alternatives=alternatives, solver=solver, start=_loaded(start), jobs=jobs,
                deterministic_limit=deterministic_limit, targets=targets if expressible else (), schedules=schedules,
                vocab_tp=vocab_tp, calibration=calibration, **work_asked(seq_len, global_batch, precision, optimizer),
            )  # fmt: skip
        except InfeasiblePlan as error:
            if as_json:
                print_json(error.as_json())
            raise
    written = _written(best, directory, targets, as_json)
    _show_plan(best, as_json)
    if picture is not None:
        written = [*written, _drawn(best, picture)]
    for path in [] if as_json else written:
        typer.echo(f"wrote {path}")


def pareto(
    model: Model, cluster: ClusterName, seq_len: SeqLen = None, global_batch: Batch = None,
    precision: PrecisionOption = None, optimizer: OptimizerOption = Optimizer.adam, tokens: Tokens = None,
    limit: Limit = None, power_cap: PowerCap = None,
    clocks: Annotated[bool, typer.Option("--clocks", help="Choose each stage's clock.")] = False,
    tiers: Tiers = None, headroom: Headroom = 0.05, pin: Pins = None,
    tolerance: Annotated[float, typer.Option(help="Part by which a plan may beat the point for it.")] = 0.01,
    time_limit: TimeLimit = 120.0,
    plot: Annotated[str | None, typer.Option("--plot", help="Picture to write, such as front.png.")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Find the trade-offs between time, money, energy and devices, and prove that none is missing."""
    from planner.fronts.pareto import pareto as front_of
    from planner.fronts.report import save_plot, writable_picture
    from planner.live import live_line

    picture = None if plot is None else writable_picture(plot)
    with live_line() as report:
        front = front_of(
            model, cluster, tolerance=tolerance, tokens=tokens, limits=limit, power_cap=power_cap, headroom=headroom,
            clocks=clocks, tiers=tiers or (), pins=",".join(pin or ()), time_limit_s=time_limit, progress=report,
            **work_asked(seq_len, global_batch, precision, optimizer),
        )  # fmt: skip
    if picture is not None:
        save_plot(front, picture)
    if as_json:
        typer.echo(front.to_json())
    else:
        show(front.view())


def estimate(
    model: Model, cluster: ClusterName,
    strategy: Annotated[str, typer.Option("--strategy", "-s", help="Such as tp=8,pp=4,zero=1,recompute=full.")],
    seq_len: SeqLen = None, global_batch: Batch = None, precision: PrecisionOption = None,
    optimizer: OptimizerOption = Optimizer.adam, headroom: Headroom = 0.05, time_limit: TimeLimit = 60.0,
    calibration: CalibrationFile = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Price a strategy that you name, and set it beside the best one, line by line."""
    from planner.explanations.mine import mine_and_plan
    from planner.live import live_line

    with live_line() as report:
        found = mine_and_plan(
            model, cluster, strategy, headroom=headroom, time_limit_s=time_limit, progress=report,
            calibration=calibration, **work_asked(seq_len, global_batch, precision, optimizer),
        )  # fmt: skip
    if as_json:
        print_json(found.as_json())
    else:
        show(found.view())
    if isinstance(found.plan, InfeasiblePlan):
        raise found.plan


def catalogue(
    kind: Annotated[
        str, typer.Argument(help="accelerators, hosts, fabrics, facilities, tiers, fleets, stores, clusters.")
    ] = "accelerators",
    name: Annotated[str | None, typer.Argument(help="One part: every figure with its source.")] = None,
) -> None:
    """List the parts the planner knows, or show one with its sources."""
    from planner.listing import part_view, parts_view

    show(parts_view(kind) if name is None else part_view(kind, name))


def models() -> None:
    """List the models that come along, with their sizes; a config.json of another does as well."""
    from planner.listing import models_view

    show(models_view())


def validate(
    rows: Annotated[
        list[Path] | None,
        typer.Argument(help="CSV files of measured runs, training, sweep or power; by default those that come along."),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="CSV file for the predictions, a line each.")] = None,
    source: Annotated[str | None, typer.Option("--source", help="Only rows of these sources: mb,tt.")] = None,
    worst: Annotated[int, typer.Option("--worst", min=0, help="Rows with the largest errors to list.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Predict measured runs with the models that plan, and report how far off they are."""
    from planner.published.command import validate as validate_rows

    with status_line("reading") as say:

        def counted(done: int, total: int) -> None:
            say(f"{done:,} of {total:,} rows")

        found = validate_rows(rows or (), out=out, sources=source, worst=worst, progress=counted)
    if as_json:
        print_json(found.as_json())
    else:
        show(found.view())


def _targets(text: str) -> tuple[str, ...]:
    """The targets of ``--target``, all of them known; asked before anything is searched."""
    from planner.export import EXPORTERS

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names or ("",):
        if name not in EXPORTERS:
            raise UnknownName(f"--target {name[:80]!r} is no launch target; there are: {', '.join(EXPORTERS)}")
    return names


def _check_targets(targets: tuple[str, ...], cluster: str, pins: str, schedules: str) -> None:
    """Raises ``Unsupported`` for a target that, as the arguments tell, cannot express any plan of the search."""
    from planner.export.schedules import check_asked
    from planner.expressible import schedules_of
    from planner.mixed.launch import check_starts
    from planner.options import pins_of
    from topologies.mixed import MixedCluster
    from topologies.ready import read_any_cluster

    check_asked(pins_of(pins).get("schedule"), schedules_of(schedules), targets)
    if isinstance(read_any_cluster(cluster), MixedCluster):
        check_starts(targets)


def _written(best: Plan, directory: Path | None, targets: tuple[str, ...], as_json: bool) -> list[Path]:
    """The launch files' paths; a plan that cannot be written is shown before the error, so that it is not lost."""
    try:
        return best.write(directory, targets) if directory is not None else []
    except (Unsupported, BadInput) as error:
        _show_plan(best, as_json)
        kept = "" if as_json else "; --json prints the plan as explain, why-not and verify take it"
        raise type(error)(f"{error}{kept}") from error


def _picture(plot: str | None) -> Path | None:
    from planner.fronts.report import writable_picture

    return None if plot is None else writable_picture(plot)


def _drawn(best: Plan, picture: Path) -> Path:
    """The picture's path, written. Raises ``Unsupported`` for a plan on several kinds of devices."""
    from planner.fronts.report import save_axes
    from planner.mixed.result import MixedPlan

    if isinstance(best, MixedPlan):
        raise Unsupported("--plot draws a cluster of one kind of device; leave it out, or plan on one part")
    save_axes(best.plot.cluster(), picture)
    return picture


def _show_plan(best: Plan, as_json: bool) -> None:
    """The plan on stdout, as JSON or for people."""
    if as_json:
        typer.echo(best.to_json())
        return
    from planner.report import plan_view

    show(plan_view(best))


def _loaded(path: Path | None) -> Plan | None:
    from planner.result import Plan

    return None if path is None else Plan.load(path)


def _directory(out: str | None) -> Path | None:
    """The directory of ``--out``. Raises ``BadInput`` where there cannot be one, before anything is searched."""
    if out is None:
        return None
    if not out:
        raise BadInput("--out '' is no directory; name a new or an existing one")
    check_writable(Path(out))
    return Path(out)


def _search(model: str, cluster: str, report: Any, **options: Any) -> Plan:
    from planner.api import plan as search

    return search(model, cluster, progress=report, **options)


COMMANDS = {
    "Plan": (plan, estimate, pareto, sweep),
    "Understand a plan": (explain, why_not, verify, goodput),
    "Decide what to build": (site, break_even, kv_cache),
    "Clusters and parts": (detect, routes, catalogue, models),
    "Measure and compare": (calibrate, measure, emulate, validate),
}
"""What the help lists, in its order, under its headings."""
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(cluster_app, rich_help_panel="Clusters and parts")


def main() -> None:
    """Run the command; every :class:`PlannerError` becomes a message and an exit code.

    SIGTERM, as a scheduler or ``timeout`` sends it, is taken as Ctrl-C: the best plan so far, nothing left standing.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="meshwright")
    except (InfeasiblePlan, SearchGaveUp) as error:
        _fail(error, 1)
    except PlannerBug as error:
        _fail(error, 3)
    except PlannerError as error:
        _fail(error, 2)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(error: PlannerError, code: int) -> None:
    typer.echo(f"meshwright: {error}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
