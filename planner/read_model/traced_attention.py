"""Attention written by hand, found in a trace: two products without weights and a softmax between them."""

from __future__ import annotations

from planner.read_model.traced import Attending, Op, Trace

FURTHEST = 40
"""Operators that may lie between the scores and the weighted sum."""


def fuse_attention(trace: Trace) -> None:
    """Replace every hand-written attention in ``trace`` by one operator, as fused kernels would run it."""
    readers = _readers(trace)
    gone: set[int] = set()
    for op in trace.ops:
        if op.product is None or op.product.weight or not op.needs or op.index in gone:
            continue
        found = _between(trace, op, readers)
        if found is None:
            continue
        softmax, last = found
        between = _inside(trace, op, last)
        _fuse(trace, op, softmax, last, between)
        gone.update(between | {op.index})
    for index in gone:
        it = trace.ops[index]
        it.kind, it.product, it.needs, it.inputs, it.flop, it.backward_flop = "constant", None, False, (), 0.0, 0.0


def _readers(trace: Trace) -> dict[int, list[int]]:
    """The operators that read a tensor, by its root."""
    found: dict[int, list[int]] = {}
    for op in trace.ops:
        for value in op.inputs:
            found.setdefault(trace.values[value].place[0], []).append(op.index)
    return found


def _between(trace: Trace, first: Op, readers: dict[int, list[int]]) -> tuple[Op, Op] | None:
    """The softmax and the second product that scores lead to, if they lead there and nowhere else."""
    frontier, softmax = {trace.values[v].place[0] for v in first.outputs}, None
    seen: set[int] = set()
    for op in trace.ops[first.index + 1 : first.index + FURTHEST]:
        if not any(trace.values[v].place[0] in frontier for v in op.inputs):
            continue
        if op.product is not None:
            return (softmax, op) if softmax is not None and not op.product.weight else None
        if op.name in ("_softmax", "_safe_softmax"):
            softmax = op
        seen.add(op.index)
        frontier.update(trace.values[v].place[0] for v in op.outputs)
    return None


def _inside(trace: Trace, first: Op, last: Op) -> set[int]:
    """Operators between the two products that work on the scores."""
    reached, found = {trace.values[v].place[0] for v in first.outputs}, set()
    for op in trace.ops[first.index + 1 : last.index]:
        if op.product is None and any(trace.values[v].place[0] in reached for v in op.inputs):
            found.add(op.index)
            reached.update(trace.values[v].place[0] for v in op.outputs)
    return found


def operands(op: Op) -> tuple[int, int]:
    """The two values that a product multiplies."""
    at = 1 if op.name in ("addmm", "baddbmm", "addmv") else 0
    return op.inputs[at], op.inputs[at + 1]


def _fuse(trace: Trace, first: Op, softmax: Op, last: Op, between: set[int]) -> None:
    """Make ``last`` the whole attention."""
    query, key = operands(first)
    scores = {trace.values[v].place[0] for i in between for v in trace.ops[i].outputs}
    left, right = operands(last)
    value = right if trace.values[left].place[0] in scores else left
    sizes, hint, count = first.product, softmax.attending, first.product.count
    stored = trace.values[key]
    root = trace.values[stored.place[0]]
    batch = max(1, min(trace.batch, count))
    per_head = max(1, batch * sizes.n * sizes.k)
    heads = max(1, count // batch)
    kv_heads = max(1, min(heads, round(min(stored.elements, root.elements) / per_head)))
    v_dim = last.product.n if value == right else last.product.m
    last.attending = Attending(
        batch, heads, kv_heads, int(sizes.m), int(sizes.n), int(sizes.k), int(v_dim),
        hint.causal and sizes.m == sizes.n, hint.window,
    )  # fmt: skip
    extra = tuple(
        v for i in sorted(between) for v in trace.ops[i].inputs if trace.values[v].parameter is not None
    )  # fmt: skip
    last.inputs, last.kind, last.name, last.product = (query, key, value, *extra), "attention", "attention", None
    last.kept_bytes += first.kept_bytes + sum(trace.ops[i].kept_bytes for i in between)
    last.flop, last.backward_flop = last.attending.flop


def without_hints(trace: Trace) -> None:
    """Forget what was noted at softmaxes that are no attention."""
    for op in trace.ops:
        if op.attending is not None and not op.attending.heads:
            op.attending = None
