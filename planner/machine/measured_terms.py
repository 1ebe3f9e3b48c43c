"""What ranks saw of a step, joined: seconds by term, waits told from transfers, and a trace of both timelines.

A collective starts to move data when the last of its members has joined it. What a rank is held up before that is
waiting for others (``waits``), the rest is communication of its axis. Over several hosts this is as good as their
clocks.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

Span = dict[str, Any]
AXES = {"tp": "tensor parallel", "cp": "context parallel", "ep": "expert parallel", "dp": "data parallel"}
PREDICTED, MEASURED = 1, 2
"""Processes of the trace."""


def measured_terms(ranks: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Seconds by term of every rank's observed step, in the order of ``ranks``; they sum to the step's."""
    last = last_joined(ranks)
    return [_terms(rank["spans"], last) for rank in ranks]


def last_joined(ranks: Sequence[dict[str, Any]]) -> dict[tuple, int]:
    """When the last member joined each collective, by its group and number."""
    found: dict[tuple, int] = defaultdict(int)
    for span in _all(ranks, "collective"):
        if span["group"]:
            key = (tuple(span["group"]), span["number"])
            found[key] = max(found[key], span["issued_ns"])
    return found


def _all(ranks: Sequence[dict[str, Any]], kind: str) -> Iterator[Span]:
    for rank in ranks:
        yield from (span for span in rank["spans"] if span["kind"] == kind)


def _terms(spans: Sequence[Span], last: dict[tuple, int]) -> dict[str, float]:
    step = next(span for span in spans if span["kind"] == "step")
    talk = [span for span in spans if span["kind"] == "collective"]
    passes = _outermost([span for span in spans if span["kind"] in ("forward", "backward")])
    found: dict[str, float] = defaultdict(float)
    for span in talk:
        waited = _waited_s(span, last)
        found["waits"] += waited
        found[AXES.get(span["axis"], "other collectives")] += _length_s(span) - waited
    for span in passes:
        inside = sum(_length_s(one) for one in talk if _within(one, span))
        found[span["kind"]] += _length_s(span) - inside
    found["optimizer"] = sum(_length_s(span) for span in spans if span["kind"] == "optimizer")
    found["pipeline"] = sum(_length_s(span) for span in spans if span["kind"] == "pipeline")
    found["loss and the rest"] = _length_s(step) - sum(found.values())
    return dict(found)


def _outermost(spans: Sequence[Span]) -> list[Span]:
    """Those that lie in no other: a stage's backward pass calls torch's."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: (span["start_ns"], -span["end_ns"])):
        if not found or span["start_ns"] >= found[-1]["end_ns"]:
            found.append(span)
    return found


def _within(inner: Span, outer: Span) -> bool:
    return outer["start_ns"] <= inner["start_ns"] and inner["end_ns"] <= outer["end_ns"]


def _length_s(span: Span) -> float:
    return (span["end_ns"] - span["start_ns"]) * 1e-9


def _waited_s(span: Span, last: dict[tuple, int]) -> float:
    joined = last.get((tuple(span["group"]), span["number"]), 0)
    return min(max(joined - span["start_ns"], 0) * 1e-9, _length_s(span))


def step_times(ranks: Sequence[dict[str, Any]]) -> list[float]:
    """Seconds of every timed step: the slowest rank's."""
    return [max(seconds) for seconds in zip(*(rank["step_s"] for rank in ranks), strict=True)]


def spread(seconds: Sequence[float]) -> float:
    """Largest less smallest over the median."""
    return (max(seconds) - min(seconds)) / statistics.median(seconds)


def trace(ranks: Sequence[dict[str, Any]], pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Both timelines as Chrome's trace format: rows are ranks, times microseconds since the step began.

    ``pieces`` are the predicted passes by pipeline rank (:meth:`planner.plots.Plots.timeline_data`).
    Source: Trace Event Format, "Complete Events" and "Metadata Events".
    """
    began = min(span["start_ns"] for span in _all(ranks, "step"))
    events = [_named("process_name", pid, 0, name) for pid, name in ((MEASURED, "measured"), (PREDICTED, "predicted"))]
    for rank in ranks:
        label = f"rank {rank['rank']} (pipeline rank {rank['pipeline_rank']})"
        events += [_named("thread_name", pid, rank["rank"], label) for pid in (MEASURED, PREDICTED)]
        events += [_measured_event(span, rank["rank"], began) for span in rank["spans"]]
        mine = (piece for piece in pieces if piece["rank"] == rank["pipeline_rank"])
        events += [_predicted_event(piece, rank["rank"]) for piece in mine]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _named(what: str, process: int, row: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": row, "args": {"name": name}}


def _measured_event(span: Span, rank: int, began: int) -> dict[str, Any]:
    extra = {"axis": span["axis"], "bytes": span["size_bytes"]} if span["kind"] == "collective" else {}
    return {
        "ph": "X", "name": span["name"], "cat": span["kind"], "pid": MEASURED, "tid": rank,
        "ts": (span["start_ns"] - began) / 1e3, "dur": (span["end_ns"] - span["start_ns"]) / 1e3, "args": extra,
    }  # fmt: skip


def _predicted_event(piece: dict[str, Any], rank: int) -> dict[str, Any]:
    extra = {key: piece[key] for key in ("virtual_stage", "micro_batch") if piece[key] is not None}
    return {
        "ph": "X", "name": piece["pass"], "cat": "predicted", "pid": PREDICTED, "tid": rank,
        "ts": piece["start_s"] * 1e6, "dur": (piece["end_s"] - piece["start_s"]) * 1e6, "args": extra,
    }  # fmt: skip
