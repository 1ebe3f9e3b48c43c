"""A front as a table for a terminal, as HTML for a notebook, and its picture as a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from planner.errors import BadInput
from planner.fronts.mixed import MixedFront
from planner.fronts.pareto import Front, FrontPoint
from planner.limits import LIMITS, amount, training_steps
from planner.mixed.result import MixedPlan
from planner.options import read_options
from planner.report import clocks_text, degrees_text, offload_text
from topologies.units import quantity_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURES = (".png", ".pdf", ".svg")


def front_view(front: Front) -> Group:
    """Head, one line a point, and what is proved."""
    table, training = Table(box=SIMPLE_HEAD), front.options.get("tokens") is not None
    names = ["devices", "step", "USD a step", "energy a step", "power", *(["training", "USD"] if training else [])]
    for name in names:
        table.add_column(name, justify="right")
    outside = any(it.strategy.offloads for it in front.points)
    slower = any(it.strategy.clocks for it in front.points)
    for name in ("parallel", "zero", *(["clocks"] if slower else []), *(["offload"] if outside else [])):
        table.add_column(name)
    for it in front.points:
        kept = [clocks_text(it.strategy.clocks)] if slower else []
        kept += [offload_text(it.strategy) if it.strategy.offloads else ""] if outside else []
        table.add_row(*_figures(it, training), degrees_text(it.strategy), str(it.strategy.zero), *kept)
    work = front.workload
    head = f"{front.model} on {front.cluster}: {len(front.points)} points of time, money, energy and devices\n"
    head += f"sequence {work.seq_len}, batch {work.global_batch}, {work.precision}, {work.optimizer}"
    rows = front.rows
    counted = (
        f"{rows['degrees']:,} degree tuples, {rows['rows']:,} rows priced, {rows['covered']:,} skipped for their "
        f"bounds, {rows['rows_evaluated']:,} evaluated, {rows['swept']:,} swept by CP-SAT, in {front.search_s:.2f} s"
    )
    said = "proved" if front.proved else "proved in part"
    return Group(Text(head, style="bold"), table, Text(f"{said}: {front.statement}\nsearched: {counted}"))


def mixed_front_view(front: MixedFront) -> Group:
    """Head, one line a point, and what is proved."""
    table, steps = Table(box=SIMPLE_HEAD), training_steps(read_options(**front.options), front.workload)
    names = [part.name for part in front.points[0].parts]
    for name in ("step", "USD a step", *(["training", "USD"] if steps else []), *names):
        table.add_column(name, justify="right")
    table.add_column("layers")
    for it in front.points:
        usd = it.usd_per_step or 0.0
        training = (amount((steps or 0) * it.step_s, LIMITS["train-time"]), f"{(steps or 0) * usd:,.0f}")
        used = ("-" if part.hosts_used == 0 else f"{part.hosts_used} of {part.hosts}" for part in it.parts)
        table.add_row(
            quantity_text(it.step_s, "s"), f"{usd:.4g}", *(training if steps else ()), *used, _layers_text(it)
        )
    work = front.workload
    head = f"{front.model} on {front.cluster}: {len(front.points)} points of time and rent, hosts in use by part\n"
    head += f"sequence {work.seq_len}, batch {work.global_batch}, {work.precision}, {work.optimizer}"
    said = "proved" if front.proved else "proved in part"
    return Group(Text(head, style="bold"), table, Text(f"{said}, in {front.search_s:.1f} s: {front.statement}"))


def _layers_text(it: MixedPlan) -> str:
    """Layers by stage; degrees where one part runs the plan alone."""
    if it.alone is not None:
        return degrees_text(it.alone.strategy)
    return "+".join(str(stage.layers) for stage in it.stages) + f" in {len(it.stages)} stages"


def _figures(it: FrontPoint, training: bool) -> list[str]:
    found = [
        f"{it.devices:,}", quantity_text(it.step_s, "s"), "-" if it.usd_per_step is None else f"{it.usd_per_step:.4g}",
        quantity_text(it.joules_per_step, "J"), quantity_text(it.site_w, "W"),
    ]  # fmt: skip
    if training:
        found.append(amount(it.train_s or 0.0, LIMITS["train-time"]))
        found.append("-" if it.train_usd is None else f"{it.train_usd:,.0f}")
    return found


def writable_picture(text: str) -> Path:
    """The path of a picture that can be written. Raises ``BadInput`` for another kind of file or no directory."""
    path = Path(text)
    if path.suffix.lower() not in PICTURES or not path.parent.is_dir():
        raise BadInput(f"--plot {text[:200]!r} is no {', '.join(PICTURES)} file in a directory that exists")
    return path


def save_plot(front: Front | MixedFront, path: Path) -> None:
    """Write the picture. Raises ``Unsupported`` without matplotlib, ``BadInput`` where the file cannot be written."""
    save_axes(front.plot(), path)


def save_axes(axes: Axes, path: Path) -> None:
    """Write the picture that the axes are on. Raises ``BadInput`` where the file cannot be written."""
    try:
        axes.figure.savefig(path, dpi=150)
    except OSError as error:
        raise BadInput(f"--plot {str(path)!r} cannot be written: {error.strerror}") from error
