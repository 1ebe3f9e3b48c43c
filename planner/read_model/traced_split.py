"""What tensor and expert parallelism divide in a piece of a trace.

A product is split by columns if everything made of its output ends in other products of the piece, and no norm or
softmax between needs the whole width at once; these others are then split by rows, and give whole hidden states
again. Products with one weight per group of tokens are experts; a product as wide as there are experts routes to
them. All else is whole on every rank: convolutions, low-rank projections behind a norm, scans.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from planner.read_model.traced import Op, Trace
from planner.read_model.traced_attention import operands

Role = Literal["column", "row", "whole", "router", "expert"]
State = Literal["stream", "inner", "whole", "experts", "routed"]
GATHERS = {"index", "index_select", "gather"}
SUMS = {"sum", "index_add", "index_add_", "scatter_add", "scatter_add_", "index_put", "index_put_"}


@dataclass
class Split:
    """Roles of products by operator, states of tensors by root, and how often hidden states are gathered.

    ``free`` are tensors made of parameters alone (gathered biases), which are divided as what they meet.
    """

    roles: dict[int, Role] = field(default_factory=dict)
    states: dict[int, State] = field(default_factory=dict)
    columns_of: dict[int, set[int]] = field(default_factory=dict)
    free: set[int] = field(default_factory=set)
    boundaries: int = 0
    experts: int = 0
    top_k: int = 0

    def state(self, root: int) -> State:
        """The state of a tensor; what comes from outside is a hidden state."""
        return self.states.get(root, "stream")


def split_of(trace: Trace, ops: list[Op], outside: set[int]) -> Split:
    """The split of ``ops``, of which the tensors with roots in ``outside`` are read elsewhere too."""
    split = Split()
    live = [op for op in ops if op.needs or op.product]
    split.experts = max((op.product.groups for op in live if op.product), default=1)
    split.experts = split.experts if split.experts > 1 else 0
    for at, op in enumerate(live):
        if op.product is not None and op.product.weight and op.index not in split.roles:
            _role(trace, split, live, at, outside)
    _check_rows(trace, split, live)
    for op in live:
        _state(trace, split, op)
    split.boundaries = _boundaries(trace, split, live)
    return split


def _role(trace: Trace, split: Split, live: list[Op], at: int, outside: set[int]) -> None:
    op = live[at]
    if op.product.groups > 1:
        split.roles[op.index] = "expert"
    elif split.experts and op.product.n == split.experts:
        split.roles[op.index] = "router"
    elif op.product.convolution:
        split.roles[op.index] = "whole"
    else:
        rows = _rows_behind(trace, live, at, outside)
        split.roles[op.index] = "column" if rows else "whole"
        for row in rows or ():
            split.roles[row] = "row"
            split.columns_of.setdefault(row, set()).add(op.index)


def _check_rows(trace: Trace, split: Split, live: list[Op]) -> None:
    """Make rows whole, and the columns before them, where some of what they read comes from a product that is whole.

    What is repeated for every head may: each rank has all of it.
    """
    made_by: dict[int, set[int]] = {}
    values = trace.values
    for op in live:
        read = [v for v in op.inputs if values[v].needs and values[v].elements >= math.prod(values[v].shape)]
        found = set().union(*(made_by.get(values[v].place[0], set()) for v in read)) if read else set()
        weighty = op.product is not None and op.product.weight
        if split.roles.get(op.index) == "row" and any(split.roles.get(i) != "column" for i in found):
            for other in {op.index, *split.columns_of.get(op.index, ())}:
                split.roles[other] = "whole"
        for v in op.outputs:
            made_by[values[v].place[0]] = {op.index} if weighty else found


def _rows_behind(trace: Trace, live: list[Op], at: int, outside: set[int]) -> set[int] | None:
    """The products that end everything made of a product's output; ``None`` where something does not end there."""
    first = live[at]
    root = lambda v: trace.values[v].place[0]  # noqa: E731
    tainted, rows = {root(v) for v in first.outputs}, set()
    per_row = first.product.m * first.product.count
    for op in live[at + 1 :]:
        read = [v for v in op.inputs if root(v) in tainted]
        if not read:
            continue
        if op.product is not None:
            if op.product.weight is None or op.product.convolution or op.product.groups > 1:
                return None
            rows.add(op.index)
            continue
        if op.reduced and any(trace.values[v].elements / per_row <= op.reduced for v in read):
            return None
        tainted.update(root(v) for v in op.outputs)
    return rows if rows and not tainted & outside else None


def _state(trace: Trace, split: Split, op: Op) -> None:
    """The states of what an operator makes."""
    values = trace.values
    data = [values[v].place[0] for v in op.inputs if values[v].needs and values[v].parameter is None]
    read = [split.state(root) for root in data if root not in split.free]
    mine = None if not read and op.product is None and op.attending is None else _made(split, op, read)
    for root in data if mine is not None else ():
        if root in split.free:
            split.states[root] = "experts" if mine == "routed" and "experts" in read else mine
            split.free.discard(root)
    for value in op.outputs:
        root = values[value].place[0]
        if root in split.states or values[root].producer != op.index:
            continue
        if mine is None and values[root].needs:
            split.free.add(root)
        elif mine is not None:
            split.states[root] = mine


def _made(split: Split, op: Op, read: list[State]) -> State:
    role = split.roles.get(op.index)
    if role == "expert":
        return "routed" if "experts" in read else "experts"
    if role is not None:
        return {"column": "inner", "row": "stream", "router": "stream", "whole": "whole"}[role]
    if split.experts and op.name in GATHERS and "stream" in read:
        return "routed"
    if "routed" in read:
        return "stream" if op.name in SUMS else "routed"
    for state in ("experts", "inner"):
        if state in read:
            return state
    return "whole" if read and all(state == "whole" for state in read) else "stream"


def _boundaries(trace: Trace, split: Split, live: list[Op]) -> int:
    """Times that hidden states are gathered and scattered again: the fewer of both; once where all is whole."""
    root = lambda v: trace.values[v].place[0]  # noqa: E731
    columns = [op for op in live if split.roles.get(op.index) in ("column", "whole")]
    read = {root(operands(op)[0]) for op in columns if split.state(root(operands(op)[0])) == "stream"}
    rows = {root(v): root(v) for op in live if split.roles.get(op.index) == "row" for v in op.outputs}
    for op in live:
        both = [root(v) for v in op.inputs if root(v) in rows]
        if op.kind == "linear" and len(both) > 1:
            for other in both[1:]:
                rows[other] = rows[both[0]]
    closings = len(set(rows.values()))
    return min(len(read), closings) if closings else min(len(read), 1)
