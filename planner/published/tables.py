"""The report of ``validate`` as tables that stay readable at 120 columns. All errors in per cent."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.published.records import UNITS
from planner.published.report import Group as Figures
from planner.published.report import Report
from planner.published.scores import Score
from planner.published.targets import HOLDS, SHORT, WIDEST

REASONS = 10
NAMES = {"step_s": "Time of a step", "peak_mem_gib": "Peak memory", "node_w": "Power of a node"}


def report_view(report: Report) -> RenderableType:
    """Targets first, then errors by group, intervals, fits, choices and effects, refusals, the worst rows."""
    parts: list[RenderableType] = [_head(report), _targets(report), _intervals(report)]
    for quantity, title in NAMES.items():
        groups = [one for one in report.groups if one.quantity == quantity]
        if groups:
            parts += [_errors(title, groups, report.left_out), _quality(title, groups, report.left_out)]
    parts += [_fits(report), _choices(report), _effects(report), _refused(report), _worst(report)]
    return Group(*(part for part in parts if not isinstance(part, Table) or part.row_count))


def percent(value: float | None) -> str:
    """``0.0523`` as ``5.2``; whole numbers from 100 on; a dash for ``None``."""
    if value is None:
        return "-"
    return f"{100 * value:.0f}" if abs(value) >= 0.9995 else f"{100 * value:.1f}"


def _head(report: Report) -> Text:
    how = (
        "Left out: the row's whole (model, accelerator) group was not in the fit."
        if report.left_out
        else "Not all rows were in the fit: these figures are out of sample as they are."
    )
    return Text(f"{report.rows:,} rows, {report.predicted:,} predicted. {how} Errors are per cent of the measured.")


def _table(title: str, heads: Iterable[str], rows: Iterable[tuple[str, ...]], words: int) -> Table:
    """A table whose first ``words`` columns are text and the rest right-aligned figures."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for k, head in enumerate(heads):
        table.add_column(head, justify="left" if k < words else "right", overflow="fold", no_wrap=k >= words)
    for row in rows:
        table.add_row(*row)
    return table


def _met(met: bool | None) -> str:
    return "-" if met is None else ("yes" if met else "no")


def _targets(report: Report) -> Table:
    rows = [
        (one.set, one.figure, f"{one.rows}", f"{'<=' if one.sense == 'most' else '>='} {percent(one.limit)}",
         percent(one.plain), *([percent(one.left_out)] if report.left_out else []), _met(one.met))
        for one in report.targets
    ]  # fmt: skip
    figures = ("in sample", "left out") if report.left_out else ("figure",)
    return _table("Targets", ("set", "what", "rows", "target", *figures, "met"), rows, 2)


def _intervals(report: Report) -> Table:
    title = (
        f"90 % intervals: to hold {percent(HOLDS[0])}-{percent(HOLDS[1])} %, half-width <= {WIDEST:g} x median error"
    )
    rows = [
        (one.set, SHORT[one.quantity], f"{one.rows}", percent(one.inside), percent(one.half_width),
         percent(one.median_error), _met(one.met))
        for one in report.intervals
    ]  # fmt: skip
    return _table(title, ("set", "of", "rows", "inside", "half-width", "median error", "met"), rows, 2)


def _errors(title: str, groups: list[Figures], left_out: bool) -> Table:
    heads = ["source", "accelerator", "kind", "rows", "cov.", "mean", "median", "p90", "worst", "bias"]
    heads += ["mean\nall", "median\nall", "p90\nall"]
    heads += ["mean\nl.o.", "median\nl.o."] if left_out else []
    rows = [(*_name(one), *_figures(one.plain), *(_left_out(one.left_out) if left_out else ())) for one in groups]
    return _table(f"{title}: errors (all: refused rows count as 100 %{'; l.o.: left out' * left_out})", heads, rows, 3)


def _name(one: Figures) -> tuple[str, str, str]:
    return one.source, one.accelerator, one.kind


