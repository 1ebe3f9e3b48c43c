"""``meshwright calibrate``: this machine measured, or every published constant fitted again."""

from __future__ import annotations

import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.errors import BadInput
from planner.terminal import show, status_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

OVERHEAD_S = 60.0
MOST_PROCESSES = 64


def calibrate(
    context: typer.Context,
    published: Annotated[
        bool, typer.Option("--published", help="Fit all constants that come along again (minutes; needs scipy).")
    ] = False,
    collectives: Annotated[
        bool, typer.Option("--collectives", help="Report how well collectives that were left out are foreseen.")
    ] = False,
    out: Annotated[
        str, typer.Option("--out", help="Directory for calibration.toml and the cluster.toml that names it.")
    ] = "machine",
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, max=MOST_PROCESSES, help="Ranks; one a GPU, else one a core.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=2, max=600, help="Time for the benchmarks.")] = 60.0,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="TCP port to meet on; 0 for a free one.")] = 0,
) -> None:
    """Measure this machine; write a calibration and a cluster file to plan with it (plan -c machine/cluster.toml)."""
    if published and collectives:
        raise BadInput("--published writes the calibration files, --collectives only reports; say one of them")
    if published or collectives:
        _refuse_unused(context, "--published" if published else "--collectives")
    if collectives:
        need_scipy()
        from cost_models.fitting.collectives_left_out import left_out_table, table_lines

        typer.echo("\n".join(table_lines(left_out_table())))
        return
    if published:
        from planner.published.refit import refit_all

        refit_all(lambda text: typer.echo(text, err=True))
        return
    if not math.isfinite(seconds):
        raise BadInput(f"--seconds {seconds} is no time; say 2 to 600")
    from planner.whole_files import check_writable, write_whole

    check_writable(Path(out))
    with status_line("starting") as told:
        texts, lines = measure_here(processes, seconds, port, told)
    written = write_whole(Path(out), texts)
    show(constants_view(lines, texts["calibration.toml"]))
    for path in written:
        typer.echo(f"wrote {path}")


def _refuse_unused(context: typer.Context, instead: str) -> None:
    """Raises ``BadInput`` for an option of measuring beside one that measures nothing."""
    names = ("out", "processes", "seconds", "port")
    said = [f"--{name}" for name in names if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if said:
        raise BadInput(f"{instead} measures nothing, so it takes no {' or '.join(said)}; leave one of them out")


def measure_here(
    processes: int | None, seconds: float, port: int, told: Callable[[str], None]
) -> tuple[dict[str, str], list]:
    """The texts of calibration, cluster and points, and the constants. Raises ``Unsupported`` without torch,
    ``JobFailed`` by rank."""
    from planner.machine.local_job import Launch, check_port, free_port, need_torch

    need_torch("calibrate")
    need_scipy()
    if port:
        check_port(port)
    count = processes or usual_processes()
    launch = Launch(CALIBRATE_JOB, ("--hosts", "1"), count, port=port or free_port())
    return measured_texts([launch], seconds, told, "this-machine")


CALIBRATE_JOB = "planner.runtime.calibrate_job"


def measured_texts(
    launches: list, seconds: float, told: Callable[[str], None], name: str
) -> tuple[dict[str, str], list]:
    """Runs the job's launches, each with ``seconds`` for its benchmarks, and fits what they measured.

    Returns the files' texts and the constants.
    """
    import dataclasses
    import tempfile

    from planner.machine.fits import calibration_text, summary
    from planner.machine.local_job import run_job
    from planner.machine.points import CALIBRATION, Measurement, cluster_tables

    with tempfile.TemporaryDirectory(prefix="meshwright-calibrate-") as folder:
        record = Path(folder) / "points.json"
        more = ("--budget-s", str(seconds), "--record", str(record))
        full = [dataclasses.replace(it, arguments=(*it.arguments, *more)) for it in launches]
        run_job(full, 3 * seconds + OVERHEAD_S, lambda line: told(line) if line.startswith("measuring") else None)
        told("fitting")
        found, points = Measurement.of(record, datetime.now(UTC).date()), record.read_text(encoding="utf-8")
    cluster = cluster_tables(found, name)
    text = calibration_text(found, cluster)
    return {CALIBRATION: text, "cluster.toml": cluster, "points.json": points}, summary(text)


def need_scipy() -> None:
    """Raises ``Unsupported`` where scipy is not installed."""
    import importlib.util

    from planner.errors import Unsupported

    if importlib.util.find_spec("scipy") is None:
        raise Unsupported("calibrate fits with scipy, which is not installed; pip install 'meshwright[calibrate]'")


def usual_processes() -> int:
    """A rank a GPU that ``nvidia-smi`` lists, else one a core that this process may use; at most 64."""
    from topologies.readers.detect import detect

    devices = max((len(host.devices) for seen in detect()[0] for host in seen.hosts), default=0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_PROCESSES, devices or cores)


def constants_view(lines: list[tuple[str, str, float, float, float]], text: str) -> RenderableType:
    """The constants, each with its spread and the residual of its fit."""
    from rich.table import Table

    table = Table(title=text.splitlines()[0].removeprefix("# "), title_justify="left", box=None)
    for head in ("table", "constant", "value", "spread", "residual"):
        table.add_column(head, justify="left" if head in ("table", "constant") else "right")
    before = ""
    for name, key, value, spread, residual in lines:
        table.add_row("" if name == before else name, key, f"{value:.4g}", f"{spread:.0%}", f"{residual:.1%}")
        before = name
    return table
