"""Experts written as a list of modules: products that each run on the rows that chose them, marked as one group."""

from __future__ import annotations

import dataclasses

from planner.read_model.traced import Call, Trace

CHOOSES = ("index", "index_select", "gather", "masked_select")


def mark_experts(trace: Trace) -> None:
    """Give the products of every list of experts the number of them, and the list's name as their group."""
    calls: dict[str, list[Call]] = {}
    for call in trace.calls:
        calls.setdefault(call.path, []).append(call)
    for container in trace.containers:
        children = [path for path in trace.children[container] if path in calls]
        if len(children) > 1 and _are_experts(trace, children, calls):
            for child in children:
                _mark(trace, container, len(children), calls[child][0])


def _are_experts(trace: Trace, children: list[str], calls: dict[str, list[Call]]) -> bool:
    """Whether modules are of one class and read rows that were picked from one tensor."""
    if len({trace.classes[child] for child in children}) > 1 or any(len(calls[child]) > 1 for child in children):
        return False
    sources = {_picked_from(trace, calls[child][0]) for child in children}
    return len(sources) == 1 and None not in sources


def _picked_from(trace: Trace, call: Call) -> int | None:
    """The tensor whose rows go into a call, ``None`` where they are all of a tensor."""
    for value in call.inputs:
        it = trace.values[value]
        root = trace.values[it.place[0]]
        if it.needs and root.producer is not None and trace.ops[root.producer].name in CHOOSES:
            return trace.values[trace.ops[root.producer].inputs[0]].place[0]
    return None


def _mark(trace: Trace, container: str, count: int, call: Call) -> None:
    for op in trace.ops[call.first : call.last]:
        if op.product is not None and op.product.weight is not None:
            op.product = dataclasses.replace(op.product, groups=count)
            op.experts = container