def _figures(one: Score) -> tuple[str, ...]:
    e, a = one.errors, one.refused_as_one
    errors = ("-",) * 4 if e is None else tuple(map(percent, (e.mean, e.median, e.p90, e.worst)))
    refused = tuple(map(percent, (a.mean, a.median, a.p90)))
    return f"{one.rows}", f"{one.covered}", *errors, percent(one.bias), *refused


def _left_out(one: Score | None) -> tuple[str, str]:
    if one is None or one.errors is None:
        return "-", "-"
    return percent(one.errors.mean), percent(one.errors.median)


def _quality(title: str, groups: list[Figures], left_out: bool) -> Table:
    has_constant = any(one.constant is not None for one in groups)
    heads = ["source", "accelerator", "kind", "inside", "half-\nwidth"]
    heads += ["inside\nl.o.", "half-w.\nl.o."] if left_out else []
    heads += ["re-\npeats", "their\nspread"]
    if has_constant:
        heads += ["const.\nmean", "const.\nmedian", "skill", *(["skill\nl.o."] if left_out else [])]
    rows = [(*_name(one), *_quality_figures(one, left_out, has_constant)) for one in groups]
    return _table(f"{title}: 90 % intervals, repeats{', one-constant baseline' * has_constant}", heads, rows, 3)


def _quality_figures(one: Figures, left_out: bool, has_constant: bool) -> tuple[str, ...]:
    figures = [percent(one.plain.inside), percent(one.plain.half_width)]
    if left_out:
        figures += (
            ["-", "-"] if one.left_out is None else [percent(one.left_out.inside), percent(one.left_out.half_width)]
        )
    figures += ["-", "-"] if one.repeats is None else [f"{one.repeats.rows}", percent(one.repeats.mean)]
    if has_constant:
        figures += ["-", "-"] if one.constant is None else [percent(one.constant.mean), percent(one.constant.median)]
        figures += [percent(one.skill), *([percent(one.left_out_skill)] if left_out else [])]
    return tuple(figures)


def _fits(report: Report) -> Table:
    rows = [
        (name, f"{one.out_of_memory}", f"{one.caught}", f"{one.ran}", f"{one.false_alarms}")
        for name, one in report.fits.items()
    ]
    return _table("Fits", ("source", "out of memory", "caught", "ran", "false alarms"), rows, 1)


def _choices(report: Report) -> Table:
    heads = ("source", "groups", "of 4+", "mean\nregret", "worst\nregret", "simple\nmean", "simple\nworst", "noise",
             "pairs", "in order", "simple\nin order")  # fmt: skip
    rows = [
        (one.source, f"{one.groups}", f"{one.large}", percent(one.mean), percent(one.worst), percent(one.simple_mean),
         percent(one.simple_worst), percent(one.noise), f"{one.pairs}", percent(one.in_order),
         percent(one.simple_in_order))
        for one in report.choices
    ]  # fmt: skip
    return _table("Choosing a layout (simple: least tp x pp, then the largest micro-batch)", heads, rows, 1)


def _effects(report: Report) -> Table:
    rows = [(one.source, one.what, f"{one.pairs}", f"{one.right_sign}", percent(one.size)) for one in report.effects]
    return _table("Effects", ("source", "of", "pairs", "right sign", "part predicted"), rows, 2)


def _refused(report: Report) -> Table:
    rows = [(reason, f"{count}") for reason, count in list(report.refused.items())[:REASONS]]
    if len(report.refused) > REASONS:
        rest = list(report.refused.values())[REASONS:]
        rows.append((f"{len(rest)} other reasons", f"{sum(rest)}"))
    return _table("Not predicted", ("reason", "lines"), rows, 1)


def _worst(report: Report) -> Table:
    rows = [
        (one["id"], one["model"], one["accelerator"], one["layout"],
         f"{one['measured']:.4g} {UNITS[one['quantity']]}", f"{one['predicted']:.4g}", f"{100 * one['error']:+.1f}")
        for one in report.worst
    ]  # fmt: skip
    return _table("Worst rows", ("id", "model", "accelerator", "layout", "measured", "predicted", "error"), rows, 4)
