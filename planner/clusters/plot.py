"""The picture of :mod:`planner.clusters.picture`: a cluster with a plan laid on it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from planner.clusters.picture import Block, Cell, blocks, counted, idle
from planner.plots import new_axes
from planner.report import degrees_text
from planner.result import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BLOCKS = 24
"""Kinds of hosts that are drawn; of more, the first and the last."""
COLUMNS = 4
"""Devices side by side in a host of up to 16; in a larger one twice as many."""
LONGEST = 34
CELL_W, CELL_H, GAP, HEAD = 1.0, 0.8, 0.4, 0.75
IDLE_COLOUR, EDGE_COLOUR = "#EEEEEE", "#606060"


def draw_cluster(plan: Plan, ax: Axes | None = None) -> Axes:
    """A block for each kind of host, a cell for each device of it; idle hosts last."""
    found = blocks(plan)
    shown = found if len(found) <= MOST_BLOCKS else [*found[: MOST_BLOCKS - 1], found[-1]]
    wide = _columns(plan.cluster.devices_per_host)
    width, height = wide * CELL_W + GAP, _block_height(plan, wide)
    idle_count, idle_names = idle(plan)
    across = min(len(shown) + (idle_count > 0), max(2, 16 // wide))
    down = math.ceil((len(shown) + (idle_count > 0)) / across)
    ax = new_axes(max(7.0, 0.62 * across * width), max(2.6, 0.9 + 0.62 * down * height)) if ax is None else ax
    for place, block in enumerate(shown):
        _draw_block(ax, plan, block, (place % across * width, -(place // across) * height), wide)
    if idle_count:
        place = len(shown)
        _draw_idle(ax, (place % across * width, -(place // across) * height), idle_count, idle_names, width - GAP)
    _frame(ax, plan, across * width - GAP, down * height, len(found) - len(shown))
    return ax


def _columns(devices: int) -> int:
    return min(devices, COLUMNS if devices <= 4 * COLUMNS else 2 * COLUMNS)


def _block_height(plan: Plan, wide: int) -> float:
    rows = -(-plan.cluster.devices_per_host // wide)
    return HEAD + rows * CELL_H + 0.45 * bool(plan.tiers) + GAP


def _draw_block(ax: Axes, plan: Plan, block: Block, corner: tuple[float, float], wide: int) -> None:
    left, top = corner
    ax.text(left, top - 0.2, _cut(block.names), fontsize=8, fontweight="bold", va="center")
    alike = f"{len(block.hosts):,} hosts alike" if len(block.hosts) > 1 else "1 host"
    ax.text(left, top - 0.55, ", ".join(filter(None, [alike, _cut(block.racks)])), fontsize=7, va="center")
    for k in range(len(block.cells) + block.idle_devices):
        at = left + k % wide * CELL_W, top - HEAD - (k // wide + 1) * CELL_H
        _draw_cell(ax, plan, block.cells[k] if k < len(block.cells) else None, at)
    if block.tiers:
        rows = -(-(len(block.cells) + block.idle_devices) // wide)
        text = ", ".join(f"{name} {part:.0%} full" for name, part in block.tiers)
        ax.text(left, top - HEAD - rows * CELL_H - 0.24, text, fontsize=7, style="italic", va="center")


def _draw_cell(ax: Axes, plan: Plan, cell: Cell | None, at: tuple[float, float]) -> None:
    from matplotlib.patches import Rectangle

    colour = IDLE_COLOUR if cell is None else _stage_colour(cell.stage, plan.strategy.pp)
    style = {"facecolor": colour, "edgecolor": EDGE_COLOUR, "linewidth": 0.5, "hatch": "////" if cell is None else None}
    ax.add_patch(Rectangle(at, CELL_W, CELL_H, label="idle" if cell is None else f"stage {cell.stage}", **style))
    if cell is not None:
        dark = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] < 0.5
        ax.text(at[0] + CELL_W / 2, at[1] + CELL_H / 2, cell_text(plan, cell), fontsize=6, ha="center", va="center",
                color="white" if dark else "black", linespacing=1.0)  # fmt: skip


def cell_text(plan: Plan, cell: Cell) -> str:
    """The stage and the coordinates of a device, on axes that have more than one; ``dp 0-63`` for folded hosts."""
    it = plan.strategy
    words = [f"stage {cell.stage}"] if it.pp > 1 else []
    near = [f"{axis} {getattr(cell, axis)}" for axis in ("tp", "cp") if getattr(it, axis) > 1]
    copies = [counted("dp", list(cell.dp)).replace("dps", "dp")] if it.dp_shard * it.dp_replicate > 1 else []
    return "\n".join([*words, *([" ".join(near)] if near else []), *copies])


def _draw_idle(ax: Axes, corner: tuple[float, float], count: int, names: str, width: float) -> None:
    from matplotlib.patches import Rectangle

    left, top = corner
    ax.text(left, top - 0.2, _cut(names), fontsize=8, fontweight="bold", va="center")
    ax.text(left, top - 0.55, f"{count:,} host{'s' * (count > 1)} idle", fontsize=7, va="center")
    box = {"facecolor": IDLE_COLOUR, "edgecolor": EDGE_COLOUR, "linewidth": 0.5, "hatch": "////", "label": "idle"}
    ax.add_patch(Rectangle((left, top - HEAD - CELL_H), width, CELL_H, **box))


def _stage_colour(stage: int, stages: int) -> tuple[float, float, float]:
    """Pale yellow for the first stage to dark blue for the last one."""
    from matplotlib import colormaps

    return colormaps["YlGnBu"](0.12 + 0.75 * stage / max(1, stages - 1))[:3]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4].rsplit(',', 1)[0]}, ..."


def _frame(ax: Axes, plan: Plan, right: float, down: float, left_out: int) -> None:
    ax.set_xlim(-0.1, right + 0.1)
    ax.set_ylim(-down, 0.1)
    ax.set_aspect("equal")
    ax.set_axis_off()
    cluster = plan.cluster
    used = f"{cluster.devices_used:,} of {cluster.devices:,} x {cluster.accelerator}"
    more = f"; {left_out} more kinds of hosts, between the last two, are not drawn" if left_out else ""
    ax.set_title(
        f"{plan.model.name} on {cluster.name}: {used}\n{degrees_text(plan.strategy)}{more}", loc="left", fontsize=9
    )
